"""Read and write the VOCdevkit layout: PASCAL VOC, and your own data.

::

    root/JPEGImages/NAME.jpg                    images (or .png)
    root/SegmentationClass/NAME.png             masks, palette or 8-bit gray, of labeled images
    root/SegmentationClassAug/NAME.png          read instead of these, where they exist
    root/ImageSets/Segmentation/SUBSET.txt      one name per line
    root/ImageSets/Segmentation/train_aug.txt   read for ``train``, where there is one
    root/classes.txt                            one class per line; without it, the 21 of PASCAL VOC

PASCAL VOC's training images are 10,582 in this field: 1,464 of its own and 9,118 that SBD labeled.
``ddfp data prepare voc`` makes ``SegmentationClassAug`` and ``train_aug.txt`` of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import Colour, SegmentationDataset, file_like, files_by_stem
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.data.splits import read_lines, read_names
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically, write_text

AUG_MASKS = "SegmentationClassAug"
AUG_LIST = "train_aug"
MASKS = "SegmentationClass"
NUMBERED = re.compile(r"(\d+)\s*[\s,;:=]\s*\S")
COLUMNS = re.compile(r"(pixel )?value\s*[,;]\s*(class|name)", re.IGNORECASE)
VOID_COLOUR = (224, 224, 192)

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip


class Voc(FilePairs):
    """One list of images in the VOCdevkit layout.

    Args:
        root: the folder that holds ``JPEGImages``, for PASCAL VOC ``VOCdevkit/VOC2012``.
        subset: name of a list in ``ImageSets/Segmentation``, or the path of a ``.txt`` list;
            ``"train"`` is ``train_aug.txt`` where there is one.
        masks: folder of the masks in ``root``; None takes ``SegmentationClassAug`` (with the masks
            of SBD) where there is one, and else ``SegmentationClass``. A list may name either of
            these two next to its images, and no other folder.
        size: (height, width) to resize to; None keeps each image as it is.

    Raises:
        UserError: a folder or list that is not there, a name in the list without an image, a path
            in the list that is not the file that is read, or a ``classes.txt`` with a line that is
            not a class.
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
            if subset == "train" and list_path(root, AUG_LIST).is_file():
                subset = AUG_LIST
            subset = list_path(root, subset)
        folder = root / "JPEGImages"
        files = files_by_stem(folder)
        names = _listed(Path(subset))
        missing = [name for name in names if name not in files]
        if missing:
            number = f", nor {len(missing) - 1} others" if len(missing) > 1 else ""
            raise UserError(
                f"{subset}: there is no image {missing[0]!r} in {folder}{number}; "
                f"{file_like(folder, missing[0])}"
            )
        listed = root / "classes.txt"
        classes = read_classes(listed) if listed.exists() else CLASSES
        if masks is None:
            masks = AUG_MASKS if (root / AUG_MASKS).is_dir() else MASKS
        super().__init__(
            "voc",
            classes,
            voc_palette(len(classes)),
            [files[name] for name in names],
            [root / masks / f"{name}.png" for name in names],
            size=size,
        )
        read_names(Path(subset), self)

    def is_named(self, named: str, read: Path) -> bool:
        """Return whether a path in a list means a file that is read, with masks of either folder.

        Published lists name both folders, in whichever the masks are.
        """
        path, known = PurePosixPath(named.replace("\\", "/")), (MASKS, AUG_MASKS)
        if path.parent.name in known and read.parent.name in known:
            named = str(path.parent.with_name(read.parent.name) / path.name)
        return super().is_named(named, read)


def _listed(path: Path) -> list[str]:
    """Read the names of a list; where there is no such list, say which ones there are."""
    if not path.parent.is_dir():
        raise UserError(
            f"{path.parent}: this folder is missing; write its lists train.txt and val.txt, a name "
            "in each line"
        )
    if not path.exists():
        others = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        advice = "; set data.test=val to end a run without one" if path.stem == "test" else ""
        raise UserError(f"{path}: there is no such list; the lists there: {others}{advice}")
    return read_names(path)


def read_classes(path: Path) -> list[str]:
    """Read the class names of a ``classes.txt``, in the order of the mask values.

    Raises:
        UserError: as :func:`read_lines`; a single class, or more than mask values; a table of an
            annotation tool; or LabelMe's ``labels.txt``, whose first line, ``__ignore__``, has no
            value.
    """
    names = read_lines(path)
    if "__ignore__" in names:
        raise UserError(
            f"{path}, line {names.index('__ignore__') + 1}: '__ignore__' is not a class; "
            f"LabelMe uses it for pixels of value {IGNORE_INDEX}; delete the line, so that line 1 "
            "is class 0"
        )
    refuse_table(path, names)
    if len(names) == 1:
        raise UserError(f"{path}: has one class, {names[0]!r}; write two or more, one per line")
    if len(names) > IGNORE_INDEX:
        raise UserError(f"{path}: has {len(names)} classes; masks hold at most {IGNORE_INDEX}")
    return names


