"""A run can be cut anywhere, and ends as if it never was."""

import dataclasses
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from tensorboard.backend.event_processing import event_accumulator
from torch.utils.data import get_worker_info

import ddfp_lib.runs.checkpoints as checkpoint
import ddfp_lib.training.loop as loop
from ddfp_lib.config import from_dict
from ddfp_lib.data.digits import DigitScenes
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.ledger import ledger
from ddfp_lib.files import sha256
from ddfp_lib.runs.checkpoints import Checkpoints, read_checkpoint
from ddfp_lib.runs.folder import Run, exclusive
from ddfp_lib.runs.metrics import MetricsLog, read_metrics
from ddfp_lib.training.learner import load_learner
from ddfp_lib.training.loop import train

CPU = torch.device("cpu")
METHODS = ["supervised", "ddfp", "ddfp_released"]


@pytest.fixture(scope="module", autouse=True)
def every_step_is_logged():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """Folders of runs that nothing ever interrupted, one for each method; not to be changed."""
    folders = {}

    def of(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method)
            train(tiny_config(method), folders[method], device=CPU)
        return folders[method]

    return of


@pytest.fixture(scope="module")
def left_at_5(tiny_config, tmp_path_factory):
    """A run that was stopped at step 5 of 6: with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("left_at_5")
    assert train(tiny_config("ddfp"), folder, device=CPU, stop_at=5) is None
    return folder


@pytest.fixture
def interrupted(left_at_5, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(left_at_5, tmp_path / "run")


def newest_state(folder):
    index = json.loads((folder / "checkpoints" / "index.json").read_text())
    return torch.load(folder / "checkpoints" / index[0]["file"], weights_only=True)


def leaves(item, path=""):
    """Every tensor and number of nested dicts and lists, with its path."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item)
    for key, value in pairs:
        if isinstance(value, (dict, list, tuple)):
            yield from leaves(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def metrics_of(folder):
    """Lines of metrics.jsonl but for the clock; as text, for NaN is not equal to itself."""
    lines = read_metrics(folder / "metrics.jsonl")
    assert all(line.pop("seconds") >= 0 for line in lines)
    return [json.dumps(line) for line in lines]


def result_of(folder):
    result = json.loads((folder / "result.json").read_text())
    machine = ("seconds", "commit", "peak_memory")
    return json.dumps({k: v for k, v in result.items() if k not in machine})


def assert_same_run(folder, other):
    """The same bits everywhere: networks, teacher, flow, optimizers, metrics, result."""
    ours, theirs = newest_state(folder), newest_state(other)
    ours.pop("seconds"), theirs.pop("seconds")
    ours, theirs = dict(leaves(ours)), dict(leaves(theirs))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        if torch.is_tensor(value):
            assert torch.equal(value, theirs[path]), path
        else:
            assert value == theirs[path], path
    assert metrics_of(folder) == metrics_of(other)
    assert result_of(folder) == result_of(other)


# The same bits -----------------------------------------------------------------------------------


@pytest.fixture
def other_global_randomness():
    """Whatever the global generator holds, runs must not see it."""
    state = torch.get_rng_state()
    torch.manual_seed(987)
    yield
    torch.set_rng_state(state)


@pytest.mark.usefixtures("other_global_randomness")
@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_seed_are_one(tiny_config, finished, tmp_path, method):
    train(tiny_config(method), tmp_path, device=CPU)
    assert_same_run(tmp_path, finished(method))


def test_another_seed_is_another_run(tiny_config, finished, tmp_path):
    train(tiny_config("supervised", seed=1), tmp_path, device=CPU)
    assert metrics_of(tmp_path) != metrics_of(finished("supervised"))


@pytest.mark.usefixtures("other_global_randomness")
@pytest.mark.parametrize(
    ("method", "stop_at"),
    # 2 is where consistency begins, at 3 there is no checkpoint, 4 is within the last stage
    [("supervised", 3), ("ddfp", 2), ("ddfp", 3), ("ddfp", 4), ("ddfp_released", 3)],
)
def test_a_resumed_run_is_one_that_never_stopped(tiny_config, finished, tmp_path, method, stop_at):
    config = tiny_config(method)
    assert train(config, tmp_path, device=CPU, stop_at=stop_at) is None
    assert newest_state(tmp_path)["step"] == stop_at - stop_at % 2
    assert not (tmp_path / "result.json").exists()
    assert train(config, tmp_path, device=CPU) is not None
    assert_same_run(tmp_path, finished(method))


def test_a_run_may_go_on_with_other_workers(tiny_config, finished, tmp_path):
    config = tiny_config("ddfp", data={"workers": 2})
    train(config, tmp_path, device=CPU, stop_at=3)
    train(tiny_config("ddfp", data={"workers": 0}), tmp_path, device=CPU)
    assert_same_run(tmp_path, finished("ddfp"))


def test_a_run_that_goes_on_in_other_micro_batches_says_so(tiny_config, tmp_path):
    config, lines = tiny_config("supervised"), []

    def note(done, steps, text):
        lines.append(text)

    train(config, tmp_path, device=CPU, accumulate=2, stop_at=3, progress=note)
    assert not any("micro-batches" in line for line in lines)
    result = train(config, tmp_path, device=CPU, progress=note)
    (told,) = [line for line in lines if "micro-batches" in line]
    assert "1 from here on, 2 until now" in told and "--accumulate 2" in told
    assert result.micro_batches == Run.open(tmp_path).result().micro_batches == [2, 1]
    assert ledger([result])["micro_batches"].tolist() == ["2 then 1"]


def test_a_result_of_before_micro_batches_were_recorded_is_read(tiny_config, tmp_path, finished):
    shutil.copytree(finished("supervised"), tmp_path / "old")
    path = tmp_path / "old" / "result.json"
    values = json.loads(path.read_text())
    assert values.pop("micro_batches") == [1]
    path.write_text(json.dumps(values))
    assert ledger([Run.open(tmp_path / "old").result()])["micro_batches"].isna().all()


@pytest.mark.fault("`kill -9`", "a process that loads images")
def test_a_lost_worker_is_no_lost_run(tiny_config, finished, tmp_path, monkeypatch):
    """It is killed at its third batch; the run ends with one line, and later as it should have."""
    real = DigitScenes.image

    def image(self, index):
        if get_worker_info() and next(calls) == 20:  # of 8 a step
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    calls = itertools.count()
    config = tiny_config("ddfp", data={"workers": 1})
    with monkeypatch.context() as patch:
        patch.setattr(DigitScenes, "image", image)
        with pytest.raises(UserError, match=r"data\.workers: .*Start again to continue"):
            train(config, tmp_path, device=CPU)
    train(config, tmp_path, device=CPU)
    assert_same_run(tmp_path, finished("ddfp"))


def test_the_runs_above_are_worth_comparing(finished):
    """Features move, pseudo-labels differ, all parts of a learner are in the checkpoint."""
    lines = [json.loads(line) for line in metrics_of(finished("ddfp"))]
    assert lines[-2]["perturbed"] > 0
    assert lines[-2]["coverage"] > 0
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3, 4, 5, 6]
    learner = newest_state(finished("ddfp"))["learner"]
    assert learner.keys() == {"student", "teacher", "optimizer", "density"}
    assert learner["optimizer"]["state"]
    assert learner["density"]["_extra_state"]["steps"] == 4


