"""Tables that say which class a colour or a value of a mask is."""

import csv
from pathlib import Path

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import Colour
from ddfp_lib.data.splits import read_lines
from ddfp_lib.errors import UserError

IGNORED = ("__ignore__", "ignore", "ignored", "void", "unlabeled")
"""Names in a table of colours that mean ``IGNORE_INDEX``."""


def colour_table(path: Path) -> tuple[list[str], dict[Colour, int]]:
    """Read which class each colour is.

    Args:
        path: lines ``name:r,g,b:parts:actions`` (CVAT) or ``name,r,g,b``; ``#`` starts a comment.

    Returns:
        Names of the classes, ``background`` first and the others in their order; and the index of
        each colour, ``IGNORE_INDEX`` for names in :data:`IGNORED`.

    Raises:
        UserError: a line that is neither, or a colour that stands for two classes.
    """
    entries: list[tuple[str, Colour]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        fields = rest.split(":")[0].split(",") if rest else line.split(",")[1:]
        name = name if rest else line.split(",")[0]
        try:
            red, green, blue = (int(field) for field in fields)
        except ValueError:
            if number == 1:  # names of columns
                continue
            raise UserError(
                f"{path}, line {number}: {line!r} is no name:r,g,b and no name,r,g,b; fix the table"
            ) from None
        entries.append((name.strip(), (red, green, blue)))
    entries.sort(key=lambda entry: entry[0].lower() != "background")  # the others keep their order
    names = [name for name, _ in entries if name.lower() not in IGNORED]
    places: dict[Colour, int] = {}
    for name, colour in entries:
        if colour in places:
            raise UserError(f"{path}: colour {colour} stands for two classes; fix the table")
        places[colour] = names.index(name) if name in names else IGNORE_INDEX
    return names, places


def value_table(path: Path) -> list[str]:
    """Read the names of Roboflow's ``_classes.csv``, in the order of the values 0, 1, 2, ...

    Raises:
        UserError: it holds other values.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    named = {row[0]: row[1] for row in rows if len(row) == 2 and row[0].isdigit()}
    if [int(value) for value in named] != list(range(len(named))) or not named:
        raise UserError(f"{path}: is no table of values 0, 1, 2, ... and classes; fix it")
    return list(named.values())
