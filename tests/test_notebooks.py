"""The stored lessons are as they should be, and every guard that says so can fail."""

import os
import re
import runpy
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from ddfp_lib import lessons
from ddfp_lib.errors import UserError
from ddfp_lib.lessons import plane
from ddfp_lib.lessons.__main__ import main
from ddfp_lib.lessons.pairs import YOUR_TURN
from ddfp_lib.plots import diagram
from ddfp_lib.seeds import generator

SCRIPTS = lessons.scripts()
SECOND = SCRIPTS[1]  # it has everything that a guard looks at, printed sources too
ROOT = SECOND.parents[1]
ADDRESS = "https://github.com/somebody/course"


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
    """A copy of a lesson, with its neighbors' names, its picture and its index, to be spoiled."""
    for path in (SECOND, SECOND.with_suffix(".ipynb"), SECOND.parent / "README.md"):
        shutil.copy(path, tmp_path)
    for neighbour in (SCRIPTS[0], SCRIPTS[2]):
        (tmp_path / neighbour.name).touch()
    shutil.copytree(SECOND.parent / "images", tmp_path / "images")
    return tmp_path / SECOND.name


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


def spoil_answer(notebook):
    tagged(notebook, "solution").outputs = []


def spoil_place_of_solution(notebook):
    cell = tagged(notebook, "solution")
    notebook.cells.remove(cell)
    notebook.cells.insert(3, cell)


def spoil_prediction(notebook):
    for cell in notebook.cells:
        cell.source = cell.source.replace("**Predict first.**", "")


def spoil_one_prediction(notebook):
    """The others are still more than enough."""
    cell = next(c for c in notebook.cells if "## How long must a flow train?" in c.source)
    cell.source = cell.source.replace("**Predict first.**", "")


def spoil_order_of_prediction(notebook):
    """A prediction that is asked for below the figure has its answer above."""
    cell = next(c for c in notebook.cells if "## Can a flow make a ring?" in c.source)
    cell.source = cell.source.replace("**Predict first.**", "")
    finding = next(
        c for c in notebook.cells if "**Finding.** After 200 steps, the density" in c.source
    )
    finding.source = "**Predict first.** " + finding.source


def spoil_order_of_sections(notebook):
    notebook.cells[-1].source = notebook.cells[-1].source.replace("## References", "## Literature")


def spoil_reference(notebook):
    cell = notebook.cells[-1]
    cell.source = cell.source.replace("https://arxiv.org/abs/2403.06462", "https://arxiv.org")


def spoil_references(notebook):
    notebook.cells[-1].source = notebook.cells[-1].source.replace("](https://arxiv", "](arxiv")


def spoil_link_to_the_index(notebook):
    notebook.cells[0].source = notebook.cells[0].source.replace("](README.md)", "](index.md)")


def spoil_link_to_a_neighbour(notebook):
    notebook.cells[-1].source = notebook.cells[-1].source.replace("](01_low", "](1_low")


def spoil_printed_words(notebook):
    text = "better, " + "beyond" + " the noise"
    code(notebook)[0].outputs.append(nbformat.v4.new_output("stream", text=text))


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


def picture(notebook):
    """The metadata of a figure whose text stands in its cell."""
    cell = next(c for c in code(notebook) if lessons.described(c.source))
    return next(o for o in cell.outputs if "image/png" in o.data).metadata["image/png"]


def spoil_number(notebook):
    text = next(c for c in notebook.cells if "**Finding.**" in c.source)
    text.source += " That is 97.531 points."


def spoil_printed_number(notebook):
    """What a finding quotes is no longer what the cell prints."""
    for cell in code(notebook):
        cell.outputs = []


def spoil_description(notebook):
    del picture(notebook)["alt"]


def spoil_description_of_another(notebook):
    picture(notebook)["alt"] += " It was another figure then."


def spoil_words_of_a_description(notebook):
    cell = code(notebook)[0]
    data, metadata = {"image/png": ""}, {"image/png": {"alt": "Two maps."}}
    cell.outputs.append(nbformat.v4.new_output("display_data", data, metadata=metadata))


def spoil_address(notebook):
    notebook.cells[0].source += f"\n`git clone {ADDRESS}`"


