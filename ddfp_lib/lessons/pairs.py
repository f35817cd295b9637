"""Executing a lesson, storing its pair of files, and the version for students."""

import base64
import copy
import hashlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

from ddfp_lib.constants import QUIET_KERNEL
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically, write_text

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


TAGS = {
    "parameters": "literals that papermill may replace",
    "check": "bare asserts on what was said",
    "solution": "an exercise's solution: folded, and not in the student's version",
    "thumbnail": "its first figure stands for the lesson in the index",
    "nbval-ignore-output": "its digits differ between processors: asserts speak for them",
}
"""Every tag that a cell may have."""


CELL_SECONDS = 120


THUMBNAIL_WIDTH = 480


YOUR_TURN = "# Your code here."


FILTERS = {
    "cell_metadata_filter": "tags,-all",
    "notebook_metadata_filter": "kernelspec,jupytext,-all",
}
"""What jupytext carries between the files of a pair, as pyproject.toml has it."""


FOLDED = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "cellView": "form"}
"""Metadata that folds a cell in JupyterLab, and its code in Colab."""


def scripts(folder: Path = NOTEBOOKS, beginnings: Sequence[str] = ()) -> list[Path]:
    """Return the lessons' sources in a folder, in order.

    Args:
        folder: where the pairs are.
        beginnings: keep the names that begin with one of these; none: keep all.

    Raises:
        UserError: there is no lesson of such a name.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in found):
            raise UserError(f"{folder}: no lesson begins with {beginning!r}")
    return [path for path in found if path.name.startswith(tuple(beginnings) or "")]


def store(script: Path) -> float:
    """Execute a lesson in a fresh kernel and store its pair: outputs, and thumbnail.

    Cells are named after their source and nothing of the machine is kept, so that storing a lesson
    that did not change changes no byte but those of numbers that did.

    Args:
        script: the source; the .ipynb beside it is written, and ``images/NN_name.png``.

    Returns:
        Seconds that the execution took.

    Raises:
        UserError: a cell failed; nothing is written.
    """
    notebook = as_notebook(script)
    start = time.perf_counter()
    try:
        # The kernel takes its own backend, not one that the environment names: see Picture.
        environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            resources={"metadata": {"path": str(script.parent)}},
            extra_arguments=QUIET_KERNEL,
        )
        client.execute(env=environment)
    except CellExecutionError as error:
        raise UserError(f"{script.name}: a cell failed: {error.ename}: {error.evalue}") from error
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        _join_streams(cell)
    notebook.metadata.get("language_info", {}).pop("version", None)
    picture = thumbnail(notebook)
    if picture is not None:
        write_atomically(thumbnail_path(script), lambda path: path.write_bytes(picture))
    write_text(script.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
    return seconds


def as_notebook(script: Path) -> NotebookNode:
    """Return a source as a notebook without outputs, its solutions folded, its cells named."""
    notebook = jupytext.read(script)
    # the .ipynb alone folds solutions: JupyterLab shall not call that a difference of the pair
    notebook.metadata.setdefault("jupytext", {}).update(FILTERS)
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.blake2b(cell.source.encode(), digest_size=4).hexdigest()
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
        if cell.cell_type == "code" and "solution" in tags(cell):
            cell.metadata.update(copy.deepcopy(FOLDED))
    return notebook


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def thumbnail(notebook: NotebookNode) -> bytes | None:
    """Return the first figure of the cell tagged ``thumbnail``, small, as PNG; None without one."""
    for cell in notebook.cells:
        if "thumbnail" not in tags(cell):
            continue
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return _shrunk(base64.b64decode(output.data["image/png"]))
    return None


def thumbnail_path(script: Path) -> Path:
    """Return where a lesson's thumbnail stands."""
    return script.parent / "images" / f"{script.stem}.png"


def _shrunk(png: bytes) -> bytes:
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        size = THUMBNAIL_WIDTH, round(picture.height * THUMBNAIL_WIDTH / picture.width)
        reduced = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    reduced.quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _join_streams(cell: NotebookNode) -> None:
    """Make one output of neighbouring pieces of a stream: where they are cut is chance."""
    joined: list[NotebookNode] = []
    for output in cell.get("outputs", []):
        last = joined[-1] if joined else None
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    if cell.cell_type == "code":
        cell.outputs = joined


def student(script: Path, folder: Path) -> Path:
    """Write a lesson without solutions and outputs, and return where.

    A solution in code becomes an empty cell to write in, a solution in words goes.

    Args:
        script: the source.
        folder: where the .ipynb shall stand.
    """
    notebook = as_notebook(script)
    kept = []
    for cell in notebook.cells:
        if "solution" not in tags(cell):
            kept.append(cell)
        elif cell.cell_type == "code":
            kept.append(nbformat.v4.new_code_cell(YOUR_TURN, id=cell.id))
    notebook.cells = kept
    path = Path(folder) / f"{script.stem}.ipynb"
    write_text(path, nbformat.writes(notebook) + "\n")
    return path
