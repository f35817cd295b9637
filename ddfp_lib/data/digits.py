"""Digit scenes: real handwriting on real photographs, from data that scikit-learn contains.

The task is small enough for a lesson on a CPU. It is a segmentation task all the same: objects of
several classes, sizes, angles and colors are pasted on photographs and partly hide one another.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.errors import UserError
from ddfp_lib.seeds import generator

SHARES = {"train": (0.0, 0.60), "val": (0.60, 0.75), "test": (0.75, 1.0)}
"""Which fraction of each class's digits, and of each photograph's columns, a subset uses."""

VISIBLE = 0.75
"""At least this fraction of a digit's ink stays uncovered by the digits written after it."""

TRIES = 20
"""A digit that would cover too much is drawn again; one that never fits is left out (in about 2 %
of the default scenes)."""

MAX_SIZE = 96
"""Columns of the narrowest piece of a photograph, 15 % of 640."""

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])

PALETTE = (  # background, then matplotlib's tab10
    (0, 0, 0),
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (127, 127, 127),
    (188, 189, 34),
    (23, 190, 207),
)


@dataclass(frozen=True)
class DigitScenesConfig:
    """How scenes are made.

    Attributes:
        size: height and width of a scene, pixels.
        classes: number of digits in use, 0..classes-1; with the background, K = classes + 1.
        digits: least and greatest number of digits in a scene.
        digit_size: least and greatest height of a digit, pixels.
        angle: a digit is rotated by at most this angle in either direction, degrees.
        train: number of training scenes.
        val: number of validation scenes.
        test: number of test scenes.
        border: width of the ignored ring around each digit, pixels.
        seed: seed of everything random.

    Raises:
        UserError: a value is out of its range.
    """

    size: int = 64
    classes: int = 5
    digits: tuple[int, int] = (2, 4)
    digit_size: tuple[int, int] = (22, 34)
    angle: float = 20.0
    train: int = 1200
    val: int = 200
    test: int = 400
    border: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            f"size {self.size}: use 16 to {MAX_SIZE} pixels": 16 <= self.size <= MAX_SIZE,
            f"classes {self.classes}: use 1 to 10 digits": 1 <= self.classes <= 10,
            f"digits {self.digits}: use (least, greatest) of 0 or more": (
                0 <= self.digits[0] <= self.digits[1]
            ),
            f"digit_size {self.digit_size}: use (least, greatest) of 8 to {self.size} pixels": (
                8 <= self.digit_size[0] <= self.digit_size[1] <= self.size
            ),
            f"train {self.train}, val {self.val}, test {self.test}: use 1 or more scenes": (
                min(self.train, self.val, self.test) >= 1
            ),
            f"border {self.border}: use 0 or more pixels": self.border >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise UserError(f"digits: {rule}")


class DigitScenes(SegmentationDataset):
    """Scenes of one subset, all made at construction and kept in memory.

    No two subsets share a handwritten digit or a column of a photograph: each class's digits, in
    the order of :func:`sklearn.datasets.load_digits`, and each photograph's columns are cut at
    60 % and 75 % (:data:`SHARES`).

    Mask values: 0 background, d + 1 digit d, ``IGNORE_INDEX`` the ring around a digit.

    Args:
        config: how scenes are made.
        subset: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        UserError: unknown subset.
    """

    name = "digits"

    def __init__(self, config: DigitScenesConfig | None = None, subset: str = "train") -> None:
        config = config or DigitScenesConfig()
        if subset not in SHARES:
            raise UserError(f"subset {subset!r} of digits: use one of {', '.join(SHARES)}")
        count = getattr(config, subset)
        self.subset = subset
        self.classes = ("background", *(str(digit) for digit in range(config.classes)))
        self.palette = PALETTE[: len(self.classes)]
        self.names = [f"{subset}_{index:05d}" for index in range(count)]
        rng = generator(config.seed, "digits", subset)
        ground = _backgrounds(photographs(subset), config.size, count, rng)
        self._images, self._masks = _write_digits(ground, handwriting(subset), config, rng)

    def image(self, index: int) -> Tensor:
        """Return scene ``index``: uint8 (3, size, size). A view: do not write to it."""
        return self._images[index]

    def mask(self, index: int) -> Tensor:
        """Return mask ``index``: uint8 (size, size). A view: do not write to it."""
        return self._masks[index]


def handwriting(subset: str) -> list[Tensor]:
    """Return the digits of a subset: for each class 0..9 its ink, float32 (N_class, 8, 8) in 0..1.

    Source: the UCI optical digits of :func:`sklearn.datasets.load_digits`.
    """
    ink, target = _digits()
    return [_share(ink[target == digit], subset) for digit in range(10)]


def photographs(subset: str) -> list[Tensor]:
    """Return the columns of scikit-learn's two photographs that belong to a subset.

    Returns:
        Two tensors, float32 (3, 427, W) in 0..1, W the subset's share of 640 columns.
    """
    return [_share(photo.permute(2, 0, 1), subset, dim=2) / 255 for photo in _photos()]


# Each run opens three subsets. scikit-learn would parse and decode its files for each of them.


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """Return all digits: ink, float32 (N, 8, 8) in 0..1, and classes, int64 (N,). Read-only."""
    from sklearn.datasets import load_digits  # seconds to import: not before it is needed

    data = load_digits()
    return torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)