def spoil_printed_address(notebook):
    text = "cloned from git@" + "codeberg.org:somebody/course.git"
    code(notebook)[0].outputs.append(nbformat.v4.new_output("stream", text=text))


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
    (lessons.out_of_form, spoil_section),
    (lessons.out_of_form, spoil_prediction),
    (lessons.out_of_form, spoil_one_prediction),
    (lessons.out_of_form, spoil_order_of_prediction),
    (lessons.out_of_form, spoil_order_of_sections),
    (lessons.unanswered, spoil_solutions),
    (lessons.unanswered, spoil_fold),
    (lessons.unanswered, spoil_answer),
    (lessons.unanswered, spoil_place_of_solution),
    (lessons.unreferenced, spoil_reference),
    (lessons.unreferenced, spoil_references),
    (lessons.astray, spoil_link_to_the_index),
    (lessons.astray, spoil_link_to_a_neighbour),
    (lessons.misaddressed, spoil_address),
    (lessons.misaddressed, spoil_printed_address),
    (lessons.misworded, spoil_printed_words),
    (lessons.misquoted, spoil_quotation),
    (lessons.printed_before, spoil_print),
    (lessons.printed_before, spoil_printed_nothing),
    (lessons.mislocated, spoil_place),
    (lessons.unprinted, spoil_number),
    (lessons.unprinted, spoil_printed_number),
    (lessons.undescribed, spoil_description),
    (lessons.undescribed, spoil_description_of_another),
    (lessons.undescribed, spoil_words_of_a_description),
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


def test_every_guard_is_tried():
    assert {guard for guard, _ in SPOILERS} == set(lessons.GUARDS)


def test_a_phrase_in_the_source_is_found(copy):
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text.replace("**Finding.**", "**Finding.** It is no\n# wonder.", 1))
    assert "it says 'it is no wonder', see phrases.txt" in list(lessons.misworded(copy))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_badges_and_colab_cell_are_made_from_the_address(script):
    source = script.read_text(encoding="utf-8")
    without = lessons.addressed(source, script.stem, "")
    for words in ("colab", "img.shields.io"):
        assert words not in without
    given = lessons.addressed(without, script.stem, ADDRESS)
    assert f"/github/somebody/course/blob/main/notebooks/{script.stem}.ipynb" in given
    assert f'"clone", "-q", "{ADDRESS}"' in given
    assert given.index("colab-badge") < given.index("google.colab") < given.index("**Finding.**")
    assert lessons.addressed(given, script.stem, ADDRESS) == given
    assert lessons.addressed(given, script.stem, "") == without


def test_badges_of_another_address_are_found(copy, monkeypatch):
    assert list(lessons.misaddressed(copy)) == []
    source = lessons.addressed(copy.read_text(encoding="utf-8"), copy.stem, ADDRESS)
    copy.write_text(source, encoding="utf-8")
    assert list(lessons.misaddressed(copy))
    monkeypatch.setattr("ddfp_lib.lessons.addresses.public_address", lambda: ADDRESS)
    assert list(lessons.misaddressed(copy)) == []


def test_the_address_is_read_from_the_project(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n')
    assert lessons.public_address(project) == ""
    project.write_text(f'[project]\nname = "x"\n[project.urls]\nRepository = "{ADDRESS}.git"\n')
    assert lessons.public_address(project) == ADDRESS


def test_no_file_names_another_address_of_this_repository():
    """A reader who follows it would install what somebody else put there."""
    known = lessons.repositories(lessons.public_address()) | {"gavinwxy/ddfp"}
    ending = {".py", ".ipynb", ".md", ".toml", ".yaml", ".yml", ".cff", ".html", ".js", ".sh", ""}
    tracked = list(ROOT.iterdir())
    for folder in ("notebooks", "docs", "reproduce", "ddfp_lib", "tests", "bench", ".github"):
        tracked += (ROOT / folder).rglob("*")
    tracked += (ROOT / "findings").rglob("*")
    tracked = [path for path in tracked if path.is_file() and path.suffix in ending]
    assert ROOT / "Makefile" in tracked and ROOT / "CITATION.cff" in tracked
    assert {".sh", ".js"} <= {path.suffix for path in tracked}
    for path in tracked:
        found = lessons.repositories(path.read_text(encoding="utf-8", errors="ignore"))
        assert {name for name in found if name.endswith("/ddfp")} <= known, path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("git clone https://github.com/Somebody/course.git", {"somebody/course"}),
        ("git@" + "gitlab.com:somebody/course, and so on.", {"somebody/course"}),
        ("https://colab.research.google.com/github/a/b/blob/main/x.ipynb", {"a/b"}),
        ("https://raw.githubusercontent.com/a/b/main/x.py, bitbucket.org/c/d.", {"a/b", "c/d"}),
        ("https://somebody.github.io/course/index.html", {"somebody/course"}),
        (".github/workflows/test.yml", set()),
    ],
)
def test_repositories_are_found_in_their_addresses(text, names):
    assert lessons.repositories(text) == names


