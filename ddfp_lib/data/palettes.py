"""Palettes that a PNG optimizer has renumbered: the colors are right, but the values are wrong.

Optimizers of PNG files (oxipng, pngquant) keep the picture and number its colors again.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ddfp_lib.data.stored import Colour

Painted = Mapping[int, Colour]
"""The color of each value that a palette mask holds."""


def renumbered(
    masks: Iterable[tuple[Path, Painted]], valid: Collection[int], known: Painted
) -> str | None:
    """Say what shows that a palette was renumbered.

    Args:
        masks: paths and colors of palette masks.
        valid: values that mean a class, or ignored.
        known: color of each value where that is published; empty for a user's own data.

    Returns:
        One line without advice: a gray whose number is another value, the color of another class,
        or one color that has two values. None where there is nothing of that.
    """
    index_of = {colour: index for index, colour in known.items()}
    places: dict[Colour, dict[int, Path]] = defaultdict(dict)
    for path, painted in masks:
        if len(set(painted.values())) < len(painted):
            continue
        gray = all(len(set(colour)) == 1 for colour in painted.values())
        for value, colour in painted.items():
            if gray and colour[0] != value and colour[0] in valid:
                return (
                    f"{path}: value {value} is shown as gray {colour[0]}: the palette was "
                    "renumbered, so that a class has another value"
                )
            if not gray and index_of.get(colour, value) != value:
                return (
                    f"{path}: value {value} has the color of class {index_of[colour]}: the "
                    "palette was renumbered"
                )
            places[colour].setdefault(value, path)
    for colour, found in places.items():
        if len(found) > 1:
            (first, path), (second, other) = list(found.items())[:2]
            return (
                f"{other}: color {colour} has value {second}, in {path.name} it has {first}: a "
                "palette was renumbered"
            )
    return None


def looks_renumbered(masks: Iterable[tuple[Path, Painted]], usual: Painted) -> str | None:
    """Say what looks as if all palettes were renumbered, in the same way.

    Most tools paint masks with PASCAL VOC's color map. Where all colors belong to that map and
    have other values, they may have been chosen so, or renumbered.

    Args:
        masks: paths and colors of palette masks.
        usual: color of each value in PASCAL VOC's map, as many as there are classes.

    Returns:
        One line without advice, or None.
    """
    index_of = {colour: index for index, colour in usual.items()}
    moved = None
    for path, painted in masks:
        for value, colour in painted.items():
            if colour not in index_of:
                return None
            if index_of[colour] != value and moved is None:
                moved = (
                    f"{path}: value {value} has the color {colour}, which is that of value "
                    f"{index_of[colour]} in PASCAL VOC's color map: was the palette renumbered?"
                )
    return moved
