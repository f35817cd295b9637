"""papermill executes the experiment notebook, and the report says what the runs said."""

import contextlib
import itertools
import json
import os
import re

import IPython.display
import nbformat
import pandas as pd
import pytest
import torch
import yaml
from bs4 import BeautifulSoup  # nbconvert brings it

from ddfp_lib import lessons
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.ledger import read_ledger, record
from ddfp_lib.experiments.published import published_scores
from ddfp_lib.experiments.reproduction import Request, check_inputs, check_parameters, reproduce
from ddfp_lib.files import repository, write_text
from ddfp_lib.lessons.guards import MACHINE_PATH
from ddfp_lib.lessons.texts import SHORTEST
from ddfp_lib.reports.results import results_page
from ddfp_lib.runs.identity import data_digest
from ddfp_lib.training.data import data_of, split_of
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.fixtures.trees import make_voc

CPU = torch.device("cpu")
HEADINGS = ("h1", "h2", "h3")
NOTEBOOK = repository() / "reproduce" / "experiment.ipynb"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def request_for(benchmark, out, /, **changes) -> Request:
    values = {
        "benchmark": str(benchmark),
        "splits": [],
        "methods": ["consistency", "ddfp"],
        "seeds": [0, 1],
        "out": str(out),
        "settings": [],
        "quick": False,
        "jobs": 2,
        "gpus": 1,
        "accumulate": 1,
        "device": "cpu",
        "tensorboard": False,
    }
    return Request(**(values | changes))


@pytest.fixture(scope="module")
def reproduced(tiny, tmp_path_factory):
    """The folder of a finished two-by-two matrix, asked for by paths relative to elsewhere."""
    out = tmp_path_factory.mktemp("reproduced")
    with contextlib.chdir(tiny.parent):
        request = request_for(tiny.name, os.path.relpath(out), accumulate=2)
        # the last one is left to the notebook: a run takes a second, a process for it many
        for cell in request.cells()[:-1]:
            train(cell.config, cell.folder, device=CPU, accumulate=2)
        reproduce(request)
    return out


def test_report_ledger_and_runs_are_there(reproduced):
    ledger = pd.read_csv(reproduced / "results.csv")
    assert list(zip(ledger["method"], ledger["seed"], strict=True)) == [
        ("consistency", 0),
        ("ddfp", 0),
        ("consistency", 1),
        ("ddfp", 1),
    ]
    for method, seed in zip(ledger["method"], ledger["seed"], strict=True):
        assert (reproduced / "runs" / f"{method}-{seed}" / "result.json").is_file()


def test_report_is_one_file_with_its_pictures(reproduced):
    page = (reproduced / "report.html").read_text(encoding="utf-8")
    # scores, curves, segmentations, classes, density, time
    assert page.count("data:image/png;base64") >= 6
    loaded = re.findall(r"""(?:<script[^>]+src|<link[^>]+href|<img[^>]+src)=["'](?!data:)""", page)
    assert loaded == []
    for heading in ("Which method segments best?", "Does the step go down the density?"):
        assert heading in page
    assert "Traceback" not in page


def test_the_report_is_whole_and_light_and_names_no_machine(reproduced):
    path = reproduced / "report.html"
    assert path.stat().st_size < 2_000_000
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    pictures = page.find_all("img")
    assert len(pictures) >= 6
    for picture in pictures:
        assert len(picture["alt"]) > SHORTEST
        picture.decompose()  # in base64 anything can be found
    for rest in page.find_all(["script", "style"]):
        rest.decompose()
    assert not MACHINE_PATH.search(page.text)
    assert str(reproduced) not in page.text
    assert not re.search(r"[Ww]arning|\bnan\b|None", page.text)
    blocks = page.main.find_all([*HEADINGS, "p", "li", "table", "figure"])
    for heading, below in itertools.pairwise([*blocks, page.new_tag("h1")]):
        if heading.name in HEADINGS:  # text, or a heading below it
            assert below.name not in HEADINGS or below.name > heading.name, heading.text


