"""The VOCdevkit layout, read and written: PASCAL VOC, and anybody's own data.

```
root/JPEGImages/NAME.jpg                     images (or .png)
root/SegmentationClass/NAME.png              masks, palette or 8-bit gray; only of labeled images
root/ImageSets/Segmentation/SUBSET.txt       one name a line
root/classes.txt                             one class a line; PASCAL VOC's 21 where there is none
```
"""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import Colour, FilePairs, SegmentationDataset, files_by_stem
from ddfp_lib.data.splits import read_lines, read_names
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically, write_text

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip


class Voc(FilePairs):
    """One list of images in the VOCdevkit layout.

    Args:
        root: the folder that holds ``JPEGImages``, for PASCAL VOC ``VOCdevkit/VOC2012``.
        subset: name of a list in ``ImageSets/Segmentation``, or the path of a ``.txt`` list.
        masks: folder of the masks in ``root``; None takes ``SegmentationClassAug`` (the 10,582
            masks with those of SBD) where there is one, and else ``SegmentationClass``.
        size: (height, width) to resize to; None keeps each image as it is.

    Raises:
        UserError: a folder or list that is not there, or a name in the list without an image.
    """

    def __init__(
        self,
        root: Path | str,
        subset: str | Path,
        masks: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        root = Path(root)
        if not str(subset).endswith(".txt"):
            subset = root / "ImageSets" / "Segmentation" / f"{subset}.txt"
        files = files_by_stem(root / "JPEGImages")
        names = read_names(Path(subset))
        for name in names:
            if name not in files:
                raise UserError(f"{subset}: there is no image {name!r} in {root / 'JPEGImages'}")
        listed = root / "classes.txt"
        classes = read_lines(listed) if listed.exists() else CLASSES
        if masks is None:
            aug = "SegmentationClassAug"
            masks = aug if (root / aug).is_dir() else "SegmentationClass"
        super().__init__(
            "voc",
            classes,
            voc_palette(len(classes)),
            [files[name] for name in names],
            [root / masks / f"{name}.png" for name in names],
            size=size,
        )


def voc_palette(count: int) -> tuple[Colour, ...]:
    """Return the first ``count`` colours of the PASCAL VOC colour map.

    The bits of the class index are dealt in turn to red, green and blue, most significant colour
    bit first: neighbouring classes get distant colours.
    """

    def channel(index: int, offset: int) -> int:
        return sum((index >> (3 * bit + offset) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def write_voc(datasets: Mapping[str, SegmentationDataset], root: Path | str) -> None:
    """Write data sets in the VOCdevkit layout; :class:`Voc` reads the same tensors back.

    Images and masks become PNG files, the masks with the colours of the data set as palette.

    Args:
        datasets: list name -> data set, e.g. ``{"train": ..., "val": ...}``, of the same classes.
        root: folder to write to; files of the same names are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    root = Path(root)
    for subset, dataset in datasets.items():
        colours = [*dataset.palette, *[(0, 0, 0)] * (IGNORE_INDEX - len(dataset.palette))]
        palette = [channel for colour in [*colours, (224, 224, 192)] for channel in colour]
        for index, name in enumerate(dataset.names):
            image = Image.fromarray(dataset.image(index).permute(1, 2, 0).numpy())
            mask = Image.fromarray(dataset.mask(index).numpy())
            mask.putpalette(palette)
            _save(image, root / "JPEGImages" / f"{name}.png")
            _save(mask, root / "SegmentationClass" / f"{name}.png")
        write_text(root / "classes.txt", "\n".join(dataset.classes) + "\n")
        names = root / "ImageSets" / "Segmentation" / f"{subset}.txt"
        write_text(names, "\n".join(dataset.names) + "\n")


def _save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda partial: image.save(partial, format="PNG"))