def refuse_table(path: Path, names: Sequence[str]) -> None:
    """Refuse lines that are those of a table of classes, and not their names alone.

    Args:
        path: path of the file, for the message.
        names: its lines.

    Raises:
        UserError: a comment, a header of columns, or numbers that are not those of the lines.
    """
    n = len(names)
    numbers = [int(found[1]) if (found := NUMBERED.match(name)) else None for name in names]
    wrong = None
    if None not in numbers and numbers not in (list(range(n)), list(range(1, n + 1))):
        first = 1 if numbers[0] == 1 else 0
        wrong = next(line for line, value in enumerate(numbers) if value != line + first)
    for number, name in enumerate(names):
        if name.startswith("#") or COLUMNS.fullmatch(name) or number == wrong:
            raise UserError(
                f"{path}, line {number + 1}: {name!r} is not a class, but a line of a table; write "
                "names alone, that of value 0 first, or give the table to 'ddfp data convert "
                "--table' with the exported masks"
            )


def preferred(root: Path, datasets: Sequence[FilePairs], *, training: bool) -> list[str]:
    """Return a line for each folder or list of PASCAL VOC that somebody's own data are read from.

    Args:
        root: folder of the data set.
        datasets: its sets of images that are in use.
        training: whether its training images are among them.
    """
    voc = [dataset for dataset in datasets if dataset.name == "voc"]
    if not voc or not (root / "classes.txt").exists():
        return []
    lines = []
    if any(path.parent.name == AUG_MASKS for each in voc for path in each.mask_paths[:1]):
        lines.append(
            f"{root / AUG_MASKS}: masks are read from this folder, as of PASCAL VOC, and not from "
            f"{MASKS}; rename it if that is not meant"
        )
    chosen = list_path(root, AUG_LIST)
    if training and chosen.is_file():
        lines.append(
            f"{chosen}: training images are those of this list, as of PASCAL VOC, and not of "
            "train.txt; rename it if that is not meant"
        )
    return lines


def list_path(root: Path, subset: str | Path) -> Path:
    """Return the file that lists a subset by name."""
    return root / "ImageSets" / "Segmentation" / f"{subset}.txt"


def voc_palette(count: int) -> tuple[Colour, ...]:
    """Return the first ``count`` colors of the PASCAL VOC color map.

    The bits of the class index are dealt in turn to red, green and blue, most significant color
    bit first: neighboring classes get distant colors.
    """

    def channel(index: int, offset: int) -> int:
        return sum((index >> (3 * bit + offset) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def write_voc(datasets: Mapping[str, SegmentationDataset], root: Path | str) -> None:
    """Write data sets in the VOCdevkit layout; :class:`Voc` reads the same tensors back.

    Images and masks become PNG files, the masks with the colors of the data set as palette.

    Args:
        datasets: list name -> data set, e.g. ``{"train": ..., "val": ...}``, of the same classes.
        root: folder to write to; files of the same names are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    root = Path(root)
    for subset, dataset in datasets.items():
        for index, name in enumerate(dataset.names):
            image = Image.fromarray(dataset.image(index).permute(1, 2, 0).numpy())
            write_atomically(
                root / "JPEGImages" / f"{name}.png",
                lambda partial, image=image: image.save(partial, format="PNG"),
            )
            mask = root / "SegmentationClass" / f"{name}.png"
            write_mask(mask, dataset.mask(index), dataset.palette)
        write_text(root / "classes.txt", "\n".join(dataset.classes) + "\n")
        write_text(list_path(root, subset), "\n".join(dataset.names) + "\n")


def write_mask(path: Path, mask: Tensor, palette: Sequence[Colour]) -> None:
    """Write a mask as a palette PNG: its pixels are class indices, and it shows in colors.

    Args:
        path: path of the file.
        mask: uint8 (H, W), classes or ``IGNORE_INDEX``.
        palette: a color for each class.

    Raises:
        UserError: the file cannot be written.
    """
    colours = [*palette, *[(0, 0, 0)] * (IGNORE_INDEX - len(palette)), VOID_COLOUR]
    image = Image.fromarray(mask.numpy())
    image.putpalette([channel for colour in colours for channel in colour])
    write_atomically(path, lambda partial: image.save(partial, format="PNG"))
