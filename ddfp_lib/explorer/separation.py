"""The page on low-density separation: a boundary that moves while classifiers are trained."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.path import Path as Line

from ddfp_lib.constants import UNLABELED
from ddfp_lib.explorer.clouds import (
    DENSITY_STEPS,
    STEPS,
    WARMUP,
    Frame,
    Sample,
    accuracy,
    draw,
    learn_density,
    make_clouds,
    train,
)
from ddfp_lib.explorer.encoding import packed, rounded
from ddfp_lib.plots.planes import Panel, Window, boundary_lines, density_under_lines, maps

SEEDS = 5
CLOUDS = ("moons", "circles", "blobs", "gap")
FRAMES = (0, 30, WARMUP, 80, 100, 130, 170, 220, 300, STEPS)
LENGTHS = (0.1, 0.2, 0.4, 0.8)
DIRECTIONS = {"descent": "density", "random": "noise", "adversarial": "vat", "none": "none"}
"""Names on the page, and in :func:`~ddfp_lib.method.perturb.make_perturbation`."""

ARROWS = 60
"""The first points of a cloud have an arrow."""

STAYS = 255
"""The code of an arrow that is not drawn; the others are angles of 360 / 255 degrees."""

GRID = 100
"""Nodes along each side of the drawn density."""

UNITS = 1000
"""Boundaries are drawn on a raster of this many units along each side of the window."""

LOWEST = -8.0
"""Log-densities are drawn down to this many nats below the highest."""


def cloud_data(
    name: str,
    *,
    seeds: int = SEEDS,
    lengths: tuple[float, ...] = LENGTHS,
    frames: tuple[int, ...] = FRAMES,
    steps: int = STEPS,
    warmup: int = WARMUP,
    density_steps: int = DENSITY_STEPS,
) -> dict[str, Any]:
    """Train on one cloud with every direction and length; return what the page shows of it.

    Args:
        name: a cloud of :func:`~ddfp_lib.explorer.clouds.make_clouds`.
        seeds: networks of each training.
        lengths: lengths of the steps, in units of the plane.
        frames: moments that are kept, in training steps.
        steps: training steps.
        warmup: number of steps, at the start, on labels alone.
        density_steps: training steps of the flow.

    Returns:
        Numbers, lists and base64 texts, ready for JSON; ``templates/separation.js`` reads them.
    """
    sample = draw(make_clouds()[name], seeds)
    density = learn_density(sample, density_steps)
    window = sample.window
    runs = {}
    for direction, perturbation in DIRECTIONS.items():
        for eps in lengths if direction != "none" else (0.0,):
            kept = train(
                sample, perturbation, eps, density, frames=frames, steps=steps, warmup=warmup
            )
            runs[f"{direction} {eps:g}"] = _run_data(sample, kept, window)
    return {
        "window": [window.left, window.right, window.bottom, window.top],
        "points": rounded(sample.x, 3),
        "classes": sample.classes.tolist(),
        "labeled": [(row != UNLABELED).nonzero()[:, 0].tolist() for row in sample.labels],
        "exact": _density_data(window, sample.cloud.log_density),
        "learned": _density_data(window, density.log_prob),
        "runs": runs,
    }


def _run_data(sample: Sample, frames: list[Frame], window: Window) -> dict[str, Any]:
    """Return boundaries, arrows and numbers by seed and frame."""
    seeds = range(len(sample.labels))
    lines: list[list] = [[] for _ in seeds]
    under: list[list] = [[] for _ in seeds]
    arrows = np.full((len(seeds), len(frames), ARROWS), STAYS)
    for moment, frame in enumerate(frames):
        for seed in seeds:
            scores = window.ask(frame.student.of(seed))
            found = boundary_lines(scores, window)
            lines[seed].append([_simplified(line, window) for line in _once(found)])
            under[seed].append(
                density_under_lines(found, scores.shape[-1], sample.cloud.log_density)
            )
        if frame.shift is not None:
            arrows[:, moment] = _angles(frame)
    scores = torch.stack([accuracy(sample, frame.student) for frame in frames], dim=1)
    return {
        "lines": lines,
        "under": rounded(under, 3),
        "accuracy": rounded(scores, 1),
        "arrows": packed(arrows, "u1"),
    }


def _once(lines: list[np.ndarray]) -> list[np.ndarray]:
    """Leave out lines that repeat another: of three and more classes most lines come twice.

    Copies that are cut elsewhere stay; drawn over one another they look like one line.
    """
    seen, kept = set(), []
    for line in lines:
        ends = frozenset(tuple(np.round(end, 2)) for end in (line[0], line[-1], line.mean(0)))
        if ends not in seen:
            seen.add(ends)
            kept.append(line)
    return kept


def _simplified(line: np.ndarray, window: Window) -> list[int]:
    """Return a line as x, y, x, y, ... in units of the raster, without points that bend little."""
    corner = np.array([window.left, window.bottom])
    size = np.array([window.right - window.left, window.top - window.bottom])
    path = Line((line - corner) / size * UNITS)
    path.simplify_threshold = 1.0
    return np.rint(path.cleaned(simplify=True).vertices[:-1]).astype(int).flatten().tolist()


def _angles(frame: Frame) -> np.ndarray:
    """Return the codes of a frame's arrows, (S, ARROWS)."""
    angle = torch.atan2(frame.shift[:, 1], frame.shift[:, 0]) / (2 * math.pi) % 1
    code = (angle * 255).round().long() % 255
    length = frame.shift.norm(dim=1)
    return code.where(length > 0, STAYS)[:, :ARROWS].numpy()


def _density_data(window: Window, log_density: Any) -> str:
    """Return a log-density on a grid, as bytes: 255 is its highest value, 0 is LOWEST or less."""
    values = window.ask(log_density, GRID)
    return packed(np.rint(255 * (1 - (values - values.max()).clip(LOWEST) / LOWEST)), "u1")


def still() -> tuple[bytes, str]:
    """Return the picture for browsers without scripts, as PNG, and its description."""
    sample = draw(make_clouds()["moons"], 4)
    density = learn_density(sample)
    panels = []
    for direction in ("none", "descent"):
        start, *_, end = train(sample, DIRECTIONS[direction], 0.2, density, frames=(WARMUP, STEPS))
        panels.append(
            Panel(
                {"none": "pseudo-labels alone", "descent": "steps down the density"}[direction],
                points=sample.x,
                labels=sample.labels[3],
                classifier=end.student.of(3),
                before=start.student.of(3),
            )
        )
    alt = (
        "Two maps of the two moons with three labels per class. In both, a dashed line is the "
        "decision boundary after the warm-up and a solid line the one after training: with "
        "pseudo-labels alone, and with steps down the density."
    )
    return maps(panels, sample.window).png(), alt
