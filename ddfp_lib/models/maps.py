"""Feature maps and label maps: resize them, and store their pixels as rows."""

from collections.abc import Sequence

from torch import Tensor, nn


def resize_nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels (B, H, W) to (B, *size): each takes the upper left pixel of what it covers.

    That is how the release makes labels for features, in training: up to half a feature away from
    the feature's center. :func:`at_centres` is exact.
    """
    return _resized(labels, size, "nearest")


def at_centres(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels (B, H, W) to (B, *size): each takes the pixel at the center of what it covers.

    Measurements compare a feature's class with this one.
    """
    return _resized(labels, size, "nearest-exact")


def _resized(labels: Tensor, size: Sequence[int], mode: str) -> Tensor:
    # float32 holds every label value exactly
    maps = nn.functional.interpolate(labels[:, None].float(), size=tuple(size), mode=mode)
    return maps[:, 0].long()


def to_rows(features: Tensor) -> Tensor:
    """(B, D, *S) to (B * prod(S), D), pixels in reading order."""
    return features.movedim(1, -1).flatten(0, -2)


def resize(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps (B, C, h, w) bilinearly to (B, C, *size).

    Args:
        maps: float.
        size: height and width.
        align_corners: corner pixels are on corner pixels (the release). By default the borders of
            the maps do: then a pixel of a map covers a square of the image.
    """
    return nn.functional.interpolate(
        maps, size=tuple(size), mode="bilinear", align_corners=align_corners
    )
