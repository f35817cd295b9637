"""Half precision: the networks compute in it, and nothing else does."""

import functools

import pytest
import torch

import ddfp_lib.kernels as kernels
import ddfp_lib.training.learner as learners
import ddfp_lib.training.loop as loop
from ddfp_lib.errors import UserError
from ddfp_lib.kernels import compiling
from ddfp_lib.training.finite import NotFiniteError
from ddfp_lib.training.loop import train
from ddfp_lib.training.memory import memory_advice
from ddfp_lib.training.step import training_step
from tests.test_loop import assert_same_run, newest_state
from tests.test_training import make_batches, make_learner

CPU = torch.device("cpu")
WHOLE = {"consistency_from": 0.0, "perturb_from": 0.0}


def take_one(config):
    learner = make_learner(config)
    return learner, training_step(learner, make_batches(config, 1)[0], 0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["ddfp", "vat"])
def test_a_step_in_half_precision_is_nearly_that_in_single(tiny_config, precision, method):
    _, whole = take_one(tiny_config(method, training=WHOLE))
    learner, half = take_one(tiny_config(method, training={**WHOLE, "precision": precision}))
    assert half["supervised"] == pytest.approx(float(whole["supervised"]), rel=0.02)
    assert half["supervised"] != whole["supervised"]
    assert all(value.dtype == torch.float32 for value in half.values())
    parameters = list(learner.student.parameters()) + list(learner.teacher.parameters())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in parameters)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_compute_in_it_and_seams_are_single(tiny_config, precision):
    learner = make_learner(tiny_config("ddfp", training={"precision": precision}))
    network, seen = learner.student, []
    for name in ("conv1", "conv2"):
        layer = getattr(network.embedding, name)
        layer.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = network.encode(images)
    embedded = network.embed(features)
    logits = network.classify(embedded)
    assert seen == [getattr(torch, precision)] * 2
    assert {features.dtype, embedded.dtype, logits.dtype} == {torch.float32}


def test_the_flow_and_the_shift_stay_single(tiny_config, monkeypatch):
    config = tiny_config("ddfp", training={**WHOLE, "precision": "bfloat16"})
    learner = make_learner(config)
    perturbation, shifts = learner.perturbation, []

    def spy(*args):
        shifts.append(perturbation(*args))
        return shifts[-1]

    monkeypatch.setattr(learner, "perturbation", spy)
    fit_step, rows = learner.density.fit_step, []
    monkeypatch.setattr(
        learner.density,
        "fit_step",
        lambda seen, labels, generator: (
            rows.append(seen.dtype) or fit_step(seen, labels, generator=generator)
        ),
    )
    training_step(learner, make_batches(config, 1)[0], 0)
    lengths = shifts[0].norm(dim=1)
    torch.testing.assert_close(lengths[lengths > 0], torch.ones_like(lengths[lengths > 0]))
    assert (lengths > 0).any()
    assert rows == [torch.float32]


def test_a_resumed_run_in_half_precision_is_one_that_never_stopped(tiny_config, tmp_path):
    """The scaler of float16's gradients is in the checkpoint."""
    config = tiny_config("supervised", training={"precision": "float16"})
    train(config, tmp_path / "whole", device=CPU)
    train(config, tmp_path / "cut", device=CPU, stop_at=3)
    train(config, tmp_path / "cut", device=CPU)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert newest_state(tmp_path / "cut")["learner"]["scaler"]["scale"] > 1


def overflowing(parameters):
    next(iter(parameters)).grad.fill_(torch.inf)


@pytest.mark.fault("numbers not finite", "float16 gradients that overflow at every scale")
def test_gradients_that_never_become_finite_end_the_training(tiny_config, monkeypatch):
    """The scaler would skip every step from here on, and the run would end untrained."""
    config = tiny_config("supervised", training={"precision": "float16"})
    learner = make_learner(config)
    batch = make_batches(config, 1)[0]
    monkeypatch.setattr(learners, "sum_gradients", overflowing)
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 1.0})
    training_step(learner, batch, 0)
    assert learner.scaler.get_scale() == 0.5
    with pytest.raises(NotFiniteError, match=r"step 1: .*grad_norm inf"):
        training_step(learner, batch, 1)


