"""Shared memory that is too small is found before training."""

import shutil
from collections import namedtuple

import pytest
import torch

import ddfp_lib.training.memory as memory
from ddfp_lib.errors import UserError
from ddfp_lib.training.loop import train
from ddfp_lib.training.memory import MIB, batch_bytes, loading_workers
from tests.test_training import make_batches

Usage = namedtuple("Usage", "free")
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def shared(monkeypatch, tmp_path):
    """Set the free bytes of shared memory; this machine has 5 cores for workers."""
    monkeypatch.setattr(memory, "SHARED", tmp_path)
    monkeypatch.setattr(memory, "default_workers", lambda device, ranks: 5 if device == GPU else 0)
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free))


@pytest.mark.parametrize("method", ["supervised", "ddfp"])
def test_the_bytes_of_a_batch_are_those_of_its_tensors(tiny_config, method):
    config = tiny_config(method, training={"batch_labeled": 2})
    batch = make_batches(config, 1)[0]
    assert batch_bytes(config) == sum(tensor.nbytes for tensor in vars(batch).values())


def test_as_many_workers_as_have_room(tiny_config, shared):
    config = tiny_config("ddfp")
    two_each = 2 * batch_bytes(config)
    shared(5 * two_each)
    assert loading_workers(config, GPU) == (5, [])
    shared(3 * two_each)
    workers, (line,) = loading_workers(config, GPU)
    assert workers == 3
    assert line.startswith("data.workers: 3 instead of 5, which would need ")
    assert loading_workers(config, CPU) == (0, [])


@pytest.mark.parametrize(("asked", "room"), [(4, 2), (None, 0), (1, 0)])
def test_too_little_room_is_an_error_before_training(tiny_config, shared, tmp_path, asked, room):
    config = tiny_config("ddfp", data={"workers": asked})
    shared(room * 2 * batch_bytes(config) + 7)
    with pytest.raises(UserError, match=rf"^data.workers: .*set data.workers={room}, .*--shm-size"):
        loading_workers(config, GPU)
    if asked is not None:
        with pytest.raises(UserError, match="shm-size"):
            train(config, tmp_path / "run", device=CPU)
        assert not (tmp_path / "run" / "config.yaml").exists()


def test_numbers_are_those_of_the_machine(tiny_config, shared):
    config = tiny_config(
        "ddfp",
        training={"batch_labeled": 16, "batch_unlabeled": 16},
        data={"workers": 8, "augment": {"crop": 513}},
    )
    shared(64 * MIB)  # Docker's default
    with pytest.raises(UserError, match=r"8 need 1,028 MiB in .*, which has 64 MiB left.*=2g"):
        loading_workers(config, GPU)


def test_every_view_is_counted(tiny_config):
    """The images that the student's pass holds, from the step's own description."""
    counted = {}
    for method in ("consistency", "unimatch_v2", "dropout", "unimatch"):
        config = tiny_config(method)
        counted[method] = memory.training_memory(config)
    assert counted["unimatch_v2"] > 1.15 * counted["consistency"]  # two strong views, not one
    assert counted["unimatch"] > 1.25 * counted["dropout"]  # and weak views in a pass of their own
