"""Look at every file of a data set before training does."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data import open_dataset
from ddfp_lib.data.base import FilePairs
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
        pixels: int64 (N, 256), pixels of each mask value; zeros where there is no mask.
        unlabeled: images without a mask, where they need none.
        problems: what is wrong, a line each.
    """

    dataset: FilePairs
    pixels: Tensor
    unlabeled: int
    problems: list[str]

    def examples(self, count: int) -> list[int]:
        """Return up to ``count`` images with masks: as many classes as can be, else at random."""
        order = torch.randperm(len(self.pixels), generator=generator("examples"))
        order = order[self.pixels[order].any(dim=1)]
        present = self.pixels[order, : len(self.dataset.classes)] > 0
        return order[covering_first(present)[:count]].tolist()


def verify(name: str, root: Path, *, counts: Mapping[str, int] | None = None) -> dict[str, Checked]:
    """Decode every image and mask of a data set, and its lists of labeled images.

    Data of one's own (a VOC folder with ``classes.txt``) may be of any number, and training images
    may lack masks.

    Args:
        name: ``voc``, ``cityscapes`` or ``camvid``.
        root: folder of the data set.
        counts: images that each subset should have; None for the published numbers.

    Returns:
        What was found, by subset; all that is wrong with single files is in ``problems``.

    Raises:
        UserError: the data are not there, or are of another number.
    """
    if name not in COUNTS:
        raise UserError(f"{name}: is no data set of files; use one of {', '.join(COUNTS)}")
    root = Path(root)
    own = name == "voc" and (root / "classes.txt").is_file()
    counts = counts or COUNTS[name]
    subsets = [subset for subset in counts if subset != "fine"]
    datasets = {subset: open_dataset(name, subset, root=root) for subset in subsets}
    if not own:
        found = {subset: len(dataset) for subset, dataset in datasets.items()}
        if "fine" in counts:
            fine = read_names(list_path(root, "train"))
            found["fine"] = len(set(fine) & set(datasets["train"].names))
        check_counts(root, found, counts)
    checked = {
        subset: _check(dataset, masks_needed=not own or subset != "train")
        for subset, dataset in datasets.items()
    }
    checked["train"].problems.extend(_check_lists(root, datasets))
    return checked


def class_table(checked: Checked) -> list[str]:
    """Return a line for each class: how many images show it, and its part of labeled pixels."""
    classes = checked.dataset.classes
    pixels = checked.pixels[:, : len(classes)]
    share = 100 * pixels.sum(dim=0) / pixels.sum().clamp(min=1)
    images = (pixels > 0).sum(dim=0)
    return [
        f"{name:<14} {count:>6,} images  {part:6.2f} % of pixels"
        for name, count, part in zip(classes, images.tolist(), share.tolist(), strict=True)
    ]


def _check(dataset: FilePairs, *, masks_needed: bool) -> Checked:
    def look(index: int) -> tuple[Tensor | None, list[str]]:
        """Count the values of one mask; None where it needs and has none."""
        problems, values = [], torch.zeros(IGNORE_INDEX + 1, dtype=torch.int64)
        try:
            dataset.image(index)
            if not masks_needed and not dataset.has_mask(index):
                return None, []
            values = torch.bincount(dataset.mask(index).flatten(), minlength=IGNORE_INDEX + 1)
        except UserError as error:
            problems.append(str(error))
        return values, problems

    # Decoding leaves Python's lock to the other threads.
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(look, range(len(dataset))))
    nothing = torch.zeros(IGNORE_INDEX + 1, dtype=torch.int64)
    return Checked(
        dataset,
        torch.stack([nothing if values is None else values for values, _ in found]),
        sum(values is None for values, _ in found),
        [problem for _, problems in found for problem in problems],
    )


def _check_lists(root: Path, datasets: Mapping[str, FilePairs]) -> Sequence[str]:
    """Return what is wrong with the subsets' names and with the lists below ``root/splits``."""
    problems = []
    train, validation = datasets["train"], datasets["val"]
    shared = sorted(set(train.names) & set(validation.names))
    if shared and train.name == "voc":  # the only one whose subsets are lists over one folder
        problems.append(f"{root}: {len(shared)} images are in train and in val, as {shared[0]!r}")
    for labeled in sorted(root.glob("splits/*/labeled.txt")):
        unlabeled = labeled.with_name("unlabeled.txt")
        try:
            indices, _ = read_split(train, labeled, unlabeled if unlabeled.is_file() else None)
        except UserError as error:
            problems.append(str(error))
            continue
        bare = [train.names[index] for index in indices if not train.has_mask(index)]
        if bare:
            problems.append(f"{labeled}: {len(bare)} images have no mask, the first is {bare[0]!r}")
    return problems
