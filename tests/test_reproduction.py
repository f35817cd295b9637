"""papermill executes the experiment notebook, and the report says what the runs said."""

import json
import re

import nbformat
import pandas as pd
import pytest
import yaml

from ddfp_lib.errors import UserError
from ddfp_lib.files import repository
from ddfp_lib.reproduction import Request, check_parameters, reproduce
from tests.conftest import TINY

NOTEBOOK = repository() / "reproduce" / "experiment.ipynb"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def request_for(benchmark, out, /, **changes) -> Request:
    values = {
        "benchmark": str(benchmark),
        "methods": ["consistency", "ddfp"],
        "seeds": [0, 1],
        "out": str(out),
        "settings": [],
        "quick": False,
        "jobs": 2,
        "device": "cpu",
    }
    return Request(**(values | changes))


@pytest.fixture(scope="module")
def reproduced(tiny, tmp_path_factory):
    """The folder of a finished two-by-two matrix."""
    out = tmp_path_factory.mktemp("reproduced")
    reproduce(request_for(tiny, out))
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
    "changes", [{"benchmark": "nothing"}, {"methods": ["best"]}, {"settings": ["epss=1"]}]
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
