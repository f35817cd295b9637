"""Figures of studies: what happens inside networks, and how long a step should be."""

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ddfp_lib.experiments.statistics import mean_interval, of_common_seeds
from ddfp_lib.plots import words
from ddfp_lib.plots.style import Picture, figure_style, method_colour, new_picture

PANELS = {
    "boundary percentile": "boundary percentile",
    "error percentile": "error percentile",
    "pseudo-label precision": "pseudo-label precision (%)",
    "boundary share": "features at the boundary (%)",
    "pseudo-label coverage": "pseudo-label coverage (%)",
}
"""Quantities of :mod:`ddfp_lib.evaluation.mechanism`, and their names in a figure."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""Shapes of the methods' points, so that no picture depends on color alone."""


def boundary(mechanism: pd.DataFrame) -> Picture:
    """Draw what happens at the decision boundary: its density through training, then final values.

    The first panel has the mean over seeds at each checkpoint. The others have the values at the
    end of training: each seed a dot, and the mean with its 95 % interval (Student's t). Seeds that
    a method lacks are left out for all.

    Args:
        mechanism: columns :data:`ddfp_lib.evaluation.mechanism.COLUMNS`.
    """
    mechanism = of_common_seeds(mechanism)
    methods = list(mechanism.loc[mechanism["features"] == "all", "method"].unique())
    last = mechanism[mechanism["step"] == mechanism["step"].max()]
    with figure_style():
        picture, grid = new_picture(2, 3, 2.4 + 0.55 * len(methods))
        course, *panels = grid.flat
        some = mechanism[mechanism["quantity"] == "boundary percentile"]
        for method, marker in zip(methods, MARKERS, strict=False):
            means = some[some["method"] == method].groupby("step")["value"].mean()
            look = {"color": method_colour(method), "marker": marker, "ms": 5, "lw": 1.5}
            course.plot(means.index, means, label=method, **look)
        course.set_xlabel("step")
        course.set_title(PANELS["boundary percentile"], fontsize=9)
        course.legend(fontsize=7.5)
        for axes, (quantity, title) in zip(panels, PANELS.items(), strict=True):
            found = last[(last["quantity"] == quantity) & (last["features"] == "all")]
            for row, method in enumerate(methods):
                values = found.loc[found["method"] == method, "value"].to_numpy()
                _spread(axes, row, values, method_colour(method), MARKERS[row % len(MARKERS)])
            first = axes in (grid[0, 0], grid[1, 0])
            axes.set_yticks(range(len(methods)), methods if first else [""] * len(methods))
            axes.set_ylim(len(methods) - 0.5, -0.75)
            axes.grid(axis="y", visible=False)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("at the end of training", fontsize=8.5)
        grid[0, 1].set_yticks(range(len(methods)), methods)
    return picture.described(words.boundary(mechanism, PANELS))


def _spread(axes: Axes, row: int, values: np.ndarray, colour: str, marker: str) -> None:
    """Draw seeds as dots, and their mean with its interval and as a number."""
    axes.scatter(values, np.full(len(values), row), color=colour, s=16, alpha=0.5, lw=0)
    mean, half = values.mean(), None
    if len(values) > 2:
        half = mean_interval(values)[1] - mean
    axes.errorbar(mean, row, xerr=half, fmt=marker, color=colour, capsize=3, ms=5)
    axes.annotate(f"{mean:.1f}", (mean, row - 0.2), ha="center", va="bottom", fontsize=8)


SEED: dict[str, Any] = {"marker": "o", "ls": "-", "lw": 0.9, "ms": 4, "alpha": 0.6}
"""How the line of one seed looks."""

SWEEP = re.compile(r"^(.+), eps ([\d.]+)(?:, .+)?$")


def is_sweep(runs: pd.DataFrame) -> bool:
    """Say whether a study's variants are methods at several step lengths: see :func:`lengths`."""
    named = runs["method"].str.extract(SWEEP).dropna().drop_duplicates()
    return len(named) > 0 and named.groupby(0)[1].nunique().min() > 2


def lengths(runs: pd.DataFrame, baseline: str, score: str, label: str) -> Picture:
    """Draw scores over the length of the step: a panel a method, each seed a line, the mean thick.

    Args:
        runs: ledger of variants that are called ``method, eps X``, and of the baseline.
        baseline: drawn as horizontal lines, its mean over seeds dashed.
        score: column of the ledger, mIoU in percent.
        label: what the score is, with its unit.
    """
    reference = runs.loc[runs["method"] == baseline, score].mean()
    tables = _by_length(runs, score)
    with figure_style():
        picture, grid = new_picture(1, len(tables), 2.9, sharey=True)
        for axes, (preset, table) in zip(grid.flat, tables.items(), strict=True):
            colour = method_colour(preset)
            of = "mean" if table.shape[1] > 1 else f"seed {table.columns[0]}"
            for seed in table:
                axes.plot(table.index, table[seed], color=colour, **SEED)
            axes.plot(table.index, table.mean(axis=1), color=colour, lw=2.4)
            line = axes.axhline(reference, color="0.3", ls="--", lw=1.2)
            axes.set_xscale("log")
            axes.set_xticks(table.index, [f"{eps:g}" for eps in table.index])
            axes.minorticks_off()
            axes.set_xlabel("length of the step, eps")
            axes.set_title(preset)
        grid[0, 0].set_ylabel(label)
        # below the panels, in no method's color: it holds for all of them, and hides no line
        named = {of: Line2D([], [], color="0.3", lw=2.4), f"{baseline}, {of}": line}
        if of == "mean":
            named = {"one seed": Line2D([], [], color="0.3", **SEED), **named}
        below = {"loc": "outside lower center", "ncols": len(named), "fontsize": 8}
        picture.legend(named.values(), named.keys(), **below)
    return picture.described(words.lengths(tables, reference, baseline, label))


def _by_length(runs: pd.DataFrame, score: str) -> dict[str, pd.DataFrame]:
    """Return the scores of each method: a row for each length, a column for each seed."""
    named = runs["method"].str.extract(SWEEP)
    runs = runs.assign(preset=named[0], eps=named[1].astype(float)).dropna(subset="preset")
    return {
        preset: some.pivot(index="eps", columns="seed", values=score)
        for preset, some in runs.groupby("preset", sort=False)
    }


def in_words(runs: pd.DataFrame, baseline: str, score: str, label: str) -> str:
    """Describe the picture of a study's scores without drawing it: its alternative text.

    Args:
        runs: ledger of its variants.
        baseline: the variant that the others are compared with.
        score: column of the ledger, mIoU in percent.
        label: what the score is, with its unit.
    """
    if not is_sweep(runs):
        return words.scores(runs, baseline, score, label)
    reference = runs.loc[runs["method"] == baseline, score].mean()
    return words.lengths(_by_length(runs, score), reference, baseline, label)
