"""The stored lessons are as they should be, and every guard that says so can fail."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest

from ddfp_lib import lessons
from ddfp_lib.errors import UserError
from ddfp_lib.lessons.__main__ import main
from ddfp_lib.lessons.pairs import YOUR_TURN

SCRIPTS = lessons.scripts()
FIRST = SCRIPTS[0]
ROOT = FIRST.parents[1]


def test_there_are_lessons():
    assert [path.name[:2] for path in SCRIPTS] == [f"{n:02}" for n in range(1, len(SCRIPTS) + 1)]


@pytest.mark.parametrize("guard", lessons.GUARDS, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_lesson_is_as_it_should_be(script, guard):
    assert list(guard(script)) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("newer", [".py", ".ipynb"])
def test_jupyterlab_opens_the_script_as_a_notebook_with_outputs(script, newer, tmp_path):
    # 2 seconds of imports, in one process of the tests and not in each
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for suffix in (".py", ".ipynb"):
        shutil.copy(script.with_suffix(suffix), tmp_path)
        age = 0 if suffix == newer else 3600
        os.utime(tmp_path / (script.stem + suffix), (1_700_000_000 - age,) * 2)
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(tmp_path))
    opened = manager.get(script.name, type="notebook")
    assert sum(bool(cell.get("outputs")) for cell in opened["content"]["cells"]) > 5


@pytest.mark.parametrize("name", ["experiment", "study"])
def test_a_notebook_of_reproduce_is_in_step_with_its_source(name):
    script = ROOT / "reproduce" / f"{name}.py"
    assert list(lessons.unlike_source(script)) == []
    assert list(lessons.bad_parameters(script)) == []


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the first lesson, with its picture and its index, to be spoiled."""
    for path in (FIRST, FIRST.with_suffix(".ipynb"), FIRST.parent / "README.md"):
        shutil.copy(path, tmp_path)
    shutil.copytree(FIRST.parent / "images", tmp_path / "images")
    return tmp_path / FIRST.name


def spoil_cell_text(notebook):
    notebook.cells[0].source += "\nmore"


def spoil_cell_count(notebook):
    del notebook.cells[-1]


def spoil_tags(notebook):
    tagged(notebook, "check").metadata["tags"] = []


def spoil_order(notebook):
    code(notebook)[1].execution_count = 7


def spoil_error(notebook):
    code(notebook)[0].outputs.append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    )


def spoil_warning(notebook):
    code(notebook)[0].outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="FutureWarning: soon")
    )


def spoil_path(notebook):
    text = "saved to " + "/home" + "/somebody/file"
    code(notebook)[0].outputs.append(nbformat.v4.new_output("stream", text=text))


def spoil_size(notebook):
    code(notebook)[0].outputs.append(nbformat.v4.new_output("stream", text="x" * lessons.MAX_BYTES))


def spoil_literal(notebook):
    tagged(notebook, "parameters").source += "\nlength = len([1, 2])"


def spoil_statement(notebook):
    tagged(notebook, "parameters").source += "\nprint(1)"


def spoil_parameters_tag(notebook):
    tagged(notebook, "parameters").metadata["tags"] = []


def spoil_unknown_tag(notebook):
    notebook.cells[-1].metadata["tags"] = ["todo"]


def spoil_check(notebook):
    tagged(notebook, "check").source = "1 + 1"


def spoil_solutions(notebook):
    for cell in code(notebook):
        if "solution" in lessons.tags(cell):
            cell.metadata["tags"] = []


def spoil_fold(notebook):
    tagged(notebook, "solution").metadata["jupyter"] = {}


def spoil_section(notebook):
    notebook.cells = [c for c in notebook.cells if "## What we saw" not in c.source]


def spoil_quotation(notebook):
    notebook.cells[-1].source += "\n```python\n# ddfp_lib/method/flow.py\ndef nobody(): ...\n```"


def spoil_print(notebook):
    printing = next(c for c in code(notebook) if "print(inspect.getsource" in c.source)
    printing.outputs[0].text = printing.outputs[0].text.replace("return", "yield")


def spoil_printed_nothing(notebook):
    next(c for c in code(notebook) if "print(inspect.getsource" in c.source).outputs = []


def spoil_place(notebook):
    notebook.cells[-1].source += "\n| the flow | `method/flow.py` `NoSuchFlow` |"


SPOILERS = [
    (lessons.unlike_source, spoil_cell_text),
    (lessons.unlike_source, spoil_cell_count),
    (lessons.unlike_source, spoil_tags),
    (lessons.not_one_clean_run, spoil_order),
    (lessons.failed, spoil_error),
    (lessons.failed, spoil_warning),
    (lessons.of_one_machine, spoil_path),
    (lessons.too_large, spoil_size),
    (lessons.bad_parameters, spoil_literal),
    (lessons.bad_parameters, spoil_statement),
    (lessons.bad_parameters, spoil_parameters_tag),
    (lessons.out_of_form, spoil_unknown_tag),
    (lessons.out_of_form, spoil_check),
    (lessons.out_of_form, spoil_solutions),
    (lessons.out_of_form, spoil_fold),
    (lessons.out_of_form, spoil_section),
    (lessons.misquoted, spoil_quotation),
    (lessons.printed_before, spoil_print),
    (lessons.printed_before, spoil_printed_nothing),
    (lessons.mislocated, spoil_place),
]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return next(cell for cell in code(notebook) if tag in lessons.tags(cell))


@pytest.mark.parametrize(("guard", "spoil"), SPOILERS, ids=lambda value: value.__name__)
def test_every_guard_can_fail(guard, spoil, copy):
    assert list(guard(copy)) == []
    stored = copy.with_suffix(".ipynb")
    notebook = nbformat.read(stored, as_version=4)
    spoil(notebook)
    nbformat.write(notebook, stored)
    assert list(guard(copy))


def test_a_lesson_that_the_index_forgets_is_found(copy):
    (copy.parent / "README.md").write_text("nothing\n")
    assert "README.md does not mention it" in list(lessons.out_of_form(copy))


def test_student_version_has_no_solution_and_no_output(tmp_path):
    path = lessons.student(FIRST, tmp_path)
    notebook = nbformat.read(path, as_version=4)
    assert not [cell for cell in notebook.cells if "solution" in lessons.tags(cell)]
    assert not [output for cell in code(notebook) for output in cell.outputs]
    assert YOUR_TURN in [cell.source for cell in code(notebook)]


def test_storing_executes_and_a_failing_cell_writes_nothing(tmp_path):
    script = tmp_path / "01_small.py"
    head = "# %% [markdown]\n# # Small\n\n# %%\n"
    script.write_text(f"{head}print(6 * 7)\n")
    lessons.store(script)
    (cell,) = code(nbformat.read(script.with_suffix(".ipynb"), as_version=4))
    assert (cell.execution_count, cell.outputs[0].text) == (1, "42\n")
    before = script.with_suffix(".ipynb").read_bytes()
    script.write_text(f"{head}1 / 0\n")
    with pytest.raises(UserError, match=r"01_small\.py: a cell failed: ZeroDivisionError"):
        lessons.store(script)
    assert script.with_suffix(".ipynb").read_bytes() == before


def test_unknown_lessons_are_refused(capsys):
    assert main(["store", "77"]) == 2
    assert "no lesson begins with '77'" in capsys.readouterr().err
