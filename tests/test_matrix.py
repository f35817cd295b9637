"""A matrix of runs: complete, resumable, each row once, and stopped in order when a run fails."""

import json
import subprocess
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from ddfp_lib.errors import UserError
from ddfp_lib.experiments import job, matrix
from ddfp_lib.experiments.ledger import LEDGER, ledger, write_ledger
from ddfp_lib.experiments.matrix import plan, run_matrix
from ddfp_lib.experiments.progress import Pace
from ddfp_lib.runs.folder import exclusive
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.fixtures.server import SERVER, ForkedRun
from tests.test_loop import assert_same_run

CPU = torch.device("cpu")


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "quick": ["training.steps=3"]}))
    return path


@pytest.fixture
def forked(monkeypatch):
    """Start runs without the imports of a fresh process, which the other tests here go through."""
    names = {"Popen": ForkedRun, "PIPE": subprocess.PIPE, "STDOUT": subprocess.STDOUT}
    monkeypatch.setattr(job, "subprocess", SimpleNamespace(**names))


def test_plan_holds_every_method_and_seed_once(tiny, tmp_path):
    cells = plan(tiny, ["supervised", "ddfp", "ddfp"], [0, 3], tmp_path / "out")
    assert [cell.name for cell in cells] == ["supervised-0", "ddfp-0", "supervised-3", "ddfp-3"]
    assert [cell.config.seed for cell in cells] == [0, 0, 3, 3]
    assert len({cell.config.config_hash for cell in cells}) == 4
    assert not (tmp_path / "out").exists()


def test_quick_settings_come_before_overrides(tiny, tmp_path):
    (quick,) = plan(tiny, ["ddfp"], [0], tmp_path, quick=True)
    (slow,) = plan(tiny, ["ddfp"], [0], tmp_path, ["training.steps=5"], quick=True)
    assert (quick.config.training.steps, slow.config.training.steps) == (3, 5)


def test_splits_make_runs_of_their_own(tmp_path):
    path = tmp_path / "tiny.yaml"
    splits = {4: ["data.labeled=4"], "1/5": ["data.labeled=1/5", "training.steps=9"]}
    path.write_text(yaml.safe_dump({**TINY, "splits": splits}))
    cells = plan(path, ["supervised", "ddfp"], [0], tmp_path, ["eps=3"], splits=["1/5", "4", "4"])
    names = ["1-5-supervised-0", "1-5-ddfp-0", "4-supervised-0", "4-ddfp-0"]
    assert [cell.name for cell in cells] == names
    assert [cell.config.data.split for cell in cells] == ["1/5", "1/5", "4", "4"]
    assert [cell.config.training.steps for cell in cells] == [9, 9, 6, 6]
    assert {cell.config.eps for cell in cells} == {3.0}
    with pytest.raises(UserError, match=r"split '732': .*tiny\.yaml .*choose one of 4, 1/5$"):
        plan(path, ["ddfp"], [0], tmp_path, splits=["732"])


def test_how_to_run_is_handed_to_the_runs(tiny, tmp_path, monkeypatch):
    commands = []

    def start(command, **_):
        commands.append(command)
        raise OSError("not started")

    monkeypatch.setattr(job.subprocess, "Popen", start)
    for options in ({}, {"gpus": 4, "accumulate": 2, "tensorboard": True}):
        with pytest.raises(OSError, match="not started"):
            run_matrix(plan(tiny, ["ddfp"], [0], tmp_path), device=CPU, **options)
    assert not {"--gpus", "--accumulate", "--tensorboard"} & set(commands[0])
    assert commands[1][-5:] == ["--gpus", "4", "--accumulate", "2", "--tensorboard"]


@pytest.mark.usefixtures("forked")
def test_matrix_runs_all_and_repeats_nothing(tiny, tmp_path):
    cells = plan(tiny, ["supervised", "noise"], [0], tmp_path / "out")
    said = []
    results = run_matrix(cells, device=CPU, jobs=2, say=said.append)
    assert [result.method for result in results] == ["supervised", "noise"]
    assert any("supervised-0: val mIoU" in line for line in said)
    before = {cell.name: (cell.folder / "result.json").stat().st_mtime_ns for cell in cells}
    again = run_matrix(cells, device=CPU, say=said.append)
    assert again == results
    assert "2 of 2 runs are finished already" in said
    assert before == {c.name: (c.folder / "result.json").stat().st_mtime_ns for c in cells}


