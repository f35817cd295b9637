"""PyTorch's flags are those of the configuration while a run trains, and as before afterwards."""

import os

import pytest
import torch

import ddfp_lib.training.loop as loop
from ddfp_lib.kernels import CUBLAS, cudnn_benchmark, deterministic, tf32, training_kernels
from ddfp_lib.method.density import DensityEstimator

CPU = torch.device("cpu")


def flags():
    return {
        "products in TF32": torch.backends.cuda.matmul.allow_tf32,
        "convolutions in TF32": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "cuDNN deterministic": torch.backends.cudnn.deterministic,
        "PyTorch deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cuBLAS": os.environ.get(CUBLAS[0]),
    }


FAST = dict(zip(flags(), [True, True, True, False, False, False, None], strict=True))
EXACT = dict(zip(flags(), [False, False, False, True, True, True, CUBLAS[1]], strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FAST),
        ({"tf32": False}, FAST | {"products in TF32": False, "convolutions in TF32": False}),
        ({"cudnn_benchmark": False}, FAST | {"benchmark": False}),
        ({"deterministic": True}, EXACT),
    ],
)
def test_a_run_trains_with_the_flags_of_its_configuration(
    tiny_config, tmp_path, monkeypatch, settings, expected
):
    before, seen, evaluated = flags(), [], []
    step, score = loop.training_step, loop.evaluate
    monkeypatch.setattr(loop, "training_step", lambda *args: seen.append(flags()) or step(*args))
    monkeypatch.setattr(
        loop, "evaluate", lambda *args, **kw: evaluated.append(flags()) or score(*args, **kw)
    )
    config = tiny_config("supervised", training={"steps": 2, **settings})
    loop.train(config, tmp_path, device=CPU)
    assert seen == [expected] * 2
    assert evaluated == [expected | {"benchmark": False}]
    assert flags() == before


@pytest.mark.parametrize(
    "block", [tf32(True), cudnn_benchmark(True), deterministic(True), training_kernels(*[True] * 3)]
)
def test_flags_are_restored_after_an_error(block):
    before = flags()
    with pytest.raises(KeyError), block:
        assert flags() != before
        raise KeyError
    assert flags() == before


def test_the_density_computes_without_tf32():
    estimator = DensityEstimator(4, 2, total_steps=1)
    seen = []
    estimator.flow.register_forward_hook(lambda *_: seen.append(flags()["products in TF32"]))
    v, rng = torch.ones(3, 4, requires_grad=True), torch.Generator()
    with tf32(True):
        estimator.log_prob(v).sum().backward()
        estimator.fit_step(v, generator=rng)
        estimator.score(v)
        assert flags()["products in TF32"]
    assert seen == [False] * 3


def test_new_keys_leave_the_hash_and_other_values_change_it(tiny_config):
    usual = {"tf32": True, "cudnn_benchmark": True, "deterministic": False}
    config = tiny_config("ddfp")
    assert tiny_config("ddfp", training=usual).config_hash == config.config_hash
    others = [tiny_config("ddfp", training={key: not usual[key]}) for key in usual]
    assert len({each.config_hash for each in (config, *others)}) == 4
