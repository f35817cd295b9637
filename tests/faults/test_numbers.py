"""Numbers that are not finite stop a training, and batches with nothing to learn do not."""

import math

import pytest
import torch

import ddfp_lib.training.loop as loop
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.loaders import Batch
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.perturb import DensityDescent, FeatureModels
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.training.finite import FiniteCheck, NotFiniteError
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.loop import train
from ddfp_lib.training.step import training_step

CPU = torch.device("cpu")
BAD_STEP = 4  # after the checkpoint of step 4, before that of step 6


def spoil_gradient(learner):
    """One infinite number in one gradient; the loss stays finite."""
    weight = learner.student.classifier.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), math.inf))


def spoil_loss(learner):
    with torch.no_grad():
        learner.student.classifier.bias[0] = math.nan


@pytest.fixture
def spoilt(monkeypatch):
    """Let training go wrong at ``BAD_STEP``; return the learner as the step left it."""

    def install(spoil, *, at_once=True):
        learners = []

        def step(learner, batch, number):
            learners[:] = [learner]
            learner.finite_check.at_once = at_once
            if number == BAD_STEP:
                spoil(learner)
            return training_step(learner, batch, number)

        monkeypatch.setattr(loop, "training_step", step)
        return learners

    return install


@pytest.mark.fault(
    "numbers not finite", "loss or gradient: the message names step, values and images"
)
@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_loss])
@pytest.mark.parametrize("method", ["supervised", "ddfp"])
def test_the_step_its_values_and_its_images_are_told(tiny_config, tmp_path, spoilt, spoil, method):
    learners = spoilt(spoil)
    with pytest.raises(FloatingPointError) as caught:
        train(tiny_config(method), tmp_path, device=CPU)
    told = str(caught.value)
    assert f"step {BAD_STEP}: not a finite number (supervised " in told
    assert "grad_norm " in told
    assert told.count("train_") == (4 if method == "supervised" else 8)
    assert "\n" not in told
    state, passed_over = Checkpoints(
        tmp_path / "checkpoints", tiny_config(method).config_hash
    ).load(CPU)
    assert (state["step"], passed_over) == (BAD_STEP, [])
    if spoil is spoil_gradient:  # the optimizer did not move
        kept = state["learner"]["student"]
        for name, value in learners[0].student.named_parameters():
            assert torch.equal(value, kept[name]), name


@pytest.mark.fault(
    "numbers not finite", "numbers that are checked only when something is saved, as on a GPU"
)
def test_a_device_that_is_not_waited_for_saves_nothing_spoilt(tiny_config, tmp_path, spoilt):
    """As on a GPU: found out when something is to be logged, measured or saved."""
    spoilt(spoil_gradient, at_once=False)
    with pytest.raises(FloatingPointError, match=f"step {BAD_STEP}: .* grad_norm inf"):
        train(tiny_config("ddfp"), tmp_path, device=CPU)
    assert not (tmp_path / "result.json").exists()
    state, _ = Checkpoints(tmp_path / "checkpoints", tiny_config("ddfp").config_hash).load(CPU)
    assert state["step"] == BAD_STEP
    tensors = state["learner"]["student"].values()
    assert all(value.isfinite().all() for value in tensors)


@pytest.mark.fault(
    "numbers not finite",
    "features of the flow that are checked only later, as on a GPU",
)
def test_a_flow_that_is_not_waited_for_stays_as_it_was(tiny_config):
    learner = Learner(tiny_config("ddfp"), 4, CPU)
    learner.finite_check.at_once = False
    embed = learner.teacher.embed
    learner.teacher.embed = lambda *args, **options: embed(*args, **options) * math.inf
    before = [parameter.clone() for parameter in learner.density.parameters()]
    training_step(learner, batch(), 2)
    assert all(map(torch.equal, before, learner.density.parameters()))
    with pytest.raises(NotFiniteError, match=r"step 2: .*\(density_loss nan"):
        learner.finite_check.check()


