"""Figures of functions on the plane: classifiers, densities, and the steps of points.

A function on the plane takes points (N, 2) and returns class scores (N, K) or log-densities (N,).
What is drawn over the plane is said by :class:`Panel`, one for each small map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import contourpy
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.lines import Line2D
from torch import Tensor

from ddfp_lib.constants import UNLABELED
from ddfp_lib.plots.style import (
    CLASS_COLOURS,
    CLASS_MARKERS,
    STEP_COLOUR,
    WIDTH,
    Picture,
    figure_style,
    new_picture,
)

OnPlane = Callable[[Tensor], Tensor]
"""Points (N, 2) float64 -> class scores (N, K), or log-densities (N,)."""

RESOLUTION = 120
"""Nodes along each side of the grid that functions are asked at."""

BEFORE, NOW = "#8C8C8C", "#111111"
"""Colors of an earlier decision boundary and of the one that a panel is about."""

LEVELS = 2.0 ** np.arange(-6, 1)
"""Density levels as parts of the highest one: each twice the one below."""


@dataclass(frozen=True)
class Window:
    """The part of the plane that is drawn."""

    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, points: Tensor, margin: float = 0.4) -> "Window":
        """Return the box of points (N, 2), widened by ``margin`` on each side."""
        (left, bottom), (right, top) = points.amin(0).tolist(), points.amax(0).tolist()
        return cls(left - margin, right + margin, bottom - margin, top + margin)

    def square(self) -> "Window":
        """Return the smallest square around this window, with the same center."""
        half = max(self.right - self.left, self.top - self.bottom) / 2
        x, y = (self.left + self.right) / 2, (self.bottom + self.top) / 2
        return Window(x - half, x + half, y - half, y + half)

    def axes(self, resolution: int = RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
        """Return the grid's coordinates along x and along y, each (R,)."""
        return (
            np.linspace(self.left, self.right, resolution),
            np.linspace(self.bottom, self.top, resolution),
        )

    def ask(self, function: OnPlane, resolution: int = RESOLUTION) -> np.ndarray:
        """Return a function's values on the grid, (R, R, ...), rows from bottom to top."""
        x, y = (torch.from_numpy(side) for side in self.axes(resolution))
        nodes = torch.cartesian_prod(y, x).flip(1)
        with torch.no_grad():
            values = function(nodes)
        return values.reshape(resolution, resolution, *values.shape[1:]).numpy()


@dataclass(frozen=True)
class Panel:
    """One map of the plane.

    Attributes:
        title: above the map.
        points: (N, 2), drawn as small dots.
        classes: (N,) class of each dot, which colors it; None: all dots are gray.
        labels: (N,) class of the labeled points, UNLABELED (-1) elsewhere; drawn large.
        classifier: points -> (N, K) class scores; its regions are tinted, its boundary drawn.
        before: an earlier classifier, whose boundary is drawn dashed.
        log_density: points -> (N,) log-density; contours, each level twice the one below.
        shift: (N, 2), an arrow from each point.
        centres: (K, 2), a cross in the color of each class.
        note: a few words below the title, such as a number.
        axis_names: names of the two coordinates.
    """

    title: str
    points: Tensor | None = None
    classes: Tensor | None = None
    labels: Tensor | None = None
    classifier: OnPlane | None = None
    before: OnPlane | None = None
    log_density: OnPlane | None = None
    shift: Tensor | None = None
    centres: Tensor | None = None
    note: str = ""
    axis_names: tuple[str, str] = ("feature 1", "feature 2")


