"""What all figures share: sizes, fonts, and a color for each method.

Colors are Okabe and Ito's, which people with any kind of color vision can tell apart, and where
those run out Paul Tol's indigo.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 9.0
"""Width of a full figure in inches: 900 pixels at 100 dpi, the width of a page on GitHub."""

DPI = 100

METHOD_COLOURS = {
    "supervised": "#6E6E6E",
    "entropy": "#332288",
    "second pass alone": "#882255",
    "consistency": "#0072B2",
    "noise": "#E69F00",
    "dropout": "#56B4E9",
    "vat": "#CC79A7",
    "ddfp": "#D55E00",
    "ddfp_plus": "#000000",
    "ddfp_released": "#009E73",
}

CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
"""Colors of classes 0, 1, ... in the plane, where no method is drawn by color."""

CLASS_MARKERS = ("o", "s", "^", "D")
"""Shapes of their points, so that no picture depends on color alone."""

STEP_COLOUR = "#B03A00"
"""Color of the arrow or line from a point to its place after a step."""

SEQUENCE = "viridis"
"""Color map of quantities that run from low to high."""


def method_colour(name: str) -> str:
    """Return the color that a method has in every figure; gray for one without.

    A variant is named after its method and what differs, ``noise, eps 3``: it has the method's.
    """
    return METHOD_COLOURS.get(name.split(",")[0], "#6E6E6E")


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the project's style inside the ``with`` block, and only there."""
    settings = {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "figure.constrained_layout.use": True,
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "image.interpolation": "nearest",
    }
    with mpl.rc_context(settings):
        yield


class Picture(Figure):
    """A figure that a notebook shows as the last value of a cell, once, with any backend.

    It is outside pyplot: nothing stays open, and no backend draws it a second time. Twice the
    pixels keep it sharp where the page is zoomed; 256 colors keep it small.

    Attributes:
        alt: what the picture shows, in words, for readers who do not see it. A notebook stores it
            with the picture.
    """

    alt: str = ""

    def described(self, alt: str) -> "Picture":
        """Set the alternative text, and return the picture, so that it can end a cell.

        Args:
            alt: what the picture shows, one or two sentences.
        """
        self.alt = " ".join(alt.split())
        return self

    def png(self) -> bytes:
        """Return the picture as the bytes of a PNG file, 1800 pixels wide."""
        drawn = self._drawn("rgba")
        width = int(2 * DPI * self.get_figwidth())
        picture = Image.frombytes("RGBA", (width, len(drawn) // (4 * width)), drawn)
        reduced = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small = io.BytesIO()
        reduced.save(small, format="png", optimize=True)
        return small.getvalue()

    def _drawn(self, kind: str) -> bytes:
        drawn = io.BytesIO()
        with figure_style():
            self.savefig(drawn, format=kind, dpi=2 * DPI)
        return drawn.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int | str]]:
        described = {"alt": self.alt} if self.alt else {}
        return self.png(), {"width": round(self.get_figwidth() * DPI), **described}

    def __repr__(self) -> str:
        return f"<Picture with {len(self.axes)} axes>"


def new_picture(
    rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any
) -> tuple[Picture, np.ndarray]:
    """Return a picture of full width and its axes; call it inside :func:`figure_style`.

    Args:
        rows: number of rows of axes.
        columns: number of columns of axes.
        height: height of the picture, in inches.
        options: handed to ``Figure.subplots``.

    Returns:
        The picture, and its axes as (rows, columns) objects.
    """
    picture = Picture(figsize=(WIDTH, height), layout="constrained")
    return picture, picture.subplots(rows, columns, squeeze=False, **options)


def name_marks(axes: Axes, marks: Mapping[str, float]) -> None:
    """Name vertical lines at the top of a panel, each to the right of its line.

    Lines that are close to one another are named side by side, to the right of the last of them, so
    that no name lies on a line or on another name.

    Args:
        axes: the panel, with its final limits.
        marks: position of each line, by its name.
    """
    (left, right), top = axes.get_xlim(), axes.get_ylim()[1]
    height, free = 0.055 * (right - left), left  # of a line of text; where the next one may stand
    for text, place in sorted(marks.items(), key=lambda mark: mark[1]):
        close = [other for other in marks.values() if place <= other < place + height]
        at = max(free, *close)
        look = {"rotation": 90, "va": "top", "ha": "left", "fontsize": 7.5}
        axes.annotate(text, (at + 0.1 * height, top), **look)
        free = at + height


def bare(axes: Axes) -> None:
    """Take ticks and grid away, and leave a thin frame: for small maps."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="0.7", linewidth=0.6)
