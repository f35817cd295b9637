"""Data sets by name; each is imported only when it is opened."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddfp_lib.errors import UserError

if TYPE_CHECKING:
    from ddfp_lib.data.base import SegmentationDataset
    from ddfp_lib.data.digits import DigitScenesConfig

KNOWN = ("digits", "camvid", "voc", "cityscapes")
"""The names that :func:`open_dataset` takes."""


def open_dataset(
    name: str,
    subset: str,
    *,
    root: Path | str | None = None,
    digits: "DigitScenesConfig | None" = None,
    size: tuple[int, int] | None = None,
) -> "SegmentationDataset":
    """Open one subset of a data set.

    Args:
        name: one of :data:`KNOWN`.
        subset: ``"train"``, ``"val"`` or ``"test"``, or what else the data set calls its parts.
        root: folder of the files; digits need none.
        digits: how digit scenes are made; None for the defaults.
        size: (height, width) to which files are resized; None keeps what is stored. Digits have
            theirs in ``digits``.

    Raises:
        UserError: an unknown name or subset, or a data set of files without its folder.
    """
    if name not in KNOWN:
        raise UserError(f"data set {name!r} is unknown: use one of {', '.join(KNOWN)}")
    if name == "digits":
        from ddfp_lib.data.digits import DigitScenes

        return DigitScenes(digits, subset)
    if root is None:
        raise UserError(f"data set {name!r} needs the folder of its files: give root")
    if name == "camvid":
        from ddfp_lib.data.camvid import CamVid

        return CamVid(root, subset, size)
    if name == "cityscapes":
        from ddfp_lib.data.cityscapes import Cityscapes

        return Cityscapes(root, subset, size)
    from ddfp_lib.data.voc import Voc

    return Voc(root, subset, size=size)