def test_the_first_bad_step_is_remembered():
    watch = FiniteCheck(CPU)
    watch.at_once = False
    for step, value in enumerate([1.0, math.nan, 2.0, math.inf]):
        watch.note(step, {"loss": torch.tensor(value)})
    with pytest.raises(NotFiniteError, match=r"step 1: .*\(loss nan\)") as caught:
        watch.check()
    assert caught.value.step == 1


# Batches with nothing to learn -------------------------------------------------------------------


def batch(labels=2, unlabeled=2, *, label=None, valid=True):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (labels + unlabeled, 3, 32, 32), generator=rng).byte()
    classes = torch.randint(4, (labels, 32, 32), generator=rng)
    if label is not None:
        classes = torch.full_like(classes, label)
    areas = torch.full((labels + unlabeled, 32, 32), valid)
    return Batch(images[:labels], classes, images[labels:], areas[labels:], areas[:labels])


POOR = {
    "no confident pixel": (batch(), {"confidence": 1.0}),
    "only ignored pixels": (batch(label=IGNORE_INDEX), {}),
    "only padding": (batch(valid=False), {}),
    "nothing at all": (batch(label=IGNORE_INDEX, valid=False), {}),
    "a single image of each": (batch(1, 1), {}),
    "one class": (batch(label=2), {"confidence": 0.0}),
}


@pytest.mark.fault(
    "nothing to learn",
    "no confident pixel, only ignored ones, only padding, one image, one class",
)
@pytest.mark.parametrize("case", POOR)
@pytest.mark.parametrize("method", ["ddfp", "ddfp_released", "vat"])
def test_training_goes_on(tiny_config, method, case):
    poor, training = POOR[case]
    sizes = {"batch_labeled": len(poor.labels), "batch_unlabeled": len(poor.valid)}
    shares = {"shares": len(poor.labels)} if method == "ddfp_released" else {}
    config = tiny_config(method, training={**sizes, **training}, method=shares)
    learner = Learner(config, 4, CPU)
    for step in (0, 2, 3, 4):  # supervised, consistency, everything twice
        losses = training_step(learner, poor, step)
    assert all(value.isfinite() for name, value in losses.items() if name != "bits_per_dim")
    for part in (learner.student, learner.teacher):
        assert all(value.isfinite().all() for value in part.state_dict().values())
    if learner.density is not None:
        assert all(value.isfinite().all() for value in learner.density.parameters())


# Half precision ----------------------------------------------------------------------------------


@pytest.mark.fault("half precision", "features of 1e-4 to 6e4 in float16 and bfloat16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0, 6e4])
def test_the_score_of_half_precision_features(dtype, size):
    """The estimator computes in float32: 6e4 squared would not fit into float16."""
    rng = torch.Generator().manual_seed(0)
    estimator = DensityEstimator(16, 4, DensityConfig(hidden=16), total_steps=10)
    v = (size * (2 * torch.rand(50, 16, generator=rng) - 1)).to(dtype)
    score = estimator.score(v)
    assert score.dtype == torch.float32
    assert torch.equal(score, estimator.score(v.float()))
    double = DensityEstimator(16, 4, DensityConfig(hidden=16), total_steps=10).double()
    cosine = torch.cosine_similarity(score.double(), double.score(v.double()))
    assert cosine.min() > 0.9999
    v.requires_grad_()
    (gradient,) = torch.autograd.grad(estimator.log_prob(v).sum(), v)
    assert gradient.dtype == dtype
    fits = (score.abs() <= torch.finfo(dtype).max).all()
    assert gradient.isfinite().all() == fits
    assert fits or size == 6e4


@pytest.mark.fault("half precision", "a gradient too large for float16")
def test_a_gradient_that_overflows_moves_nothing():
    """A pixel whose direction is lost stays where it is; the others move by eps."""
    models = FeatureModels(
        lambda v: (v * torch.tensor([7e4, 1.0])[:, None].half()).sum(1), lambda v: v
    )
    features = torch.ones(2, 3, dtype=torch.float16)
    moved = torch.tensor([True, True])
    shift = DensityDescent(2.0)(features, moved, models, torch.Generator())
    assert shift.norm(dim=1).tolist() == pytest.approx([0.0, 2.0], rel=1e-3)
