"""The method as a drawing: ``python -m ddfp_lib.plots.diagram docs/diagram.svg``.

Lessons show the same drawing with the pieces that they are about in color.
"""

import itertools
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically
from ddfp_lib.plots.style import WIDTH, Picture, figure_style
from ddfp_lib.plots.words import listed

PERTURBED, CLEAN, FLOW, TEACHER = 5.0, 3.75, 2.3, 0.85
"""Heights of the four rows."""

NODES = {
    "strong": (0.75, CLEAN, "strongly\naugmented\nimage"),
    "encode": (2.2, CLEAN, "encode"),
    "F": (3.4, CLEAN, "F"),
    "embed": (4.75, CLEAN, "embed"),
    "v": (6.05, CLEAN, "v"),
    "classify": (7.25, CLEAN, "classify"),
    "clean loss": (9.2, CLEAN, "½ cross-entropy\nwith y"),
    "moved": (3.4, PERTURBED, "F + δ"),
    "auxiliary": (4.75, PERTURBED, "embed, with\nauxiliary\nBatchNorm"),
    "moved v": (6.05, PERTURBED, "v"),
    "moved classify": (7.25, PERTURBED, "classify"),
    "perturbed loss": (9.2, PERTURBED, "½ cross-entropy\nwith y"),
    "step": (4.25, FLOW, "step\nδ = ε g / |g|\ng = −∇$_F$ log p(v)"),
    "flow": (6.05, FLOW, "flow\np(v)"),
    "weak": (0.75, TEACHER, "weakly\naugmented\nimage"),
    "teacher encode": (2.2, TEACHER, "encode"),
    "teacher F": (3.4, TEACHER, "F"),
    "teacher embed": (4.75, TEACHER, "embed"),
    "teacher v": (6.05, TEACHER, "v"),
    "teacher classify": (7.25, TEACHER, "classify"),
    "y": (9.2, TEACHER, "pseudo-labels y\nwhere confident"),
}
"""Every box: the middle's coordinates, and what it says."""

TENSORS = {"F", "v", "moved", "moved v", "teacher F", "teacher v"}
"""The boxes that are features; the others are images, operations and losses."""

ARROWS = (
    ("strong", "encode", "F", "embed", "v", "classify", "clean loss"),
    ("F", "moved", "auxiliary", "moved v", "moved classify", "perturbed loss"),
    (
        "weak",
        "teacher encode",
        "teacher F",
        "teacher embed",
        "teacher v",
        "teacher classify",
        "y",
    ),
    ("flow", "step"),
)
"""Chains of boxes that an arrow joins each to the next."""

GROUPS = {
    "data": ("strong", "weak", "y"),
    "flow": ("flow",),
    "step": ("step", "moved"),
    "student": ("encode", "F", "embed", "v", "classify"),
    "perturbed pass": ("moved", "auxiliary", "moved v", "moved classify", "perturbed loss"),
    "teacher": (
        "teacher encode",
        "teacher F",
        "teacher embed",
        "teacher v",
        "teacher classify",
        "y",
    ),
    "losses": ("clean loss", "perturbed loss"),
}
"""What a lesson can be about, and the boxes that are then in color."""

IN_WORDS = {
    "data": "the images and pseudo-labels",
    "flow": "the flow",
    "step": "the step with F + δ",
    "student": "the student",
    "perturbed pass": "the student's second pass",
    "teacher": "the teacher",
    "losses": "the losses",
}
"""What the alternative text calls each of :data:`GROUPS`."""

INK, LINE, PAPER, HERE = "#222222", "#8C8C8C", "#F4F4F4", "#FBDCC8"
ACCENT = "#D55E00"


def diagram(*here: str) -> Picture:
    """Draw the method: the networks, the density and the step, from images to losses.

    Args:
        here: keys of :data:`GROUPS` whose boxes are drawn in color.

    Raises:
        UserError: there is no such group.
    """
    unknown = set(here) - GROUPS.keys()
    if unknown:
        raise UserError(f"diagram: {min(unknown)!r} is unknown; choose from {', '.join(GROUPS)}")
    chosen = {name for group in here for name in GROUPS[group]}
    with figure_style():
        picture = Picture(figsize=(WIDTH, 4.7), layout="constrained")
        _draw(picture, chosen)
    return picture.described(in_words(*here))


def in_words(*here: str) -> str:
    """Return the alternative text of :func:`diagram`.

    Args:
        here: keys of :data:`GROUPS`, the boxes in color.
    """
    coloured = listed([IN_WORDS[group] for group in here]) if here else "none"
    return (
        "Diagram of the method. Student: strongly augmented image, encode, features F, embed, "
        "embeddings v, classify, half a cross-entropy with the pseudo-labels y. Its second pass: "
        "F + δ, embed with an auxiliary BatchNorm, v, classify, the other half. Teacher, an EMA of "
        "the student's weights: weakly augmented image, encode, F, embed, v, classify, "
        "pseudo-labels y where it is confident. The flow learns p(v) from the teacher's v by "
        "likelihood; its gradient at the student's v gives the step δ. Labeled images take the "
        f"student's path too, with their masks. Boxes in colour: {coloured}."
    )


