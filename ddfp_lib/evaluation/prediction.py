"""Segment pictures with a trained network in the same way as in evaluation, in small batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddfp_lib.data.base import (
    IMAGE_SUFFIXES,
    SegmentationDataset,
    image_size,
    is_image_name,
    opened_image,
    orientation,
    read_image,
    resize_mask,
)
from ddfp_lib.data.loaders import batches_of_one_size, read_ahead
from ddfp_lib.data.pairs import FilePairs, resize_image, used_size
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.data.voc import write_mask
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically
from ddfp_lib.models.inference import answering
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.runs.folder import Run

BATCH = 16
"""Images at a time, at most; the same in evaluation, so that both see the same batches."""

LEGEND = "legend.png"


def pixels_at_a_time(device: torch.device) -> int:
    """Return how many pixels are segmented at a time, except for a single image that has more.

    On a CPU 4 images of 192 x 256: larger maps do not stay in its caches.
    """
    return 200_000 if device.type == "cpu" else 2**20


def cut_to_memory(
    images: Tensor, masks: Tensor, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a batch into parts that fit the memory of a GPU, with gradients; on a CPU it stays whole.

    Args:
        images: (B, 3, H, W).
        masks: (B, H, W).
        device: device that computes.
    """
    count = len(images)
    if device.type != "cpu":
        # gradients take the memory of as many images again
        count = max(1, pixels_at_a_time(device) // 2 // masks[0].numel())
    yield from zip(images.split(count), masks.split(count), strict=True)


@torch.inference_mode()
def segment(network: SegmentationNetwork, image: Tensor, device: torch.device) -> Tensor:
    """Return the class of each pixel, (H, W) uint8, of one image (3, H, W) uint8."""
    with evaluating(network):
        logits = network(image[None].to(device) / 255)
    return logits[0].argmax(dim=0).to(torch.uint8).cpu()


def overlay(image: Tensor, labels: Tensor, palette: Sequence[Sequence[int]]) -> Tensor:
    """Tint an image by the colors of its classes.

    Args:
        image: (3, H, W) uint8.
        labels: (H, W) uint8; values beyond the palette stay untinted.
        palette: color of each class, 0..255.

    Returns:
        (3, H, W) uint8, half image and half color.
    """
    colours = torch.tensor(palette, dtype=torch.uint8)
    known = labels < len(colours)
    tint = colours[labels.where(known, torch.zeros_like(labels)).long()].permute(2, 0, 1)
    return torch.where(known, (image.int() + tint.int()) // 2, image.int()).to(torch.uint8)


def legend(classes: Sequence[str], palette: Sequence[Sequence[int]]) -> Image.Image:
    """Draw the color, index and name of each class, one below the other."""
    font, line = ImageFont.load_default(size=16), 24
    texts = [f"{index}  {name}" for index, name in enumerate(classes)]
    width = 40 + max(int(font.getlength(text)) for text in texts) + 8
    picture = Image.new("RGB", (width, line * len(texts) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for row, (text, colour) in enumerate(zip(texts, palette, strict=True)):
        top = 4 + line * row
        draw.rectangle((8, top + 3, 32, top + line - 4), fill=tuple(colour), outline="black")
        draw.text((40, top + line // 2), text, fill="black", font=font, anchor="lm")
    return picture


@dataclass(frozen=True)
class Pictures:
    """Pictures to segment.

    Attributes:
        names: names of the results, one for each picture.
        paths: paths of the files; None where a picture is made, not read.
        read: returns picture ``i``, uint8 (3, H, W), at full size.
        stored: returns its (H, W) without decoding it.
        use: (height, width) at which a picture of this (height, width) is segmented.
    """

    names: Sequence[str]
    paths: Sequence[Path | None]
    read: Callable[[int], Tensor]
    stored: Callable[[int], tuple[int, int]]
    use: Callable[[Sequence[int]], tuple[int, int]]

    @classmethod
    def of_files(cls, paths: Iterable[Path], run: Run, long_side: int | None = None) -> "Pictures":
        """Return picture files, seen upright and prepared as the run's configuration says.

        Args:
            paths: files, folders of image files, or patterns such as ``photos/*.jpg``.
            run: its ``data.size`` and ``data.long_side`` are followed.
            long_side: shrink pictures with a longer side to it instead, pixels.

        Raises:
            UserError: a folder or pattern without a picture, or ``long_side`` is not a size.
        """
        if long_side is not None and long_side < 1:
            raise UserError(f"--long-side {long_side}: is not a size; give pixels, such as 512")
        files = list(dict.fromkeys(file for path in paths for file in _expand(Path(path))))
        data = run.config.data
        size, limit = (data.size, data.long_side) if long_side is None else (None, long_side)
        return cls(
            names=[path.stem for path in files],
            paths=files,
            read=lambda index: read_image(files[index], upright=True),
            stored=lambda index: image_size(files[index], upright=True),
            use=lambda stored: used_size(stored, size, limit),
        )

    def turned(self) -> int:
        """Return how many picture files are stored turned; only headers are read.

        Raises:
            UserError: a picture cannot be read.
        """
        count = 0
        for path in self.paths:
            if path is not None:
                with opened_image(path) as image:
                    count += orientation(image) != 1
        return count

    @classmethod
    def of_dataset(cls, dataset: SegmentationDataset) -> "Pictures":
        """Return the images of a data set, as it stores and prepares them."""
        if isinstance(dataset, FilePairs):
            paths = dataset.image_paths
            return cls(
                names=dataset.names,
                paths=paths,
                read=lambda index: read_image(paths[index]),
                stored=lambda index: image_size(paths[index]),
                use=dataset.size_for,
            )
        return cls(dataset.names, [None] * len(dataset), dataset.image, dataset.shape, tuple)


@torch.inference_mode()
def segment_all(
    network: SegmentationNetwork, pictures: Pictures, *, device: torch.device, protocol: str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Segment pictures in the batches, and by the rules, of an evaluation.

    Args:
        network: student or teacher.
        pictures: to segment.
        device: device that ``network`` is on.
        protocol: see :class:`~ddfp_lib.data.protocol.Protocol`.

    Yields:
        Number of the picture, the picture, uint8 (3, H, W), and the class of each pixel, uint8
        (H, W); ``IGNORE_INDEX`` where the protocol does not look. Pictures of equal size follow one
        another.

    Raises:
        UserError: the protocol is unknown, or a picture cannot be read.
    """
    rule = Protocol.parse(protocol)

    def read(index: int) -> tuple[Tensor, Tensor]:
        picture = pictures.read(index)
        return picture, resize_image(picture, pictures.use(picture.shape[1:]))

    shapes = [pictures.use(pictures.stored(index)) for index in range(len(pictures.names))]
    batches = batches_of_one_size(shapes, BATCH, pixels_at_a_time(device))
    with answering(network) as answer:
        for batch, items in read_ahead(read, batches):
            images = torch.stack([image for _, image in items])
            prepared, _ = rule.prepare(images, torch.zeros_like(images[:, 0]))
            labels = rule.probabilities(answer, prepared.to(device) / 255).argmax(dim=1)
            labels = rule.restore(labels.cpu(), images.shape[2:]).to(torch.uint8)
            for index, (picture, _), found in zip(batch, items, labels, strict=True):
                size = picture.shape[1:]
                yield index, picture, found if found.shape == size else resize_mask(found, size)


def predict_files(
    network: SegmentationNetwork,
    run: Run,
    images: Sequence[Path] | Pictures,
    out: Path,
    *,
    device: torch.device,
    long_side: int | None = None,
    protocol: str | None = None,
) -> Iterator[Path]:
    """Segment pictures as the run's evaluation does, and write the results.

    For each picture ``NAME.png``, class indices with the palette, and ``NAME-overlay.png``, both of
    the picture's size; for all of them ``legend.png``.

    Args:
        network: teacher or student of ``run``.
        run: how images are prepared, and the classes with their colors.
        images: see :meth:`Pictures.of_files`.
        out: folder for the results.
        device: device that ``network`` is on.
        long_side: shrink pictures with a longer side to this before they are segmented, pixels;
            None does as the run does.
        protocol: another one than the run's.

    Yields:
        The path of each file as it is written.

    Raises:
        UserError: a picture cannot be read, two results would have the same name, one would take
            a picture's place, or ``out`` cannot be written.
    """
    if not isinstance(images, Pictures):
        images = Pictures.of_files(images, run, long_side)
    out = Path(out)
    _refuse_overwriting(images, out)
    protocol = protocol or run.config.data.protocol
    explained = False
    for index, picture, labels in segment_all(network, images, device=device, protocol=protocol):
        name = images.names[index]
        write_mask(out / f"{name}.png", labels, run.palette)
        yield out / f"{name}.png"
        tinted = overlay(picture, labels, run.palette).permute(1, 2, 0).numpy()
        _write(out / f"{name}-overlay.png", Image.fromarray(tinted))
        yield out / f"{name}-overlay.png"
        if not explained:
            explained = True
            _write(out / LEGEND, legend(run.classes, run.palette))
            yield out / LEGEND


predict = predict_files
"""The same function under the name of its command, ``ddfp predict``."""


def _write(path: Path, picture: Image.Image) -> None:
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"))


def _expand(path: Path) -> list[Path]:
    """Return the picture files that a path means: itself, those in a folder, or of a pattern."""
    kinds = ", ".join(IMAGE_SUFFIXES)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if is_image_name(p))
        if not found:
            raise UserError(f"{path}: the folder holds no picture ({kinds})")
        return found
    if not path.exists() and any(sign in str(path) for sign in "*?["):
        start = Path(path.anchor) if path.is_absolute() else Path()
        try:
            found = sorted(p for p in start.glob(str(path.relative_to(start))) if p.is_file())
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{path}: is not a file and not a pattern ({error})") from error
        if not found:
            raise UserError(f"{path}: no file matches this pattern")
        return found
    return [path]


def _refuse_overwriting(pictures: Pictures, out: Path) -> None:
    """Refuse results that would take the place of a picture, or of one another."""
    files = {path.resolve() for path in pictures.paths if path is not None}
    taken: dict[Path, object] = {out / LEGEND: "the legend"}
    if (out / LEGEND).resolve() in files:
        raise UserError(f"--out {out}: {LEGEND} is one of the pictures; choose another folder")
    for name, path in zip(pictures.names, pictures.paths, strict=True):
        for target in (out / f"{name}.png", out / f"{name}-overlay.png"):
            if target.resolve() in files:
                raise UserError(
                    f"--out {out}: {target.name} is one of the pictures; choose another folder"
                )
            if target in taken:
                raise UserError(
                    f"{path}: its {target.name} would also be that of {taken[target]}; predict "
                    "them into two folders"
                )
            taken[target] = path or name