def maps(
    panels: Sequence[Panel],
    window: Window | Sequence[Window],
    columns: int | None = None,
) -> Picture:
    """Draw small maps next to each other, with one legend for all.

    Args:
        panels: what each map shows; density levels are shared among them.
        window: the part of the plane that all maps show, or one for each.
        columns: maps in a row; None: all of them in one row.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    shared = isinstance(window, Window)
    windows = [window] * len(panels) if shared else list(window)
    first = windows[0]
    tall = (first.top - first.bottom) / (first.right - first.left)
    densities = [
        None if panel.log_density is None else np.exp(at.ask(panel.log_density))
        for panel, at in zip(panels, windows, strict=True)
    ]
    peak = max((float(p.max()) for p in densities if p is not None), default=1.0)
    with figure_style():
        # Room that is not map: ticks of the left column or of all, the bar, titles, the legend.
        spent = 0.55 + (0 if shared else 0.32 * (columns - 1))
        spent += 0.0 if all(p is None for p in densities) else 0.95
        map_width = (WIDTH - spent) / columns - 0.1
        handles = _legend(panels)
        legend_rows = -(-len(handles) // 6)
        height = rows * (map_width * tall + 0.33) + 0.65 + 0.22 * legend_rows
        picture, grid = new_picture(rows, columns, height, sharex=shared, sharey=shared)
        for axes, panel, at, density in zip(grid.flat, panels, windows, densities, strict=False):
            _draw(axes, panel, at, density, peak)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for number, axes in enumerate(grid.flat[: len(panels)]):
            if number + columns >= len(panels):
                axes.set_xlabel(panels[number].axis_names[0])
                axes.tick_params(labelbottom=True)
            if number % columns == 0 or panels[number].axis_names != panels[0].axis_names:
                axes.set_ylabel(panels[number].axis_names[1])
        if any(p is not None for p in densities):
            bar = picture.colorbar(
                grid.flat[next(i for i, p in enumerate(densities) if p is not None)].collections[0],
                ax=list(grid.flat[: len(panels)]),
                fraction=0.03,
                pad=0.01,
                format="%.2g",
            )
            bar.set_label("density per unit area")
            bar.ax.grid(visible=False)
            bar.ax.minorticks_off()
        in_a_row = -(-len(handles) // max(legend_rows, 1))
        picture.legend(
            handles=handles, loc="outside lower center", ncols=max(in_a_row, 1), fontsize=8.5
        )
    return picture


def density_under_boundary(
    classifier: OnPlane, log_density: OnPlane, window: Window, resolution: int = RESOLUTION
) -> float:
    r"""Return how much of the data lies under the decision boundary.

    .. math:: \int_{\text{boundary}} p(x) \, \mathrm{d} \ell

    Moved sideways by a small length h everywhere, the boundary passes over this times h of the
    data. A long way through empty space adds nothing.

    Args:
        classifier: points (N, 2) -> (N, K) class scores.
        log_density: points (N, 2) -> (N,), of the data.
        window: points outside are not counted.
        resolution: nodes along each side of the grid that the boundary is looked for on.

    Returns:
        The integral, per unit of length.
    """
    scores = window.ask(classifier, resolution)
    return density_under_lines(boundary_lines(scores, window), scores.shape[-1], log_density)


def density_under_lines(lines: Sequence[np.ndarray], classes: int, log_density: OnPlane) -> float:
    """Return the integral of :func:`density_under_boundary` for lines that are known already.

    Args:
        lines: result of :func:`boundary_lines`.
        classes: K, of the classifier.
        log_density: points (N, 2) -> (N,), of the data.
    """
    total = 0.0
    for line in lines:
        middles = torch.from_numpy((line[1:] + line[:-1]) / 2)
        lengths = np.linalg.norm(np.diff(line, axis=0), axis=1)
        with torch.no_grad():
            total += float(lengths @ log_density(middles).exp().numpy())
    return total if classes == 2 else total / 2


def boundary_lines(scores: np.ndarray, window: Window) -> list[np.ndarray]:
    """Return the decision boundary of class scores on the grid, (R, R, K): lines, each (M, 2).

    It is where a class's score equals the best other one. Of two classes the first has all of it;
    of more, each line comes twice, once for each of the classes next to it.
    """
    x, y = window.axes(len(scores))
    classes = scores.shape[-1]
    lines = []
    for k in range(1 if classes == 2 else classes):
        lead = scores[..., k] - np.delete(scores, k, axis=-1).max(axis=-1)
        lines += contourpy.contour_generator(x, y, lead).lines(0.0)
    return lines


def _draw(
    axes: Axes, panel: Panel, window: Window, density: np.ndarray | None, peak: float
) -> None:
    x, y = window.axes()
    if density is not None:
        levels = peak * LEVELS
        norm = LogNorm(levels[0] / 2, 2 * levels[-1])
        # Where the density underflows to 0 a logarithmic scale would warn.
        shown = np.maximum(density, levels[0] / 2)
        axes.contourf(x, y, shown, levels, cmap="Blues", norm=norm, extend="max", alpha=0.8)
    if panel.classifier is not None:
        scores = window.ask(panel.classifier)
        if density is None:
            tints = 1 - 0.22 * (1 - np.array([to_rgb(c) for c in CLASS_COLOURS]))
            extent = (window.left, window.right, window.bottom, window.top)
            picture = tints[scores.argmax(-1)]
            axes.imshow(picture, extent=extent, origin="lower", zorder=0, aspect="auto")
        for line in boundary_lines(scores, window):
            axes.plot(*line.T, color=NOW, lw=1.6, zorder=3)
    if panel.before is not None:
        for line in boundary_lines(window.ask(panel.before), window):
            axes.plot(*line.T, color=BEFORE, lw=1.4, ls=(0, (4, 2)), zorder=3)
    if panel.points is not None:
        _dots(axes, panel)
    if panel.centres is not None:
        for k, centre in enumerate(panel.centres.tolist()):
            axes.plot(*centre, "X", ms=11, color=CLASS_COLOURS[k], mec="black", mew=1.2, zorder=5)
    axes.set(xlim=(window.left, window.right), ylim=(window.bottom, window.top))
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_title(panel.title, pad=16 if panel.note else None)
    for spine in axes.spines.values():
        spine.set(visible=True, color="0.7", linewidth=0.6)
    if panel.note:
        note = axes.text(0, 1.02, panel.note, transform=axes.transAxes, fontsize=8, va="bottom")
        note.set_in_layout(False)


def _dots(axes: Axes, panel: Panel) -> None:
    """Draw a panel's points, the arrows that leave them, and the labeled ones."""
    points = panel.points
    for k, chosen in _by_class(panel.classes, len(points)):
        colour = "0.45" if k is None else CLASS_COLOURS[k]
        look = {"marker": "o" if k is None else CLASS_MARKERS[k], "zorder": 2}
        # on a density, which is blue like class 0, a white edge keeps the dots visible
        edge = {"ec": "white", "lw": 0.4, "s": 12} if panel.log_density else {"lw": 0, "s": 7}
        axes.scatter(*points[chosen].T, c=colour, alpha=0.75, **edge, **look)
    if panel.shift is not None:
        axes.quiver(
            *points.T,
            *panel.shift.T,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.004,
            headwidth=3.5,
            headlength=4,
            color=STEP_COLOUR,
            zorder=3,
        )
    if panel.labels is not None:
        for k in panel.labels[panel.labels != UNLABELED].unique().tolist():
            chosen = points[panel.labels == k]
            axes.scatter(
                *chosen.T, s=52, c=CLASS_COLOURS[k], marker=CLASS_MARKERS[k], ec="black", zorder=5
            )


