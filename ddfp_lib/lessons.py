"""The lessons: executing and storing them, the student's version, and what a stored one must be.

A lesson is a pair in ``notebooks/``. ``NN_name.py`` is the source: cells in percent format, read
and reviewed as a file of Python. ``NN_name.ipynb`` holds the same cells with the outputs of one
clean run, for readers; :func:`store` makes it from the source.

    python -m ddfp_lib.lessons store            # execute all lessons and store their outputs
    python -m ddfp_lib.lessons store 02         # those whose name begins with 02
    python -m ddfp_lib.lessons student FOLDER   # versions without solutions and outputs
    python -m ddfp_lib.lessons check            # say what is wrong with the stored pairs
"""

import argparse
import ast
import base64
import copy
import hashlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from papermill import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from ddfp_lib.constants import QUIET_KERNEL
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_atomically, write_text

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

TAGS = {
    "parameters": "literals that papermill may replace",
    "check": "bare asserts on what was said",
    "solution": "an exercise's solution: folded, and not in the student's version",
    "thumbnail": "its first figure stands for the lesson in the index",
    "nbval-ignore-output": "its digits differ between processors: asserts speak for them",
}
"""Every tag that a cell may have."""

MAX_BYTES = 1_500_000
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

MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|work|Users|private|mnt|opt|usr|var)/[\w.-]"
    r"|[A-Z]:\\\\?Users|ipykernel_\d+"
)

PLACE = re.compile(r"`([\w/]+\.py):(\d+)` `(?:\w+\.)?(\w+)`")
QUOTATION = re.compile(r"```python\n# (ddfp_lib/\S+\.py)\n(.*?)```", re.DOTALL)


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


# Execute and store


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


# The student's version


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


# What a stored lesson must be


def unlike_source(script: Path) -> Iterator[str]:
    """Yield where the pair's two files differ: kind, text or tags of a cell."""
    source, stored = as_notebook(script), _stored(script)
    if len(source.cells) != len(stored.cells):
        yield f"{len(source.cells)} cells in the .py, {len(stored.cells)} in the .ipynb"
    for number, (ours, theirs) in enumerate(zip(source.cells, stored.cells, strict=False)):
        for name, of in (("kind", _kind), ("text", _text), ("tags", tags)):
            if of(ours) != of(theirs):
                yield f"cell {number}: the two files differ in {name}"


def not_one_clean_run(script: Path) -> Iterator[str]:
    """Yield code cells that did not run as the 1st, 2nd, ... n-th of one session."""
    for number, cell in enumerate(_code(script), start=1):
        if cell.execution_count != number:
            yield f"code cell {number} has execution count {cell.execution_count}"


def failed(script: Path) -> Iterator[str]:
    """Yield code cells that ended in an error or wrote warnings."""
    for number, cell in enumerate(_code(script), start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} stores the error {output.ename}"
            if output.get("name") == "stderr":
                yield f"code cell {number} wrote to stderr: {output.text[:80]!r}"


def of_one_machine(script: Path) -> Iterator[str]:
    """Yield paths of the machine that a lesson was made on."""
    for path in (script, script.with_suffix(".ipynb")):
        for found in MACHINE_PATH.finditer(_without_pictures(path)):
            yield f"{path.suffix} names a path of some machine: {found.group()!r}"


def too_large(script: Path) -> Iterator[str]:
    """Yield the size of a notebook that a browser would wait for."""
    size = script.with_suffix(".ipynb").stat().st_size
    if size > MAX_BYTES:
        yield f"{size:,} bytes, more than {MAX_BYTES:,}"


def bad_parameters(script: Path) -> Iterator[str]:
    """Yield what keeps papermill from setting parameters.

    There is one cell of them, it assigns literals to names and does nothing else, papermill sees
    every name, and takes a new value for it.
    """
    cells = [cell for cell in _code(script) if "parameters" in tags(cell)]
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged 'parameters', not 1"
        return
    names = []
    for statement in ast.parse(cells[0].source).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            yield f"parameters: line {statement.lineno} is no assignment to a name"
            continue
        names.append(statement.targets[0].id)
        try:
            ast.literal_eval(statement.value)
        except ValueError:
            yield f"parameters: {names[-1]} is no literal"
    seen = inspect_notebook(str(script.with_suffix(".ipynb")))
    for name in names:
        if name not in seen:
            yield f"parameters: papermill does not see {name}"
            continue
        # papermill's own reader: it adds the metadata that papermill relies on
        notebook = load_notebook_node(str(script.with_suffix(".ipynb")))
        injected = parameterize_notebook(notebook, {name: 0}).cells
        if not any(
            "injected-parameters" in tags(cell) and f"{name} = 0" in cell.source
            for cell in injected
        ):
            yield f"parameters: papermill cannot inject {name}"


