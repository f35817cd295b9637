"""Feature maps and label maps: other sizes, and pixels as rows."""

import torch
from torch import Tensor, nn


def resize_nearest(labels: Tensor, size: torch.Size) -> Tensor:
    """Resize labels (B, H, W) to (B, *size) without inventing values."""
    # float32 holds every label value exactly
    return nn.functional.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest")[
        :, 0
    ].long()


def to_rows(features: Tensor) -> Tensor:
    """(B, D, *S) to (B * prod(S), D), pixels in reading order."""
    return features.movedim(1, -1).flatten(0, -2)


def resize(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Resize logits (B, K, h, w) bilinearly to (B, K, *size)."""
    return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