@pytest.mark.usefixtures("forked")
@pytest.mark.fault(
    "an interruption", "a matrix with one run finished, one half finished and one not begun"
)
def test_an_interrupted_matrix_goes_on_where_it_was(tiny, tmp_path):
    """One run is finished, one half way, one not begun: each ends once, and has one row."""
    cells = plan(tiny, ["supervised", "ddfp", "noise"], [0], tmp_path / "out")
    train(cells[0].config, cells[0].folder, device=CPU)
    assert train(cells[1].config, cells[1].folder, device=CPU, stop_at=4) is None
    results = run_matrix(cells, device=CPU, jobs=2, say=lambda line: None)
    undisturbed = train(cells[1].config, tmp_path / "other", device=CPU)
    assert results[1].test_iou == undisturbed.test_iou
    steps = [json.loads(line)["step"] for line in (cells[1].folder / "metrics.jsonl").open()]
    assert steps == sorted(steps)
    for _ in range(2):
        write_ledger(results, tmp_path / "results.csv")
        rows = pd.read_csv(tmp_path / "results.csv")
        assert list(rows["method"]) == ["supervised", "ddfp", "noise"]


def run_alone(benchmark, out, settings):
    run_matrix(plan(benchmark, ["ddfp"], [0], out, settings), device=CPU)


@pytest.mark.usefixtures("forked")  # for the second start; the run that is left is a fresh process
@pytest.mark.fault(
    "`kill -9`", "the process that runs a matrix: its runs end too, and continue at the next start"
)
def test_a_killed_matrix_leaves_no_run_behind(tiny, tmp_path):
    out = tmp_path / "out"
    long = ["training.steps=30", "training.evaluate_every=30"]
    (cell,) = plan(tiny, ["ddfp"], [0], out, long)
    parent = SERVER.Process(target=run_alone, args=(tiny, out, long))
    parent.start()
    try:
        wait_for(lambda: (cell.folder / "checkpoints" / "index.json").is_file())
    finally:
        parent.kill()
        parent.join()
    wait_for(lambda: is_free(cell.folder))
    assert not (cell.folder / "result.json").exists()
    (result,) = run_matrix([cell], device=CPU, say=lambda line: None)
    undisturbed = train(cell.config, tmp_path / "other", device=CPU)
    assert result.test_iou == undisturbed.test_iou
    assert_same_run(cell.folder, tmp_path / "other")


@pytest.mark.parametrize("numbers", [{"jobs": -1}, {"gpus": 0}, {"accumulate": -1}])
def test_numbers_that_make_no_sense_are_refused(tiny, tmp_path, numbers):
    """A negative number of jobs would wait for ever."""
    cells = plan(tiny, ["ddfp"], [0], tmp_path / "out")
    with pytest.raises(UserError, match="at least"):
        run_matrix(cells, device=CPU, **numbers)
    assert not (tmp_path / "out").exists()


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def is_free(folder):
    try:
        with exclusive(folder):
            return True
    except UserError:
        return False


@pytest.mark.usefixtures("forked")
def test_a_failed_run_is_named_with_its_log(tiny, tmp_path):
    (cell,) = plan(tiny, ["ddfp"], [0], tmp_path / "out")
    (cell.folder / "checkpoints").mkdir(parents=True)
    (cell.folder / "checkpoints" / "index.json").write_text("not json")
    with pytest.raises(UserError, match=r"ddfp-0: .*index\.json.*train\.log"):
        run_matrix([cell], device=CPU, say=lambda line: None)


def test_progress_says_how_much_is_left(tiny, tmp_path):
    cells = plan(tiny, ["supervised", "noise"], [0], tmp_path / "out")
    pace = Pace()
    pace.observe(0.0, 0)
    assert matrix._progress(cells, cells, pace, 1.0).startswith("  0 %  starting")
    for cell, step in zip(cells, (4, 2), strict=True):
        cell.folder.mkdir(parents=True)
        (cell.folder / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
    line = matrix._progress(cells, cells, pace, 120.0)
    # 6 of 12 steps took 2 minutes
    assert line.startswith(" 50 %  about 2 min left")
    assert "supervised-0 4/6" in line


def test_ledger_is_derived_and_has_its_columns(tiny, tmp_path):
    cells = plan(tiny, ["supervised"], [0, 1], tmp_path / "out")
    results = [train(cell.config, cell.folder, device=CPU) for cell in cells]
    path = tmp_path / "results.csv"
    write_ledger(results, path)
    write_ledger(results, path)
    frame = pd.read_csv(path, dtype={"config": str})
    assert tuple(frame.columns) == LEDGER
    assert frame["seed"].tolist() == [0, 1]
    assert frame["config"].tolist() == [cell.config.config_hash for cell in cells]
    assert frame["protocol"].tolist() == ["whole"] * 2
    assert frame["gpus"].tolist() == [0, 0]
    assert frame["micro_batches"].tolist() == [1, 1]
    assert frame["data"].nunique() == 1  # the seed changes no image
    assert frame["paper"].isna().all()
    assert ledger(results)["test_miou"].tolist() == [round(r.test_miou, 2) for r in results]


@pytest.mark.parametrize(("methods", "seeds"), [([], [0]), (["ddfp"], [])])
def test_an_empty_matrix_is_refused(methods, seeds, tiny, tmp_path):
    with pytest.raises(UserError, match="--methods and --seeds"):
        plan(tiny, methods, seeds, tmp_path)
