"""The cost of a matrix of runs before it starts: hours and memory.

No data are needed. Each number says what it rests on, since none of them is a measurement of the
runs that are planned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ddfp_lib.config import Config
from ddfp_lib.config.expected import expected_validation_images
from ddfp_lib.experiments.matrix import Cell
from ddfp_lib.experiments.operations import ASSUMPTIONS, CARDS, operations
from ddfp_lib.training.memory import GIB, fitting_parts, training_memory


@dataclass(frozen=True)
class Estimate:
    """The cost of one run.

    Attributes:
        hours: hours of training and validation, by where it runs: names of :data:`CARDS`, or
            :data:`MEASURED`.
        basis: what ``hours`` rests on.
        memory: GiB on each GPU, see :func:`ddfp_lib.training.memory.training_memory`, of all its
            images at once, or in the micro-batches that were asked for.
        micro_batches: on each of :data:`CARDS`, as training chooses them by memory, or as asked
            for. Their number changes the statistics of BatchNorm.
    """

    hours: dict[str, float]
    basis: str
    memory: float
    micro_batches: tuple[int, ...]


MEASURED = "measured"
"""Where earlier runs of the same benchmark and method ran."""


def estimate(config: Config, ledger: pd.DataFrame, gpus: int = 1, accumulate: int = 0) -> Estimate:
    """Estimate the cost of a run.

    Where the ledger has runs of the same benchmark and method, on as many GPUs or on a CPU, hours
    follow from their seconds per step. Otherwise they are counted for named cards, see
    :mod:`ddfp_lib.experiments.operations`.

    Args:
        config: configuration of the run.
        ledger: ``reproduce/results.csv``.
        gpus: processes of the run.
        accumulate: micro-batches in which each process takes its share of a step's images; 0: as
            many as the memory of a card asks for.

    Returns:
        Hours of one run, GiB on each GPU, and numbers of micro-batches. Measured hours are the mean
        over earlier runs of seconds / steps, times the steps of this run, divided by 3600.
    """
    memory = training_memory(config, gpus * max(1, accumulate)) / GIB
    parts = tuple(
        accumulate or fitting_parts(config, gpus, int(card.memory * GIB)) for card in CARDS
    )
    known = ledger[
        (ledger["benchmark"] == config.benchmark)
        & (ledger["method"] == config.method.name)
        & ledger["gpus"].fillna(0).isin([0, gpus])
    ]
    if len(known):
        each = (known["seconds"] / known["steps"]).mean()
        on = ", ".join(known["gpu"].fillna("a CPU").unique())
        basis = f"{MEASURED}: runs in reproduce/results.csv, on {on}"
        return Estimate({MEASURED: each * config.training.steps / 3600}, basis, memory, parts)
    return Estimate(counted_hours(config, gpus), ASSUMPTIONS, memory, parts)


def counted_hours(config: Config, gpus: int = 1) -> dict[str, float]:
    r"""Return the hours of a run on each of :data:`CARDS`, from counted operations.

    .. math:: \frac{1}{3600 \, g} \left( \sum_s n_s t_s
        + N \left( \lceil n / e \rceil + \tfrac12 \right) t_v \right)

    with g cards; n steps, of which :math:`n_s` are in stage s and take :math:`t_s` seconds each; a
    validation after every e steps; N validation images, each :math:`t_v` seconds for student and
    teacher together. The last half is the test at the end: it is assumed to have N images, and the
    teacher alone segments them. So it costs half a validation.

    Args:
        config: configuration of the run.
        gpus: g, cards of one kind that share each step and each validation without loss.

    Returns:
        Hours by the name of the card: ``A100``, ``H100``, ``4090``, ``3090``.
    """
    counted, training = operations(config), config.training
    stages = list(counted.stages)
    # the fraction of the steps at which each stage begins; a stage that a method lacks has none
    begins = {"supervised": 0.0, "consistency": training.consistency_from}
    begins["perturbed"] = max(training.perturb_from, training.consistency_from)
    ends = [begins[stage] for stage in stages[1:]] + [1.0]
    validations = -(-training.steps // training.evaluate_every)
    # student and teacher on every validation, and the teacher on the test images
    images = expected_validation_images(config) * (validations + 0.5)
    hours = {}
    for card in CARDS:
        seconds = images * counted.validation_seconds(card)
        for stage, end in zip(stages, ends, strict=True):
            steps = (end - begins[stage]) * training.steps
            seconds += steps * counted.step_seconds(stage, card)
        hours[card.name] = seconds / gpus / 3600
    return hours


def table(cells: Sequence[Cell], ledger: pd.DataFrame, gpus: int = 1, accumulate: int = 0) -> str:
    """Return the plan of a matrix as text: a line per method and split, sums, and their basis."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.config.data.split, cell.config.method.name), []).append(cell)
    costs = {
        key: estimate(runs[0].config, ledger, gpus, accumulate) for key, runs in groups.items()
    }
    places = [MEASURED, *(card.name for card in CARDS)]
    places = [place for place in places if any(place in cost.hours for cost in costs.values())]
    head = f"{'labeled':<11} {'method':<14} {'runs':>5} {'steps':>9} {'images seen':>12} "
    head += f"{'GiB per GPU':>11} {'micro-batches':>14}"
    lines = [" " * len(head) + "  hours of a run:", head + "".join(f" {p:>9}" for p in places)]
    sums, left = dict.fromkeys(places, 0.0), 0
    for (split, method), runs in groups.items():
        config, cost = runs[0].config, costs[split, method]
        training = config.training
        batch = training.batch_labeled
        batch += training.batch_unlabeled if config.method.consistency else 0
        finished = sum(cell.finished() for cell in runs)
        each = cost.micro_batches
        taken = str(each[0]) if len(set(each)) == 1 else "/".join(map(str, each))
        row = (
            f"{split:<11} {method:<14} {len(runs):>5} {training.steps:>9,} "
            f"{training.steps * batch:>12,} {cost.memory:>11.1f} {taken:>14}"
        )
        for place in places:
            row += f" {cost.hours[place]:>9.2f}" if place in cost.hours else f" {'-':>9}"
            sums[place] += (len(runs) - finished) * cost.hours.get(place, 0.0)
        left += len(runs) - finished
        lines.append(row + (f"  {finished} finished" if finished else ""))
    on = "" if gpus == 1 else f" on {gpus} GPUs each"
    summed = ", ".join(f"{place} {hours:.1f}" for place, hours in sums.items())
    return "\n".join(
        [
            *lines,
            f"{len(cells)} runs{on}, {left} to do; hours one after another: {summed}",
            *dict.fromkeys(cost.basis for cost in costs.values()),
            "memory: counted in the precision of the run, not measured: weights, gradients, "
            "optimizer, activations",
            "micro-batches: the parts in which a GPU takes its share of a step's images, as many "
            f"as the memory of {'/'.join(card.name for card in CARDS)} asks for (--accumulate); "
            "BatchNorm's statistics are over one of them, so the number changes results",
        ]
    )
