"""Figures of studies: what happens inside networks while they train."""

import pandas as pd

from ddfp_lib.plots.style import Picture, figure_style, method_colour, new_picture

PANELS = {
    "boundary percentile": "density at the boundary (percentile)",
    "boundary share": "features at the boundary (%)",
    "error percentile": "density of errors (percentile)",
    "pseudo-label precision": "pseudo-label precision (%)",
    "pseudo-label coverage": "pseudo-label coverage (%)",
}
"""Quantities of :mod:`ddfp_lib.evaluation.mechanism`, and how a figure calls them."""


def boundary(mechanism: pd.DataFrame) -> Picture:
    """Draw what happens at the decision boundary through training: a line a method, its mean.

    Args:
        mechanism: columns :data:`ddfp_lib.evaluation.mechanism.COLUMNS`; the band is from the
            lowest to the highest seed.
    """
    with figure_style():
        picture, grid = new_picture(2, 3)
        *panels, legend = grid.flat
        for axes, (quantity, title) in zip(panels, PANELS.items(), strict=True):
            some = mechanism[mechanism["quantity"] == quantity]
            for method, values in some.groupby("method", sort=False):
                seeds = values.pivot(index="step", columns="seed", values="value")
                colour = method_colour(method)
                axes.plot(seeds.index, seeds.mean(axis=1), "o-", ms=3.5, color=colour, label=method)
                axes.fill_between(
                    seeds.index,
                    seeds.min(axis=1),
                    seeds.max(axis=1),
                    color=colour,
                    alpha=0.12,
                    lw=0,
                )
            axes.set_xlabel("step")
            axes.set_title(title)
        legend.axis("off")
        legend.legend(*panels[0].get_legend_handles_labels(), loc="center", fontsize=9)
    return picture
