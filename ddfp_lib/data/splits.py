"""Which images keep their labels: lists in text files, and splits drawn from a seed."""

import re
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import IMAGE_SUFFIXES, SegmentationDataset
from ddfp_lib.data.facts import mask_facts
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.seeds import generator


def read_lines(path: Path) -> list[str]:
    """Read the lines of a list file, stripped of white space; the last may lack its newline.

    Raises:
        UserError: the file is missing, is not text, holds nothing, an empty line or a line twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a text file ({error}); save it as UTF-8 text"
        ) from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise UserError(f"{path}: is empty; write one name per line")
    _refuse_repeated(path, lines)
    return lines


PAIR = re.compile(
    rf"(.+?\.(?:{'|'.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}))\s+(\S.*\.\w+)", re.IGNORECASE
)
"""A line with the paths of an image and of its mask."""

QUOTED = re.compile(r'"([^"]+)"(?:\s+(.*))?')
"""The same of names with spaces, as Datumaro writes them; the mask may be missing."""


def read_names(path: Path, dataset: SegmentationDataset | None = None) -> list[str]:
    """Read the image names of a list file, in its order.

    A line is a bare name (``2007_000032``), the path of an image
    (``leftImg8bit/train/x/y_leftImg8bit.png``) or the paths of an image and its mask
    (``JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png``). The name is the stem of the
    image's path: what :attr:`SegmentationDataset.names` holds. Names may have spaces.

    Args:
        path: path of the list.
        dataset: where its files are given, the list may name no others: these are read.

    Raises:
        UserError: as :func:`read_lines`; a name comes twice; or a path in the list is not that of
            the file in ``dataset``.
    """
    lines = []
    for line in read_lines(path):
        several = QUOTED.fullmatch(line) or PAIR.fullmatch(line)
        image, mask = several.groups() if several else (line, None)
        lines.append((image, mask.strip().strip('"') if mask else None))
    names = [_stem(image) for image, _ in lines]
    _refuse_repeated(path, names)
    if isinstance(dataset, FilePairs):
        places = {name: place for place, name in enumerate(dataset.names)}
        for number, (name, (image, mask)) in enumerate(zip(names, lines, strict=True), start=1):
            if name in places:
                place = places[name]
                _refuse_other(path, number, image, dataset.image_paths[place], dataset)
                _refuse_other(path, number, mask, dataset.mask_paths[place], dataset)
    return names


def _refuse_other(
    path: Path, number: int, named: str | None, read: Path, dataset: FilePairs
) -> None:
    """Refuse a line that names another file than the one that is read."""
    if named is not None and not dataset.is_named(named, read):
        raise UserError(
            f"{path}, line {number}: names {named}, but {read} would be read; move the file there, "
            "or write names alone if that one is meant"
        )


LISTS = Path(__file__).parent / "lists"
"""Lists of images that come with this project."""


def find_list(root: Path, name: str, key: str) -> Path:
    """Return the path of a list file.

    Args:
        root: folder of the data set.
        name: a path that ends in ``.txt``, absolute or below ``root``, or the name of a list that
            comes with this project.
        key: the configuration's key, for the error message.

    Raises:
        UserError: there is no such list.
    """
    path = Path(root) / name if name.endswith(".txt") else LISTS / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in LISTS.glob("*.txt")))
        raise UserError(
            f"{key}: there is no list {path if name.endswith('.txt') else name}; give a list file "
            f"(.txt), or one of {known}"
        )
    return path


def read_split(
    dataset: SegmentationDataset,
    labeled: Path,
    unlabeled: Path | None = None,
    *,
    held_out: Sequence[str] = (),
    among: Collection[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Read lists of names as indices of a data set, each in the order of its file.

    Args:
        dataset: the data set of the images; no mask is read.
        labeled: list of the labeled images, see :func:`read_names`.
        unlabeled: list of the unlabeled ones, which may name labeled images again; None takes all
            others.
        held_out: names that are kept for validation; they leave the list of unlabeled images.
        among: names outside of these leave both lists; ``None`` keeps all.

    Returns:
        Indices of the labeled images and of the unlabeled images.

    Raises:
        UserError: as :func:`read_names`, also if a list names other files than those of the data
            set; there is no such list; a list names no image of ``among`` (``data.only``), or an
            image that is not in the data set; or a labeled image is held out.
    """
    for path in (labeled, unlabeled):
        if path is not None and not path.is_file():
            raise UserError(
                f"{path}: there is no such list; make it with 'ddfp data splits', or correct the "
                "path in data.labeled or data.unlabeled"
            )
    index = {name: position for position, name in enumerate(dataset.names)}

    kept_out = set(held_out)

    def indices(path: Path) -> list[int]:
        names = [name for name in read_names(path, dataset) if among is None or name in among]
        if not names:
            raise UserError(f"{path}: names none of the images of data.only; take another list")
        kept = [name for name in names if name in kept_out]
        if kept and path == labeled:
            raise UserError(
                f"{path}: {len(kept)} labeled images are in the list of data.val too, the first is "
                f"{kept[0]!r}; take them out of one list"
            )
        names = [name for name in names if name not in kept_out]
        unknown = [name for name in names if name not in index]
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} of {len(names)} names are not in {dataset.name}, the "
                f"first is {unknown[0]!r}; take the list that belongs to this data"
            )
        return [index[name] for name in names]

    chosen = indices(labeled)
    if unlabeled is None:
        return chosen, sorted(set(range(len(dataset))) - set(chosen))
    return chosen, indices(unlabeled)


