"""Runs that others contribute: kept without their paths, checked, and listed apart from ours."""

import json
import shutil

import pytest
import torch
import yaml

from ddfp_lib.cli import app, run
from ddfp_lib.config.schema import IMAGENET_MEAN, IMAGENET_STD
from ddfp_lib.errors import UserError
from ddfp_lib.experiments import contributed as module
from ddfp_lib.experiments.contributed import (
    FILES,
    changed_settings,
    check_run,
    contribute,
    contributed,
    contributed_rows,
)
from ddfp_lib.experiments.ledger import LEDGER, read_ledger
from ddfp_lib.experiments.published import published_scores
from ddfp_lib.files import repository
from ddfp_lib.reports.results import results_page
from ddfp_lib.runs import folder as folders
from ddfp_lib.training import loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_config):
    """A finished run, as if trained at a commit without changes."""
    out = tmp_path_factory.mktemp("theirs") / "runs" / "ddfp-0"
    with pytest.MonkeyPatch.context() as patch:
        for where in (loop, folders):
            patch.setattr(where, "commit", lambda: "0123abcd")
        loop.train(tiny_config("ddfp"), out, device=torch.device("cpu"))
    return out


@pytest.fixture
def copied(trained, tmp_path):
    for name in FILES:
        shutil.copy(trained / name, tmp_path)
    return tmp_path


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "home", lambda: tmp_path / "contributed")
    return tmp_path / "contributed"


def test_a_run_as_it_was_trained_agrees_with_itself(trained):
    result, changed = check_run(trained)
    assert (result.method, result.commit) == ("ddfp", "0123abcd")
    assert changed is None  # there is no benchmark of the name "tiny" here


def set_result(folder, **values):
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_config(folder, **values):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def cut_log(folder):
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def better_log(folder):
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "teacher_miou" in line:
            line["teacher_miou"] = 99.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


SPOILED = {
    "a file is missing": (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl: is missing"),
    "another configuration": (lambda f: set_config(f, eps=2.5), "holds a finished run of config"),
    "another seed": (lambda f: set_result(f, seed=7), "seed is 7, but 0 in config.yaml"),
    "another method": (lambda f: set_result(f, method="vat"), "method is 'vat', but 'ddfp'"),
    "changed files": (lambda f: set_result(f, commit="0123abcd+"), r"'0123abcd\+' is not one of"),
    "no commit": (lambda f: set_result(f, commit="unknown"), "'unknown' is not one of"),
    "another commit": (lambda f: set_result(f, commit="0123abce"), "another in environment"),
    "a card of no name": (lambda f: set_result(f, gpus=4), "4 GPUs have the name None"),
    "a nicer score": (lambda f: set_result(f, test_miou=90.0), "test_miou is 90.0, but its"),
    "a nicer validation": (lambda f: set_result(f, miou_best=90.0), "miou_best is 90.0, but"),
    "a nicer log": (better_log, r"teacher_miou_last is [\d.]+, but 99.0 by metrics"),
    "half a log": (cut_log, "does not go from the first step to step 6"),
    "too few classes": (lambda f: set_result(f, test_iou=[50.0]), "1 test IoUs for 4 classes"),
    "no time at all": (lambda f: set_result(f, seconds=-5.0), "took -5.0 s, but metrics"),
    "no result": (
        lambda f: (f / "result.json").write_text("{"),
        r"result\.json: is (no|not a) result",
    ),
    "no environment": (lambda f: (f / "environment.json").write_text("{}"), "is damaged"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_run_that_disagrees_with_itself_is_refused(name, copied):
    spoil, said = SPOILED[name]
    check_run(copied)
    spoil(copied)
    with pytest.raises(UserError, match=said):
        check_run(copied)


def test_runs_are_kept_without_paths_and_listed_under_a_name(trained, kept):
    (target,) = contribute(trained.parents[1], "ada")
    assert target == kept / "ada" / "tiny-8-ddfp-0"
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    assert yaml.safe_load((target / "config.yaml").read_text())["data"]["root"] is None
    rows = contributed_rows(contributed())
    assert rows[["contributor", "method", "commit"]].to_numpy().tolist() == [
        ["ada", "ddfp", "0123abcd"]
    ]
    ledger = read_ledger(repository() / "reproduce" / "results.csv")
    page = results_page(ledger, published_scores(), rows)
    ours = results_page(ledger, published_scores())
    (line,) = (
        set(page.splitlines())
        - set(ours.splitlines())
        - {""}
        - {line for line in page.splitlines() if line.startswith(("| contributor", "|---"))}
    )
    assert line.startswith("| ada | tiny | 8 | `ddfp` | 0 |")
    assert "a CPU | `0123abcd`" in line
    assert set(rows.columns) == {*LEDGER, "contributor", "settings"}


def test_weights_are_named_without_their_folder(trained, copied, kept, monkeypatch):
    values = yaml.safe_load((copied / "config.yaml").read_text())
    # none of these changes the hash: a path does not count, and these are the usual mean and std
    values["network"]["weights"] = "/home/ada/weights/mine.pth"
    values["network"] |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    values["data"]["root"] = "/home/ada/data"
    (copied / "config.yaml").write_text(yaml.safe_dump(values))
    (target,) = contribute(copied, "ada")
    written = (target / "config.yaml").read_text()
    assert "/home" not in written
    assert "mine.pth" in written
    check_run(target)


def test_changed_settings_are_named():
    from ddfp_lib.config import find_benchmark, load_config

    benchmark = find_benchmark("voc_small")
    same = load_config(benchmark, "ddfp", 3, split="183")
    assert changed_settings(same) == []
    other = load_config(benchmark, "ddfp", 3, ["eps=2", "training.steps=10"], split="183")
    assert changed_settings(other) == ["eps=2.0", "training.steps=10"]


@pytest.mark.parametrize("name", ["Ada L.", "../ours", "", ".hidden"])
def test_a_contributor_is_a_plain_name(name, trained, kept):
    with pytest.raises(UserError, match="is not a plain name"):
        contribute(trained, name)
    assert not kept.exists()


def test_the_command_checks_and_keeps_nothing(trained, copied, kept, capsys):
    def record(*words):
        return run(lambda: app(["record", *map(str, words)], standalone_mode=False))

    assert record("--check") == 0
    assert capsys.readouterr().out == "0 runs checked\n"
    assert record(trained.parents[1], "--check") == 0
    assert "agrees, test mIoU" in capsys.readouterr().out
    set_result(copied, seed=5)
    assert record(copied, "--check") == 2
    assert "seed is 5" in capsys.readouterr().err
    assert record() == 2
    assert record(kept.parent / "nothing", "--check") == 2
    assert "has no run folder" in capsys.readouterr().err
    assert not kept.exists()


def test_all_that_is_kept_agrees():
    for each in contributed():
        assert each.folder.parent.name == each.contributor