def test_resuming_after_the_last_checkpoint_only_finishes(tiny_config, finished, tmp_path):
    folder = shutil.copytree(finished("ddfp"), tmp_path / "run")
    (folder / "result.json").unlink()
    train(tiny_config("ddfp"), folder, device=CPU)
    assert_same_run(folder, finished("ddfp"))


def test_a_finished_run_is_not_repeated(tiny_config, finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished("ddfp"), tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(loop, "training_step", None)
    again = train(tiny_config("ddfp"), folder, device=CPU)
    assert dataclasses.asdict(again) == json.loads(before[folder / "result.json"])
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.fault("disk full or read-only", "while a checkpoint is written")
def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, "12345678")
    checkpoints.save(1, {"step": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes a file can have
    try:
        with pytest.raises(UserError, match=r"step-0000002\.pt: cannot be written"):
            checkpoints.save(2, {"weights": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpoints.load(CPU) == ({"step": 1}, [])


@pytest.mark.fault("an interruption", "between a checkpoint's file and its index")
@pytest.mark.parametrize("victim", ["write_atomically", "write_text"])
def test_killed_while_it_writes_a_checkpoint(tiny_config, finished, tmp_path, monkeypatch, victim):
    """Half of a checkpoint on disk, or a whole one that no index names yet."""
    write, calls = getattr(checkpoint, victim), []

    def killed(path, content):
        calls.append(path)
        if len(calls) == 2:
            if victim == "write_atomically":
                path.with_name(f".{path.name}.1.partial").write_bytes(b"half a check")
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, victim, killed)
        train(tiny_config("ddfp"), tmp_path, device=CPU)
    assert newest_state(tmp_path)["step"] == 2
    train(tiny_config("ddfp"), tmp_path, device=CPU)
    assert_same_run(tmp_path, finished("ddfp"))


# What a run leaves behind ------------------------------------------------------------------------


def test_result_says_what_the_metrics_say(finished):
    folder = finished("ddfp")
    evaluations = [line for line in read_metrics(folder / "metrics.jsonl") if "miou" in line]
    result = json.loads((folder / "result.json").read_text())
    assert [line["step"] for line in evaluations] == [3, 6]
    assert result["miou_last"] == evaluations[-1]["miou"]
    assert result["miou_best"] == max(line["miou"] for line in evaluations)
    assert result["teacher_miou_last"] == evaluations[-1]["teacher_miou"]
    assert result["teacher_miou_best"] == max(line["teacher_miou"] for line in evaluations)
    assert len(result["test_iou"]) == 4
    assert (result["method"], result["seed"], result["steps"]) == ("ddfp", 0, 6)


def test_the_folder_knows_its_configuration(tiny_config, finished):
    config = tiny_config("ddfp")
    folder = finished("ddfp")
    assert from_dict(yaml.safe_load((folder / "config.yaml").read_text())) == config
    run = Run.open(folder)
    assert run.config == config
    assert run.result().config_hash == config.config_hash
    state = newest_state(folder)["learner"]["student"]
    restored = load_learner(run, CPU).student.state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in state.items())


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"classes": ["a"], "palette": [1]}'])
def test_a_missing_or_damaged_environment_is_named(tiny_config, finished, tmp_path, content):
    """The message says what to do, and that works."""
    folder = tmp_path / "run"
    shutil.copytree(finished("supervised"), folder)
    path = folder / "environment.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    advice = r"environment\.json: is missing or damaged; .* remove it and result\.json and start"
    with pytest.raises(UserError, match=advice):
        Run.open(folder)
    path.unlink(missing_ok=True)
    (folder / "result.json").unlink()
    again = train(tiny_config("supervised"), folder, device=CPU)
    run, whole = Run.open(folder), Run.open(finished("supervised"))
    assert (run.classes, run.palette) == (whole.classes, whole.palette)
    assert again.test_iou == whole.result().test_iou


def test_a_run_does_not_go_on_from_a_damaged_environment(tiny_config, left_at_5, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(left_at_5, folder)
    (folder / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json: .* or remove it and start the same"):
        train(tiny_config("ddfp"), folder, device=CPU)
    (folder / "environment.json").unlink()
    assert train(tiny_config("ddfp"), folder, device=CPU).steps == 6


def test_only_the_last_two_checkpoints_are_kept(finished):
    checkpoints = finished("ddfp") / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "index.json",
        "step-0000004.pt",
        "step-0000006.pt",
    ]


# Whose folder ------------------------------------------------------------------------------------


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused(tiny_config, tmp_path, monkeypatch):
    """And one that was killed leaves no lock behind."""
    with exclusive(tmp_path):
        (lock,) = tmp_path.iterdir()
        with pytest.raises(UserError, match="another process"):
            train(tiny_config("supervised"), tmp_path, device=CPU)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process"):
            train(tiny_config("supervised"), tmp_path, device=CPU)
        assert list(tmp_path.iterdir()) == [lock]  # nothing was written
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert lock.exists()
    with exclusive(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"eps": 2.0}, {"seed": 1}, {"training": {"steps": 7}}], ids=str)
