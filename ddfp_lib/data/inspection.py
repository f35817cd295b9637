"""Check a data set before the first step; ``verify`` and ``train`` share these checks.

One inspection serves ``train``, ``reproduce``, ``evaluate``, ``predict`` and ``data verify``. It
reads the headers of images and the masks that will be used, through the cache of
:mod:`ddfp_lib.data.facts`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import broken_link, check_size, not_a_class
from ddfp_lib.data.facts import MaskFacts, image_facts, mask_facts
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.data.palettes import Painted, looks_renumbered, renumbered
from ddfp_lib.data.stored import CONVERT
from ddfp_lib.data.voc import AUG_LIST, VOID_COLOUR, list_path, preferred
from ddfp_lib.errors import UserError

PUBLISHED_NAME = re.compile(r"\d{4}_\d{6}")
"""How PASCAL VOC and SBD name their images."""

MANY_IGNORED = 0.5
"""A larger fraction of ignored pixels is reported."""


@dataclass(frozen=True)
class Inspected:
    """One set of images, looked at.

    Attributes:
        title: what it is, for messages: ``labeled``, ``validation``, ``test``.
        dataset: its images.
        masks: facts of each mask; None where there is no mask or it cannot be used.
        errors: what is wrong with single masks, a line each.
    """

    title: str
    dataset: FilePairs
    masks: list[MaskFacts | None]
    errors: list[str] = field(default_factory=list)

    @property
    def counts(self) -> np.ndarray:
        """Pixels of each class, and of ``IGNORE_INDEX``, in all masks: int64 (256,)."""
        return sum((class_counts(self.dataset, mask) for mask in self.masks), _nothing())

    @property
    def known(self) -> list[tuple[Path, MaskFacts]]:
        """The masks that can be used, with their paths."""
        pairs = zip(self.dataset.mask_paths, self.masks, strict=True)
        return [(path, mask) for path, mask in pairs if mask is not None]


@dataclass
class Findings:
    """What an inspection found.

    Attributes:
        general: errors that belong to no single mask, a line each.
        notices: what a user should know, a line each.
        sets: the inspected sets of images with masks, by title.
    """

    general: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    sets: dict[str, Inspected] = field(default_factory=dict)

    @property
    def errors(self) -> list[str]:
        """All that makes results wrong or stops a run, a line each."""
        return [*self.general, *(line for found in self.sets.values() for line in found.errors)]

    def check(self, name: str, root: Path | str) -> None:
        """Raise the first error.

        Args:
            name: name of the data set, for the command that shows the others.
            root: its folder.

        Raises:
            UserError: there is an error.
        """
        if self.errors:
            more = len(self.errors) - 1
            rest = f" ({more} more: ddfp data verify {name} --root {root})" if more else ""
            raise UserError(self.errors[0] + rest)


def inspect_data(
    root: Path | str,
    sets: Mapping[str, FilePairs],
    training: FilePairs | None = None,
    *,
    fresh: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> Findings:
    """Inspect images and their masks.

    Args:
        root: folder of the data set.
        sets: images whose masks are read, by title: ``labeled``, ``validation``, ``test``; or
            ``training``, where labeled images are drawn from all.
        training: all training images, where they are used; their headers are looked at, and that
            they are neither validation nor test images.
        fresh: read every file and ignore the cache.
        say: called with a line before many files are read.

    Returns:
        Errors, notices and the facts of the masks. No exception is raised for bad files.
    """
    findings = Findings()
    used = dict(sets)
    files = {title: dataset.mask_paths for title, dataset in used.items()}
    if files.get("test") == files.get("validation", ()):
        del used["test"]  # test: val
    if training is not None:
        findings.general += _overlaps(training, used)
    images = {path for dataset in used.values() for path in dataset.image_paths}
    images |= set(training.image_paths if training is not None else ())
    if len(images) > 1000:
        say(f"{root}: looking at {len(images):,} images and their masks")
    ordered = sorted(images)
    headers = dict(zip(ordered, image_facts(ordered, fresh=fresh), strict=True))
    findings.general += [str(fact) for fact in headers.values() if isinstance(fact, UserError)]
    for title, dataset in used.items():
        bare = [i for i in range(len(dataset)) if not dataset.has_mask(i)]
        inspected = Inspected(title, dataset, [None] * len(dataset))
        findings.sets[title] = inspected
        if bare:
            inspected.errors.append(_no_masks(title, dataset, bare))
        there = sorted(set(range(len(dataset))) - set(bare))
        facts = mask_facts([dataset.mask_paths[i] for i in there], fresh=fresh)
        for index, fact in zip(there, facts, strict=True):
            try:
                inspected.masks[index] = _checked(dataset, index, fact, headers)
            except UserError as error:
                inspected.errors.append(str(error))
        turned = [p for p in dataset.image_paths if getattr(headers[p], "turned", 1) != 1]
        if turned:
            findings.notices.append(
                f"{turned[0]}: is stored turned (EXIF orientation), like {len(turned)} of the "
                f"{title} images; images are read as stored: check that the masks are too"
            )
    datasets = [*used.values(), *([training] if training is not None else [])]
    findings.general += missing_classes_file(Path(root), datasets)
    trains = training is not None or "training" in used
    findings.notices += preferred(Path(root), datasets, training=trains)
    if not findings.errors:
        for inspected in findings.sets.values():
            _look_at_values(inspected, findings)
        _look_at_palettes(findings, published=_has_published_palette(Path(root), datasets))
    return findings


def class_counts(dataset: FilePairs, mask: MaskFacts | None) -> np.ndarray:
    """Return the pixels of each class, and of ``IGNORE_INDEX``, in a mask: int64 (256,)."""
    counts = _nothing()
    if mask is not None:
        table = dataset.table.numpy()
        np.add.at(counts, table[list(mask.values)], mask.counts)
    return counts


def _nothing() -> np.ndarray:
    return np.zeros(IGNORE_INDEX + 1, dtype=np.int64)


def _checked(
    dataset: FilePairs, index: int, fact: MaskFacts | UserError, headers: dict
) -> MaskFacts:
    """Return the facts of a mask that fits its image and the classes."""
    if isinstance(fact, UserError):
        raise fact
    path, header = dataset.mask_paths[index], headers[dataset.image_paths[index]]
    if not isinstance(header, UserError):
        check_size(path, (fact.height, fact.width), (header.height, header.width))
    classes = dataset.stored_classes
    allowed = {*range(classes), dataset.void, IGNORE_INDEX}
    strange = [value for value in fact.values if value not in allowed]
    if strange:
        raise UserError(not_a_class(path, strange[0], classes))
    return fact


def _overlaps(training: FilePairs, sets: Mapping[str, FilePairs]) -> list[str]:
    """Return a line for each set that shares images with the training set."""
    lines, trained = [], set(training.image_paths)
    for title in ("validation", "test"):
        if title not in sets:
            continue
        dataset = sets[title]
        shared = sorted(trained & set(dataset.image_paths))
        if shared:
            name = "val" if title == "validation" else title
            lines.append(
                f"{shared[0]}: is in train and in {name}, like {len(shared)} of {len(dataset)} "
                f"{title} images; scores on them say nothing about new images: take them out "
                "of one list, or name a validation list with data.val"
            )
    return lines


def _no_masks(title: str, dataset: FilePairs, bare: Sequence[int]) -> str:
    """Say which masks are missing, and which files are in their folder instead."""
    path = dataset.mask_paths[bare[0]]
    hint = "check the folder of the masks"
    if dataset.name == "cityscapes" and path.name.endswith("labelTrainIds.png"):
        hint = f"make it with: ddfp data prepare cityscapes --root {path.parents[3]}"
    elif path.parent.is_dir():
        others = sorted(p.name for p in path.parent.iterdir() if p.name.startswith(path.stem))
        below = next(path.parent.rglob(path.name), None)
        if others:
            hint = f"the folder has {others[0]}; name the mask like its image, with suffix .png"
        elif below is not None:
            hint = f"{below} is in a subfolder; subfolders of the masks' folder are ignored"
        elif title == "training":
            hint = "where not all have one, data.labeled has to be a list of those that do"
    missing = broken_link(path)
    if missing:
        hint = "correct it"
    number = f"{len(bare)} of {len(dataset)} {title} images have no mask"
    return f"{path}: {missing or 'no such file'}; {number}; {hint}"


def missing_classes_file(root: Path, datasets: Iterable[FilePairs]) -> list[str]:
    """Return a line about a VOC folder that is not PASCAL VOC and does not name its classes."""
    voc = [dataset for dataset in datasets if dataset.name == "voc"]
    if (root / "classes.txt").exists() or list_path(root, AUG_LIST).exists():
        return []  # the list is written by 'ddfp data prepare voc'
    names = (name for dataset in voc for name in dataset.names)
    strange = next((name for name in names if not PUBLISHED_NAME.fullmatch(name)), None)
    if strange is None:
        return []
    return [
        f"{root / 'classes.txt'}: no such file, and {strange!r} is not an image of PASCAL VOC, "
        "whose 21 classes would be used; write one class per line, in the order of the mask values "
        "from 0"
    ]


def _look_at_values(inspected: Inspected, findings: Findings) -> None:
    """Report classes without pixels, and pixels without classes."""
    title, dataset, known = inspected.title, inspected.dataset, inspected.known
    counts = inspected.counts
    total, ignored = int(counts.sum()), int(counts[IGNORE_INDEX])
    shown = counts[: len(dataset.classes)] > 0
    where = known[0][0].parent if known else Path()
    binary = [mask for _, mask in known if mask.values == (0, IGNORE_INDEX)]
    others = {value for _, mask in known for value in mask.values} - {0, IGNORE_INDEX}
    lost = sum(mask.counts[1] for mask in binary) > 0.05 * sum(sum(m.counts) for m in binary)
    if binary and not others:
        findings.general.append(
            f"{where}: the {title} masks hold no value but 0 and 255, and 255 means ignored; write "
            f"1, not 255, for the class, as '{CONVERT}' does"
        )
    elif binary and lost:
        findings.notices.append(
            f"{where}: {len(binary)} of {len(known)} {title} masks hold no value but 0 and 255, "
            "which means ignored: were they drawn in black and white?"
        )
    elif total == ignored:
        findings.general.append(
            f"{where}: every pixel of the {title} masks is ignored; check the masks and the classes"
        )
    elif title == "labeled" and shown.sum() == 1:
        only = dataset.classes[int(shown.argmax())]
        findings.notices.append(
            f"{where}: the labeled masks show no class but {only!r}: there is nothing to learn; "
            "check the masks, the classes and who is labeled"
        )
    if total and not shown.all() and shown.any():
        missing = [f"{dataset.classes[k]!r}" for k in np.flatnonzero(~shown)]
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        effect = "it cannot be learned" if title == "labeled" else "its IoU says little"
        findings.notices.append(
            f"{where}: no {title} mask shows {', '.join(missing[:5])}{rest}: {effect}"
        )
    if total and MANY_IGNORED < ignored / total < 1:
        findings.notices.append(
            f"{where}: {100 * ignored / total:.0f} % of the pixels of {title} masks are ignored"
        )
    for path, mask in known:
        highest = 2**mask.bits - 1
        if mask.bits < 8 and highest in mask.values:
            findings.notices.append(
                f"{path}: is stored with {mask.bits} bits per pixel: ignored pixels (255) became "
                f"class {highest} if there were any; in that case save it again with 8 bits"
            )
            break


def _has_published_palette(root: Path, datasets: Sequence[FilePairs]) -> bool:
    """Return whether the colors of the classes are known: not for data of the user's own."""
    return all(dataset.name != "voc" for dataset in datasets) or not (root / "classes.txt").exists()


def _look_at_palettes(findings: Findings, *, published: bool) -> None:
    """Find masks whose palette was renumbered: their colors are right and their values wrong."""
    masks: list[tuple[Path, Painted]] = []
    valid, known = {IGNORE_INDEX}, {IGNORE_INDEX: VOID_COLOUR}
    for inspected in findings.sets.values():
        dataset = inspected.dataset
        known |= dict(enumerate(dataset.stored_palette))
        valid |= {*range(dataset.stored_classes), dataset.void}
        masks += [
            (path, dict(zip(mask.values, mask.colours, strict=True)))
            for path, mask in inspected.known
            if mask.colours is not None
        ]
    wrong = renumbered(masks, valid, known if published else {})
    if wrong:
        findings.general.append(
            f"{wrong}; export the masks again, or run '{CONVERT}' with the table of colors"
        )
    elif not published and (strange := looks_renumbered(masks, known)):
        findings.notices.append(strange)