def test_the_table_of_runs_has_no_empty_column(reproduced):
    """These runs had no GPU and have no number in the paper."""
    page = BeautifulSoup((reproduced / "report.html").read_text(encoding="utf-8"), "html.parser")
    table = page.find_all("table")[-1]
    heads = [cell.text for cell in table.thead.find_all("th")]
    assert "test_miou" in heads and not {"gpu", "paper", "difference"} & set(heads)
    columns = zip(*([cell.text for cell in row("td")] for row in table.tbody("tr")), strict=True)
    assert all(set(column) != {"-"} for column in columns)


def test_the_report_begins_with_the_verdict_and_ends_with_every_run(reproduced):
    """Verdict, methods, table, dot plot; pictures and curves; costs; every run."""
    page = BeautifulSoup((reproduced / "report.html").read_text(encoding="utf-8"), "html.parser")
    blocks = page.main.find_all([*HEADINGS, "p", "ul", "table", "figure"])
    title, verdict, methods = blocks[:3]
    assert (title.name, verdict.name, methods.name) == ("h1", "p", "ul")
    assert verdict.strong.text.startswith("ddfp reaches ")
    assert "consistency: " in verdict.text and verdict.text.endswith("2 seeds.")
    items = methods.find_all("li")
    assert [item.code.text for item in items] == ["consistency", "ddfp"]
    assert all(len(item.text) > 20 and "\n" not in item.text.strip() for item in items)
    names = [block.name for block in blocks]
    assert names.index("table") < names.index("figure")
    first = blocks[names.index("table")]
    assert [row.th.text for row in first.tbody.find_all("tr")] == ["consistency", "ddfp"]
    headings = [heading.text.strip("¶") for heading in page.find_all("h2")]
    assert headings[0] == "Which method segments best?"
    assert headings[-2:] == ["What does it cost?", "Every run"]


def test_the_verdict_of_the_main_job_names_both_comparisons_and_what_is_expected(monkeypatch):
    """The notebook's first cells, given the stored rows of `make reproduce`."""
    rows = read_ledger(repository() / "reproduce" / "results.csv")
    rows = rows[(rows["benchmark"] == "digits") & (rows["split"].astype(str) == "85")]
    shown = run_first_cells(monkeypatch, rows)
    verdict, expected, methods = (item.data for item in shown[:3])
    assert re.match(r"\*\*`ddfp` reaches .* `consistency`: .*; and .* `noise`: .*\*\*$", verdict)
    assert re.match(r"In \d+ stored seeds: \S+ \(.*\) against `consistency`; ", expected)
    assert methods.count("\n- `") == 3


def test_the_report_names_the_micro_batches(reproduced):
    assert "Micro-batches of a step: 2." in (reproduced / "report.html").read_text(encoding="utf-8")


def test_report_holds_the_scores_of_the_runs(reproduced):
    page = (reproduced / "report.html").read_text(encoding="utf-8")
    result = json.loads((reproduced / "runs" / "ddfp-1" / "result.json").read_text())
    assert f"{result['test_miou']:.2f}</td>" in page
    assert result["config_hash"] in page


