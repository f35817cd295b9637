"""Figures of one training run: what a step sees, and how the run went."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddfp_lib.plots.classes import class_legend, colourise
from ddfp_lib.plots.style import (
    SEQUENCE,
    WIDTH,
    Picture,
    bare,
    figure_style,
    method_colour,
    new_picture,
)

YES, NO = (0.0, 0.36, 0.58), (0.86, 0.86, 0.86)
"""Colors of yes and no, 0..1; white is left for "nothing here"."""


class TrueColours(Picture):
    """A picture that keeps every color.

    For photographs next to class maps: with 256 colors, small areas would take those of others.
    """

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file, 1800 pixels wide."""
        return self._drawn("png")


def panels(
    rows: Mapping[str, Sequence[Tensor]],
    palette: Sequence[Sequence[int]] | None = None,
    one_scale: bool = False,
    classes: Sequence[str] = (),
) -> TrueColours:
    """Draw rows of small pictures, one column per image.

    Args:
        rows: for each name n tensors of one kind: images (3, H, W), uint8 or float in 0..1; classes
            (H, W) of integers; yes or no (H, W) bool, yes dark, no light; or quantities (H, W)
            float, with a scale next to the row from the 2nd to the 98th percentile; its pointed
            ends stand for lower and higher values. White means "nothing here" in all of them: an
            ignored pixel, or NaN.
        palette: color of each class, 0..255; needed for classes.
        one_scale: all quantities have the same scale.
        classes: K names, for a legend of the classes that occur; empty: no legend.
    """
    quantities = [t for tensors in rows.values() for t in tensors if _is_quantity(t)]
    columns = max(len(pictures) for pictures in rows.values())
    cell = (WIDTH - 1.8) / columns
    with figure_style():
        height = len(rows) * (cell + 0.05) + 0.1 + (0.25 if classes else 0)
        picture = TrueColours(figsize=(WIDTH, height), layout="constrained")
        grid = picture.subplots(len(rows), columns, squeeze=False)
        for line, (name, tensors) in zip(grid, rows.items(), strict=True):
            quantity = _is_quantity(tensors[0])
            limits = {}
            if quantity:
                known = torch.cat([t[~t.isnan()] for t in (quantities if one_scale else tensors)])
                low, high = known.quantile(torch.tensor([0.02, 0.98])).tolist()
                limits = {"vmin": low, "vmax": high, "cmap": SEQUENCE}
            drawn = None
            for axes, tensor in zip(line, tensors, strict=True):
                shown = tensor.numpy() if quantity else _rgb(tensor, palette)
                drawn = axes.imshow(shown, **limits)
                bare(axes)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
            if quantity:
                look = {"fraction": 0.02, "pad": 0.01, "aspect": 12, "extend": "both"}
                bar = picture.colorbar(drawn, ax=list(line), **look)
                bar.ax.tick_params(labelsize=7.5)
                bar.outline.set_visible(False)
        if classes:
            maps = [t for tensors in rows.values() for t in tensors if _is_classes(t)]
            class_legend(picture, maps, classes, palette or ())
    return picture


def _is_quantity(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() == 2


def _is_classes(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool


def _rgb(tensor: Tensor, palette: Sequence[Sequence[int]] | None) -> object:
    """Return one picture as matplotlib wants it: (H, W, 3), 0..255 or 0..1."""
    if tensor.dim() == 3:
        return tensor.permute(1, 2, 0).numpy()
    if tensor.dtype == torch.bool:
        return torch.where(tensor[..., None], torch.tensor(YES), torch.tensor(NO)).numpy()
    return colourise(tensor, palette or ())


def history(
    metrics: Sequence[Mapping[str, float]], marks: Mapping[str, float] | None = None
) -> Picture:
    """Draw how one training went: mIoU, pseudo-labels, and the flow where there is one.

    Args:
        metrics: lines of ``metrics.jsonl``.
        marks: steps at which something begins, keyed by its name; drawn as vertical lines.
    """
    colour, student = method_colour("ddfp"), method_colour("supervised")
    panel = {
        "validation mIoU (%)": {"teacher_miou": ("teacher", colour), "miou": ("student", student)},
        "pseudo-labels (fraction of pixels)": {
            "pseudo_precision": ("precision: right ones", method_colour("ddfp_released")),
            "pseudo_coverage": ("coverage: pixels with one", method_colour("consistency")),
        },
        "the flow (bits per dimension)": {"bits_per_dim": ("", colour)},
    }
    if not any("bits_per_dim" in line for line in metrics):
        del panel["the flow (bits per dimension)"]
    with figure_style():
        picture, grid = new_picture(1, len(panel), height=2.9)
        for axes, (title, lines) in zip(grid[0], panel.items(), strict=True):
            for key, (label, line_colour) in lines.items():
                points = [(line["step"], line[key]) for line in metrics if key in line]
                axes.plot(*zip(*points, strict=True), "o-", ms=3, color=line_colour, label=label)
            for text, step in (marks or {}).items():
                axes.axvline(step, color="0.4", lw=0.9, ls=":")
                if axes is grid[0, 0]:
                    at = (step, axes.get_ylim()[1])
                    axes.annotate(text, at, rotation=90, va="top", ha="right", fontsize=7.5)
            last = max(line["step"] for line in metrics)
            axes.set_xlim(0, 1.02 * last)  # the last marker is drawn whole
            axes.set_xlabel("step")
            axes.set_title(title)
            if len(lines) > 1:
                axes.legend(fontsize=8, frameon=True, edgecolor="none", framealpha=0.85)
    return picture


def distances(curves: Mapping[str, Sequence[float]], first: int = 0) -> Picture:
    """Draw how far a teacher is from its student after each step.

    Args:
        curves: for each teacher, its distances as fractions of the student's length.
        first: number of the first step.
    """
    colours = (method_colour("ddfp"), method_colour("ddfp_released"))
    with figure_style():
        picture, grid = new_picture(1, 1, height=2.4)
        axes = grid[0, 0]
        for (name, values), colour in zip(curves.items(), colours, strict=False):
            steps = range(first, first + len(values))
            axes.plot(steps, [100 * value for value in values], "o-", color=colour, label=name)
        axes.set_xticks(steps)
        axes.set_xlabel("step")
        axes.set_title("distance of the teacher's weights from the student's (% of their length)")
        axes.legend()
    return picture
