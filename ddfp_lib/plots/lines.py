"""Figures along one axis: seeds as dots, curves, and a change of variables."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ddfp_lib.plots.style import (
    CLASS_COLOURS,
    WIDTH,
    Picture,
    figure_style,
    method_colour,
    new_picture,
)

Curve = tuple[Sequence[float], Sequence[Sequence[float]]]
"""Positions (M,) and at each of them the values of some seeds, (M, S)."""


def seed_dots(
    results: Mapping[str, Mapping[str, Sequence[float]]],
    quantity: str,
    colours: Mapping[str, str] | None = None,
) -> Picture:
    """Draw every seed as a dot and their mean as a bar, one panel per data set.

    Each method's mean and standard deviation over seeds (n - 1 in the denominator) are printed as
    ``mean ± standard deviation``.

    Args:
        results: for each data set, for each method, a number for each seed, at least two. Every
            data set needs the same methods, in the same order.
        quantity: what the numbers are, with the unit.
        colours: color of each method; None: those that the methods have everywhere.
    """
    methods = list(next(iter(results.values())))
    with figure_style():
        picture, grid = new_picture(1, len(results), 0.95 + 0.36 * len(methods), sharey=True)
        for axes, (title, by_method) in zip(grid.flat, results.items(), strict=True):
            for row, method in enumerate(methods):
                values = np.asarray(by_method[method])
                colour = method_colour(method) if colours is None else colours[method]
                axes.scatter(
                    values, np.full(len(values), row), color=colour, s=22, alpha=0.65, lw=0
                )
                axes.plot([values.mean()] * 2, [row - 0.27, row + 0.27], color=colour, lw=2.5)
                axes.annotate(
                    f"{values.mean():.1f} ± {values.std(ddof=1):.1f}",
                    (1.0, row - 0.3),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=8,
                )
            axes.set_title(title)
            axes.set_xlabel(quantity)
            axes.grid(axis="y", visible=False)
        grid[0, 0].set_yticks(range(len(methods)), methods)
        grid[0, 0].set_ylim(len(methods) - 0.5, -0.75)
        picture.supxlabel("numbers: mean ± standard deviation over the seeds", fontsize=8)
    return picture


def curves(
    panels: Mapping[str, Mapping[str, Curve]],
    quantity: str,
    colours: Mapping[str, str],
    categories: bool = False,
) -> Picture:
    """Draw mean curves with a band from the lowest to the highest seed.

    Args:
        panels: for each panel (the key names its horizontal axis), the curves by name.
        quantity: what goes up, with the unit.
        colours: color of each curve, by its name.
        categories: space the positions evenly and write them as they are.
    """
    with figure_style():
        picture, grid = new_picture(1, len(panels), 2.9, sharey=True)
        for axes, (position, by_name) in zip(grid.flat, panels.items(), strict=True):
            for name, (where, seeds) in by_name.items():
                values = np.asarray(seeds, dtype=float)
                at = np.arange(len(where)) if categories else np.asarray(where)
                axes.plot(at, values.mean(1), "o-", color=colours[name], lw=1.8, ms=4, label=name)
                axes.fill_between(
                    at, values.min(1), values.max(1), color=colours[name], alpha=0.15, lw=0
                )
                if categories:
                    axes.set_xticks(at, [f"{value:g}" for value in where])
            axes.set_xlabel(position + ("; values evenly spaced" if categories else ""))
        grid[0, 0].set_title("line: mean of the seeds; band: lowest to highest", fontsize=8.5)
        grid[0, 0].set_ylabel(quantity)
        grid[0, 0].legend(fontsize=8.5)
    return picture


def against_steps(
    steps: Sequence[int],
    curves: Mapping[str, Sequence[Sequence[float]]],
    references: Mapping[str, float],
    quantity: str,
) -> Picture:
    """Draw a quantity over the steps of training, each seed a line, next to constant references.

    Args:
        steps: (M,), drawn on a logarithmic axis.
        curves: for each panel's title the values (S, M) of S seeds.
        references: what does not depend on the steps, a dashed line each, by name.
        quantity: what goes up, with the unit.
    """
    with figure_style():
        picture, grid = new_picture(1, len(curves), 3.3, sharey=True)
        for axes, (title, seeds) in zip(grid.flat, curves.items(), strict=True):
            values = np.asarray(seeds)
            for row in values:
                axes.plot(steps, row, "o-", color=method_colour("ddfp"), lw=0.9, ms=3, alpha=0.6)
            line = {"color": method_colour("ddfp"), "lw": 2.4, "label": "flow: mean of the seeds"}
            axes.plot(steps, values.mean(0), **line)
            for (name, value), style in zip(references.items(), ("--", "-.", ":"), strict=False):
                axes.axhline(value, color="0.25", ls=style, lw=1.4, label=name)
            axes.set_xscale("log")
            axes.set_xticks(steps, [f"{step:,}" for step in steps])
            axes.minorticks_off()
            axes.set_xlabel("steps of training")
            axes.set_title(title)
        grid[0, 0].set_ylabel(quantity)
        grid[0, 0].legend(fontsize=8.5, loc="lower left")  # what falls leaves this corner free
    return picture


def change_of_variables(
    forward: Callable[[Tensor], Tensor],
    log_density: Callable[[Tensor], Tensor],
    base_log_density: Callable[[Tensor], Tensor],
    reach: float,
    intervals: Sequence[tuple[float, float]] = (),
) -> Picture:
    """Draw a map z = f(x) between the density of x, below it, and that of z, left of it.

    Args:
        forward: (N,) -> (N,), increasing.
        log_density: (N,) -> (N,), of x, in nats.
        base_log_density: (N,) -> (N,), of z, in nats.
        reach: x is drawn from -reach to reach.
        intervals: intervals of x; the map carries each to the interval of z with the same area.
    """
    x = torch.linspace(-reach, reach, 600, dtype=torch.float64)
    with torch.no_grad():
        z, p_x = forward(x), log_density(x).exp()
        side = torch.linspace(float(z[0]), float(z[-1]), 600, dtype=torch.float64)
        p_z = base_log_density(side).exp()
    with figure_style():
        picture = Picture(figsize=(0.72 * WIDTH, 4.6), layout="constrained")
        grid = picture.subplot_mosaic(
            [["base", "map"], [".", "data"]], width_ratios=(1, 2.6), height_ratios=(2.2, 1)
        )
        base, main, data = grid["base"], grid["map"], grid["data"]
        main.plot(x, z, color="black", lw=2)
        data.plot(x, p_x, color=CLASS_COLOURS[0], lw=1.8)
        base.plot(p_z, side, color=CLASS_COLOURS[1], lw=1.8)
        for start, stop in intervals:
            ends = torch.tensor([start, stop], dtype=torch.float64)
            low, high = forward(ends).tolist()
            inside = (x >= start) & (x <= stop)
            data.fill_between(x, p_x, where=inside.numpy(), color=CLASS_COLOURS[0], alpha=0.35)
            between = (side >= low) & (side <= high)
            base.fill_betweenx(side, p_z, where=between.numpy(), color=CLASS_COLOURS[1], alpha=0.45)
            for end, image in ((start, low), (stop, high)):
                main.plot([end, end, -reach], [float(z[0]), image, image], color="0.6", lw=0.8)
        main.set(xlim=(-reach, reach), ylim=(float(z[0]), float(z[-1])))
        main.set_title("the map z = f(x)")
        main.tick_params(labelbottom=False, labelleft=False)
        data.set(xlim=(-reach, reach), ylim=(0, None), xlabel="x", ylabel="p(x), per unit of x")
        base.set(ylim=(float(z[0]), float(z[-1])), ylabel="z", xlabel="p(z), per unit of z")
        base.set_xlim(1.1 * float(p_z.max()), 0)
        base.set_title("the base")
    return picture
