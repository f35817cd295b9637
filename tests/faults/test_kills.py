"""``kill -9`` at any moment: the run goes on, and ends with the bits of one left alone."""

import random
import shutil
import signal
import time

import pytest
import torch

import ddfp_lib.training.loop as loop
from ddfp_lib.training.loop import train
from tests.faults.report import tried
from tests.faults.victims import KillAtFileEvent, KillInHalfACheckpoint, end_of, said, start
from tests.test_loop import assert_same_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        train(tiny_config("ddfp"), folder, device=CPU)
    return folder


@pytest.fixture(scope="module")
def file_events(tiny_config, tmp_path_factory):
    """How often a whole run opens, renames or removes something in its folder."""
    folder = tmp_path_factory.mktemp("counted") / "run"
    assert end_of(start(tiny_config("ddfp"), folder, KillAtFileEvent(None))) == 0, said(folder)
    return folder.with_suffix(".events").stat().st_size


def survives(config, folder, fault, undisturbed):
    tried()
    assert end_of(start(config, folder, fault)) == -signal.SIGKILL
    assert end_of(start(config, folder)) == 0, said(folder)
    assert_same_run(folder, undisturbed)
    assert not list(folder.rglob("*.partial"))


@pytest.mark.fault("`kill -9`", "before a file operation, at four points of a run")
@pytest.mark.parametrize("part", [0.05, 0.35, 0.6, 0.85])
def test_killed_between_two_file_operations(tiny_config, tmp_path, undisturbed, file_events, part):
    fault = KillAtFileEvent(round(part * file_events))
    survives(tiny_config("ddfp"), tmp_path / "run", fault, undisturbed)


@pytest.mark.fault("`kill -9`", "after half of a checkpoint's bytes are written")
def test_killed_in_half_a_checkpoint(tiny_config, tmp_path, undisturbed):
    survives(tiny_config("ddfp"), tmp_path / "run", KillInHalfACheckpoint(2), undisturbed)


@pytest.mark.fault("`kill -9`", "before each file operation of a run")
@pytest.mark.soak
def test_killed_before_every_file_operation(tiny_config, tmp_path, undisturbed, file_events):
    for number in range(1, file_events + 1):
        folder = tmp_path / str(number) / "run"
        folder.parent.mkdir()
        survives(tiny_config("ddfp"), folder, KillAtFileEvent(number), undisturbed)
        shutil.rmtree(folder.parent)


@pytest.mark.fault("`kill -9`", "at random moments, several in one run")
@pytest.mark.soak
def test_killed_at_random_moments(tiny_config, tmp_path, undisturbed):
    """20 kills, several of them in one run where it lives that long."""
    rng = random.Random(int(time.time()))
    config, kills, runs = tiny_config("ddfp"), 0, 0
    began = time.monotonic()
    assert end_of(start(config, tmp_path / "timed")) == 0
    whole = time.monotonic() - began
    while kills < 20:
        folder = tmp_path / f"run-{runs}"
        runs += 1
        while not (folder / "result.json").exists():
            child = start(config, folder)
            time.sleep(rng.uniform(0, whole))
            child.kill()
            killed = end_of(child) == -signal.SIGKILL
            kills += killed
            tried(killed)
            whole *= 1.2 if killed else 0.8  # aim later, so that it gets on, or earlier
        assert_same_run(folder, undisturbed)
        assert not list(folder.rglob("*.partial"))
