"""The table of faults counts what the tests try, and what they lose."""

import os
import subprocess
import sys
from pathlib import Path

from ddfp_lib.reports.blocks import BEGIN, END
from tests.faults.report import FaultTable

HOOKS = """
from tests.faults.report import pytest_addoption, pytest_configure, pytest_runtest_makereport
"""

TESTS = """
import pytest
from tests.faults.report import tried

@pytest.mark.fault("kill", "twice, | odd words (call)")
@pytest.mark.parametrize("part", ["a b", "c"])
def test_survives(part):
    pass

@pytest.mark.fault("input", "random")
def test_loses_its_third():
    for number in range(3):
        tried()
        assert number < 2

@pytest.fixture
def broken():
    raise OSError

@pytest.mark.fault("disk", "broken beforehand")
def test_never_begins(broken):
    pass

@pytest.mark.fault("disk", "another day")
@pytest.mark.skip
def test_is_skipped():
    pass

def test_of_something_else():
    pass
"""


def test_the_page_begins_with_what_its_table_adds_up_to():
    table = FaultTable(Path("page.md"))
    assert table.summary() == "No fault was tried."
    table.tried |= {("kill", "once", "a.py"): 1200, ("disk", "full", "b.py"): 3}
    assert (
        table.summary() == "There were 1,203 trials of 2 faults. The programs survived all trials."
    )
    table.lost["disk", "full", "b.py"] = 1
    assert table.summary().endswith(": 1,202 survived, 1 lost, by 1 of the faults.")


def test_the_stored_sentence_is_that_of_the_stored_table():
    page = (Path(__file__).parents[2] / "docs" / "robustness.md").read_text(encoding="utf-8")
    block = page.split(BEGIN.format(name="faults", by="make soak"))[1]
    block = block.split(END.format(name="faults"))[0]
    table = FaultTable(Path("page.md"))
    for line in block.splitlines():
        if line.startswith("| ") and not line.startswith(("| fault", "| **all**")):
            kind, how, count, _, lost, place = (cell.strip() for cell in line.split("|")[1:-1])
            table.tried[kind, how, place] = int(count.replace(",", ""))
            table.lost[kind, how, place] = int(lost)
    assert f"\n{table.summary()}\n" in block


def test_tries_are_counted_over_processes(tmp_path):
    (tmp_path / "conftest.py").write_text(HOOKS)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(kind, how): a fault")
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN.format(name='faults', by='make soak')}\n{END.format(name='faults')}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "2"]
    command += ["--fault-table", "page.md"]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # each of three processes would import them
        },
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stdout
    assert "6 trials of 3 faults: 4 survived, 2 lost, by 2 of the faults." in page.read_text()
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")][2:]
    assert rows == [
        "| disk | broken beforehand | 1 | 0 | 1 | `test_some.py` |",
        "| input | random | 3 | 2 | 1 | `test_some.py` |",
        "| kill | twice, \\| odd words (call) | 2 | 2 | 0 | `test_some.py` |",
        "| **all** | | 6 | 4 | 2 | |",
    ]