def make_split(
    dataset: SegmentationDataset, labeled: int | str, seed: int, *, include_labeled: bool = False
) -> tuple[list[int], list[int]]:
    """Choose labeled images at random, with each class at least once where possible.

    The images come in a random order. As long as some class has no labeled image, the first image
    with the most missing classes is taken; then the rest, as they come. This reads every mask of
    the data set: it makes a benchmark of labeled data. Data that really lack masks have lists.

    Args:
        dataset: N images with masks.
        labeled: how many: a count (``92`` or ``"92"``), a fraction of N (``"1/16"``) or ``"all"``.
        seed: seed of the order.
        include_labeled: let the labeled images be unlabeled ones too.

    Returns:
        Sorted indices of the labeled images and of the unlabeled ones, which are all others (or,
        with ``include_labeled``, all).

    Raises:
        UserError: ``labeled`` is none of these, or not within 1..N.
    """
    count = _count(labeled, len(dataset))
    everything = range(len(dataset))
    order = torch.randperm(len(dataset), generator=generator(seed, "split"))
    chosen = order[covering_first(classes_present(dataset)[order])[:count]].tolist()
    rest = everything if include_labeled else set(everything) - set(chosen)
    return sorted(chosen), sorted(rest)


def write_split(
    dataset: SegmentationDataset, split: tuple[Sequence[int], Sequence[int]], folder: Path
) -> None:
    """Write a split as ``labeled.txt`` and ``unlabeled.txt``; :func:`read_split` reads it back.

    Args:
        dataset: the data set that the indices belong to.
        split: indices of the labeled and of the unlabeled images.
        folder: folder of the two files; those that it has are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    for part, indices in zip(("labeled", "unlabeled"), split, strict=True):
        names = [dataset.names[index] for index in indices]
        write_text(folder / f"{part}.txt", "\n".join(names) + "\n")


def classes_present(dataset: SegmentationDataset) -> Tensor:
    """Return whether image n has a pixel of class k: bool (N, K).

    Masks that are used as they are stored come from the cache of :mod:`ddfp_lib.data.facts`; all
    others are read.

    Raises:
        UserError: an image has no mask, or one that cannot be used.
    """
    if isinstance(dataset, FilePairs) and not dataset.resizes:
        present = torch.zeros(len(dataset), len(dataset.classes) + 1, dtype=torch.bool)
        table = dataset.table.long().clamp(max=len(dataset.classes))  # ignored: the last column
        for index, mask in enumerate(mask_facts(dataset.mask_paths)):
            if isinstance(mask, UserError) or any(
                value >= dataset.stored_classes and value not in (dataset.void, IGNORE_INDEX)
                for value in mask.values
            ):
                dataset.mask(index)  # raises, in the words of a reader of this mask
            present[index, table[list(mask.values)]] = True
        return present[:, :-1]
    counts = [
        torch.bincount(dataset.mask(index).flatten(), minlength=IGNORE_INDEX + 1)
        for index in range(len(dataset))
    ]
    return torch.stack(counts)[:, : len(dataset.classes)] > 0


def covering_first(present: Tensor) -> list[int]:
    """Order images: first, greedily, those that bring a new class, then the others as they come.

    Args:
        present: bool (N, K), whether image n has a pixel of class k.

    Returns:
        The N row numbers.
    """
    first: list[int] = []
    missing = present.any(dim=0)
    while missing.any():
        row = int((present & missing).sum(dim=1).argmax())
        first.append(row)
        missing &= ~present[row]
    taken = set(first)
    return first + [row for row in range(len(present)) if row not in taken]


def _count(labeled: int | str, total: int) -> int:
    text = str(labeled).strip()
    try:
        if text == "all":
            count = total
        else:
            count = round(Fraction(text) * total) if "/" in text else int(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"labeled {labeled!r}: use a count (92), a fraction ('1/16') or 'all'"
        ) from error
    if not 1 <= count <= total:
        raise UserError(f"labeled {labeled!r}: is {count} of {total} images; use 1 to {total}")
    return count


def _stem(path: str) -> str:
    """Return the file's name without folders and image suffix; other dots belong to the name."""
    name = PurePosixPath(path.replace("\\", "/"))  # Windows writes the other one
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name


def _refuse_repeated(path: Path, lines: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            raise UserError(f"{path}, line {number}: is empty; delete it")
        if line in seen:
            raise UserError(
                f"{path}, line {number}: {line!r} repeats line {seen[line]}; delete one of them"
            )
        seen[line] = number
