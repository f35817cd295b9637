"""Whether a learned density is any good: measured where the answer is known."""

import math

import pytest
import torch

from ddfp_lib.evaluation.mechanism import Embeddings, IndependentDensity
from ddfp_lib.evaluation.quality import density_quality, log_odds, predict_errors
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator

N = 4000


@pytest.fixture(scope="module")
def rng():
    return torch.Generator().manual_seed(0)


def test_the_log_likelihood_of_a_gaussian_is_its_negative_entropy(rng):
    """In the units of the features, not of standardized ones."""
    scale = torch.tensor([0.1, 1.0, 30.0])
    rows = torch.randn(2 * N, 3, generator=rng) * scale + 5
    found = IndependentDensity(rows[:N], components=1).log_prob(rows[N:]).mean()
    expected = -0.5 * 3 * (1 + math.log(2 * math.pi)) - scale.log().sum()
    assert found == pytest.approx(float(expected), abs=0.05)


def test_a_density_that_shows_errors_helps_the_confidence(rng):
    """Errors depend on two independent causes; the network's confidence shows one of them."""
    seen, unseen = torch.randn(2, N, generator=rng)
    wrong = torch.rand(N, generator=rng) < torch.sigmoid(seen + unseen - 1)
    found = predict_errors(-unseen, -seen, wrong)
    assert found.density > 0.65
    assert found.confidence == pytest.approx(found.confidence_fitted)
    assert found.both > found.confidence + 0.05


def test_a_density_that_repeats_the_confidence_adds_nothing(rng):
    seen = torch.randn(N, generator=rng)
    wrong = torch.rand(N, generator=rng) < torch.sigmoid(seen - 1)
    found = predict_errors(-2 * seen, -seen, wrong)
    assert found.density == pytest.approx(found.confidence)
    assert found.both == pytest.approx(found.confidence, abs=0.01)


def test_a_density_that_is_noise_is_chance(rng):
    wrong = torch.rand(N, generator=rng) < 0.3
    found = predict_errors(torch.randn(N, generator=rng), torch.full((N,), 0.9), wrong)
    assert found.density == pytest.approx(0.5, abs=0.04)
    assert found.confidence == 0.5


def test_log_odds_of_confident_pixels_differ():
    """Their probabilities are all 1 in float32."""
    logits = torch.tensor([[17.0, 0.0], [0.0, 25.0], [40.0, 0.0]])
    assert (logits.softmax(dim=1).amax(dim=1) == 1).all()
    assert log_odds(logits).tolist() == pytest.approx([17, 25, 40])
    p = torch.tensor([[0.2, 0.7, 0.1]])
    assert log_odds(p.log()).item() == pytest.approx(math.log(0.7 / 0.3), abs=1e-6)


def test_without_errors_there_is_nothing_to_predict():
    found = predict_errors(torch.randn(10), torch.rand(10), torch.zeros(10, dtype=torch.bool))
    assert math.isnan(found.density) and math.isnan(found.both)


def test_the_quality_of_a_flow_beside_simpler_densities(rng):
    """Two far clusters: no Gaussian fits them, a mixture does, a trained flow nears it."""
    labels = torch.randint(2, (N,), generator=rng)
    rows = torch.randn(N, 2, generator=rng) * 0.3 + 4 * labels[:, None]
    logits = 4 * torch.eye(2)[labels]
    there = Embeddings(rows, logits, labels.where(torch.arange(N) % 5 != 0, 1 - labels))
    means = []
    for steps in (1, 150):
        config = DensityConfig(blocks=2, hidden=16, lr=0.01)
        estimator = DensityEstimator(2, 2, config, total_steps=steps)
        for _ in range(steps):
            estimator.fit_step(rows, labels, generator=rng)
        found = density_quality(estimator, IndependentDensity(rows), there, there)
        means.append(found["log-likelihood, flow"])
        assert found["log-likelihood, mixture"] > found["log-likelihood, Gaussian"] + 0.5
        assert found["AUROC (%), confidence"] == 50  # all pixels are equally sure
    assert means[0] < means[1] < found["log-likelihood, mixture"] + 0.1
