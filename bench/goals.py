"""What was aimed at, beside what was measured."""

from collections.abc import Iterable
from typing import NamedTuple


class Goal(NamedTuple):
    """One aim.

    Attributes:
        text: what was to be reached.
        measured: the measured value, as it is printed.
        met: whether that is enough.
    """

    text: str
    measured: str
    met: bool


def goal_table(goals: Iterable[Goal]) -> str:
    """Return the table, in Markdown."""
    lines = ["| goal | measured | result |", "|---|---:|---|"]
    lines += [f"| {g.text} | {g.measured} | {'met' if g.met else 'missed'} |" for g in goals]
    return "\n".join(lines)