def test_gradients_that_overflow_are_skipped_and_the_scale_falls(tiny_config, monkeypatch):
    config = tiny_config("supervised", training={"precision": "float16"})
    learner = make_learner(config)
    before = {name: p.clone() for name, p in learner.student.named_parameters()}
    scale = learner.scaler.get_scale()
    monkeypatch.setattr(learners, "sum_gradients", overflowing)
    training_step(learner, make_batches(config, 1)[0], 0)
    assert learner.scaler.get_scale() == scale / 2
    assert all(p.equal(before[name]) for name, p in learner.student.named_parameters())


def test_an_unknown_precision_is_refused(tiny_config):
    with pytest.raises(UserError, match="precision"):
        tiny_config("ddfp", training={"precision": "float8"})


def test_compile_reaches_every_part_of_both_networks(tiny_config, monkeypatch):
    """Wired, not compiled: a compiler takes minutes for a network of any size."""
    compiled = []

    def compile_(function, **options):
        assert options == {"fullgraph": True}  # all of it, or an error
        compiled.append(function.__self__)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    learner = make_learner(tiny_config("ddfp", training={"compile": True}))
    for network in (learner.student, learner.teacher):
        fusion = network.fusion
        called = {network.encoder, fusion.low, fusion.aspp, network.embedding, network.classifier}
        assert called <= set(compiled)
    compiled.clear()
    make_learner(tiny_config("ddfp"))
    assert not compiled


@pytest.mark.parametrize("processes", [1, 2])
def test_what_may_run_uncompiled_is_said_at_the_start(
    tiny_config, tmp_path, monkeypatch, processes
):
    """One process fails instead: what cannot be compiled in one graph is an error there."""
    asked, compiling = [], loop.compiling
    monkeypatch.setattr(
        loop, "compiling", lambda on, strict: asked.append(strict) or compiling(on, strict)
    )
    monkeypatch.setattr(loop, "world_size", lambda: processes)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    lines = []
    config = tiny_config("consistency", training={"compile": True})
    train(config, tmp_path, device=CPU, stop_at=0, progress=lambda *told: lines.append(told[2]))
    said = [line for line in lines if "training.compile" in line]
    assert asked == [processes == 1]
    assert len(said) == (processes > 1)
    assert all("some code may run uncompiled" in line for line in said)


def test_a_compiled_network_takes_the_same_step(tiny_config, monkeypatch):
    """By the back end that captures graphs and generates no code: seconds instead of minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    _, plain = take_one(tiny_config("ddfp", training=WHOLE))
    with compiling(True):
        learner, compiled = take_one(tiny_config("ddfp", training={**WHOLE, "compile": True}))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    names = make_learner(tiny_config("ddfp")).student.state_dict().keys()
    assert learner.student.state_dict().keys() == names  # checkpoints fit either way


@pytest.mark.soak
def test_more_cases_than_are_compiled_are_an_error(tiny_config, monkeypatch):
    """PyTorch would go on without compiling, and only its log would say so."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(kernels, "RECOMPILED", 1)
    torch._dynamo.reset()  # forget what other tests compiled
    config = tiny_config("ddfp", training={**WHOLE, "compile": True})
    with (
        pytest.raises(UserError, match=r"^training\.compile: .*recompile_limit"),
        compiling(True),
        memory_advice(1),
    ):
        take_one(config)


@pytest.mark.soak
@pytest.mark.parametrize("method", ["ddfp", "ddfp_released", "unimatch_v2"])
def test_a_compiled_run_trains_and_evaluates(tiny_config, tmp_path, monkeypatch, method):
    """All cases of all stages and of evaluation, each in one graph."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = tiny_config(method, training={"compile": True})
    assert train(config, tmp_path, device=CPU).steps == config.training.steps


def test_a_network_that_cannot_be_compiled_is_told_in_a_line(tiny_config, tmp_path, monkeypatch):
    """As on a CPU without a C++ compiler."""

    def broken(*graph):
        raise OSError("no compiler was found\nin all of it")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    config = tiny_config("ddfp", training={"compile": True})
    with pytest.raises(UserError, match=r"^training\.compile: .*found in all of it\); leave"):
        train(config, tmp_path / "run", device=torch.device("cpu"))
