"""Figures of steps in feature space: how density and class change, and where the steps end."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from torch import Tensor

from ddfp_lib.evaluation.descent import Descent
from ddfp_lib.plots.style import (
    CLASS_MARKERS,
    STEP_COLOUR,
    Picture,
    bare,
    figure_style,
    method_colour,
    new_picture,
)

STEP_METHODS = {
    "density descent": "ddfp",
    "random": "noise",
    "adversarial (VAT)": "vat",
    "random step": "noise",
    "descent in 8 steps": "ddfp_plus",
}
"""The method whose color a kind of step has."""


def step_colour(name: str) -> str:
    """Return the color that a kind of step has in every figure."""
    return method_colour(STEP_METHODS.get(name, name))


def step_costs(
    lengths: Sequence[float], falls: Mapping[str, Tensor], flips: Mapping[str, Tensor]
) -> Picture:
    """Draw what steps of growing length do to the density and to the true class.

    Lines are means over seeds, bands run from the lowest to the highest seed.

    Args:
        lengths: L lengths, in units of the features.
        falls: for each kind of step (S, L) float, mean fall of log p in nats.
        flips: for each kind of step (S, L) float, fraction of points whose true class changes.
    """
    with figure_style():
        picture, grid = new_picture(1, 3, 3.2)
        left, middle, right = grid[0]
        for name in falls:
            fall, flip = falls[name].numpy(), 100 * flips[name].numpy()
            look = {"color": step_colour(name), "marker": "o", "ms": 3.5, "lw": 1.8, "label": name}
            for axes, values in ((left, fall), (middle, flip)):
                axes.plot(lengths, values.mean(0), **look)
                axes.fill_between(
                    lengths, values.min(0), values.max(0), color=look["color"], alpha=0.15, lw=0
                )
            right.plot(fall.mean(0), flip.mean(0), **look)
        for axes in (left, middle):
            axes.set_xlabel("length of the step (units of the features)")
        left.set_title("mean fall of log p (nats)")
        middle.set_title("true class changed (%)")
        right.set_title("true class changed (%), at equal fall")
        right.set_xlabel("mean fall of log p (nats)")
        left.legend(
            fontsize=8, title="line: mean of the seeds;\nband: all seeds", title_fontsize=7.5
        )
    return picture


def descents(measured: Descent) -> Picture:
    """Draw how each kind of step changed the log-density of real features.

    A curve gives for each change the percentage of features with a change below it; at 0 it gives
    the percentage of features whose density falls.

    Args:
        measured: see :func:`ddfp_lib.evaluation.descent.measure_descent`.
    """
    changes = {name: (after - measured.before).numpy() for name, after in measured.after.items()}
    low, high = np.quantile(np.concatenate(list(changes.values())), [0.02, 0.998])
    with figure_style():
        picture, grid = new_picture(1, 1, 3.3)
        axes = grid[0, 0]
        for name, change in changes.items():
            falling = 100 * (change < 0).mean()
            percent = np.linspace(0, 100, len(change))
            label = f"{name}: {falling:.1f} % fall"
            axes.plot(np.sort(change), percent, color=step_colour(name), lw=2, label=label)
            axes.plot(0, falling, "o", ms=6, color=step_colour(name))
        axes.axvline(0, color="0.3", lw=1)
        axes.set(xlim=(low, max(high, 0.1 * abs(low))), ylim=(0, 100))
        axes.set_xlabel("change of log p(v) by the step (nats)")
        axes.set_ylabel("features with a change below (%)")
        axes.legend(loc="upper left", fontsize=8.5)
    return picture


def embeddings(
    before: np.ndarray,
    after: Mapping[str, np.ndarray],
    classes: Tensor,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Picture:
    """Draw where each kind of step leads on a map of embeddings: a line from before to after.

    Args:
        before: (N, 2) float, places of the unperturbed embeddings, drawn by class.
        after: for each kind of step (N, 2) float, the same features after it.
        classes: (N,) integers.
        names: names of the K classes.
        palette: their colors, 0..255.
    """
    with figure_style():
        picture, grid = new_picture(1, len(after), 4.6, sharex=True, sharey=True)
        for axes, (title, ends) in zip(grid[0], after.items(), strict=True):
            lines = np.stack([before, ends], axis=1)
            axes.add_collection(
                LineCollection(lines, colors=STEP_COLOUR, linewidths=0.7, alpha=0.6, label="step")
            )
            for k in classes.unique().tolist():
                chosen = (classes == k).numpy()
                colour, marker = np.array(palette[k]) / 255, CLASS_MARKERS[k % len(CLASS_MARKERS)]
                look = {"s": 11, "color": colour, "marker": marker, "lw": 0}
                axes.scatter(*before[chosen].T, label=f"{names[k]}, unperturbed", **look)
            axes.set_title(title)
            bare(axes)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=6, markerscale=2)
    return picture
