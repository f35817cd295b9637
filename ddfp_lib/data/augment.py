"""The views of one image: weak (geometry only), strong (color and blur on top) and CutMix.

Every random number is drawn from a CPU generator that the caller gives, in a fixed order and
number, whatever the image and wherever it is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import resize_mask
from ddfp_lib.errors import UserError

LARGEST = 100
"""No image is enlarged or blurred by more: such a view would not fit into memory."""


@dataclass(frozen=True)
class AugmentConfig:
    """How views are made; the defaults are those of the method, the crop that of digit scenes.

    Attributes:
        crop: side, or (height, width), of every view, pixels.
        scale: least and greatest factor by which the weak view resizes an image.
        flip: mirror half of the weak views.
        jitter: greatest change of brightness, contrast, saturation (relative) and hue (turns).
        jitter_p: fraction of strong views with color jitter.
        gray_p: fraction of strong views without color.
        blur_p: fraction of strong views with Gaussian blur.
        blur_sigma: least and greatest standard deviation of the blur, pixels.
        cutmix_p: fraction of batches with CutMix.

    Raises:
        UserError: a value out of its range.
    """

    crop: int | tuple[int, int] = 64
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.25)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    cutmix_p: float = 0.5

    def __post_init__(self) -> None:
        for name in ("scale", "blur_sigma"):
            least, greatest = getattr(self, name)
            if not 0 < least <= greatest <= LARGEST:
                raise UserError(
                    f"augment: {name} {(least, greatest)}: use (least, greatest) above 0, at most "
                    f"{LARGEST}"
                )
        reach = math.ceil(3 * self.blur_sigma[1])  # blur mirrors so many pixels at the border
        rules = {
            f"crop {self.crop}: use more than the {reach} pixels that blur reaches": (
                min(self.size) > max(0, reach)
            ),
            f"jitter {self.jitter}: use four of 0 to 1, the last (hue) at most 0.5": (
                all(0 <= change <= 1 for change in self.jitter) and self.jitter[3] <= 0.5
            ),
        }
        for name in ("jitter_p", "gray_p", "blur_p", "cutmix_p"):
            rules[f"{name} {getattr(self, name)}: use 0 to 1"] = 0 <= getattr(self, name) <= 1
        for rule, holds in rules.items():
            if not holds:
                raise UserError(f"augment: {rule}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every view."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else tuple(self.crop)


def weak_view(
    image: Tensor, mask: Tensor | None, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Resize, pad below and right, crop and flip an image together with its mask.

    The long side becomes a whole number of pixels, uniform within ``config.scale`` times what it
    was. The image is resized bilinearly with antialiasing, the mask to the nearest pixel.

    Args:
        image: uint8 (3, H, W).
        mask: uint8 (H, W); None for an unlabeled image.
        config: crop, scale and flip are used.
        generator: on the CPU; four numbers are drawn.

    Returns:
        The view, uint8 (3, h, w), black in the padding; its mask, uint8 (h, w), ``IGNORE_INDEX``
        in the padding, and everywhere if the image has no mask; the valid area, bool (h, w),
        False in the padding. Void pixels of a mask are valid: they show something.
    """
    amount, down, right, mirror = torch.rand(4, generator=generator).tolist()
    height, width = image.shape[-2:]
    crop_height, crop_width = config.size
    long = max(height, width)
    # at least 2: PyTorch fails on antialiasing a whole image into one pixel
    least, greatest = (max(2, int(long * factor)) for factor in config.scale)
    factor = (least + int(amount * (greatest - least + 1))) / long
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    resized = functional.resize(image, size, antialias=True)
    valid = torch.ones_like(resized[:1])
    labels = valid * IGNORE_INDEX if mask is None else resize_mask(mask, size)[None]
    # As planes of one tensor, mask and valid area cannot fall out of step with the image.
    view = torch.cat([resized, labels, valid])
    missing = [max(0, crop_width - size[1]), max(0, crop_height - size[0])]
    if any(missing):
        view = functional.pad(view, [0, 0, *missing], fill=[0, 0, 0, IGNORE_INDEX, 0])
    top = int(down * (view.shape[1] - crop_height + 1))
    left = int(right * (view.shape[2] - crop_width + 1))
    view = functional.crop(view, top, left, crop_height, crop_width)
    if config.flip and mirror < 0.5:
        view = functional.horizontal_flip(view)
    return view[:3], view[3], view[4].bool()


def strong_view(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Change color and sharpness of each image, by its own draw; nothing moves.

    In this order: brightness, contrast, saturation and hue (together, with probability
    ``jitter_p``), grayscale, Gaussian blur.

    Args:
        images: float32 (B, 3, H, W) in 0..1, on any device.
        config: jitter, gray and blur are used.
        generator: on the CPU; eight numbers are drawn for each image.

    Returns:
        float32 (B, 3, H, W) in 0..1, on the same device.
    """
    draws = torch.rand(len(images), 8, generator=generator)
    chances = torch.tensor([config.jitter_p, config.gray_p, config.blur_p])
    switches = (draws[:, :3] < chances).tolist()
    changes = ((2 * draws[:, 3:7] - 1) * torch.tensor(config.jitter)).tolist()
    least, greatest = config.blur_sigma
    sigmas = (least + (greatest - least) * draws[:, 7]).tolist()
    views = []
    for image, (jitter, gray, blur), change, sigma in zip(
        images, switches, changes, sigmas, strict=True
    ):
        if jitter:
            brightness, contrast, saturation, hue = change
            image = functional.adjust_brightness(image, 1 + brightness)
            image = functional.adjust_contrast(image, 1 + contrast)
            image = functional.adjust_saturation(image, 1 + saturation)
            image = functional.adjust_hue(image, hue)
        if gray:
            image = functional.rgb_to_grayscale(image, num_output_channels=3)
        if blur:
            side = 2 * math.ceil(3 * sigma) + 1
            image = functional.gaussian_blur(image, [side, side], [sigma, sigma])
        views.append(image)
    return torch.stack(views).clamp(0, 1)  # blur's weights sum to 1 but for rounding


def cutmix_box(
    height: int, width: int, config: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """Draw the CutMix box of one batch: half of the area, any shape, with ``cutmix_p``.

    Args:
        height: H of the images, pixels.
        width: W of the images, pixels.
        config: ``cutmix_p`` is used.
        generator: on the CPU; four numbers are drawn.

    Returns:
        bool (H, W), on the CPU: True where image i takes its pixels from image i + 1; False
        everywhere in a batch without CutMix. The area is one rectangle:
        ``training/views.py`` moves its rows and columns to a GPU, not its pixels.
    """
    chance, shape, down, right = torch.rand(4, generator=generator).tolist()
    box = torch.zeros(height, width, dtype=torch.bool)
    if chance < config.cutmix_p:
        box_width = math.ceil(width / 2) + int(shape * (width // 2 + 1))
        box_height = round(height * width / 2 / box_width)
        top = int(down * (height - box_height + 1))
        left = int(right * (width - box_width + 1))
        box[top : top + box_height, left : left + box_width] = True
    return box


def mix(batch: Tensor, box: Tensor) -> Tensor:
    """Paste the box of image i + 1 into image i; the last image gets the box of the first.

    Args:
        batch: (B, ..., H, W), images, labels or masks alike.
        box: bool (H, W), of :func:`cutmix_box`.

    Returns:
        As ``batch``.
    """
    return torch.where(box.to(batch.device), batch.roll(-1, dims=0), batch)
