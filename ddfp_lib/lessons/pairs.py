"""Execute a lesson, store its pair of files, and make the version for students."""

import base64
import copy
import hashlib
import io
import os
import re
import time
import tomllib
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


PROJECT = Path(__file__).parents[2] / "pyproject.toml"


TAGS = {
    "parameters": "literals that papermill may replace",
    "check": "bare asserts on what the text says",
    "solution": "an exercise's solution: folded, and not in the student's version",
    "thumbnail": "its first figure is shown for the lesson in the index",
    "colab": "installs the project in Colab; made from the address in pyproject.toml",
    "nbval-ignore-output": "its digits differ between processors: asserts check it instead",
}
"""Every tag that a cell may have."""


CELL_SECONDS = 600


THUMBNAIL_WIDTH = 480


YOUR_TURN = "# Your code here."


BADGES = """\
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{place}/blob/main/notebooks/{stem}.ipynb)
# [![Open on GitHub](https://img.shields.io/badge/GitHub-source-black?logo=github)]\
({address}/blob/main/notebooks/{stem}.ipynb)
#
"""
"""What is added below a lesson's title if the project has a public address."""


COLAB = """\
# %% tags=["colab"]
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    import subprocess

    subprocess.run(["git", "clone", "-q", "{address}", "ddfp"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-e", "ddfp[notebooks]"], check=True
    )
    sys.path.insert(0, "ddfp")

"""
"""The cell that installs the project in Colab."""


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
        folder: folder of the pairs.
        beginnings: keep the names that begin with one of these; none: keep all.

    Raises:
        UserError: there is no lesson of such a name.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in found):
            raise UserError(f"{folder}: no lesson begins with {beginning!r}")
    return [path for path in found if path.name.startswith(tuple(beginnings) or "")]


def public_address(project: Path = PROJECT) -> str:
    """Return the address of the public repository, "" while there is none.

    Args:
        project: the pyproject.toml whose ``[project.urls]`` has it as ``Repository``.
    """
    urls = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("urls", {})
    return urls.get("Repository", "").removesuffix("/").removesuffix(".git")


def addressed(source: str, stem: str, address: str) -> str:
    """Return a lesson's source with badges and Colab cell made from the repository's address.

    Args:
        source: the .py file, with those of another address or without any.
        stem: the lesson's name, such as ``01_low_density_separation``.
        address: ``https://github.com/OWNER/NAME``; "": leave both out.
    """
    source = re.sub(r"(?m)(^# \[!\[Open (in Colab|on GitHub)\].*\n)+#\n", "", source)
    source = re.sub(r'(?ms)^# %% tags=\["colab"\]\n.*?(?=^# %%)', "", source)
    if not address:
        return source
    place = address.removeprefix("https://github.com/")
    badges = BADGES.format(place=place, stem=stem, address=address)
    source = re.sub(r"(?m)(^# # .*\n#\n)", lambda title: title[0] + badges, source, count=1)
    colab = COLAB.format(address=address)
    return re.sub(r"(?m)^# %%(?! \[markdown\])", lambda cell: colab + cell[0], source, count=1)


def pair(script: Path) -> tuple[Path, Path]:
    """Return the two files of a lesson: its source, and the stored notebook."""
    return script, script.with_suffix(".ipynb")


def without_pictures(path: Path) -> str:
    """Return a file's text; of a notebook, without its base64, in which anything can be found."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return nbformat.writes(notebook)


def store(script: Path) -> float:
    """Execute a lesson in a fresh kernel and store its pair: outputs, and thumbnail.

    Cells are named after their source and nothing of the machine is kept, so that storing a lesson
    that did not change changes no byte but those of numbers that did.

    Args:
        script: the source; the .ipynb next to it is written, and ``images/NN_name.png``. Its
            badges and Colab cell are renewed.

    Returns:
        Seconds that the execution took.

    Raises:
        UserError: a cell failed; nothing is written.
    """
    source = script.read_text(encoding="utf-8")
    renewed = addressed(source, script.stem, public_address())
    if renewed != source:
        write_text(script, renewed)
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
    # only the .ipynb folds solutions: JupyterLab must not see that as a difference of the pair
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
    """Return the path of a lesson's thumbnail."""
    return script.parent / "images" / f"{script.stem}.png"


def _shrunk(png: bytes) -> bytes:
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        size = THUMBNAIL_WIDTH, round(picture.height * THUMBNAIL_WIDTH / picture.width)
        reduced = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    reduced.quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _join_streams(cell: NotebookNode) -> None:
    """Make one output of neighboring pieces of a stream: where they are cut is chance."""
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
        folder: folder that the .ipynb is written to.
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