def write_svg(path: Path) -> None:
    """Write the diagram as SVG, the same bytes each time; its words stay text."""
    plain = {"svg.hashsalt": "ddfp", "svg.fonttype": "none"}
    with figure_style(), mpl.rc_context(plain):
        picture = diagram()
        write_atomically(
            path,
            lambda partial: picture.savefig(partial, format="svg", metadata={"Date": None}),
        )


def _draw(picture: Figure, chosen: set[str]) -> None:
    axes = picture.subplots()
    axes.set(xlim=(0, 10.3), ylim=(0.2, 6.0))
    axes.axis("off")
    boxes = {name: _box(axes, name, name in chosen) for name in NODES}
    for chain in ARROWS:
        for start, stop in itertools.pairwise(chain):
            _arrow(axes, boxes[start], boxes[stop], start in chosen and stop in chosen)
    _arrow(axes, boxes["v"], boxes["flow"], "flow" in chosen, label="gradient of log p")
    _arrow(axes, boxes["teacher v"], boxes["flow"], "flow" in chosen, label="learned by likelihood")
    _arrow(axes, boxes["step"], boxes["moved"], "step" in chosen, shift=(-0.4, 0.27))
    _arrow(axes, boxes["encode"], boxes["teacher encode"], False)
    axes.text(2.1, FLOW, "EMA of\nthe weights", fontsize=8.5, color=INK, va="center", ha="right")
    _arrow(axes, boxes["y"], boxes["clean loss"], False)
    _arrow(axes, boxes["clean loss"], boxes["perturbed loss"], False, style="-")
    rows = {"student, second pass": PERTURBED, "student": CLEAN, "teacher": TEACHER + 0.05}
    for words, height in rows.items():
        axes.text(0.2, height + 0.68, words, fontsize=10, weight="bold", color=INK)
    note = "Labeled images take the student's path too: cross-entropy with their masks."
    axes.text(10.2, 5.85, note, fontsize=8.5, color=INK, ha="right")


def _box(axes: Axes, name: str, coloured: bool) -> FancyBboxPatch:
    x, y, words = NODES[name]
    lines = words.split("\n")
    width = 0.3 + 0.094 * max(len(line.replace("$", "").replace("_", "")) for line in lines)
    width, height = max(width, 0.56), 0.3 + 0.25 * len(lines)
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle=f"round,pad=0,rounding_size={0.25 if name in TENSORS else 0.06}",
        facecolor=HERE if coloured else "white" if name in TENSORS else PAPER,
        edgecolor=ACCENT if coloured else LINE,
        linewidth=1.6 if coloured else 1.0,
        zorder=2,
    )
    axes.add_patch(box)
    axes.text(x, y, words, ha="center", va="center", fontsize=9.5, color=INK, zorder=3)
    return box


def _arrow(
    axes: Axes,
    start: FancyBboxPatch,
    stop: FancyBboxPatch,
    coloured: bool,
    label: str = "",
    shift: tuple[float, float] = (0.0, 0.0),
    style: str = "-|>",
) -> None:
    (x, y), (to_x, to_y) = _side(start, stop), _side(stop, start)
    first, last = (x + shift[0], y), (to_x + shift[1], to_y)
    axes.add_patch(
        FancyArrowPatch(
            first,
            last,
            arrowstyle=style,
            mutation_scale=11,
            color=ACCENT if coloured else LINE,
            linewidth=1.3,
            shrinkA=0,
            shrinkB=0,
            zorder=1,
        )
    )
    if label:
        middle = ((first[0] + last[0]) / 2 + 0.09, (first[1] + last[1]) / 2)
        axes.text(*middle, label, fontsize=8.5, color=INK, va="center")


def _side(box: FancyBboxPatch, other: FancyBboxPatch) -> tuple[float, float]:
    """Return the middle of the side of a box that faces another one."""
    left, bottom, width, height = box.get_bbox().bounds
    x, y = left + width / 2, bottom + height / 2
    there = other.get_bbox().bounds
    dx, dy = there[0] + there[2] / 2 - x, there[1] + there[3] / 2 - y
    if abs(dy) > abs(dx) or abs(dx) < 0.01:
        return x, y + (height / 2 if dy > 0 else -height / 2)
    return x + (width / 2 if dx > 0 else -width / 2), y


if __name__ == "__main__":
    write_svg(Path(sys.argv[1]))