def out_of_form(script: Path) -> Iterator[str]:
    """Yield what a reader would miss: badges, checks, exercises, thumbnail, a line in the index."""
    notebook = _stored(script)
    cells = notebook.cells
    for cell in cells:
        for tag in set(tags(cell)) - TAGS.keys():
            yield f"tag {tag!r} is none of {', '.join(TAGS)}"
    opening = cells[0].source if cells else ""
    if f"notebooks/{script.stem}.ipynb" not in opening:
        yield "the first cell has no badge that opens this notebook"
    for part in ("**You will**", "**You need**", "minutes"):
        if part not in opening:
            yield f"the first cell does not say {part}"
    for heading in ("What we saw", "In the real method", "Next"):
        if not any(f"## {heading}" in cell.source for cell in cells):
            yield f"there is no section {heading!r}"
    checks = [cell for cell in cells if "check" in tags(cell)]
    if len(checks) < 3:
        yield f"{len(checks)} cells are tagged 'check', fewer than 3"
    for cell in checks:
        if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))):
            yield f"a cell tagged 'check' asserts nothing: {cell.source[:40]!r}"
    solved = [cell for cell in _code(script) if "solution" in tags(cell)]
    if len(solved) < 2:
        yield f"{len(solved)} code cells are tagged 'solution', fewer than 2"
    for cell in solved:
        if not cell.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"a solution is not folded: {cell.source[:40]!r}"
    if not thumbnail_path(script).is_file():
        yield "it has no thumbnail: tag the cell of a figure, and store"
    index = script.parent / "README.md"
    if not index.is_file() or script.stem not in index.read_text(encoding="utf-8"):
        yield "README.md does not mention it"


def misquoted(script: Path) -> Iterator[str]:
    """Yield quotations of the library that are no longer in it.

    A quotation is a block of Python in words that begins with its file, ``# ddfp_lib/flow.py``.
    Indentation does not count; a line ``...`` stands for lines left out.
    """
    root = Path(__file__).parents[1]
    for cell in _stored(script).cells:
        if cell.cell_type != "markdown":
            continue
        for name, block in QUOTATION.findall(cell.source):
            lines = _stripped((root / name).read_text(encoding="utf-8"))
            for part in block.split("...\n"):
                if _stripped(part) not in lines:
                    yield f"{name} does not say {part.strip()!r}"


def printed_before(script: Path) -> Iterator[str]:
    """Yield printed sources of the library that have changed since the lesson was stored.

    The notebook tests find that too, in minutes; this finds it without running anything.
    """
    library = [_stripped(path.read_text("utf-8")) for path in Path(__file__).parent.rglob("*.py")]
    for cell in _code(script):
        if not cell.source.startswith("print(inspect.getsource("):
            continue
        shown = "".join(output.get("text", "") for output in cell.outputs)
        if not shown or not any(_stripped(shown) in lines for lines in library):
            yield f"{cell.source}: the library reads otherwise now; store the lesson again"


def mislocated(script: Path) -> Iterator[str]:
    """Yield places in the library, told as "`flow.py:10` `Flow`", where no such name begins."""
    library = Path(__file__).parent
    for cell in _stored(script).cells:
        for name, number, called in PLACE.findall(cell.source):
            lines = (library / name).read_text(encoding="utf-8").splitlines()
            begins = re.compile(rf"\s*(?:def|class) {called}\b")
            found = [at for at, line in enumerate(lines, start=1) if begins.match(line)]
            if int(number) not in found:
                where = " or ".join(map(str, found)) or "nowhere"
                yield f"{name}:{number} is not where {called} begins, that is {where}"


GUARDS: tuple[Callable[[Path], Iterator[str]], ...] = (
    unlike_source,
    not_one_clean_run,
    failed,
    of_one_machine,
    too_large,
    bad_parameters,
    out_of_form,
    misquoted,
    printed_before,
    mislocated,
)
"""All that a stored lesson must be; each yields the ways in which it is not."""


def _stripped(text: str) -> str:
    """Return lines without indentation, each between line breaks."""
    return "\n" + "".join(f"{line.strip()}\n" for line in text.strip().splitlines())


def _stored(script: Path) -> NotebookNode:
    path = script.with_suffix(".ipynb")
    if not path.is_file():
        raise UserError(f"{path}: is missing; run python -m ddfp_lib.lessons store")
    return nbformat.read(path, as_version=4)


def _code(script: Path) -> list[NotebookNode]:
    return [cell for cell in _stored(script).cells if cell.cell_type == "code"]


def _kind(cell: NotebookNode) -> str:
    return cell.cell_type


def _text(cell: NotebookNode) -> str:
    return cell.source


def _without_pictures(path: Path) -> str:
    """Return a file's text; of a notebook, without its base64, in which anything can be found."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return nbformat.writes(notebook)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, see the module's first lines; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ddfp_lib.lessons")
    commands = parser.add_subparsers(dest="command", required=True)
    storing = commands.add_parser("store", help="execute lessons and store their outputs")
    storing.add_argument("beginnings", nargs="*", metavar="NN", help="such as 02; none: all")
    teaching = commands.add_parser("student", help="write versions without solutions")
    teaching.add_argument("folder", type=Path)
    commands.add_parser("check", help="say what is wrong with the stored pairs")
    given = parser.parse_args(arguments)
    try:
        if given.command == "store":
            for script in scripts(beginnings=given.beginnings):
                seconds = store(script)
                size = script.with_suffix(".ipynb").stat().st_size
                print(f"{script.stem}: {seconds:.0f} s, {size / 1000:.0f} kB", flush=True)
        elif given.command == "student":
            for script in scripts():
                print(student(script, given.folder))
        else:
            wrong = [
                f"{s.stem}: {line}" for s in scripts() for guard in GUARDS for line in guard(s)
            ]
            print("\n".join(wrong) or "all lessons are as they should be")
            return 1 if wrong else 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
