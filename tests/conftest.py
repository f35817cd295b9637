"""Shared fixtures: a configuration that trains in half a second, and one thread to do it on."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.faults.report import (  # noqa: F401  hooks
    pytest_addoption,
    pytest_configure,
    pytest_runtest_makereport,
)

# Imports of torch stand inside the functions: pytest-xdist's first process hands out tests and runs
# none of them, and torch is 2 seconds of CPU time.
if TYPE_CHECKING:
    from ddfp_lib.config import Config

# The same examples on every run, so that a change is judged by what it changes. To look for new
# ones: HYPOTHESIS_PROFILE=explore pytest tests
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

TINY = {
    "benchmark": "tiny",
    "eps": 1.0,
    "data": {
        "dataset": "digits",
        "labeled": 8,
        "digits": {
            "size": 32,
            "classes": 3,
            "digits": [1, 2],
            "digit_size": [12, 20],
            "train": 40,
            "val": 5,
            "test": 5,
        },
        "augment": {"crop": 32, "scale": [0.75, 1.25]},
    },
    "network": {
        "encoder": "test_resnet",
        "low_width": 4,
        "aspp_width": 8,
        "dilations": [1, 2],
        "embedding": 8,
    },
    "density": {"hidden": 8, "samples": 256},
    "training": {
        "steps": 6,
        "batch_labeled": 4,
        "batch_unlabeled": 4,
        "lr_encoder": 0.01,
        "lr_head": 0.05,
        "confidence": 0.3,  # of 4 classes: passed in the last steps
        "consistency_from": 0.3,  # steps 0 and 1 are supervised
        "perturb_from": 0.5,  # step 2 is consistency alone, 3 to 5 are the whole method
        "ema_decay": 0.9,
        "evaluate_every": 3,
        "checkpoint_every": 2,
    },
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Compute on one thread, here and in processes that tests start.

    The order of a sum, and with it the last bits, depends on the number of threads: with the
    machine's own number "bit-identical" would mean something else on each. And ``pytest -n`` gives
    every core a worker already.
    """
    import torch

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def cache_of_our_own(tmp_path_factory):
    """Keep what is remembered of files out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def make_tiny_config(method: str, /, **overrides) -> Config:
    """A six-step run of this method on 32-pixel digit scenes.

    ``tiny_config("ddfp", eps=2.0, training={"steps": 4})``: a dict changes the keys it names,
    anything else takes the place of what was there.
    """
    from ddfp_lib.config import from_dict, load_method, to_dict

    values = copy.deepcopy(TINY) | {"method": to_dict(load_method(method))}
    _update(values, overrides)
    return from_dict(values)


def _update(values: dict, overrides: dict) -> None:
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _update(values[key], value)
        else:
            values[key] = value


@pytest.fixture(scope="session")
def tiny_config():
    """Return :func:`make_tiny_config`."""
    return make_tiny_config
