"""What a data set is, and how image and mask files become tensors."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.errors import UserError

MAX_PIXELS = 89_478_485
"""Larger files are refused undecoded: a small PNG can unpack to more memory than there is.

Here Pillow begins to warn: 256 MiB of RGB, 9,459 pixels square. Street scenes have 2 million, tiles
of aerial images 25 to 60 million.
"""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Colour = tuple[int, int, int]


class SegmentationDataset(Protocol):
    """Images with one class per pixel.

    Image and mask are two calls, so that an unlabeled image needs no mask: none is opened, and
    none has to exist.

    Attributes:
        name: short name of the data set, e.g. ``"camvid"``.
        classes: the K class names, in the order of the mask values.
        palette: K colours (red, green, blue), each 0..255.
        names: one name for each image, unique.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    names: list[str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def image(self, index: int) -> Tensor:
        """Return image ``index``: uint8 (3, H, W)."""
        ...

    def mask(self, index: int) -> Tensor:
        """Return mask ``index``: uint8 (H, W), values 0..K-1 or ``IGNORE_INDEX``."""
        ...

    def file_size(self, index: int) -> int:
        """Return the bytes of the file of image ``index``; 0 where images are made, not read."""
        return 0


class FilePairs(SegmentationDataset):
    """Image and mask files, read from disk at each call.

    Args:
        name: short name of the data set.
        classes: the K class names, in the order of the mask values.
        palette: K colours.
        images: path of each of the N images; its stem is the image's name.
        masks: N paths; a mask that is never asked for need not exist.
        void: a mask value that means "ignore", beside ``IGNORE_INDEX``.
        size: (height, width) to which images and masks are brought; None keeps each as it is.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        palette: Sequence[Colour],
        images: Sequence[Path],
        masks: Sequence[Path],
        *,
        void: int = IGNORE_INDEX,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.palette = tuple(palette)
        self.names = [path.stem for path in images]
        self._images, self._masks = list(images), list(masks)
        self._void, self._size = void, size

    def image(self, index: int) -> Tensor:
        """Read image ``index``: uint8 (3, H, W), resized bilinearly with antialiasing."""
        image = read_image(self._images[index])
        return F.resize(image, self._size, antialias=True) if self._size else image

    def has_mask(self, index: int) -> bool:
        """Return whether image ``index`` has a mask file; it is not opened."""
        return self._masks[index].is_file()

    def mask(self, index: int) -> Tensor:
        """Read mask ``index``: uint8 (H, W), resized to the nearest pixel."""
        stored = image_size(self._images[index])
        mask = read_mask(self._masks[index], len(self.classes), stored, self._void)
        return resize_mask(mask, self._size) if self._size else mask

    def file_size(self, index: int) -> int:
        """Return the bytes of the file of image ``index``."""
        return self._images[index].stat().st_size


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file from its header, without decoding it."""
    with _opened(path) as image:
        return image.height, image.width


def read_image(path: Path, *, upright: bool = False) -> Tensor:
    """Decode an image file as RGB.

    Args:
        path: of the image file.
        upright: turn the picture as its EXIF orientation says, as viewers do. Images that have
            masks are left as they are stored: so are their masks.

    Returns:
        uint8 (3, H, W).

    Raises:
        UserError: no such file; not an image of 8 bits; truncated; more than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        if image.mode[0] in "IF":
            raise UserError(f"{path}: more than 8 bits a channel ({image.mode}); save it as 8-bit")
        pixels = np.array((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_mask(
    path: Path, classes: int, size: tuple[int, int] | None = None, void: int = IGNORE_INDEX
) -> Tensor:
    """Decode a mask file, whose pixels are class indices: a palette or 8-bit gray PNG.

    Args:
        path: the mask file.
        classes: number of classes K.
        size: (height, width) of the image that the mask belongs to, where known.
        void: a value that is read as ``IGNORE_INDEX``.

    Returns:
        uint8 (H, W), values 0..K-1 or ``IGNORE_INDEX``.

    Raises:
        UserError: as :func:`read_image`; or colours instead of indices, another size than
            ``size``, or a value that is no class.
    """
    with _opened(path) as image:
        if image.mode not in ("P", "L"):
            raise UserError(
                f"{path}: a mask of mode {image.mode} does not hold class indices; "
                "save it as a palette or 8-bit gray PNG whose pixel values are the classes"
            )
        if size is not None and (image.height, image.width) != size:
            raise UserError(
                f"{path}: the mask has {image.height} x {image.width} pixels (height x width), "
                f"its image {size[0]} x {size[1]}; resize the mask, to the nearest pixel"
            )
        mask = torch.from_numpy(np.array(image))
    mask[mask == void] = IGNORE_INDEX
    strange = mask[(mask >= classes) & (mask != IGNORE_INDEX)]
    if len(strange):
        raise UserError(
            f"{path}: mask value {strange[0].item()} is no class (0..{classes - 1}, or "
            f"{IGNORE_INDEX} for ignored pixels); mend the mask or the list of classes"
        )
    return mask


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a mask (H, W) to ``size`` (h, w), each pixel the nearest by its centre.

    torchvision's own rule for masks, ``NEAREST``, goes by the upper left corner: half a pixel off
    from the image beside it.
    """
    return F.resize(mask[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0]


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by their names without suffix, in order of names.

    Raises:
        UserError: no such folder.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: no such folder; check the root of the data") from error
    return {path.stem: path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; what Pillow fails on, here or in the block, becomes a UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error, see below
            opened = Image.open(path)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width} x {image.height} pixels are more than the limit of "
                    f"{MAX_PIXELS}; cut it into tiles or scale it down"
                )
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the root and the list of names") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: has more pixels than twice the limit of {MAX_PIXELS}; cut it into tiles or "
            "scale it down"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a whole image ({error}); fetch or export it again") from error