def test_a_run_of_another_configuration_is_refused(tiny_config, interrupted, change):
    other = tiny_config("ddfp", **change)
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=other.config_hash):
        train(other, interrupted, device=CPU)
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_of_another_configuration_is_refused(tiny_config, finished):
    other = tiny_config("ddfp", eps=2.0)
    with pytest.raises(UserError, match="finished run of configuration"):
        train(other, finished("ddfp"), device=CPU)


@pytest.mark.fault("disk full or read-only", "the run folder would be inside a file")
def test_a_folder_that_cannot_be_made_is_named(tiny_config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="file/run: cannot be written"):
        train(tiny_config("ddfp"), tmp_path / "file" / "run", device=CPU)


# Damage ------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.fault(
    "checkpoint damaged",
    "truncated, a bit flipped, or removed: the previous checkpoint is used",
)
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove])
def test_the_checkpoint_before_a_damaged_one_is_used(tiny_config, finished, interrupted, damage):
    damage(interrupted / "checkpoints" / "step-0000004.pt")
    told = []
    train(
        tiny_config("ddfp"),
        interrupted,
        device=CPU,
        progress=lambda done, steps, text: told.append((done, text)),
    )
    assert "step-0000004.pt: is missing or damaged; using the one before it" in told[0][1]
    assert_same_run(interrupted, finished("ddfp"))


@pytest.mark.fault("checkpoint damaged", "both checkpoints")
def test_two_damaged_checkpoints_are_an_error(tiny_config, interrupted):
    for path in (interrupted / "checkpoints").glob("*.pt"):
        truncate(path)
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        train(tiny_config("ddfp"), interrupted, device=CPU)


