"""The page that draws the house agrees with the house, and the package offers what it says."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ddfp_lib
from ddfp_lib import lessons
from ddfp_lib.reports.pages import architecture_page

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "ddfp_lib"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_LINES = 350
MOST_MODULES = 8


def rows(heading: str) -> list[str]:
    """Return the first column of the table below ``heading``."""
    table = PAGE.split(heading, 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def layers() -> list[str]:
    """Return the names in the contract of layers, highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (
        each for each in settings["tool"]["importlinter"]["contracts"] if each["type"] == "layers"
    )
    return [name.strip() for layer in contract["layers"] for name in layer.split("|")]


def test_the_page_names_every_room_in_the_order_of_the_layers():
    rooms = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    named = rows("| room | what it holds |\n|---|---|\n")
    assert set(named) == rooms
    assert named == [name for name in layers() if name in rooms]


def test_the_page_names_every_file_below_the_rooms():
    files = {path.name for path in LIBRARY.glob("*.py")} - {"__init__.py"}
    assert set(rows("| file | what it holds |\n|---|---|\n")) == files
    assert len(files) <= MOST_MODULES


def test_the_places_to_change_exist():
    table = PAGE.split("## Where would you change ...?", 1)[1]
    places = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", table)
    assert len(places) > 10
    assert all((LIBRARY / place).exists() for place in places)


def test_the_names_at_the_places_exist():
    """A row such as "`training/teacher.py` (`ema_decay_at`)" names what the file defines."""
    table = PAGE.split("## Where would you change ...?", 1)[1].split("\n## ", 1)[0]
    named = re.findall(r"`([\w/]+\.py)` \(([^()]+)\)", table)
    assert len(named) > 15
    for place, words in named:
        text = (LIBRARY / place).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", words):
            assert re.search(rf"^\s*(?:def|class) {name}\b|^{name} =", text, re.MULTILINE), name


def test_the_list_of_files_is_in_step_with_their_docstrings():
    assert architecture_page(PAGE) == PAGE


def test_the_diagram_has_every_room():
    diagram = PAGE.split("```mermaid", 1)[1].split("```", 1)[0]
    assert all(re.search(rf"\b{name}\b", diagram) for name in layers())


def test_no_file_is_too_long_to_read():
    lengths = {
        str(path.relative_to(LIBRARY)): len(path.read_text(encoding="utf-8").splitlines())
        for path in LIBRARY.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_module_is_called_as_the_feature():
    """F is the paper's feature map; PyTorch's usual short name would be a second meaning."""
    short = re.compile(r"\bfunctional as " + r"F\b")
    folders = ("ddfp_lib", "tests", "bench", "notebooks", "reproduce", "docs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 200
    assert [path for path in paths if short.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("package", [ddfp_lib, lessons])
def test_every_name_that_a_package_offers_can_be_imported(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_the_packages_themselves_import_nothing_heavy():
    heavy = {"torch", "pandas", "yaml", "timm", "jupytext", "nbformat", "papermill"}
    code = f"import sys, ddfp_lib, ddfp_lib.lessons; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
