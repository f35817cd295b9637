"""Frozen densities: what they learn is what their libraries say, and then they stand still."""

import pytest
import torch
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from ddfp_lib.method.frozen import MEMORY, STEPS_REMEMBERED, FrozenDensity
from ddfp_lib.training.finite import FiniteCheck
from ddfp_lib.training.loop import train
from ddfp_lib.training.step import training_step
from tests.test_training import make_batches, make_learner

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_clusters(count=4000, seed=0):
    rows = torch.randn(count, 5, generator=seeded(seed))
    rows[::2, 0] += 7
    return rows


def frozen(kind, rows, steps=STEPS_REMEMBERED):
    density = FrozenDensity(kind, rows.shape[1], 2, freeze_after=steps)
    for step in range(steps):
        density.fit_step(rows, generator=seeded(step))
    return density


def test_mixture_is_that_of_its_library():
    rows = two_clusters()
    density = frozen("gmm", rows)
    oracle = GaussianMixture(2, reg_covar=1e-3, random_state=0).fit(density.memory.numpy())
    expected = torch.from_numpy(oracle.score_samples(rows.numpy())).float()
    torch.testing.assert_close(density.log_prob(rows), expected, rtol=1e-4, atol=1e-4)


def test_kernel_density_is_that_of_its_library():
    rows = two_clusters()
    density = frozen("kde", rows)
    scaled = KernelDensity(bandwidth=1.0).fit((density.memory / density.scale).numpy())
    expected = torch.from_numpy(scaled.score_samples((rows / density.scale).numpy())).float()
    expected -= density.scale.log().sum()
    torch.testing.assert_close(density.log_prob(rows), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["gmm", "kde"])
def test_density_falls_along_its_gradient_and_stands_still(kind):
    rows = two_clusters()
    density = frozen(kind, rows)
    before = {name: value.clone() for name, value in density.named_buffers()}
    at = rows[:200].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-density.log_prob(at).sum(), at)
    step = 0.1 * gradient / gradient.norm(dim=1, keepdim=True)
    assert (density.log_prob(rows[:200] + step) < density.log_prob(rows[:200])).float().mean() > 0.9
    result = density.fit_step(rows + 100, generator=seeded())
    assert result.nll > -density.log_prob(rows).mean()
    assert all(torch.equal(value, before[name]) for name, value in density.named_buffers())


def test_memory_holds_the_last_steps_and_no_empty_row():
    density = FrozenDensity("kde", 3, 1, freeze_after=STEPS_REMEMBERED + 2)
    for step in range(STEPS_REMEMBERED + 1):
        density.fit_step(torch.full((500, 3), float(step + 1)), generator=seeded())
        assert (density.memory > 0).all()
    kept = density.memory[:, 0].unique()
    assert kept.tolist() == [float(step + 1) for step in range(1, STEPS_REMEMBERED + 1)]
    assert len(density.memory) == MEMORY


def test_before_it_is_frozen_there_is_no_direction():
    density = FrozenDensity("gmm", 3, 2, freeze_after=2)
    density.fit_step(torch.empty(0, 3), generator=seeded())
    v = torch.randn(4, 3, requires_grad=True)
    assert not torch.autograd.grad(density.log_prob(v).sum(), v)[0].any()
    assert density.fit_step(torch.randn(9, 3), generator=seeded()).nll.isnan()
    assert not density.frozen


@pytest.mark.parametrize("kind", ["gmm", "kde"])
def test_training_with_a_frozen_density_resumes_to_the_same_bits(kind, tiny_config, tmp_path):
    config = tiny_config("ddfp", density={"kind": kind})
    assert isinstance(make_learner(config).density, FrozenDensity)
    whole = train(config, tmp_path / "whole", device=CPU)
    assert train(config, tmp_path / "halves", device=CPU, stop_at=4) is None
    halves = train(config, tmp_path / "halves", device=CPU)
    assert whole.test_iou == halves.test_iou


@pytest.mark.parametrize("kind", ["gmm", "kde"])
def test_a_gpu_s_finite_check_accepts_a_density_that_has_no_loss_yet(kind, tiny_config):
    config = tiny_config("ddfp", density={"kind": kind})
    learner = make_learner(config)
    learner.finite_check = FiniteCheck(torch.device("cuda"))  # reads its numbers later, as there
    for step, batch in enumerate(make_batches(config, 6)):
        training_step(learner, batch, step)
    learner.finite_check.check()


@pytest.mark.parametrize("kind", ["gmm", "kde"])
def test_the_gradient_is_that_of_the_formula(kind):
    density = frozen(kind, torch.randn(400, 3, generator=torch.Generator().manual_seed(0)))
    v = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.arange(20.0)
    (found,) = torch.autograd.grad((weights * density.log_prob(v)).sum(), v)
    (expected,) = torch.autograd.grad((weights * density._log_prob(v)).sum(), v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
