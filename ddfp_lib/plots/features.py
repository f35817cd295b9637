"""Figures of steps in feature space: how far they go down, what they cost, where they end."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ddfp_lib.evaluation.descent import Descent
from ddfp_lib.plots.style import (
    CLASS_MARKERS,
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
    "bent descent": "ddfp_released",
}
"""Whose colour a kind of step has."""


def step_colour(name: str) -> str:
    """Return the colour that a kind of step has in every figure."""
    return method_colour(STEP_METHODS.get(name, name))


def step_costs(
    lengths: Sequence[float], falls: Mapping[str, Tensor], flips: Mapping[str, Tensor]
) -> Picture:
    """Draw what steps of growing length do to the density and to the true class.

    Lines are means over seeds, bands run from the lowest to the highest seed.

    Args:
        lengths: L lengths, in units of the features.
        falls: for each kind of step (S, L) float, mean fall of log p in nats.
        flips: for each kind of step (S, L) float, part of the points whose true class changes.
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
        right.set_title("price of the fall")
        right.set(xlabel="mean fall of log p (nats)", ylabel="true class changed (%)")
        left.legend(fontsize=8)
    return picture


def descents(measured: Descent) -> Picture:
    """Draw how each kind of step changed the log-density of real features.

    Args:
        measured: see :func:`ddfp_lib.evaluation.descent.measure_descent`.
    """
    changes = {name: (after - measured.before).numpy() for name, after in measured.after.items()}
    low, high = np.quantile(np.concatenate(list(changes.values())), [0.01, 0.999])
    edge = max(abs(low), abs(high))
    bins = np.linspace(-edge, edge / 2, 90)
    with figure_style():
        picture, grid = new_picture(len(changes), 1, 3.9, sharex=True)
        for axes, (name, change) in zip(grid[:, 0], changes.items(), strict=True):
            axes.hist(
                change,
                bins,
                color=step_colour(name),
                weights=np.full(len(change), 100 / len(change)),
            )
            axes.axvline(0, color="0.2", lw=1)
            axes.set_title(name)
            axes.set_ylabel("features (%)")
        grid[-1, 0].set_xlabel("change of log p(v) by the step (nats)")
    return picture


def embeddings(
    places: Mapping[str, np.ndarray],
    classes: Tensor,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Picture:
    """Draw maps of embeddings, coloured by class, over one another's outline.

    Args:
        places: for each panel's title (N, 2) float; all panels show one window.
        classes: (N,) integers.
        names: of the K classes.
        palette: their colours, 0..255.
    """
    together = np.concatenate(list(places.values()))
    with figure_style():
        picture, grid = new_picture(1, len(places), 4.0, sharex=True, sharey=True)
        for axes, (title, where) in zip(grid[0], places.items(), strict=True):
            axes.scatter(*together.T, s=3, color="0.9", lw=0, rasterized=True)
            for k in classes.unique().tolist():
                chosen = (classes == k).numpy()
                colour = "0.45" if k == 0 else np.array(palette[k]) / 255
                marker = CLASS_MARKERS[k % len(CLASS_MARKERS)]
                label = f"{names[k]}"
                axes.scatter(*where[chosen].T, s=9, color=colour, marker=marker, lw=0, label=label)
            axes.set_title(title)
            bare(axes)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=6, markerscale=2)
    return picture
