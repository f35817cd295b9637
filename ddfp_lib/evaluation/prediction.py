"""Segmenting pictures of one's own with a trained network."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ddfp_lib.data.base import read_image
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.runs.folder import Run


@torch.inference_mode()
def segment(network: SegmentationNetwork, image: Tensor, device: torch.device) -> Tensor:
    """Return the class of each pixel, (H, W) uint8, of one image (3, H, W) uint8."""
    with evaluating(network):
        logits = network(image[None].to(device) / 255)
    return logits[0].argmax(dim=0).to(torch.uint8).cpu()


def overlay(image: Tensor, labels: Tensor, palette: Sequence[Sequence[int]]) -> Tensor:
    """Tint an image by the colours of its classes.

    Args:
        image: (3, H, W) uint8.
        labels: (H, W) uint8; values beyond the palette stay untinted.
        palette: colour of each class, 0..255.

    Returns:
        (3, H, W) uint8, half image and half colour.
    """
    colours = torch.tensor(palette, dtype=torch.uint8)
    known = labels < len(colours)
    tint = colours[labels.where(known, torch.zeros_like(labels)).long()].permute(2, 0, 1)
    return torch.where(known, (image.int() + tint.int()) // 2, image.int()).to(torch.uint8)


def predict_files(
    network: SegmentationNetwork,
    run: Run,
    images: Sequence[Path],
    out: Path,
    *,
    device: torch.device,
    long_side: int | None = None,
) -> Iterator[Path]:
    """Segment picture files and write the results.

    For each picture ``NAME.png``, class indices with the palette, and ``NAME-overlay.png``.

    Args:
        network: teacher or student of ``run``.
        run: where the palette comes from.
        images: picture files; those that a camera has turned are seen upright.
        out: folder for the results.
        device: where ``network`` is.
        long_side: bring the longer side of each picture to this many pixels first.

    Yields:
        The path of each file as it is written.

    Raises:
        UserError: a picture cannot be read, two results would have the same name, one would take
            a picture's place, or ``out`` cannot be written.
    """
    suffixes = (".png", "-overlay.png")
    targets = {path: [Path(out) / f"{path.stem}{suffix}" for suffix in suffixes] for path in images}
    _refuse_overwriting(targets)
    if long_side is not None and long_side < 1:
        raise UserError(f"--long-side {long_side}: is no size; give pixels, as 512")
    for path in targets:
        image = read_image(path, upright=True)
        if long_side is not None:
            factor = long_side / max(image.shape[1:])
            size = [max(1, round(side * factor)) for side in image.shape[1:]]
            resized = nn.functional.interpolate(
                image[None].float(), size, mode="bilinear", antialias=True
            )
            image = resized[0].round().clamp(0, 255).to(torch.uint8)
        labels = segment(network, image, device)
        indices = Image.fromarray(labels.numpy(), mode="P")
        indices.putpalette(np.array(run.palette, dtype=np.uint8).tobytes())
        tinted = overlay(image, labels, run.palette).permute(1, 2, 0).numpy()
        for target, picture in zip(targets[path], (indices, Image.fromarray(tinted)), strict=True):
            write_atomically(target, lambda partial, p=picture: p.save(partial, format="PNG"))
            yield target


def _refuse_overwriting(targets: Mapping[Path, Sequence[Path]]) -> None:
    """Refuse results that would take the place of a picture, or of one another."""
    pictures = {path.resolve() for path in targets}
    taken: dict[Path, Path] = {}
    for path, results in targets.items():
        for target in results:
            if target.resolve() in pictures:
                raise UserError(
                    f"--out {target.parent}: {target.name} is one of the pictures; "
                    "choose another folder"
                )
            if target in taken:
                raise UserError(
                    f"{path}: its {target.name} is also {taken[target]}'s; "
                    "predict them into two folders"
                )
            taken[target] = path