@functools.cache
def _photos() -> tuple[Tensor, ...]:
    """Return both photographs, uint8 (427, 640, 3) each. Read-only."""
    from sklearn.datasets import load_sample_images

    return tuple(torch.from_numpy(np.array(photo)) for photo in load_sample_images().images)


def _share(items: Tensor, subset: str, dim: int = 0) -> Tensor:
    """Cut a subset's part out of ``items``, along ``dim``."""
    start, stop = (round(share * items.shape[dim]) for share in SHARES[subset])
    return items.narrow(dim, start, stop - start)


def _backgrounds(photos: list[Tensor], size: int, count: int, rng: torch.Generator) -> Tensor:
    """Cut random squares out of the photographs: float32 (count, 3, size, size) in 0..1."""

    def square() -> Tensor:
        photo = photos[torch.randint(len(photos), (), generator=rng)]
        top = torch.randint(photo.shape[1] - size + 1, (), generator=rng)
        left = torch.randint(photo.shape[2] - size + 1, (), generator=rng)
        return photo[:, top : top + size, left : left + size]

    return torch.stack([square() for _ in range(count)])


def _write_digits(
    scenes: Tensor, ink: list[Tensor], config: DigitScenesConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Write digits over ``scenes`` (N, 3, S, S), the n-th digit of all scenes at once.

    Returns:
        Images uint8 (N, 3, S, S) and masks uint8 (N, S, S).
    """
    count, _, size, _ = scenes.shape
    most = config.digits[1]
    wanted = torch.randint(config.digits[0], most + 1, (count,), generator=rng)
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    writer = torch.full((count, size, size), -1)  # which digit of its scene owns a pixel
    area = torch.zeros(count, most)  # pixels of each digit when it was written
    for turn in range(most):
        pending = (wanted > turn).nonzero()[:, 0]
        for _ in range(TRIES):
            if len(pending) == 0:
                break
            digit = torch.randint(config.classes, (len(pending),), generator=rng)
            alpha = _draw(ink, digit, config, rng)
            body = alpha > 0.5
            cover = _widen(body, config.border)
            remaining = writer[pending].masked_fill(cover, -1)
            visible = torch.stack([(remaining == n).sum((1, 2)) for n in range(most)], dim=1)
            fits = (visible >= VISIBLE * area[pending]).all(dim=1)

            chosen, alpha, body, cover = pending[fits], alpha[fits], body[fits], cover[fits]
            label = (digit[fits] + 1).to(torch.uint8)[:, None, None]
            colour = _colours(scenes[chosen], alpha, rng)
            scenes[chosen] = torch.lerp(scenes[chosen], colour, alpha[:, None])
            masks[chosen] = torch.where(body, label, masks[chosen].masked_fill(cover, IGNORE_INDEX))
            writer[chosen] = remaining[fits].masked_fill(body, turn)
            area[chosen, turn] = body.sum((1, 2)).float()
            pending = pending[~fits]
    return (scenes * 255).round().to(torch.uint8), masks


def _draw(
    ink: list[Tensor], digit: Tensor, config: DigitScenesConfig, rng: torch.Generator
) -> Tensor:
    """Draw one digit of each class in ``digit`` (N,) at a random place: opacity (N, S, S)."""

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(len(digit), generator=rng)

    picks = torch.rand(len(digit), generator=rng)
    glyphs = torch.stack(
        [ink[d][int(p * len(ink[d]))] for d, p in zip(digit.tolist(), picks.tolist(), strict=True)]
    )
    # The scene spans -1..1 each way, a digit 2 * half of it.
    half = uniform(*config.digit_size) / config.size
    x, y = uniform(half - 1, 1 - half), uniform(half - 1, 1 - half)
    turn = uniform(-math.radians(config.angle), math.radians(config.angle))
    cos, sin = turn.cos() / half, turn.sin() / half
    theta = torch.stack(
        [cos, sin, -(cos * x + sin * y), -sin, cos, sin * x - cos * y], dim=1
    ).reshape(-1, 2, 3)
    grid = nn.functional.affine_grid(
        theta, [len(digit), 1, config.size, config.size], align_corners=False
    )
    gray = nn.functional.grid_sample(glyphs[:, None], grid, mode="bicubic", align_corners=False)[
        :, 0
    ]
    # 8 x 8 gray levels make a blurred stroke: a steep ramp gives it an edge of about a pixel.
    return ((gray - 0.3) / 0.3).clamp(0, 1)


def _colours(scenes: Tensor, alpha: Tensor, rng: torch.Generator) -> Tensor:
    """Choose ink (N, 3, 1, 1) that stands out: brighter on dark ground, darker on bright.

    Luminance is 0.35 to 0.6 from the mean of the covered ground, less what clipping takes; hue is
    free, and says nothing about the class.
    """
    weight = alpha / alpha.sum((1, 2), keepdim=True)
    ground = (scenes * weight[:, None]).sum((2, 3)) @ LUMINANCE
    step = 0.35 + 0.25 * torch.rand(len(scenes), generator=rng)
    target = torch.where(ground < 0.5, ground + step, ground - step)
    colour = 0.7 * torch.rand(len(scenes), 3, generator=rng)
    colour = (colour + (target - colour @ LUMINANCE)[:, None]).clamp(0, 1)
    return colour[:, :, None, None]


def _widen(body: Tensor, width: int) -> Tensor:
    """Grow a region (N, H, W), bool, by ``width`` pixels in all eight directions."""
    return nn.functional.max_pool2d(body.float(), 2 * width + 1, stride=1, padding=width).bool()
