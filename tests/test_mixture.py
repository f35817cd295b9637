"""The mixture agrees with torch.distributions and needs no N x K x D numbers."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils._python_dispatch import TorchDispatchMode

import ddfp_lib.method.mixture
from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.errors import UserError
from ddfp_lib.method.mixture import GaussianMixture


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def mixture():
    return GaussianMixture(components=3, features=4).double()


@pytest.fixture
def z():
    return torch.randn(50, 4, generator=seeded(), dtype=torch.float64)


@given(st.integers(1, 7), st.integers(1, 9), st.floats(0.0, 30.0), st.integers(0, 2**40))
def test_agrees_with_torch_distributions(components, features, spread, seed):
    mixture = GaussianMixture(components, features, seed).double()
    z = spread * torch.randn(8, features, generator=seeded(seed), dtype=torch.float64)
    gaussians = Independent(Normal(mixture.means, 1.0), 1)
    torch.testing.assert_close(mixture.class_log_prob(z), gaussians.log_prob(z[:, None]))
    oracle = MixtureSameFamily(Categorical(logits=torch.zeros(components).double()), gaussians)
    torch.testing.assert_close(mixture.log_prob(z), oracle.log_prob(z))


def test_a_label_picks_its_gaussian_without_the_prior(mixture, z):
    labels = torch.randint(-1, 3, (50,), generator=seeded())
    per_class, marginal = mixture.class_log_prob(z), mixture.log_prob(z)
    expected = [
        marginal[row] if label == UNLABELED else per_class[row, label]
        for row, label in enumerate(labels.tolist())
    ]
    torch.testing.assert_close(mixture.log_prob(z, labels), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_rows_marked_unlabeled_are_rows_without_labels(mixture, z, dtype):
    labels = torch.full((50,), UNLABELED, dtype=dtype)
    torch.testing.assert_close(mixture.log_prob(z, labels), mixture.log_prob(z))


@pytest.mark.parametrize("wrong", [-2, 3, IGNORE_INDEX])
def test_a_label_that_is_no_class_is_named(mixture, z, wrong):
    labels = torch.zeros(50, dtype=torch.int64)
    labels[7] = wrong
    with pytest.raises(UserError, match=rf"label {wrong} is not a class 0\.\.2"):
        mixture.log_prob(z, labels)
    with pytest.raises(UserError, match=rf"label {wrong} "):
        mixture.sample(50, seeded(), labels)


def test_gradients_are_right_for_known_and_unknown_classes(mixture, z):
    labels = torch.tensor([0, UNLABELED, 2])
    points = z[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, _: mixture.log_prob(v, labels), (points, mixture.means)
    )
    assert torch.autograd.gradcheck(lambda v, _: mixture.class_log_prob(v), (points, mixture.means))


def test_samples_come_from_the_asked_gaussians():
    mixture = GaussianMixture(components=3, features=2)
    mixture.means.data *= 20
    labels = torch.arange(3).repeat_interleave(4000)
    labels[-1000:] = UNLABELED
    points = mixture.sample(12000, seeded(), labels)
    for label in range(3):
        mine = points[labels == label]
        error = 5 / len(mine) ** 0.5
        torch.testing.assert_close(mine.mean(0), mixture.means[label], rtol=0, atol=error)
        torch.testing.assert_close(mine.T.cov(), torch.eye(2), rtol=0, atol=2 * error)
    share = mixture.class_log_prob(points[-1000:]).argmax(1).bincount(minlength=3) / 1000
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.07)


def test_the_seed_decides_everything_and_the_global_generator_nothing():
    before = torch.get_rng_state()
    means = [GaussianMixture(5, 6, seed).means for seed in (0, 0, 1)]
    draws = [GaussianMixture(5, 6).sample(9, seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    for first, again, other in (means, draws):
        assert torch.equal(first, again) and not torch.equal(first, other)


class LargestTensor(TorchDispatchMode):
    """Keeps the element count of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_memory_grows_as_n_k_and_n_d_only():
    mixture = GaussianMixture(components=20, features=30)
    z = torch.randn(100, 30, requires_grad=True)
    labels = torch.randint(-1, 20, (100,))
    with LargestTensor() as largest:
        mixture.log_prob(z, labels).sum().backward()
        mixture.class_log_prob(z).sum().backward()
    assert largest.elements == 100 * 30


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(UserError, match=f"got {sizes[0]} and {sizes[1]}"):
        GaussianMixture(*sizes)


def test_examples_in_the_docstrings():
    result = doctest.testmod(ddfp_lib.method.mixture)
    assert result.attempted and not result.failed
