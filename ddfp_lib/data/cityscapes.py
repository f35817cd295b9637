"""Cityscapes as it is published: ``leftImg8bit`` and ``gtFine``, with one folder for each city.

```
root/leftImg8bit/SUBSET/CITY/NAME_leftImg8bit.png
root/gtFine/SUBSET/CITY/NAME_gtFine_labelIds.png        as published: 34 labels
root/gtFine/SUBSET/CITY/NAME_gtFine_labelTrainIds.png   what is read: 19 classes, 255 for void
```

``ddfp data prepare cityscapes`` makes the last of the three from the second.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import Colour, files_by_stem
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.errors import UserError

SUBSETS = ("train", "val")

LABEL_IDS = 34
"""Labels of the published masks; 15 of them count as void."""

SUFFIX = "_leftImg8bit"


class Class(NamedTuple):
    """One of the 19 classes; its place in :data:`CLASSES` is its trainId.

    Attributes:
        name: published name.
        label_id: value in the published masks.
        colour: published color.
    """

    name: str
    label_id: int
    colour: Colour


CLASSES = (
    Class("road", 7, (128, 64, 128)),
    Class("sidewalk", 8, (244, 35, 232)),
    Class("building", 11, (70, 70, 70)),
    Class("wall", 12, (102, 102, 156)),
    Class("fence", 13, (190, 153, 153)),
    Class("pole", 17, (153, 153, 153)),
    Class("traffic light", 19, (250, 170, 30)),
    Class("traffic sign", 20, (220, 220, 0)),
    Class("vegetation", 21, (107, 142, 35)),
    Class("terrain", 22, (152, 251, 152)),
    Class("sky", 23, (70, 130, 180)),
    Class("person", 24, (220, 20, 60)),
    Class("rider", 25, (255, 0, 0)),
    Class("car", 26, (0, 0, 142)),
    Class("truck", 27, (0, 0, 70)),
    Class("bus", 28, (0, 60, 100)),
    Class("train", 31, (0, 80, 100)),
    Class("motorcycle", 32, (0, 0, 230)),
    Class("bicycle", 33, (119, 11, 32)),
)
"""Table of github.com/mcordts/cityscapesScripts, cityscapesscripts/helpers/labels.py."""


class Cityscapes(FilePairs):
    """Street scenes of one subset: 2,975 train and 500 val images of 1024 x 2048 pixels.

    Args:
        root: folder that holds ``leftImg8bit`` and ``gtFine``.
        subset: ``"train"`` or ``"val"``; the labels of ``test`` are not public.
        size: (height, width) to resize to; None keeps the stored size.

    Raises:
        UserError: unknown subset, or its folder is not there or holds no image.
    """

    def __init__(self, root: Path | str, subset: str, size: tuple[int, int] | None = None) -> None:
        if subset not in SUBSETS:
            raise UserError(
                f"subset {subset!r} of cityscapes: use {' or '.join(SUBSETS)} (labels of test are "
                "not public: set data.test to val)"
            )
        images = list_images(root, subset)
        super().__init__(
            "cityscapes",
            [item.name for item in CLASSES],
            [item.colour for item in CLASSES],
            images,
            [mask_path(image, "labelTrainIds") for image in images],
            size=size,
        )

    def is_named(self, named: str, read: Path) -> bool:
        """Return whether a path in a list means a file that is read, or what it is made of.

        Published lists name ``labelIds`` too.
        """
        return super().is_named(named.replace("_labelIds.", "_labelTrainIds."), read)


def list_images(root: Path | str, subset: str) -> list[Path]:
    """Return the images of a subset, in order of city and name.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = Path(root) / "leftImg8bit" / subset
    try:
        cities = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{folder}: no such folder; check the root of the data") from error
    images = [path for city in cities for path in files_by_stem(city).values()]
    if not images:
        raise UserError(f"{folder}: holds no .png image in folders of cities; unpack it again")
    return images


def mask_path(image: Path, kind: str) -> Path:
    """Return the mask of an image.

    Args:
        image: ``root/leftImg8bit/SUBSET/CITY/NAME_leftImg8bit.png``.
        kind: ``labelIds`` or ``labelTrainIds``.
    """
    city, subset, root = image.parent.name, image.parents[1].name, image.parents[3]
    name = image.stem.removesuffix(SUFFIX)
    return root / "gtFine" / subset / city / f"{name}_gtFine_{kind}.png"


def to_train_ids(label_ids: Tensor) -> Tensor:
    """Map published labels to the 19 classes.

    Args:
        label_ids: uint8 (H, W), 0..33 or ``IGNORE_INDEX``.

    Returns:
        uint8 (H, W), 0..18, or ``IGNORE_INDEX`` where the label is void.
    """
    table = torch.full((256,), IGNORE_INDEX, dtype=torch.uint8)
    table[[item.label_id for item in CLASSES]] = torch.arange(len(CLASSES), dtype=torch.uint8)
    return table[label_ids.long()]
