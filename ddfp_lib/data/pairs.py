"""Data sets of image and mask files."""

import copy
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import (
    IMAGE_SUFFIXES,
    Colour,
    SegmentationDataset,
    image_size,
    read_image,
    read_mask,
    resize_mask,
)
from ddfp_lib.errors import UserError


class FilePairs(SegmentationDataset):
    """Image and mask files, read from disk at each call.

    Args:
        name: short name of the data set.
        classes: the K class names, in the order of the mask values.
        palette: K colors.
        images: path of each of the N images; its stem is the image's name.
        masks: N paths; a mask that is never asked for need not exist.
        void: a mask value that means "ignore", in addition to ``IGNORE_INDEX``.
        size: (height, width) to which images and masks are resized; None keeps each as it is.

    Attributes:
        image_paths: path of each image.
        mask_paths: path of each mask.
        stored_classes: number of classes in the mask files; :meth:`with_classes` may take fewer.
        stored_palette: their colors.
        void: see above.
        long_side: images with a longer side than this are shrunk to it; None keeps each as it is.
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
        self.palette = self.stored_palette = tuple(palette)
        self.names = [path.stem for path in images]
        self.image_paths, self.mask_paths = list(images), list(masks)
        self.stored_classes = len(self.classes)
        self.void, self.long_side = void, None
        self._size, self._table = size, None

    def with_classes(self, names: Sequence[str]) -> "FilePairs":
        """Return the same images with these classes alone; pixels of the others are ignored.

        Args:
            names: class names of this data set, in the order of the new indices.

        Raises:
            UserError: fewer than two names, one twice, or one that is not a class.
        """
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise UserError(
                f"data.classes: {unknown[0]!r} is not a class of this data set; it has "
                f"{', '.join(self.classes)}"
            )
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(
                f"data.classes: {', '.join(names) or 'no name'}: give at least two classes, each "
                "once"
            )
        chosen = copy.copy(self)
        places = [self.classes.index(name) for name in names]
        table = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX, dtype=torch.uint8)
        table[places] = torch.arange(len(places), dtype=torch.uint8)
        chosen._table = table if self._table is None else table[self._table.long()]
        chosen.classes = tuple(names)
        chosen.palette = tuple(self.palette[place] for place in places)
        return chosen

    def with_long_side(self, pixels: int) -> "FilePairs":
        """Return the same images, those with a longer side shrunk to ``pixels`` when read."""
        shrunk = copy.copy(self)
        shrunk.long_side = pixels
        return shrunk

    def only(self, indices: Sequence[int]) -> "FilePairs":
        """Return the data set of these images alone, in this order."""
        part = copy.copy(self)
        for name in ("names", "image_paths", "mask_paths"):
            values = getattr(self, name)
            setattr(part, name, [values[index] for index in indices])
        return part

    def is_named(self, named: str, read: Path) -> bool:
        """Return whether a path in a list means a file that is read, an image or a mask.

        Lists are written for other computers: folders above the last one count only if the named
        file is there. A name without a folder says nothing of the file.

        Args:
            named: the path in the list.
            read: path of the file.
        """
        path = PurePosixPath(named.replace("\\", "/"))
        parts = path.relative_to(path.anchor).parts
        if len(parts) == 1 or read.parts[-len(parts) :] == parts:
            return True
        places = [Path(path), *(above.joinpath(*parts) for above in list(read.parents)[:4])]
        there = [place for place in places if place.is_file()]
        if there and read.is_file():
            return any(place.samefile(read) for place in there)
        # one image in two formats is refused elsewhere
        name = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        return (path.parent.name, name) == (read.parent.name, read.stem)

    @property
    def resizes(self) -> bool:
        """Whether images may be read at another size than they are stored."""
        return self._size is not None or self.long_side is not None

    @property
    def table(self) -> Tensor:
        """Class of each value of the mask files: uint8 (256,), ``IGNORE_INDEX`` for ignored."""
        if self._table is None:
            table = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX, dtype=torch.uint8)
            table[: self.stored_classes] = torch.arange(self.stored_classes, dtype=torch.uint8)
        else:
            table = self._table.clone()
        table[self.void] = IGNORE_INDEX
        return table

    def image(self, index: int) -> Tensor:
        """Read image ``index``: uint8 (3, H, W), resized bilinearly with antialiasing."""
        return self.prepare(read_image(self.image_paths[index]))

    def prepare(self, image: Tensor) -> Tensor:
        """Resize any image, uint8 (3, H, W), as the images of this data set are."""
        return resize_image(image, self.size_for(image.shape[1:]))

    def size_for(self, stored: Sequence[int]) -> tuple[int, int]:
        """Return the (height, width) at which an image of size ``stored`` is used."""
        return used_size(stored, self._size, self.long_side)

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) at which image ``index`` is used; only its header is read."""
        return self.size_for(image_size(self.image_paths[index]))

    def has_mask(self, index: int) -> bool:
        """Return whether image ``index`` has a mask file; it is not opened."""
        return self.mask_paths[index].is_file()

    def mask(self, index: int) -> Tensor:
        """Read mask ``index``: uint8 (H, W), resized to the nearest pixel."""
        stored = image_size(self.image_paths[index])
        mask = read_mask(self.mask_paths[index], self.stored_classes, stored, self.void)
        if self._table is not None:
            mask = self._table[mask.long()]
        size = self.size_for(stored)
        return mask if tuple(mask.shape) == size else resize_mask(mask, size)

    def file_size(self, index: int) -> int:
        """Return the bytes of the file of image ``index``."""
        return self.image_paths[index].stat().st_size


def used_size(
    stored: Sequence[int], size: tuple[int, int] | None, long_side: int | None
) -> tuple[int, int]:
    r"""Return the (height, width) at which an image is used.

    With ``size`` it is that. Otherwise a longer side than L = ``long_side`` is shrunk to L, and the
    other one in proportion, rounded to the nearest pixel (halves to even), to at least 1:

    .. math:: h' = \max(1, \text{round}(h f)), \qquad w' = \max(1, \text{round}(w f)), \qquad
        f = \min(1, L / \max(h, w))

    Args:
        stored: (height, width) of the image, pixels.
        size: (height, width) of all images, pixels; None to keep what is stored.
        long_side: L, pixels; None for no limit.

    Returns:
        (height, width), pixels.
    """
    height, width = stored
    if size is not None:
        return tuple(size)
    if long_side is None or max(height, width) <= long_side:
        return height, width
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image, uint8 (3, H, W), to ``size`` (h, w), bilinearly with antialiasing."""
    if tuple(image.shape[1:]) == size:
        return image
    return functional.resize(image, size, antialias=True)
