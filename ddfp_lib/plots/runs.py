"""Figures of trained runs: scores, curves, segmentations, classes, densities, time."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ddfp_lib.evaluation.descent import Descent
from ddfp_lib.experiments.statistics import common_seeds, differences, paired_difference
from ddfp_lib.plots import words
from ddfp_lib.plots.classes import class_legend, colourise
from ddfp_lib.plots.style import (
    WIDTH,
    Picture,
    bare,
    figure_style,
    method_colour,
    name_marks,
    new_picture,
)

OUTLYING = 10.0
"""Points of difference from which a method is drawn in panels of its own."""


def scores(
    ledger: pd.DataFrame, baseline: str, score: str = "test_miou", label: str = "test mIoU (%)"
) -> Picture:
    """Draw each run's score, and each method's paired difference to the baseline.

    Methods that differ by more than :data:`OUTLYING` points have panels of their own, with their
    own scale: the others would be squeezed to a point. Means and differences are over the seeds
    that all methods have. Further seeds are empty dots, and so is the difference over all seeds.
    Of fewer than three seeds the differences are drawn seed by seed, without an interval.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        baseline: the baseline that the others are compared with, seed by seed.
        score: column of the ledger, mIoU in percent.
        label: what the score is, with its unit.
    """
    methods = list(ledger["method"].unique())
    far = [name for name in methods if _outlying(ledger, name, baseline, score)]
    near = [name for name in methods if name not in far]
    groups = [near, far] if far else [near]
    heights = [len(group) + 0.6 for group in groups]
    with figure_style():
        figure, grid = new_picture(
            len(groups),
            2,
            1.2 + 0.9 * len(groups[1:]) + 0.42 * len(methods),
            sharey="row",
            width_ratios=(3, 2),
            height_ratios=heights,
        )
        for (left, right), group in zip(grid, groups, strict=True):
            for row, method in enumerate(group):
                _score_row(left, right, row, method, ledger, baseline, score)
            left.set_yticks(range(len(group)), [_wrapped(name, 36) for name in group])
            left.set_ylim(len(group) - 0.5, -0.7)
            right.axvline(0, color="0.4", lw=1)
            for panel in (left, right):
                panel.grid(axis="y", visible=False)
        seeds = ledger.groupby("method")["seed"].nunique().max()
        common = common_seeds(ledger, score)
        title = "every seed a dot, the mean a bar"
        if len(common) < ledger["seed"].nunique():
            title = f"a dot per seed, and the mean of the {len(common)} filled"
        grid[0, 0].set_title(title)
        grid[0, 1].set_title(_wrapped(f"minus {baseline}", 32))
        grid[-1, 0].set_xlabel(label)
        kind = "95 % interval" if seeds > 2 else "each seed"
        grid[-1, 1].set_xlabel(f"difference (points), {kind}")
    return figure.described(words.scores(ledger, baseline, score, label))


def _outlying(ledger: pd.DataFrame, method: str, baseline: str, score: str) -> bool:
    gap = paired_difference(ledger, method, baseline, score)["difference"]
    return method != baseline and abs(gap) > OUTLYING


def _score_row(
    left: Axes,
    right: Axes,
    row: int,
    method: str,
    ledger: pd.DataFrame,
    baseline: str,
    score: str,
) -> None:
    """Draw one method: its scores on the left, its differences to the baseline on the right."""
    runs = ledger[ledger["method"] == method].dropna(subset=score)
    common = runs["seed"].isin(common_seeds(ledger, score))
    colour, mean = method_colour(method), runs.loc[common, score].mean()
    left.scatter(runs.loc[common, score], [row] * common.sum(), color=colour, s=28, alpha=0.7)
    more = {"facecolors": "none", "edgecolors": colour, "s": 26, "alpha": 0.9}
    left.scatter(runs.loc[~common, score], [row] * (~common).sum(), **more)
    left.plot([mean] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.5)
    left.annotate(f"{mean:.1f}", (mean, row - 0.32), ha="center", va="bottom", fontsize=8.5)
    gap, *more = differences(ledger, method, baseline, score)
    if method == baseline or np.isnan(gap["difference"]):
        return
    if gap["seeds"] < 3:
        wide = ledger.pivot(index="seed", columns="method", values=score)
        gaps = (wide[method] - wide[baseline]).dropna()
        right.scatter(gaps, np.full(len(gaps), row), color=colour, s=20, alpha=0.7)
        right.plot([gaps.mean()] * 2, [row - 0.25, row + 0.25], color=colour, lw=2.5)
        return
    for place, (each, face) in enumerate([(gap, colour), *((other, "white") for other in more)]):
        reach = [[each["difference"] - each["low"]], [each["high"] - each["difference"]]]
        look = {"fmt": "o", "color": colour, "mfc": face, "capsize": 3}
        right.errorbar(each["difference"], row + 0.25 * place, xerr=reach, **look)


def _wrapped(name: str, width: int) -> str:
    return textwrap.fill(name, width, break_on_hyphens=False)


def curves(
    logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    marks: Mapping[str, float] | None = None,
    released: Sequence[tuple[float, float]] = (),
) -> Picture:
    """Draw validation mIoU and pseudo-label quality over the steps of training.

    Args:
        logs: for each method the ``metrics.jsonl`` of each seed.
        marks: steps at which something begins, by what begins; drawn as vertical lines.
        released: (step, mIoU) of the release's log, drawn next to ours; see
            :func:`ddfp_lib.experiments.published.released_curve`.
    """
    panels = {
        "teacher_miou": "teacher's validation mIoU (%)",
        "pseudo_coverage": "coverage (fraction)",
        "pseudo_precision": "precision of pseudo-labels (fraction)",
    }
    with figure_style():
        figure, row = new_picture(1, 3)
        for axes, (key, label) in zip(row.flat, panels.items(), strict=True):
            for method, seeds in logs.items():
                _mean_curve(axes, seeds, key, method)
            for step in (marks or {}).values():
                axes.axvline(step, color="0.4", lw=0.9, ls=":")
            axes.set_xlim(left=0)
            axes.set_xlabel("step")
            axes.set_title(label)
        if released:
            line = {"color": "black", "lw": 1, "ls": "--", "label": "release's log, one seed"}
            row.flat[0].plot(*zip(*released, strict=True), **line)
        row.flat[0].legend(fontsize=8, loc="lower right")
        name_marks(row.flat[0], marks or {})  # here, because scores begin low
    return figure.described(words.curves(logs, panels, marks or {}, released))


def _mean_curve(
    axes: Axes, seeds: Sequence[Sequence[Mapping[str, float]]], key: str, method: str
) -> None:
    """Draw one thin line per seed and a thick one for their mean."""
    lines = [[(line["step"], line[key]) for line in seed if key in line] for seed in seeds]
    colour = method_colour(method)
    for line in lines:
        axes.plot(*zip(*line, strict=True), color=colour, lw=0.6, alpha=0.5)
    if len({len(line) for line in lines}) == 1:
        steps = [step for step, _ in lines[0]]
        mean = np.mean([[value for _, value in line] for line in lines], axis=0)
        axes.plot(steps, mean, color=colour, lw=2, label=method)


def segmentations(
    images: Sequence[Tensor],
    truths: Sequence[Tensor],
    predictions: Mapping[str, Sequence[Tensor]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Picture:
    """Draw the same images as each method segments them, one column per image.

    Args:
        images: n of (3, H, W) uint8.
        truths: n of (H, W) uint8; ignored pixels are drawn white.
        predictions: for each method n of (H, W) uint8.
        classes: K names, for the legend.
        palette: their K colors, 0..255.
    """
    rows = ["image", "truth", *predictions]
    height, width = images[0].shape[1:]
    cell = (WIDTH - 1.0) / len(images)
    with figure_style():
        figure, grid = new_picture(len(rows), len(images), len(rows) * cell * height / width + 0.6)
        for column, (image, truth) in enumerate(zip(images, truths, strict=True)):
            pictures = [image.permute(1, 2, 0).numpy(), colourise(truth, palette)]
            pictures += [colourise(found[column], palette) for found in predictions.values()]
            for axes, picture in zip(grid[:, column], pictures, strict=True):
                axes.imshow(picture)
                bare(axes)
        for axes, name in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        class_legend(figure, truths, classes, palette)
    return figure.described(words.segmentations(truths, predictions))


def samples(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    names: Sequence[str],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Picture:
    """Draw images of a data set, each with its mask next to it, two per row.

    Args:
        images: n of (3, H, W) uint8, of any sizes.
        masks: n of (H, W) uint8; ignored pixels are drawn white.
        names: n names.
        classes: K names, for the legend.
        palette: their K colors, 0..255.
    """
    rows = -(-len(images) // 2)
    tallest = max(image.shape[1] / image.shape[2] for image in images)
    with figure_style():
        figure, grid = new_picture(rows, 4, rows * (WIDTH / 4 * min(tallest, 1) + 0.25) + 0.6)
        cells = grid.reshape(-1, 2)
        for (left, right), image, mask, name in zip(cells, images, masks, names, strict=False):
            left.imshow(image.permute(1, 2, 0).numpy())
            left.set_title(name, fontsize=8)
            right.imshow(colourise(mask, palette))
        for axes in grid.flat:
            axes.set_visible(axes.has_data())
            bare(axes)
        class_legend(figure, masks, classes, palette)
    return figure


def class_iou(ious: Mapping[str, np.ndarray], classes: Sequence[str]) -> Picture:
    """Draw each class's IoU, one dot a method.

    Args:
        ious: for each method (seeds, K) float, percent.
        classes: K names.
    """
    with figure_style():
        figure, ((axes,),) = new_picture(height=0.9 + 0.32 * len(classes))
        rows = np.arange(len(classes))
        for number, (method, values) in enumerate(ious.items()):
            offset = (number - (len(ious) - 1) / 2) * 0.14
            colour = method_colour(method)
            axes.hlines(
                rows + offset, values.min(axis=0), values.max(axis=0), color=colour, lw=1, alpha=0.6
            )
            axes.scatter(values.mean(axis=0), rows + offset, color=colour, s=22, label=method)
        axes.set_yticks(rows, classes)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("test IoU (%): mean over seeds, line from lowest to highest")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure.described(words.class_iou(ious, classes))


def descent(measured: Descent) -> Picture:
    """Draw the log-density of unperturbed features, and of features after each kind of step.

    Left: distributions. Right: what the step changed for each feature.
    """
    colours = dict(
        zip(measured.after, [method_colour(m) for m in ("ddfp", "noise", "vat")], strict=False)
    )
    changes = {name: after - measured.before for name, after in measured.after.items()}
    together = torch.cat([measured.before, *measured.after.values()])
    with figure_style():
        figure, ((left, right),) = new_picture(1, 2, 3.6)
        bins = np.linspace(*_most_of(together), 60)
        left.hist(measured.before, bins, density=True, color="0.8", label="unperturbed")
        changed = np.linspace(*_most_of(torch.cat(list(changes.values()))), 80)
        for name, change in changes.items():
            shown = {"density": True, "histtype": "step", "lw": 1.8, "color": colours[name]}
            left.hist(measured.after[name], bins, label=f"{name} step", **shown)
            summary = f"median {change.median():+.1f}, class kept {measured.kept[name]:.1%}"
            right.hist(change, changed, label=f"{name}: {summary}", **shown)
        left.set_xlabel("log p(v) of confident features (nats)")
        right.axvline(0, color="0.4", lw=1)
        right.set_xlabel("change of log p(v) by the step (nats)")
        for axes in (left, right):
            axes.set_yticks([])
            axes.set_ylabel("share of features")
            axes.grid(axis="y", visible=False)
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        left.set_title("where features are")
        right.set_title("what the step changed")
    return figure.described(words.descent(measured))


def _most_of(values: Tensor) -> tuple[float, float]:
    """Return the range that holds all but one percent of the values."""
    low, high = np.quantile(values.numpy(), [0.005, 0.995])
    return float(low), float(high)


def seconds(ledger: pd.DataFrame) -> Picture:
    """Draw what a run of each method cost: seconds, and those of one step in milliseconds."""
    methods = list(ledger["method"].unique())
    with figure_style():
        figure, ((axes,),) = new_picture(height=0.9 + 0.32 * len(methods))
        for row, method in enumerate(methods):
            runs = ledger[ledger["method"] == method]
            mean = runs["seconds"].mean()
            axes.barh(row, mean, color=method_colour(method), height=0.6)
            axes.scatter(runs["seconds"], np.full(len(runs), row), color="black", s=8)
            each = 1000 * (runs["seconds"] / runs["steps"]).mean()
            cost = f"{mean:.0f} s, {each:.0f} ms a step"
            # beside the axes: there it hides no dot, wherever a slow run lies
            axes.annotate(cost, (1.01, row), xycoords=("axes fraction", "data"), va="center")
        axes.set_yticks(range(len(methods)), methods)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.03 * ledger["seconds"].max())
        axes.set_xlabel("seconds of training and validation, side by side with other runs")
        axes.grid(axis="y", visible=False)
    return figure.described(words.seconds(ledger))
