"""What an evaluation of photographs costs, and which pixels it labels, beside another checkout's.

The part of :mod:`bench.photos` that ``--evaluate`` chooses. Student and teacher of one run segment
the same photographs in each checkout, with the same weights and one normalization.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench.goals import Goal

RATIO = 0.6
"""CPU time of an evaluation, relative to e01cd57's, that was aimed at."""

DIFFERENT = 1e-5
"""Fraction of pixels that may get another class than at e01cd57."""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What two checkouts needed for one evaluation, and how their labels differ.

    Attributes:
        seconds: CPU seconds of this checkout and of the other one.
        different: pixels with another class.
        pixels: pixels of student and teacher.
    """

    seconds: tuple[float, float]
    different: int
    pixels: int


def store(run: Path, data: Path, images: int, path: Path) -> int:
    """Write what both checkouts need into one file: networks, names of photographs, folder.

    Args:
        run: folder of a run of this checkout, with a checkpoint.
        data: folder of photographs in the VOC layout; its list ``val`` is taken.
        images: number of photographs, the first of the list.
        path: path of the file.

    Returns:
        The number of photographs.
    """
    from ddfp_lib.data.splits import read_names
    from ddfp_lib.data.voc import list_path
    from ddfp_lib.runs.folder import Run
    from ddfp_lib.training.learner import load_learner

    opened = Run.open(run)
    learner = load_learner(opened, torch.device("cpu"))
    networks = {"student": learner.student, "teacher": learner.teacher}
    names = read_names(list_path(data, "val"))[:images]
    listed = path.with_suffix(".txt")
    listed.write_text("\n".join(names) + "\n", encoding="utf-8")
    saved = {
        "network": dataclasses.asdict(opened.config.bare().network),
        "classes": len(opened.classes),
        "long_side": opened.config.data.long_side,
        "mean": learner.student.mean,
        "std": learner.student.std,
        "weights": {name: network.state_dict() for name, network in networks.items()},
        "data": str(data.resolve()),
        "list": str(listed.resolve()),
    }
    torch.save(saved, path)
    return len(names)


def compare(
    checkout: Callable[[Path], Any], folders: Sequence[Path], stored: Path, turns: int
) -> Evaluated:
    """Evaluate in two checkouts in turn, and compare the labels.

    Args:
        checkout: opens a checkout: :class:`bench.photos.Checkout`.
        folders: this checkout and the other one.
        stored: file of :func:`store`.
        turns: evaluations of each; the median is taken.
    """
    seconds: list[list[float]] = [[] for _ in folders]
    labels = [stored.with_name(f"labels-{number}.pt") for number in range(len(folders))]
    with ExitStack() as stack:
        checkouts = [stack.enter_context(checkout(folder)) for folder in folders]
        for process, path in zip(checkouts, labels, strict=True):  # warms up, too
            process.ask("labels", stored=str(stored), path=str(path))
        for _ in range(turns):
            for process, times in zip(checkouts, seconds, strict=True):
                times.append(process.ask("evaluate", stored=str(stored)))
    ours, theirs = (torch.load(path) for path in labels)
    here, there = (statistics.median(times) for times in seconds)
    return Evaluated((here, there), int((ours != theirs).sum()), ours.numel())


def goals(found: Evaluated) -> list[Goal]:
    """Compare what was measured with what was aimed at."""
    ratio, part = found.seconds[0] / found.seconds[1], found.different / found.pixels
    cost = f"{ratio:.2f} ({found.seconds[0]:.1f} of {found.seconds[1]:.1f} CPU s)"
    differ = f"{found.different:,} of {found.pixels:,}"
    return [
        Goal(f"evaluation: CPU time at most {RATIO} of the other's", cost, ratio <= RATIO),
        Goal("evaluation: at most 1 pixel in 100,000 differs", differ, part <= DIFFERENT),
    ]