def test_the_diagram_is_in_step_with_its_script(tmp_path):
    diagram.write_svg(tmp_path / "diagram.svg")
    drawn, kept = (
        set(re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8")))
        for path in (tmp_path / "diagram.svg", ROOT / "docs" / "diagram.svg")
    )
    assert drawn == kept
    assert {"encode", "embed", "classify", "teacher"} <= kept
    with pytest.raises(UserError, match="'losse' is unknown; choose from data, flow"):
        diagram.diagram("losse")


def test_the_weights_of_lesson_2_fit_its_flows():
    """The flows, as the lesson builds them, read what the script beside the weights wrote."""
    flows = runpy.run_path(str(ROOT / "notebooks" / "weights" / "02_flows.py"))
    kept = np.load(ROOT / "notebooks" / "weights" / "02_flows.npz")
    assert kept["steps"].tolist() == list(flows["STEPS"])
    density = flows["new_flow"](1)
    assert flows["vector"](density).shape == kept["moons, 0 labels, seed 1"].shape
    vector_to_parameters(
        torch.from_numpy(kept["moons, 0 labels, seed 1"]).double(), density.parameters()
    )
    x, _ = plane.two_moons().sample(2000, generator("held out", 1))
    stored = kept["likelihood, 0 labels, seed 1"][-1, 1]
    assert abs(density.log_prob(x).mean().item() - stored) < 1e-4


def test_a_cloud_is_a_density_and_draws_from_it():
    cloud = plane.two_rings()
    x, classes = cloud.sample(4000, generator("test"))
    assert set(classes.tolist()) == {0, 1}
    side = torch.linspace(-2, 2, 200, dtype=torch.float64)
    mass = (
        cloud.log_density(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    )
    assert abs(mass - 1) < 1e-3
    assert abs((x.norm(dim=1) > 0.725).double().mean() - 0.5) < 0.03  # half of it in each ring


def test_student_version_has_no_solution_and_no_output(tmp_path):
    path = lessons.student(SECOND, tmp_path)
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


def test_texts_are_stored_without_executing(copy):
    """Markdown, comments and alternative texts follow the source; outputs stay as they are."""
    path = copy.with_suffix(".ipynb")
    before = path.read_bytes()
    lessons.store_texts(copy)
    assert path.read_bytes() == before

    source = copy.read_text(encoding="utf-8")
    copy.write_text(
        source.replace("## One dimension, by hand", "## One dimension").replace(
            '.described(\n    "Six densities',
            '.described(  # all of them\n    "In short: six densities',
        ),
        encoding="utf-8",
    )
    assert list(lessons.unlike_source(copy))
    lessons.store_texts(copy)
    assert list(lessons.unlike_source(copy)) == list(lessons.undescribed(copy)) == []
    old, new = nbformat.reads(before, 4), nbformat.read(path, as_version=4)
    stored = [
        output.metadata["image/png"].pop("alt")
        for cell in code(new)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert any(alt.startswith("In short: six densities") for alt in stored)
    for cell in code(old):
        for output in cell.outputs:
            output.get("metadata", {}).get("image/png", {}).pop("alt", None)
    assert [cell.outputs for cell in code(old)] == [cell.outputs for cell in code(new)]


@pytest.mark.parametrize(
    ("text", "other", "error"),
    [
        ("held_out = 2000", "held_out = 2001", "code cell 2 has changed"),
        ("# %%\ndiagram", "# %%\nprint()\n\n# %%\ndiagram", r"\d+ code cells, \d+ of them stored"),
    ],
)
def test_texts_of_other_code_are_not_stored(copy, text, other, error):
    before = copy.with_suffix(".ipynb").read_bytes()
    copy.write_text(copy.read_text(encoding="utf-8").replace(text, other, 1), encoding="utf-8")
    with pytest.raises(UserError, match=f"{error}; run python -m ddfp_lib.lessons store 02"):
        lessons.store_texts(copy)
    assert copy.with_suffix(".ipynb").read_bytes() == before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_text_of_a_diagram_names_its_coloured_boxes(script):
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    (cell,) = [c for c in code(stored) if c.source.startswith("diagram(")]
    groups = re.findall(r'"([^"]+)"', cell.source)
    alt = cell.outputs[0].metadata["image/png"]["alt"]
    assert alt == diagram.in_words(*groups)
    said = alt.rpartition("Boxes in colour: ")[2]
    assert {g: diagram.IN_WORDS[g] in said for g in groups} == dict.fromkeys(groups, True)
    assert diagram.IN_WORDS.keys() == diagram.GROUPS.keys()


def test_unknown_lessons_are_refused(capsys):
    assert main(["store", "77"]) == 2
    assert "no lesson begins with '77'" in capsys.readouterr().err
