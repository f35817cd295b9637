"""Alternative texts of figures that are drawn from results: axes, lines, and the numbers shown.

A figure whose content is known beforehand, as in a lesson, has a text written for it instead, see
:meth:`ddfp_lib.plots.style.Picture.described`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.evaluation.descent import Descent
from ddfp_lib.experiments.statistics import (
    common_seeds,
    differences,
    of_common_seeds,
    score_table,
    signed,
)


def listed(items: Sequence[str]) -> str:
    """Join words: ``a``, ``a and b``, or ``a, b and c``."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def named(values: Mapping[str, str]) -> str:
    """Return ``1 for a; 2 for b``; names of variants have commas of their own."""
    return "; ".join(f"{value} for {name}" for name, value in values.items())


def counted(number: int, word: str) -> str:
    """Return ``1 seed`` or ``3 seeds``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def scores(ledger: pd.DataFrame, baseline: str, score: str, label: str) -> str:
    """Describe the scores of methods and their paired differences to a baseline.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        baseline: the method that the others are compared with.
        score: column of the ledger, mIoU in percent.
        label: what the score is, with its unit.
    """
    methods = list(ledger["method"].unique())
    table = score_table(ledger, score)
    common, seeds = common_seeds(ledger, score), ledger["seed"].nunique()
    gaps = {name: differences(ledger, name, baseline, score) for name in methods}
    compared = [name for name in methods if name != baseline and gaps[name][0]["seeds"]]
    over = "" if len(common) == seeds else f" over the {len(common)} seeds that all methods have"
    most = "" if len(common) == seeds else "at most "
    text = (
        f"Left: {label} of each method with {most}{counted(seeds, 'seed')}. A dot shows "
        f"one run. A bar shows the mean{over}. The means are {_values(table['mean'].to_dict())}."
    )
    if compared:
        found = {name: _over_seeds(gaps[name]) for name in compared}
        interval = "" if np.isnan(gaps[compared[0]][0]["low"]) else ", with its 95 % interval"
        text += f" Right: the paired difference from {baseline} in points{interval}: "
        text += f"{named(found)}."
    return text


def _over_seeds(gaps: Sequence[Mapping[str, float]]) -> str:
    """Write the difference over common seeds, and that over all seeds."""
    more = (f" (with {gap['seeds']} seeds {signed(gap)})" for gap in gaps[1:])
    return signed(gaps[0]) + "".join(more)


def curves(
    logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    panels: Mapping[str, str],
    marks: Mapping[str, float],
    released: Sequence[tuple[float, float]],
) -> str:
    """Describe quantities over the steps of training by their first and last mean values.

    Args:
        logs: for each method the ``metrics.jsonl`` of each seed.
        panels: keys of the log and what the panels are called.
        marks: steps at which something begins, by what begins.
        released: (step, mIoU) of the release's log.
    """
    parts = [
        f"{len(panels)} panels over the steps of training: a thin line for each run, a thick line "
        "for the mean of a method. First and last means:"
    ]
    for key, label in panels.items():
        ends = {}
        for method, seeds in logs.items():
            lines = [[line[key] for line in seed if key in line] for seed in seeds]
            if lines and all(lines):
                ends[method] = tuple(np.mean([line[end] for line in lines]) for end in (0, -1))
        digits = 1 if "(%)" in label else 2
        found = {name: f"{a:.{digits}f} to {b:.{digits}f}" for name, (a, b) in ends.items()}
        parts.append(f"{label[0].upper()}{label[1:]}: {named(found) or 'no value'}.")
    if marks:
        begun = [f"{what} at step {step:,.0f}" for what, step in marks.items()]
        parts.append(f"Dotted lines: {listed(begun)}.")
    if released:
        parts.append(f"Dashed: the release's log, which ends at {released[-1][1]:.1f} %.")
    return " ".join(parts)


def segmentations(truths: Sequence[Tensor], predictions: Mapping[str, Sequence[Tensor]]) -> str:
    """Describe images that several methods segment by how many of their pixels are right.

    Args:
        truths: n of (H, W) uint8.
        predictions: for each method n of (H, W) uint8.
    """
    known = [truth != IGNORE_INDEX for truth in truths]
    pixels = sum(int(each.sum()) for each in known)
    right = {
        method: 100
        * sum(
            int((answer == truth)[where].sum())
            for answer, truth, where in zip(found, truths, known, strict=True)
        )
        / max(pixels, 1)
        for method, found in predictions.items()
    }
    return (
        f"A column for each of {counted(len(truths), 'image')}. Rows: the image, its true mask, "
        f"then a segmentation by each method. Right pixels on these images, in percent: "
        f"{_values(right)}."
    )


def class_iou(ious: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    """Describe the IoU of classes by the best and the worst class of each method.

    Args:
        ious: for each method (seeds, K) float, percent; NaN where a class does not occur.
        classes: K names.
    """
    found = {}
    for method, values in ious.items():
        mean = np.asarray(values, dtype=float).mean(axis=0)
        if np.isnan(mean).all():
            continue
        low, high = int(np.nanargmin(mean)), int(np.nanargmax(mean))
        ends = (f"{mean[k]:.1f} ({classes[k]})" for k in (low, high))
        found[method] = " to ".join(ends)
    return (
        "Test IoU in percent, a row for each class and a dot for each method: the mean over seeds, "
        "with a line from the lowest to the highest seed. From the lowest to the highest class: "
        f"{named(found) or 'no value'}."
    )


def descent(measured: Descent) -> str:
    """Describe log-densities before and after each kind of step by their medians.

    Args:
        measured: see :func:`ddfp_lib.evaluation.descent.measure_descent`.
    """
    changes = {n: (after - measured.before).median() for n, after in measured.after.items()}
    kept = {name: 100 * measured.kept[name] for name in measured.after}
    return (
        f"Two histograms for {counted(len(measured.before), 'confident feature')}. Left: log p(v), "
        "unperturbed and after each kind of step; the unperturbed median is "
        f"{measured.before.median():.1f} nats. Right: the change by the step, in nats; its median "
        f"is {named({name: f'{change:+.1f}' for name, change in changes.items()})}. Features that "
        f"keep their class, in percent: {_values(kept)}."
    )


def seconds(ledger: pd.DataFrame) -> str:
    """Describe what a run of each method cost.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
    """
    found = {}
    for method in ledger["method"].unique():
        runs = ledger[ledger["method"] == method]
        each = 1000 * (runs["seconds"] / runs["steps"]).mean()
        found[method] = f"{runs['seconds'].mean():.0f} s, {each:.0f} ms a step"
    return (
        "A bar for each method: the mean seconds of training and validation; a dot for each run. "
        f"{named(found)}."
    )


def boundary(mechanism: pd.DataFrame, panels: Mapping[str, str]) -> str:
    """Describe what happens at the decision boundary of several methods.

    Args:
        mechanism: columns :data:`ddfp_lib.evaluation.mechanism.COLUMNS`.
        panels: quantities and what they are called.
    """
    whole = of_common_seeds(mechanism[mechanism["features"] == "all"])
    means = whole.groupby(["quantity", "method", "step"], sort=False)["value"].mean()
    methods, steps = whole["method"].unique(), whole["step"]
    first, last = steps.min(), steps.max()

    def at(quantity: str, step: int) -> dict[str, float]:
        return {name: means.get((quantity, name, step), np.nan) for name in methods}

    course = [at("boundary percentile", step) for step in (first, last)]
    parts = [
        "The first panel shows the density at the decision boundary (percentile) over the training "
        f"steps, with one line for each method. The means at step {first:,} and at step {last:,} "
        "are: "
        + named({name: f"{course[0][name]:.1f} and {course[1][name]:.1f}" for name in methods})
        + ". The other panels show the end of training: a dot for each seed, and the mean with its "
        "95 % interval."
    ]
    parts += [
        f"{title[0].upper()}{title[1:]}: {_values(at(quantity, last))}."
        for quantity, title in panels.items()
    ]
    return " ".join(parts)


def lengths(table: Mapping[str, pd.DataFrame], reference: float, baseline: str, label: str) -> str:
    """Describe scores over the length of the step by the best length of each method.

    Args:
        table: for each method the scores, a row for each length and a column for each seed.
        reference: mean score of the baseline.
        baseline: its name.
        label: what the score is, with its unit.
    """
    best = {name: scores.mean(axis=1) for name, scores in table.items()}
    found = {name: f"{mean.max():.1f} at eps {mean.idxmax():g}" for name, mean in best.items()}
    many = max(scores.shape[1] for scores in table.values()) > 1
    lines = "A thin line shows one seed. The thick line shows the mean." if many else "One seed."
    return (
        f"Each panel shows one method: {label} over the length of the step, eps. {lines} The "
        f"dashed line shows {reference:.1f}, the score of {baseline}. The highest "
        f"{'means' if many else 'scores'} are {named(found)}."
    )


def _values(numbers: Mapping[str, float]) -> str:
    return named({name: f"{number:.1f}" for name, number in numbers.items()})
