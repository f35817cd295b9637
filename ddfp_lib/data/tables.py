"""Tables with the class of each color or each value of a mask."""

import csv
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TypeVar

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.splits import read_lines
from ddfp_lib.data.stored import Colour
from ddfp_lib.errors import UserError

Key = TypeVar("Key", bound=Hashable)

IGNORED = ("__ignore__", "ignore", "ignored", "void")
"""Names in a table that mean ``IGNORE_INDEX``; in a table of colors ``unlabeled`` too."""

FORMS = "name:r,g,b, name,r,g,b or r g b name"


def is_value_table(path: Path) -> bool:
    """Return whether a table says which class each value is, not each color.

    Raises:
        UserError: it cannot be read.
    """
    return all(len(row) == 2 for row in _rows(path))


def value_table(path: Path) -> tuple[list[str], dict[int, int]]:
    """Read which class each value is.

    Args:
        path: lines ``value,name``, such as those of Roboflow's ``_classes.csv`` (``Pixel Value,
            Class``); the first line may name the columns.

    Returns:
        Names of the classes in their order; and the index of each value, ``IGNORE_INDEX`` for
        names in :data:`IGNORED`.

    Raises:
        UserError: a line that is not ``value,name``, or a value or name that comes twice.
    """
    entries: list[tuple[int, str]] = []
    for number, row in enumerate(_rows(path), start=1):
        if len(row) == 2 and row[0].isdecimal() and row[1]:
            entries.append((int(row[0]), row[1]))
        elif number > 1:  # the first may name the columns
            raise UserError(f"{path}, line {number}: {','.join(row)!r} is not value,name; fix it")
    return _indexed(path, entries, IGNORED)


def colour_table(path: Path) -> tuple[list[str], dict[Colour, int]]:
    """Read which class each color is.

    Args:
        path: lines ``name:r,g,b:parts:actions`` (CVAT, Datumaro), ``name,r,g,b`` or ``r g b name``
            (CamVid); ``#`` starts a comment, and the first line may name the columns.

    Returns:
        Names of the classes, ``background`` first and the others in their order; and the index of
        each color, ``IGNORE_INDEX`` for names in :data:`IGNORED`.

    Raises:
        UserError: a line that is none of these, or a color or name that comes twice.
    """
    entries: list[tuple[Colour, str]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        if rest:
            fields = rest.split(":")[0].split(",")
        elif "," in line:
            name, *fields = line.split(",")
        else:
            *fields, name = line.split(maxsplit=3)
        if fields in ([""], []):
            raise UserError(f"{path}, line {number}: {line!r} has no color; write {FORMS}")
        try:
            red, green, blue = (int(field) for field in fields)
            if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
                raise ValueError
        except ValueError:
            if number == 1:  # names of columns
                continue
            raise UserError(
                f"{path}, line {number}: {line!r} is not {FORMS}; fix the table"
            ) from None
        entries.append(((red, green, blue), name.strip()))
    entries.sort(key=lambda entry: entry[1].lower() != "background")  # the others keep their order
    return _indexed(path, entries, (*IGNORED, "unlabeled"))


def _indexed(
    path: Path, entries: Sequence[tuple[Key, str]], ignored: Sequence[str]
) -> tuple[list[str], dict[Key, int]]:
    """Return names of the classes, and the index of each color or value."""
    names = [name for _, name in entries if name.lower() not in ignored]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: class {twice!r} is in two lines; fix the table")
    places: dict[Key, int] = {}
    for key, name in entries:
        if key in places:
            raise UserError(f"{path}: {key} is given two classes; fix the table")
        places[key] = names.index(name) if name.lower() not in ignored else IGNORE_INDEX
    return names, places


def _rows(path: Path) -> list[list[str]]:
    """Read the rows of a CSV file, without empty ones."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); check it") from error
    return [row for row in rows if any(row)]
