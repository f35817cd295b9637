"""Read every file of a data set before it is used for training."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data import open_dataset
from ddfp_lib.data.base import broken_link
from ddfp_lib.data.inspection import class_counts, inspect_data, missing_classes_file
from ddfp_lib.data.pairs import FilePairs
from ddfp_lib.data.published import COUNTS, check_counts
from ddfp_lib.data.splits import covering_first, read_names, read_split
from ddfp_lib.data.voc import list_path
from ddfp_lib.errors import UserError
from ddfp_lib.machine import usable_cores
from ddfp_lib.seeds import generator


@dataclass(frozen=True)
class Checked:
    """One subset, every file of which was read.

    Attributes:
        dataset: its images.
        pixels: int64 (N, 256), pixels of each class, and of ``IGNORE_INDEX``, in each mask; zeros
            where there is no mask.
        unlabeled: images without a mask, where they need none.
        problems: what is wrong, a line each.
        notices: what a user should know, a line each.
    """

    dataset: FilePairs
    pixels: Tensor
    unlabeled: int
    problems: list[str]
    notices: list[str] = field(default_factory=list)

    def examples(self, count: int) -> list[int]:
        """Return up to ``count`` images with masks: as many classes as can be, else at random."""
        order = torch.randperm(len(self.pixels), generator=generator("examples"))
        order = order[self.pixels[order].any(dim=1)]
        present = self.pixels[order, : len(self.dataset.classes)] > 0
        return order[covering_first(present)[:count]].tolist()


def verify(
    name: str,
    root: Path,
    *,
    counts: Mapping[str, int] | None = None,
    partial: bool = False,
) -> dict[str, Checked]:
    """Decode every image and mask of a data set, and check its lists of labeled images.

    Data of your own (a VOC folder with ``classes.txt``) may have any number of images, and training
    images may lack masks; its list ``test`` is looked at where there is one.

    Args:
        name: ``voc``, ``cityscapes`` or ``camvid``.
        root: folder of the data set.
        counts: images that each subset should have; None for the published numbers.
        partial: accept any number of images.

    Returns:
        What was found, by subset; all that is wrong with single files is in ``problems``.

    Raises:
        UserError: the data are not there, or have another number of images than published.
    """
    if name not in COUNTS:
        raise UserError(f"{name}: is not a data set of files; use one of {', '.join(COUNTS)}")
    root = Path(root)
    own = name == "voc" and (root / "classes.txt").is_file()
    counts = counts or COUNTS[name]
    subsets = [subset for subset in counts if subset != "fine"]
    if own and list_path(root, "test").is_file():
        subsets.append("test")
    datasets = {subset: open_dataset(name, subset, root=root) for subset in subsets}
    if not own:
        for problem in missing_classes_file(root, datasets.values()):
            raise UserError(problem)
        found = {subset: len(dataset) for subset, dataset in datasets.items()}
        if "fine" in counts:
            fine = read_names(list_path(root, "train"))
            found["fine"] = len(set(fine) & set(datasets["train"].names))
        if not partial:
            check_counts(root, found, counts, "; for a subset of them give --partial")
    train = datasets["train"]
    labeled = [
        i
        for i in range(len(train))
        if not own or train.has_mask(i) or broken_link(train.mask_paths[i])
    ]
    titles = {"train": "labeled", "val": "validation", "test": "test"}
    sets = {titles[subset]: dataset for subset, dataset in datasets.items()}
    findings = inspect_data(root, {**sets, "labeled": train.only(labeled)}, train, fresh=True)
    checked = {}
    for subset, dataset in datasets.items():
        inspected = findings.sets[titles[subset]]
        masks = dict(zip(inspected.dataset.names, inspected.masks, strict=True))
        rows = [class_counts(dataset, masks.get(name)) for name in dataset.names]
        pixels = torch.stack([torch.from_numpy(row) for row in rows])
        checked[subset] = Checked(
            dataset,
            pixels.reshape(-1, IGNORE_INDEX + 1),
            len(dataset) - len(inspected.masks),
            list(dict.fromkeys([*_broken(dataset), *inspected.errors])),
        )
    known = {problem for found in checked.values() for problem in found.problems}
    checked["train"].problems.extend(line for line in findings.general if line not in known)
    if not labeled:
        checked["train"].problems.append(_no_mask_at_all(train))
    checked["train"].problems.extend(_check_lists(root, train))
    checked["train"].notices.extend(findings.notices)
    return checked


def class_table(checked: Checked) -> list[str]:
    """Return a line for each class, and one for ignored pixels.

    Each says how many images show the class, and its percentage of the pixels that have a class, or
    of all pixels for the ignored ones.
    """
    classes = checked.dataset.classes
    pixels = checked.pixels[:, : len(classes)]
    share = 100 * pixels.sum(dim=0) / pixels.sum().clamp(min=1)
    images = (pixels > 0).sum(dim=0)
    lines = [
        f"{name:<14} {count:>6,} images  {part:6.2f} % of pixels"
        for name, count, part in zip(classes, images.tolist(), share.tolist(), strict=True)
    ]
    ignored = checked.pixels[:, IGNORE_INDEX]
    part = 100 * ignored.sum().item() / max(1, checked.pixels.sum().item())
    count = int((ignored > 0).sum())
    return [*lines, f"{'(ignored)':<14} {count:>6,} images  {part:6.2f} % of all pixels"]


def _broken(dataset: FilePairs) -> list[str]:
    """Decode all images, and return what is wrong with those that cannot be decoded."""

    def look(index: int) -> str | None:
        try:
            dataset.image(index)
        except UserError as error:
            return str(error)
        return None

    # decoding leaves Python's lock to the other threads
    with ThreadPoolExecutor(usable_cores()) as pool:
        return [problem for problem in pool.map(look, range(len(dataset))) if problem]


def _no_mask_at_all(train: FilePairs) -> str:
    """Say that no training image has a mask, and which files are there instead."""
    folder = train.mask_paths[0].parent
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    own = {path.name for path in train.mask_paths}
    other = next((name for name in files if Path(name).stem.startswith(tuple(train.names))), None)
    hint = (
        f"; the folder has {other}: name a mask like its image, with suffix .png" if other else ""
    )
    return f"{folder}: no training image has a mask such as {min(own)}{hint}"


def _check_lists(root: Path, train: FilePairs) -> Sequence[str]:
    """Return what is wrong with the lists of labeled images in ``root`` and ``root/splits``."""
    problems = []
    for labeled in sorted({*root.glob("labeled*.txt"), *root.glob("splits/*/labeled.txt")}):
        unlabeled = labeled.with_name(labeled.name.replace("labeled", "unlabeled", 1))
        try:
            indices, _ = read_split(train, labeled, unlabeled if unlabeled.is_file() else None)
        except UserError as error:
            problems.append(str(error))
            continue
        bare = [train.names[index] for index in indices if not train.has_mask(index)]
        if bare:
            problems.append(f"{labeled}: {len(bare)} images have no mask, the first is {bare[0]!r}")
    return problems