def test_executed_notebook_keeps_its_code_and_has_no_error(reproduced):
    notebook = nbformat.read(reproduced / "report.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"benchmark": "nothing"},
        {"methods": ["best"]},
        {"settings": ["epss=1"]},
        {"splits": ["732"]},
        {"settings": ["network.weights=nowhere.pth"]},
    ],
)
def test_a_wrong_request_is_found_before_anything_is_written(changes, tiny, tmp_path):
    with pytest.raises(UserError):
        reproduce(request_for(tiny, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_parameters_that_the_notebook_lacks_are_refused():
    known = vars(request_for("digits", "runs"))
    check_parameters(NOTEBOOK, known)
    with pytest.raises(UserError, match=r"has no parameter epss; it has benchmark"):
        check_parameters(NOTEBOOK, {**known, "epss": 1})
    with pytest.raises(UserError, match="is missing"):
        check_parameters(NOTEBOOK.with_name("nothing.ipynb"), known)


def run_notebook(monkeypatch, **parameters) -> list:
    """Execute the experiment's code in this process; return what it displays."""
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    names: dict = {}
    for cell in lessons.as_notebook(NOTEBOOK.with_suffix(".py")).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
        if "parameters" in lessons.tags(cell):
            assert parameters.keys() <= names.keys()
            names.update(parameters)
    return shown


def run_first_cells(monkeypatch, rows) -> list:
    """Execute the cells after the runs that need a ledger alone; return what they display."""
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    names: dict = {}
    for cell in lessons.as_notebook(NOTEBOOK.with_suffix(".py")).cells:
        tags = set(lessons.tags(cell))
        if "progress" in tags:
            request = request_for("digits", "nowhere", methods=names["methods"], seeds=[0])
            names |= {"cells": request.cells(), "table": rows, "asked_for": {}}
            names["each_split"] = lambda: [([], rows)]
        elif tags & {"parameters", "imports", "verdict", "expected", "methods"}:
            exec(cell.source, names)
    return shown


def test_a_report_on_demand_holds_what_is_finished_and_trains_nothing(
    tiny, reproduced, monkeypatch
):
    kept = (reproduced / "results.csv").read_text()
    request = request_for(tiny, reproduced, methods=["vat", "consistency", "ddfp"])
    shown = run_notebook(monkeypatch, **(vars(request) | {"only_finished": True}))
    texts = [item.data for item in shown if isinstance(item, IPython.display.Markdown)]
    assert any("**4 of 6 runs.**" in text for text in texts)
    assert not any("vat" in text for text in texts)
    assert not list(reproduced.glob("runs/vat-*"))
    assert (reproduced / "results.csv").read_text() == kept


def test_from_a_voc_tree_by_two_splits_to_the_page(tmp_path, monkeypatch):
    """Lists of names, runs (one of them interrupted), ledger, report and page of a real layout."""
    names = [f"2007_{n:06d}" for n in range(9)]
    root = make_voc(tmp_path / "VOC2012", {"train": names, "val": ["2008_000001", "2008_000002"]})
    settings = {}
    for split in (2, 4):
        write_text(root / "splits" / str(split) / "labeled.txt", "\n".join(names[:split]))
        settings[split] = [f"data.labeled=splits/{split}/labeled.txt"]
    data = {"dataset": "voc", "labeled": 2, "test": "val", "augment": {"crop": 32}}
    benchmark = tmp_path / "voc.yaml"
    benchmark.write_text(
        yaml.safe_dump({**TINY, "benchmark": "voc", "data": data, "splits": settings})
    )
    request = request_for(
        benchmark,
        tmp_path / "out",
        splits=["2", "4"],
        methods=["supervised", "ddfp"],
        seeds=[0],
        settings=[f"data.root={root}"],
    )
    cells = request.cells()
    check_inputs(cells)
    assert train(cells[1].config, cells[1].folder, device=CPU, stop_at=4) is None
    for cell in cells:
        train(cell.config, cell.folder, device=CPU)
    shown = run_notebook(monkeypatch, **vars(request))

    texts = [item.data for item in shown if isinstance(item, IPython.display.Markdown)]
    assert any("Micro-batches of a step: 1." in text for text in texts)
    headings = [text for text in texts if text.startswith("### ")]
    # verdict, scores, their figure, differences, validation, curves, segmentations, classes,
    # density, time; nothing is stored of this benchmark, so nothing is expected
    assert headings == ["### 2 labeled", "### 4 labeled"] * 10
    ledger = record(tmp_path / "out" / "results.csv", tmp_path / "kept.csv")
    assert ledger["split"].tolist() == ["2", "2", "4", "4"]
    assert ledger["data"].nunique() == 2
    page = results_page(ledger, published_scores())
    assert "## voc, 4 labeled" in page

    next(root.glob("JPEGImages/2007_000008.jpg")).write_bytes(b"another image")
    (again, *_) = request.cells()
    dataset, validation = (data_of(again.config, subset) for subset in ("train", "val"))
    changed = data_digest(dataset, *split_of(again.config, dataset), validation)
    assert changed != ledger["data"].iloc[0]
