"""Strong views of unlabeled images: color and blur, then CutMix."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddfp_lib.config import Config
from ddfp_lib.data.augment import cutmix_box, mix, strong_view
from ddfp_lib.ranks import first_of_next, rank, world_size


@dataclass(frozen=True)
class CutMix:
    """CutMix of one batch, for images, labels and masks alike.

    Attributes:
        boxes: True where image i takes its pixels from the next image: bool (H, W), one box for
            all images, or (U, H, W).
        shares: the next image of a share's last one is its first, with this many shares on this
            rank; 0: the batch of all ranks is one share.
    """

    boxes: Tensor
    shares: int = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """Mix this rank's share of a batch, (U, ..., H, W)."""
        if self.boxes.dim() == 2 and not self.shares:
            return mix_over_ranks(batch, self.boxes)
        if self.shares:
            nexts = batch.unflatten(0, (self.shares, -1)).roll(-1, dims=1).flatten(0, 1)
        else:
            nexts = torch.cat([batch[1:], first_of_next(batch)])
        between = [1] * (batch.dim() - 3)
        boxes = self.boxes.view(-1, *between, *self.boxes.shape[-2:])
        return torch.where(boxes, nexts, batch)


def mix_over_ranks(batch: Tensor, box: Tensor) -> Tensor:
    """Apply a CutMix box to the batch of all ranks: the last image meets the next rank's first.

    Args:
        batch: this rank's share, (B, ..., H, W), images, labels or masks alike.
        box: bool (H, W), the same on every rank.
    """
    return mix(torch.cat([batch, first_of_next(batch)]), box)[:-1]


def draw_cutmix(config: Config, images: Tensor, generator: torch.Generator) -> CutMix:
    """Draw the CutMix of one view of a batch.

    By default one coin and one box serve the whole batch. With ``method.shares`` each share has its
    own coin and box, with ``method.cutmix_box: image`` each image has its own box (the release,
    train_ddfp_pascal.py:387, dataset/transform.py:143-153).

    Args:
        config: configuration of the run.
        images: this rank's share, (U, ..., H, W).
        generator: on the CPU, equal on every rank: boxes of the whole batch are drawn.
    """
    method, augment = config.method, config.data.augment
    size, count = images.shape[-2:], len(images)
    if method.shares == 1 and method.cutmix_box == "batch":
        return CutMix(_on_device(cutmix_box(*size, augment, generator), images.device))
    always = dataclasses.replace(augment, cutmix_p=1.0)
    per_share = count * world_size() // method.shares
    boxes = []
    for _ in range(method.shares):
        coin = torch.rand((), generator=generator) < augment.cutmix_p
        drawn = per_share if method.cutmix_box == "image" else 1
        share = torch.stack([cutmix_box(*size, always, generator) for _ in range(drawn)])
        boxes.append((share & coin).expand(per_share, -1, -1))
    ours = torch.cat(boxes)[rank() * count :][:count]
    local = method.shares // world_size() if method.shares > 1 else 0
    return CutMix(_on_device(ours, images.device), local)


def strong_views(
    config: Config, weak: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, CutMix]]:
    """Yield the strong views of a batch, mixed, each with its CutMix for the pseudo-labels.

    Args:
        config: ``method.strong_views`` is their number.
        weak: this rank's weak views, (U, 3, H, W) float in [0, 1].
        generator: on the CPU, equal on every rank: what other ranks draw is drawn and left out.
    """
    augment = config.data.augment
    for _ in range(config.method.strong_views):
        cutmix = draw_cutmix(config, weak, generator)
        _skip(rank() * len(weak), generator)
        yield cutmix(strong_view(weak, augment, generator)), cutmix
        _skip((world_size() - 1 - rank()) * len(weak), generator)


def _on_device(boxes: Tensor, device: torch.device) -> Tensor:
    """Move boxes, bool (..., H, W), to a device without a wait for it.

    A box is a product of rows and columns. Those take a kilobyte, and a GPU's driver takes up to
    64 KB of ordinary memory without waiting; all pixels of a 513 crop would be 257 KB. For areas
    of another shape this would be wrong: a test holds :func:`cutmix_box` to rectangles.
    """
    rows, columns = (boxes.any(dim).to(device, non_blocking=True) for dim in (-1, -2))
    return rows[..., :, None] & columns[..., None, :]


def _skip(images: int, generator: torch.Generator) -> None:
    """Draw what :func:`strong_view` draws for other ranks' images."""
    torch.rand(images, 8, generator=generator)
