"""Counts the faults that tests try, and writes them into ``docs/robustness.md``: ``make soak``.

A test of a fault carries ``@pytest.mark.fault(kind, how)``. It stands for one try, or for as many
as it says by :func:`tried`. A test that passes has survived all of its tries; one that fails has
lost the last.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from ddfp_lib.files import write_text
from ddfp_lib.reports.blocks import replace_block
from ddfp_lib.runs.commit import commit

COUNTS: Counter[str] = Counter()
ROW = tuple[str, str, str]
"""Kind of fault, how it is done, file of the test."""


def tried(count: int = 1) -> None:
    """Say that the running test tries ``count`` more faults."""
    COUNTS[os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]] += count


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="page to write the table of faults into")


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--fault-table")
    if page and not hasattr(config, "workerinput"):  # of xdist's processes the first alone
        config.pluginmanager.register(FaultTable(page))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    mark = item.get_closest_marker("fault")
    if mark and (call.when == "call" or report.failed):
        place = item.path.relative_to(item.config.rootpath).as_posix()
        count = COUNTS.pop(item.nodeid, 0) or 1
        report.user_properties.append(("fault", (*mark.args, place, count)))
    return report


class FaultTable:
    """Adds up what the tests report, and writes the table at the end."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.tried: dict[ROW, int] = defaultdict(int)
        self.lost: dict[ROW, int] = defaultdict(int)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "fault" and not report.skipped and report.when != "teardown":
                *row, count = value
                self.tried[tuple(row)] += count
                self.lost[tuple(row)] += report.failed

    def pytest_sessionfinish(self) -> None:
        text = self.page.read_text(encoding="utf-8")
        write_text(self.page, replace_block(text, "faults", self.table(), by="make soak"))

    def table(self) -> str:
        """Return a sentence and the table, in Markdown, with all faults in its last row."""
        lines = ["| fault | how | tried | survived | lost | test |", "|---|---|---:|---:|---:|---|"]
        for row in sorted(self.tried):
            kind, how, place = (cell.replace("|", "\\|") for cell in row)
            lines.append(f"| {kind} | {how} | {self.numbers([row])} | `{place}` |")
        lines.append(f"| **all** | | {self.numbers(list(self.tried))} | |")
        return "\n".join(
            [
                self.summary(),
                "",
                *lines,
                "",
                f"The trials in this table were run on {date.today()}, with the code of commit "
                f"`{commit()}`.",
            ]
        )

    def summary(self) -> str:
        """Return how many trials there were, and how many of them were survived."""
        count, lost = (sum(of.values()) for of in (self.tried, self.lost))
        if not count:
            return "No fault was tried."
        faults = f"{count:,} trials of {len(self.tried)} faults"
        if not lost:
            return f"There were {faults}. The programs survived all trials."
        broken = sum(self.lost[row] > 0 for row in self.tried)
        return f"{faults}: {count - lost:,} survived, {lost:,} lost, by {broken} of the faults."

    def numbers(self, rows: list[ROW]) -> str:
        """Return the cells of some rows: tried, survived, lost."""
        count, lost = (sum(of[row] for row in rows) for of in (self.tried, self.lost))
        return f"{count:,} | {count - lost:,} | {lost}"
