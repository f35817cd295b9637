"""What a matrix of runs will cost, told before any of it is paid: hours and memory.

Neither number needs the data. Both say what they rest on, since neither is a measurement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ddfp_lib.config import Config
from ddfp_lib.experiments.matrix import Cell
from ddfp_lib.training.memory import GIB, training_memory

RELEASED_SECONDS = {"supervised": 0.32, "consistency": 0.75, "perturbed": 0.83}
"""Seconds an iteration in the release's logs of VOC 732 and 1464: ResNet-101, 16 + 16 crops of 513,
4 GPUs that it does not name (reproduce/released). Its consistency trains the flow too."""


RELEASED_PIXELS = 2 * 16 * 513 * 513


RELEASED_GPUS = 4


@dataclass(frozen=True)
class Estimate:
    """What one run will cost.

    Attributes:
        hours: of training and validation; ``None`` where there is nothing to tell it by.
        basis: what ``hours`` rests on.
        memory: GiB on each GPU, see :func:`training_memory`.
    """

    hours: float | None
    basis: str
    memory: float


def estimate(config: Config, ledger: pd.DataFrame, gpus: int = 1, accumulate: int = 1) -> Estimate:
    """Estimate the cost of a run.

    Hours come from earlier runs of the same benchmark and method where the ledger has some, on as
    many GPUs or on none; else from the release's log, in proportion to pixels a step and to GPUs,
    where the network is the release's.

    Args:
        config: of the run.
        ledger: ``reproduce/results.csv``.
        gpus: processes of the run.
        accumulate: parts in which each of them takes its share of a step's images.
    """
    memory = training_memory(config, gpus * accumulate) / GIB
    known = ledger[
        (ledger["benchmark"] == config.benchmark)
        & (ledger["method"] == config.method.name)
        & ledger["gpus"].fillna(0).isin([0, gpus])
    ]
    training = config.training
    if len(known):
        each = (known["seconds"] / known["steps"]).mean()
        on = ", ".join(known["gpu"].fillna("a CPU").unique())
        basis = f"runs in reproduce/results.csv, on {on}"
        return Estimate(each * training.steps / 3600, basis, memory)
    if config.network.encoder != "resnet101":
        return Estimate(None, "nothing like it was measured yet", memory)
    seconds, method = RELEASED_SECONDS, config.method
    ends = {  # the stage that begins at this part of the steps
        "consistency": training.consistency_from if method.consistency else 1.0,
        "perturbed": training.perturb_from if method.perturbation != "none" else 1.0,
    }
    each = seconds["supervised"]
    for before, stage in (("supervised", "consistency"), ("consistency", "perturbed")):
        each += (1 - ends[stage]) * (seconds[stage] - seconds[before])
    share = pixels(config) / RELEASED_PIXELS * RELEASED_GPUS / gpus
    basis = f"the release's log, 4 GPUs that it does not name, scaled to {gpus} and by pixels"
    return Estimate(each * training.steps * share / 3600, basis, memory)


def pixels(config: Config) -> int:
    """Return the number of image pixels that one step sees, over all processes."""
    height, width = config.data.augment.size
    training = config.training
    return height * width * (training.batch_labeled + training.batch_unlabeled)


def table(cells: Sequence[Cell], ledger: pd.DataFrame, gpus: int = 1, accumulate: int = 1) -> str:
    """Return the plan of a matrix as text: a line a method and split, a sum, and its grounds."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.config.data.split, cell.config.method.name), []).append(cell)
    lines = ["labeled     method           runs     steps  images seen  hours a run  GiB a GPU"]
    grounds, hours, unknown = {}, 0.0, 0
    for (split, method), runs in groups.items():
        config = runs[0].config
        training = config.training
        cost = estimate(config, ledger, gpus, accumulate)
        batch = training.batch_labeled
        batch += training.batch_unlabeled if config.method.consistency else 0
        each = "?" if cost.hours is None else f"{cost.hours:.2f}"
        finished = sum(cell.finished() for cell in runs)
        lines.append(
            f"{split:<11} {method:<14} {len(runs):>6} {training.steps:>9,} "
            f"{training.steps * batch:>12,} {each:>12} {cost.memory:>10.1f}"
            + (f"  {finished} finished" if finished else "")
        )
        grounds[cost.basis] = None
        left = len(runs) - finished
        hours += left * (cost.hours or 0)
        unknown += left * (cost.hours is None)
    told = f"about {hours:.1f} hours one after another" if unknown < len(cells) else "hours unknown"
    told += f", and {unknown} runs of unknown length" if 0 < unknown < len(cells) else ""
    return "\n".join(
        [
            *lines,
            f"{len(cells)} runs, {told}",
            f"hours: {'; '.join(grounds)}",
            "memory: counted for float32, not measured: weights, gradients, optimizer, activations",
        ]
    )
