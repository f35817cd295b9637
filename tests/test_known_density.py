"""The density that a flow is tried on is the one that its formula says."""

import math

import pytest
import torch

from bench.known_density import FEATURES, KnownDensity, measure


@pytest.fixture(scope="module")
def known():
    return KnownDensity()


def test_rows_come_from_the_density(known):
    """Stein's identity: the mean of x . grad log p(x) over rows of p is minus their width."""
    x, classes = known.sample(5000, torch.Generator().manual_seed(0))
    found = (x * known.score(x)).sum(dim=1)
    error = float(found.std()) / math.sqrt(len(x))
    assert float(found.mean()) == pytest.approx(-FEATURES, abs=4 * error)
    assert error < 1
    assert torch.bincount(classes)[0] / len(x) == pytest.approx(0.6, abs=0.02)


def test_the_volume_of_the_bending_is_counted(known):
    """log p(x) is log p(z) of the mixture and the log-determinant of x -> z, by autograd."""
    (x, _) = known.sample(1, torch.Generator().manual_seed(1))

    def bent(row):
        u = row @ known.turn / known.scale
        return u + known.bend * torch.tanh(2 * u)

    determinant = torch.linalg.slogdet(torch.autograd.functional.jacobian(bent, x[0])).logabsdet
    each = [
        torch.distributions.Normal(mean, std).log_prob(bent(x[0])).sum() + weight.log()
        for mean, std, weight in zip(known.means, known.stds, known.weights, strict=True)
    ]
    expected = torch.logsumexp(torch.stack(each), dim=0) + determinant
    assert known.log_prob(x)[0] == pytest.approx(float(expected))


def test_the_page_compares_the_flow_with_simpler_densities():
    lines = measure((3,), samples=64, hidden=16, rows_at_once=1000).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "one Gaussian",
        "16 Gaussians",
        "flow, 16 wide",
    ]
    gaps = [float(line.split("|")[3]) for line in lines[2:]]
    assert min(gaps) > 0  # a KL divergence
    assert gaps[2] > gaps[0]  # three steps are too few
