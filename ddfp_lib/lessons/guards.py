"""Rules for stored lessons: each function checks a lesson's two files and lists their errors."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from papermill import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ddfp_lib.errors import UserError
from ddfp_lib.lessons.addresses import misaddressed
from ddfp_lib.lessons.pairs import (
    TAGS,
    as_notebook,
    pair,
    scripts,
    tags,
    thumbnail_path,
    without_pictures,
)
from ddfp_lib.lessons.texts import FINDING, PREDICTION, undescribed, unpredicted, unprinted

MAX_BYTES = 1_500_000


MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|work|Users|private|mnt|opt|usr|var)/[\w.-]"
    r"|[A-Z]:\\\\?Users|ipykernel_\d+"
)


OPENING = ("**You will**", "**You need**", "**Takes**", "minutes")
"""What the first cell of every lesson says."""


REPEATED = {PREDICTION: 2, FINDING: 3}
"""Words that every lesson has, and how often at least."""


SECTIONS = ("Exercises", "What we saw", "In the real method", "References", "Next")
"""The headings that every lesson ends with."""


PAPER = "https://arxiv.org/abs/2403.06462"


PHRASES = Path(__file__).parents[2] / "docs" / "phrases.txt"


PLACE = re.compile(r"`([\w/]+\.py)` `(?:\w+\.)?(\w+)`")


QUOTATION = re.compile(r"```python\n# (ddfp_lib/\S+\.py)\n(.*?)```", re.DOTALL)


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
    for path in pair(script):
        for found in MACHINE_PATH.finditer(without_pictures(path)):
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
            yield f"parameters: line {statement.lineno} is not an assignment to a name"
            continue
        names.append(statement.targets[0].id)
        try:
            ast.literal_eval(statement.value)
        except ValueError:
            yield f"parameters: {names[-1]} is not a literal"
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
    """Yield what a reader would miss: promise, predictions, findings, checks, a place in README."""
    notebook = _stored(script)
    cells = notebook.cells
    for cell in cells:
        for tag in set(tags(cell)) - TAGS.keys():
            yield f"tag {tag!r} is none of {', '.join(TAGS)}"
    opening = cells[0].source if cells else ""
    for part in OPENING:
        if part not in opening:
            yield f"the first cell does not say {part}"
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = re.findall(r"^## (.*)$", text, re.MULTILINE)
    if [heading for heading in found if heading in SECTIONS] != list(SECTIONS):
        yield f"its last sections are not {', '.join(SECTIONS)}, in this order"
    for words, least in REPEATED.items():
        if text.count(words) < least:
            yield f"{text.count(words)} times {words}, fewer than {least}"
    yield from unpredicted(cells)
    checks = [cell for cell in cells if "check" in tags(cell)]
    if len(checks) < 3:
        yield f"{len(checks)} cells are tagged 'check', fewer than 3"
    for cell in checks:
        if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))):
            yield f"a cell tagged 'check' asserts nothing: {cell.source[:40]!r}"
    if not thumbnail_path(script).is_file():
        yield "it has no thumbnail: tag the cell of a figure, and store"
    index = script.parent / "README.md"
    if not index.is_file() or script.stem not in index.read_text(encoding="utf-8"):
        yield "README.md does not mention it"


def unanswered(script: Path) -> Iterator[str]:
    """Yield exercises without a visible answer, and solutions that are not folded or not last."""
    solved = [cell for cell in _code(script) if "solution" in tags(cell)]
    if len(solved) < 2:
        yield f"{len(solved)} code cells are tagged 'solution', fewer than 2"
    for cell in solved:
        if not cell.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"a solution is not folded: {cell.source[:40]!r}"
        if not cell.outputs:
            yield f"a solution shows no answer: {cell.source[:40]!r}"
    reached = False
    for cell in _stored(script).cells:
        reached = reached or "## Exercises" in cell.source
        if "solution" in tags(cell) and not reached:
            yield f"a solution is before the section 'Exercises': {cell.source[:40]!r}"


def unreferenced(script: Path) -> Iterator[str]:
    """Yield what is missing among a lesson's references: the paper itself, or links."""
    text = "".join(cell.source + "\n" for cell in _stored(script).cells)
    listed = re.search(r"^## References$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((https://[^)]+)\)", listed[1]) if listed else []
    if PAPER not in links:
        yield f"its references do not link the paper, {PAPER}"
    if len(links) < 3:
        yield f"its references have {len(links)} links, fewer than 3"


def astray(script: Path) -> Iterator[str]:
    """Yield links that its first and last cells lack: to the index and to its neighbors."""
    lessons = scripts(script.parent)
    here = lessons.index(script)
    wanted = ["README.md"]
    wanted += [f"{other.stem}.ipynb" for other in lessons[max(0, here - 1) : here + 2]]
    wanted.remove(f"{script.stem}.ipynb")
    cells = _stored(script).cells
    for place, cell in (("first", cells[0]), ("last", cells[-1])):
        for name in wanted:
            if f"]({name})" not in cell.source:
                yield f"its {place} cell has no link to {name}"


def misworded(script: Path) -> Iterator[str]:
    """Yield phrases of ``docs/phrases.txt`` in its text, code and printed output."""
    text = script.read_text(encoding="utf-8").replace("\n# ", " ")
    for cell in _code(script):
        text += "".join(output.get("text", "") for output in cell.outputs)
    for phrase in phrases():
        if re.search(rf"(?i)\b{re.escape(phrase)}\b", text):
            yield f"it says {phrase!r}, see {PHRASES.name}"


def phrases(path: Path = PHRASES) -> list[str]:
    """Return the phrases that the project does not use: a line each, # begins a comment."""
    if not path.is_file():
        return []
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def misquoted(script: Path) -> Iterator[str]:
    """Yield quotations of the library that are no longer in it.

    A quotation is a block of Python whose first line names its file: ``# ddfp_lib/method/flow.py``.
    Indentation does not count; a line ``...`` means lines left out.
    """
    root = Path(__file__).parents[2]
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
    library = [
        _stripped(path.read_text("utf-8")) for path in Path(__file__).parents[1].rglob("*.py")
    ]
    for cell in _code(script):
        if not cell.source.startswith("print(inspect.getsource("):
            continue
        shown = "".join(output.get("text", "") for output in cell.outputs)
        if not shown or not any(_stripped(shown) in lines for lines in library):
            yield f"{cell.source}: the library reads otherwise now; store the lesson again"


def mislocated(script: Path) -> Iterator[str]:
    """Yield places in the library, named as "`method/flow.py` `Flow`", that do not exist."""
    library = Path(__file__).parents[1]
    for cell in _stored(script).cells:
        for name, called in PLACE.findall(cell.source):
            path = library / name
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if not re.search(rf"^\s*(?:def|class) {called}\b", text, re.MULTILINE):
                yield f"{name} defines no {called}"


GUARDS: tuple[Callable[[Path], Iterator[str]], ...] = (
    unlike_source,
    not_one_clean_run,
    failed,
    of_one_machine,
    too_large,
    bad_parameters,
    out_of_form,
    unanswered,
    unreferenced,
    astray,
    misaddressed,
    misworded,
    misquoted,
    printed_before,
    mislocated,
    unprinted,
    undescribed,
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
