"""Data sets by name; each is imported only when it is opened.

A data set of your own is a class outside this project, named ``package.module:Class``. It is a
:class:`~ddfp_lib.data.pairs.FilePairs` and says which files belong to a subset::

    class Leaves(FilePairs):
        def __init__(self, root, subset, size=None):
            images = sorted((Path(root) / subset).glob("*.jpg"))
            masks = [path.with_suffix(".png") for path in images]
            super().__init__("leaves", CLASSES, PALETTE, images, masks, size=size)

Inspection, classes, sizes and splits work as with the others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddfp_lib.errors import UserError
from ddfp_lib.imports import OWN, import_class

if TYPE_CHECKING:
    from ddfp_lib.data.base import SegmentationDataset
    from ddfp_lib.data.digits import DigitScenesConfig
    from ddfp_lib.data.pairs import FilePairs

KNOWN = ("digits", "camvid", "voc", "cityscapes")
"""The names that :func:`open_dataset` takes."""


def open_dataset(
    name: str,
    subset: str,
    *,
    root: Path | str | None = None,
    digits: "DigitScenesConfig | None" = None,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    long_side: int | None = None,
) -> "SegmentationDataset":
    """Open one subset of a data set.

    Args:
        name: one of :data:`KNOWN`, or ``package.module:Class``.
        subset: ``"train"``, ``"val"`` or ``"test"``, or another name that the data set has.
        root: folder of the files; digits need none.
        digits: how digit scenes are made; None for the defaults.
        size: (height, width) to which files are resized; None keeps what is stored. Digits have
            theirs in ``digits``.
        classes: names of the classes that are used, in the order of their indices; pixels of the
            others are ignored. None for all. Not for digits, which choose with ``digits``.
        long_side: images with a longer side than this are shrunk to it when read, pixels.

    Raises:
        UserError: an unknown name or subset, or a data set of files without its folder.
    """
    own = OWN.fullmatch(name)
    if name not in KNOWN and not own:
        raise UserError(f"data set {name!r} is unknown: use one of {', '.join(KNOWN)}")
    if name == "digits":
        from ddfp_lib.data.digits import DigitScenes

        if classes is not None or long_side is not None:
            raise UserError(
                "data.classes and data.long_side: are for data sets of files; digit scenes have "
                "data.digits.classes and data.digits.size"
            )
        return DigitScenes(digits, subset)
    if root is None:
        raise UserError(
            f"data set {name!r} needs the folder of its files: give its root, or --data DIR"
        )
    dataset: FilePairs
    if own:
        dataset = _own(name, root, subset, size)
    elif name == "camvid":
        from ddfp_lib.data.camvid import CamVid

        dataset = CamVid(root, subset, size)
    elif name == "cityscapes":
        from ddfp_lib.data.cityscapes import Cityscapes

        dataset = Cityscapes(root, subset, size)
    else:
        from ddfp_lib.data.voc import Voc

        dataset = Voc(root, subset, size=size)
    if classes is not None:
        dataset = dataset.with_classes(classes)
    return dataset if long_side is None else dataset.with_long_side(long_side)


def _own(name: str, root: Path | str, subset: str, size: tuple[int, int] | None) -> "FilePairs":
    from ddfp_lib.data.pairs import FilePairs

    found = import_class(name, "data.dataset")
    if not issubclass(found, FilePairs):
        raise UserError(
            f"data.dataset: {name}: is not a data set; derive it from FilePairs in "
            "ddfp_lib/data/pairs.py"
        )
    try:
        opened = found(root, subset, size=size)
    except TypeError as error:
        raise UserError(
            f"data.dataset: {name}: cannot be made ({error}); define "
            "__init__(self, root, subset, size=None)"
        ) from error
    if not len(opened):
        hint = "; or set data.test=val to end a run without one" if subset == "test" else ""
        raise UserError(
            f"{root}: {name} finds no image of the subset {subset!r}; check the folder and how "
            f"the class looks for files{hint}"
        )
    return opened
