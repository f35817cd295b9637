"""Evaluation protocols: how a network predicts the classes of a whole image."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """A rule that turns images into class probabilities, named in every score it made.

    =============  ============================================================================
    name           what happens
    =============  ============================================================================
    ``whole``      the image as it is, in one piece
    ``slideN``     windows of N x N pixels, one every ``floor(2 N / 3)``, cut off at the right
                   and lower border; the softmax of overlapping windows is averaged. 801 is what
                   the release does on Cityscapes (train_ddfp_city.py, ``validate``)
    ``cropN``      the middle N x N pixels; smaller images are padded with black around. Pixels
                   outside count nowhere. 513 is what the release does on VOC, where no image is
                   larger (dataset/transform.py, ``crop_center``)
    =============  ============================================================================

    All at single scale, without flips.

    Args:
        kind: ``whole``, ``slide`` or ``crop``.
        size: N in pixels; 0 for ``whole``.
    """

    kind: str
    size: int = 0

    @classmethod
    def parse(cls, name: str) -> "Protocol":
        """Return the protocol of this name.

        Raises:
            UserError: there is no such protocol.
        """
        if name == "whole":
            return cls("whole")
        match = re.fullmatch(r"(slide|crop)([1-9]\d*)", name)
        if match is None or int(match[2]) < 2:
            raise UserError(
                f"data.protocol: {name!r} is unknown; give whole, or slideN or cropN with a size "
                "in pixels, such as slide801 or crop513"
            )
        return cls(match[1], int(match[2]))

    @property
    def name(self) -> str:
        """The name that :meth:`parse` reads."""
        return f"{self.kind}{self.size or ''}"

    def prepare(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels that are looked at and counted.

        Args:
            images: (B, 3, H, W) uint8.
            masks: (B, H, W) int64.

        Returns:
            As given; for ``cropN`` (B, 3, N, N) and (B, N, N), padding black and ignored.
        """
        if self.kind != "crop":
            return images, masks
        edges = self._edges(images.shape[2:])
        return nn.functional.pad(images, edges), nn.functional.pad(masks, edges, value=IGNORE_INDEX)

    def restore(self, labels: Tensor, size: Sequence[int]) -> Tensor:
        """Put labels where :meth:`prepare` took the pixels from.

        Args:
            labels: (B, h, w) integers, of prepared images.
            size: (H, W) of the images before.

        Returns:
            (B, H, W), ``IGNORE_INDEX`` where a crop did not look.
        """
        if self.kind != "crop":
            return labels
        back = [-edge for edge in self._edges(size)]
        return nn.functional.pad(labels, back, value=IGNORE_INDEX)

    def _edges(self, size: Sequence[int]) -> list[int]:
        """Return the padding of a crop: left, right, top, bottom; negative widths cut off."""
        edges = []
        for length in (size[1], size[0]):
            missing = self.size - length
            before = missing // 2 if missing > 0 else -(-missing // 2)
            edges += [before, missing - before]
        return edges

    def probabilities(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return the probability of each class at each pixel.

        Args:
            network: images (B, 3, h, w), float in [0, 1], to logits (B, K, h, w).
            images: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, K, H, W) float, summing to 1 over K.
        """
        if self.kind != "slide":
            return network(images).softmax(dim=1)
        height, width = images.shape[2:]
        summed: Tensor | None = None
        windows = torch.zeros(height, width, device=images.device)
        for top, bottom in self._windows(height):
            for left, right in self._windows(width):
                seen = network(images[..., top:bottom, left:right]).softmax(dim=1)
                if summed is None:
                    summed = seen.new_zeros(*seen.shape[:2], height, width)
                summed[..., top:bottom, left:right] += seen
                windows[top:bottom, left:right] += 1
        return summed / windows

    def _windows(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield (first, one past the last) pixel of each window along a side."""
        start = 0
        while start + self.size < length:
            yield start, start + self.size
            start += 2 * self.size // 3
        yield start, length
