"""Ctrl-C: one line that says how to continue, nothing left running, and nothing lost."""

import os
import signal

import pytest
import torch
import yaml

from ddfp_lib.config import load_config
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.fixtures.server import start_ddfp, status_of
from tests.test_loop import assert_same_run
from tests.test_matrix import is_free, wait_for


@pytest.mark.fault("Ctrl-C", "a training run with one process, and one with two processes")
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_training_says_one_line_and_goes_on(tmp_path, processes):
    benchmark, out = tmp_path / "tiny.yaml", tmp_path / "run"
    long = {"steps": 30, "evaluate_every": 30}
    benchmark.write_text(yaml.safe_dump({**TINY, "training": {**TINY["training"], **long}}))
    words = ["--processes", "2"] if processes == 2 else []
    err = tmp_path / "err"
    child = start_ddfp("train", benchmark, "--out", out, *words, err=err)
    wait_for((out / "checkpoints" / "index.json").is_file)
    os.killpg(child.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
    assert status_of(child) == 130
    said = err.read_text()
    assert "Traceback" not in said
    assert said.count("ddfp: interrupted; start the same command again to continue") == 1
    assert is_free(out)
    assert not (out / "result.json").exists()
    if processes == 1:
        config = load_config(benchmark, "ddfp")
        train(config, out, device=torch.device("cpu"))
        train(config, tmp_path / "undisturbed", device=torch.device("cpu"))
        assert_same_run(out, tmp_path / "undisturbed")