@pytest.mark.fault("checkpoint damaged", "the index of checkpoints")
@pytest.mark.parametrize("content", ["", "[", "3", "null", '["a"]', "[1]", "\x00"], ids=repr)
def test_a_damaged_index_is_an_error(tmp_path, content):
    checkpoints = Checkpoints(tmp_path, "12345678")
    checkpoints.index.write_text(content)
    with pytest.raises(UserError, match=r"index\.json: is damaged"):
        checkpoints.load(CPU)


class Bomb:
    """An object that runs code when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.fault("hostile file", "checkpoint that runs code")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused_and_does_not_run(
    tiny_config, interrupted, tmp_path, zipped
):
    """Also where the index has its digest: both files can come from the same hand."""
    mark = tmp_path / "ran"
    path = interrupted / "checkpoints" / "step-0000004.pt"
    state = {"step": 4, "seconds": 0.0, "learner": Bomb(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    index = interrupted / "checkpoints" / "index.json"
    entries = json.loads(index.read_text())
    entries[0]["sha256"] = sha256(path)
    index.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"step-0000004\.pt: is not a checkpoint"):
        train(tiny_config("ddfp"), interrupted, device=CPU)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb is a dud: this test looks at nothing"


@pytest.mark.fault("checkpoint damaged", "another file in place of the checkpoint")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"just words\n",
        b"\x00" * 1000,
        bytes(range(256)) * 20,
        b"PK\x03\x04" + b"x" * 99,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_files_that_are_no_checkpoint(tmp_path, content):
    path = tmp_path / "some.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"some\.pt: is not a checkpoint") as caught:
        read_checkpoint(path, CPU)
    assert "weights_only" not in str(caught.value)  # torch's advice to switch the protection off


@pytest.mark.fault("checkpoint damaged", "cut at any byte")
def test_parts_of_a_checkpoint_are_no_checkpoint(tmp_path):
    """Whichever byte it ends at or is wrong in: read, or refused, and never a crash."""
    whole, path = tmp_path / "whole.pt", tmp_path / "some.pt"
    torch.save({"step": 1, "state": {"weight": torch.ones(3), "names": ["a", "b"]}}, whole)
    content = whole.read_bytes()
    refused = 0
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 0x41
        for spoilt in (content[:position], bytes(flipped)):
            path.write_bytes(spoilt)
            try:
                read_checkpoint(path, CPU)
            except UserError:
                refused += 1
    assert refused >= len(content) // 7


def test_missing_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "none", "12345678").load(CPU) == (None, [])
    with pytest.raises(UserError, match=r"none\.pt: does not exist"):
        read_checkpoint(tmp_path / "none.pt", CPU)


# metrics.jsonl -----------------------------------------------------------------------------------


@pytest.mark.fault("checkpoint damaged", "the log's last line cut")
def test_a_cut_last_line_is_mended(tiny_config, finished, interrupted):
    path = interrupted / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert len(read_metrics(path)) == path.read_text().count("\n")  # read while it is written
    train(tiny_config("ddfp"), interrupted, device=CPU)
    assert_same_run(interrupted, finished("ddfp"))


def test_lines_of_an_abandoned_try_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "loss": 1.0}, {"step": 2, "miou": 5.0}, {"step": 2, "loss": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 3, "loss": 0}]))
    log = MetricsLog(path, start=2)
    assert log.lines() == lines[:2]  # the evaluation before step 2, not the step itself
    log.write(2, {"loss": 0.25})
    assert read_metrics(path) == [*lines[:2], {"step": 2, "loss": 0.25}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 25, "lo\n{"step": 50, "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


# TensorBoard -------------------------------------------------------------------------------------


def test_tensorboard_shows_the_metrics_once_each(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    config = tiny_config("ddfp", training={"evaluate_every": 2})
    assert train(config, tmp_path, device=CPU, tensorboard=True, stop_at=5) is None
    train(config, tmp_path, device=CPU, tensorboard=True)  # from the checkpoint of step 4
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = [
        (name, event.step, event.value)
        for name in board.Tags()["scalars"]
        for event in board.Scalars(name)
    ]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    logged = [(k, line["step"], v) for line in lines for k, v in line.items() if k != "step"]
    assert len(shown) == len(logged)
    for (*place, value), (*wanted, told) in zip(sorted(shown), sorted(logged), strict=True):
        assert place == wanted
        assert value == pytest.approx(told, rel=1e-5, nan_ok=True)


def test_without_tensorboard_the_flag_is_an_error_and_nothing_else_is(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"--tensorboard: .*pip install 'ddfp\[tensorboard\]'"):
        MetricsLog(tmp_path / "metrics.jsonl", 0, tensorboard=True)
    MetricsLog(tmp_path / "metrics.jsonl", 0)