def _by_class(classes: Tensor | None, count: int) -> list[tuple[int | None, Tensor]]:
    if classes is None:
        return [(None, torch.ones(count, dtype=torch.bool))]
    return [(k, classes == k) for k in classes.unique().tolist()]


def _legend(panels: Sequence[Panel]) -> list[Artist]:
    """Return a handle for everything that some panel draws."""

    def handle(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, **({"ls": "none"} | look))

    handles: list[Artist] = []
    if any(p.points is not None and p.classes is None for p in panels):
        handles.append(handle("point", marker="o", ms=3.5, color="0.45", mec="none"))
    for k in sorted({k for p in panels if p.classes is not None for k in p.classes.tolist()}):
        look = {"marker": CLASS_MARKERS[k], "ms": 4, "color": CLASS_COLOURS[k], "mec": "none"}
        handles.append(handle(f"point of class {k}", **look))
    labeled = {k for p in panels if p.labels is not None for k in p.labels.tolist()}
    for k in sorted(labeled - {UNLABELED}):
        look = {"marker": CLASS_MARKERS[k], "ms": 7, "color": CLASS_COLOURS[k], "mec": "black"}
        handles.append(handle(f"labeled, class {k}", **look))
    if any(p.centres is not None for p in panels):
        handles.append(handle("mean of a class", marker="X", ms=9, color="white", mec="black"))
    if any(p.shift is not None for p in panels):
        handles.append(handle("step of a point", marker=r"$\rightarrow$", ms=12, color=STEP_COLOUR))
    if any(p.classifier is not None for p in panels):
        handles.append(handle("decision boundary", ls="-", lw=1.6, color=NOW))
    if any(p.before is not None for p in panels):
        handles.append(handle("boundary before", ls=(0, (4, 2)), lw=1.4, color=BEFORE))
    return handles
