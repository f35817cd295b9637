"""Training on a GPU, without one: no tensor on a wrong device, and no wait that is not listed."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddfp_lib.config import load_method, presets

ROOT = Path(__file__).parent.parent
PRECISIONS = ("float32", "bfloat16", "float16")

SCALER = "a value is read in training/learner.py:optimizer_step"
"""PyTorch's scaler of float16's gradients asks, once a step, whether one of them is infinite."""


def fake_steps(*cases):
    """Take a step of each stage, in a process whose PyTorch is changed; see tests/fake_cuda.py."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fake_cuda", *cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


def stages_of(method):
    """The names of the stages that are not one another's equal."""
    method = load_method(method)
    perturbed = method.perturbation != "none"
    return {"supervised", *["consistency"] * method.consistency, *["perturbed"] * perturbed}


def assert_clean(found, cases):
    for case in cases:
        expected = {SCALER: 1} if ":float16:" in case else {}
        assert found[case].keys() == stages_of(case.split(":")[0])
        for stage, seen in found[case].items():
            assert seen == {"wrong": {}, "waits": expected}, f"{case}, {stage}"


QUICK = ("ddfp:float16:2", "unimatch:bfloat16:1", "vat:float32:1")
"""A density and its micro-batches, two strong views and an attack. ``make soak`` takes every preset
in every precision and in micro-batches."""


def test_steps_on_a_gpu_wait_for_nothing_but_the_scaler():
    found = fake_steps(*QUICK)
    assert_clean(found, QUICK)

    # the watch sees a generator of the host, values that are read, and mixed devices
    check = found["self-check"]
    assert [wrong.split(" for ")[0] for wrong in check["wrong"]] == ["generator of cpu"]
    assert {wait.split(" in ")[0]: times for wait, times in check["waits"].items()} == {
        "a value is read": 1 + 1 + 4,
        "nonzero": 1,
        "a mask selects": 1,
        "a copy from cuda to cpu": 2,
        "a copy from cpu to cuda": 2 + 1,
    }
    assert check["large copies"] == 1  # the small one is staged
    assert check["mixed"]


@pytest.mark.soak
@pytest.mark.parametrize("method", presets())
def test_every_preset_in_every_precision_and_in_micro_batches(method):
    cases = [
        f"{method}:{precision}:{micro_batches}"
        for precision, micro_batches in itertools.product(PRECISIONS, (1, 4))
    ]
    found = {}
    for case in cases:  # a process each: PyTorch crashed in the second case of one preset
        found |= fake_steps(case)
    assert_clean(found, cases)
