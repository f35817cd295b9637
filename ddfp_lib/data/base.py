"""What a data set is, and how image and mask files become tensors."""

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.stored import CONVERT, ORIENTATION, Colour, check_mask, stored_mode
from ddfp_lib.errors import UserError

MAX_PIXELS = 89_478_485
"""Larger files are refused undecoded: a small PNG can unpack to more memory than there is.

Here Pillow begins to warn: 256 MiB of RGB, 9,459 pixels square. Street scenes have 2 million, tiles
of aerial images 25 to 60 million.
"""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class SegmentationDataset(Protocol):
    """Images with one class per pixel.

    Image and mask are two calls, so that an unlabeled image needs no mask: none is opened, and
    none has to exist.

    Attributes:
        name: short name of the data set, e.g. ``"camvid"``.
        classes: the K class names, in the order of the mask values.
        palette: K colors (red, green, blue), each 0..255.
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

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image ``index``."""
        return tuple(self.image(index).shape[1:])

    def file_size(self, index: int) -> int:
        """Return the bytes of the file of image ``index``; 0 where images are made, not read."""
        return 0


class Part(SegmentationDataset):
    """Some images of a data set, in their own order.

    Args:
        dataset: N images.
        indices: indices of the images that are taken, each in 0..N-1.
    """

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        self.name, self.classes, self.palette = dataset.name, dataset.classes, dataset.palette
        self.names = [dataset.names[index] for index in indices]
        self._dataset, self._indices = dataset, list(indices)

    def image(self, index: int) -> Tensor:
        """Return image ``index``: uint8 (3, H, W)."""
        return self._dataset.image(self._indices[index])

    def mask(self, index: int) -> Tensor:
        """Return mask ``index``: uint8 (H, W)."""
        return self._dataset.mask(self._indices[index])

    def file_size(self, index: int) -> int:
        """Return the bytes of the file of image ``index``."""
        return self._dataset.file_size(self._indices[index])


def image_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Return (height, width) of an image file from its header, without decoding it.

    Args:
        path: path of the image file.
        upright: the size that :func:`read_image` returns for an upright picture.

    Raises:
        UserError: no such file; not an image of 8 bits; more than ``MAX_PIXELS``.
    """
    with opened_image(path) as image:
        check_image(path, image)
        turned = upright and orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: Path, *, upright: bool = False) -> Tensor:
    """Decode an image file as RGB.

    Args:
        path: path of the image file.
        upright: turn the picture as its EXIF orientation says, as viewers do. Images that have
            masks are left as they are stored: so are their masks.

    Returns:
        uint8 (3, H, W).

    Raises:
        UserError: no such file; not an image of 8 bits; truncated; more than ``MAX_PIXELS``.
    """
    with opened_image(path) as image:
        check_image(path, image)
        pixels = np.array((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image.

    1 is upright, also where there is none; 5 to 8 are turned by 90 degrees.
    """
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def check_image(path: Path, image: Image.Image) -> None:
    """Refuse an opened image that has more than 8 bits per channel; it is not decoded."""
    stored = stored_mode(image)  # Pillow reads RGB of 16 bits without the lower 8
    if image.mode[0] in "IF" or ";16" in stored:
        raise UserError(f"{path}: more than 8 bits per channel ({stored}); save it as 8-bit")


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
        UserError: as :func:`read_image`; or the file cannot hold class indices (see
            :func:`check_mask`), has another size than ``size``, or a value that is not a class.
    """
    with opened_image(path) as image:
        check_mask(path, image)
        if size is not None:
            check_size(path, (image.height, image.width), size)
        mask = torch.from_numpy(np.array(image))
    mask[mask == void] = IGNORE_INDEX
    strange = mask[(mask >= classes) & (mask != IGNORE_INDEX)]
    if len(strange):
        raise UserError(not_a_class(path, strange[0].item(), classes))
    return mask


def check_size(path: Path, mask: tuple[int, int], image: tuple[int, int]) -> None:
    """Refuse a mask that is not as large as its image; sizes are (height, width)."""
    if mask != image:
        turned = (
            "; one of them is turned: turn it back. Images are read as they are stored, without "
            "their EXIF orientation"
            if mask == image[::-1]
            else "; resize the mask, to the nearest pixel"
        )
        raise UserError(
            f"{path}: the mask has {mask[0]} x {mask[1]} pixels (height x width), its image "
            f"{image[0]} x {image[1]}{turned}"
        )


def not_a_class(path: Path, value: int, classes: int) -> str:
    """Return the message for a mask value that is not a class."""
    return (
        f"{path}: mask value {value} is no class (0..{classes - 1}, or {IGNORE_INDEX} for ignored "
        "pixels); fix the mask or the list of classes, or give the values other numbers with "
        f"'{CONVERT} --table'"
    )


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a mask (H, W) to ``size`` (h, w), each pixel the nearest by its center.

    torchvision's own rule for masks, ``NEAREST``, goes by the upper left corner: half a pixel off
    from the resized image.
    """
    rule = InterpolationMode.NEAREST_EXACT
    return functional.resize(mask[None], list(size), interpolation=rule)[0]


def is_image_name(path: Path) -> bool:
    """Return whether a file's name is that of an image; hidden files (``._x.jpg``) are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by their names without suffix, in order of names.

    Raises:
        UserError: no such folder, or two image files of one name.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: no such folder; check the root of the data") from error
    files: dict[str, Path] = {}
    for path in paths:
        if is_image_name(path):
            if path.stem in files:
                raise UserError(
                    f"{folder}: {files[path.stem].name} and {path.name} are both image "
                    f"{path.stem!r}; keep one (masks belong in a folder of their own)"
                )
            files[path.stem] = path
    return files


def file_like(folder: Path, name: str) -> str:
    """Return what to look at where ``folder`` has no image ``name``, to end a message with.

    The kinds of file that are read, and the file that was probably meant.
    """
    kinds = f"images are {', '.join(IMAGE_SUFFIXES[:-1])} or {IMAGE_SUFFIXES[-1]}"
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    near = next((other for other in others if Path(other).stem == name), None)
    near = near or next((o for o in others if Path(o).stem.lower() == name.lower()), None)
    below = [path for path in folder.rglob("*") if path.stem == name] if near is None else []
    if below:
        return f"{kinds}; {below[0]} is in a subfolder: subfolders of {folder.name} are ignored"
    near = near or next(iter(difflib.get_close_matches(name, others, n=1, cutoff=0.6)), None)
    return f"{kinds}; the folder has {near}" if near else kinds


def broken_link(path: Path) -> str:
    """Return that a file is a link to nothing, to put into a message, or ``""``."""
    if path.is_symlink() and not path.exists():
        return f"is a broken link: {path.readlink()} is missing"
    return ""


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
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
        raise UserError(
            f"{path}: {broken_link(path) or 'no such file'}; check the root and the list of names"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: has more pixels than twice the limit of {MAX_PIXELS}; cut it into tiles or "
            "scale it down"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a whole image ({error}); fetch or export it again") from error
