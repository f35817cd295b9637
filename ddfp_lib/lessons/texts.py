"""Store changed Markdown and alternative texts of a lesson without executing it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
from nbformat import NotebookNode

from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.lessons.pairs import as_notebook

DECIMAL = re.compile(r"\d+\.\d+")


NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+", re.DOTALL
)


PREDICTION, FINDING, FIGURE = "**Predict first.**", "**Finding.**", "a figure"


SHORTEST = 60
"""Characters below which an alternative text says too little."""


def store_texts(script: Path) -> None:
    """Store a lesson's texts again and keep its outputs; nothing is executed.

    Markdown cells, comments and alternative texts come from the source, outputs from the stored
    notebook.

    Args:
        script: the source; the .ipynb next to it is written.

    Raises:
        UserError: the code differs in more than comments and alternative texts, or the notebook is
            missing.
    """
    path = script.with_suffix(".ipynb")
    if not path.is_file():
        raise UserError(f"{path}: is missing; run python -m ddfp_lib.lessons store")
    notebook, stored = as_notebook(script), nbformat.read(path, as_version=4)
    new, old = (
        [cell for cell in each.cells if cell.cell_type == "code"] for each in (notebook, stored)
    )
    if len(new) != len(old):
        raise UserError(_to_execute(script, f"{len(new)} code cells, {len(old)} of them stored"))
    for number, (cell, before) in enumerate(zip(new, old, strict=True), start=1):
        if _without_descriptions(cell.source) != _without_descriptions(before.source):
            raise UserError(_to_execute(script, f"code cell {number} has changed"))
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
        description, earlier = described(cell.source), described(before.source)
        for picture in _pictures(cell):
            if description:
                picture["alt"] = description
            elif earlier:
                picture.pop("alt", None)
    notebook.metadata = stored.metadata
    write_text(path, nbformat.writes(notebook) + "\n")


def unprinted(script: Path) -> Iterator[str]:
    """Yield decimal numbers that the text states but no cell has: outputs change, texts stay.

    A number must be in the code, or be a number of the outputs, rounded. Words in code spans,
    formulas and links do not count.
    """
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    known = set(DECIMAL.findall(" ".join(cell.source for cell in code)))
    printed = np.array([float(x) for x in DECIMAL.findall(" ".join(map(_output, code)))])
    for cell in stored.cells:
        if cell.cell_type != "markdown":
            continue
        for number in DECIMAL.findall(NOT_PROSE.sub(" ", cell.source)):
            half = 0.5000001 / 10 ** len(number.partition(".")[2])
            near = np.abs(printed - float(number)) <= half
            if number not in known and not near.any():
                first = cell.source.split("\n", 1)[0]
                yield f"no cell prints {number}, which is in the text that begins {first!r}"


def _output(cell: NotebookNode) -> str:
    """Return what a cell printed or showed, with the descriptions that it computed."""
    parts = [output.get("text", "") for output in cell.outputs]
    for output in cell.outputs:
        parts += [str(data) for kind, data in output.get("data", {}).items() if "text/" in kind]
    if not described(cell.source):
        parts += [picture.get("alt", "") for picture in _pictures(cell)]
    return " ".join(parts)


def described(source: str) -> str:
    """Return the alternative text that a cell gives its figure, "" if it gives none in its source.

    Args:
        source: Python code; the text is the argument of a call of ``described``.
    """
    for node in ast.walk(ast.parse(source)):
        if _describes(node) and isinstance(node.args[0], ast.Constant):
            return " ".join(str(node.args[0].value).split())
    return ""


def undescribed(script: Path) -> Iterator[str]:
    """Yield figures without alternative text, or with another one than the source gives."""
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    for cell in stored.cells:
        wanted = described(cell.source) if cell.cell_type == "code" else ""
        first = cell.source.split("\n", 1)[0]
        for picture in _pictures(cell):
            alt = picture.get("alt", "")
            if not alt:
                yield f"a figure has no alternative text: the cell that begins with {first!r}"
            elif wanted and alt != wanted:
                yield f"the alternative text was not stored: the cell that begins with {first!r}"
            elif len(alt) < SHORTEST:
                yield f"the alternative text {alt!r} says too little"


def unpredicted(cells: list[NotebookNode]) -> Iterator[str]:
    """Yield the sections with a figure and a finding that ask for no prediction before the figure.

    A section begins with ``##`` or ``###`` and ends where one of its level or above begins.
    """
    sections = [*_sections(cells, 2), *_sections(cells, 3)]
    surprising = [
        heading
        for heading, parts in sections
        if FIGURE in parts
        and FINDING in "".join(parts)
        and PREDICTION not in "".join(parts[: parts.index(FIGURE)])
    ]
    for heading in dict.fromkeys(surprising):
        yield f"{heading!r} has a figure and a finding, and no {PREDICTION} before them"


def _sections(cells: list[NotebookNode], level: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the heading of each section of a level, and its texts and figures in order."""
    heading, parts = "", []
    for cell in cells:
        if cell.cell_type != "markdown":
            shown = [output.get("data", {}) for output in cell.get("outputs", [])]
            parts += [FIGURE for data in shown if "image/png" in data]
            continue
        prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
        for piece in re.split(rf"^(?=#{{1,{level}}} )", prose, flags=re.MULTILINE):
            if re.match(rf"#{{1,{level}}} ", piece):
                yield heading, parts
                heading, parts = piece.split("\n", 1)[0], []
            parts.append(piece)
    yield heading, parts


def _pictures(cell: NotebookNode) -> list[NotebookNode]:
    """Return the metadata of each picture that a cell has stored."""
    return [
        output.setdefault("metadata", {}).setdefault("image/png", {})
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def _describes(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "described"
        and len(node.args) == 1
    )


class _Undescribed(ast.NodeTransformer):
    """Takes the calls of ``described`` with a text in the source away, and leaves the figure."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        literal = _describes(node) and isinstance(node.args[0], ast.Constant)
        return node.func.value if literal else node


def _without_descriptions(source: str) -> str:
    return ast.dump(_Undescribed().visit(ast.parse(source)))


def _to_execute(script: Path, what: str) -> str:
    return f"{script.name}: {what}; run python -m ddfp_lib.lessons store {script.name[:2]}"
