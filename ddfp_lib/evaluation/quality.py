"""Is the learned density any good? Held-out log-likelihood, and whether low density means errors.

Two questions about the flow of a trained network, asked of images that nothing was trained on:

- Does it give the features a higher log-likelihood than simpler densities, fitted to the same
  network's features of training images?
- Does a low density show where the network is wrong, and does it show more than the network's own
  confidence does?
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ddfp_lib.evaluation.mechanism import COMPONENTS, Embeddings, IndependentDensity
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.seeds import generator

ROWS = 20_000
"""Largest number of validation features that are used; they are drawn at random."""


@dataclass(frozen=True)
class ErrorPrediction:
    """How well three scores tell wrong pixels from right ones: areas under the ROC curve.

    0.5 is chance, 1 is perfect.

    Attributes:
        density: by low log p alone.
        confidence: by low confidence of the network alone.
        confidence_fitted: by a logistic regression on the confidence.
        both: by a logistic regression on confidence and log p. What it has more than
            ``confidence_fitted`` is what the density knows beyond the confidence.
    """

    density: float
    confidence: float
    confidence_fitted: float
    both: float


def predict_errors(log_density: Tensor, confidence: Tensor, wrong: Tensor) -> ErrorPrediction:
    """Measure how well density and confidence predict a network's errors.

    The logistic regressions are fitted to the first half of the pixels and all areas are measured
    on the second half. Give pixels in the order of their images, so that no image but one is in
    both.

    Args:
        log_density: (N,) float, log p of each feature in nats.
        confidence: (N,) float in (0, 1], the highest class probability of each.
        wrong: (N,) bool, whether the predicted class is not the true one.

    Returns:
        The areas; NaN where one of the halves has no errors or nothing but errors.
    """
    c = confidence.double().clamp(1e-7, 1 - 1e-7)
    columns = torch.stack([torch.logit(c), log_density.double()], dim=1).numpy()
    half, truth = len(columns) // 2, wrong.numpy()
    if min(len(np.unique(truth[:half])), len(np.unique(truth[half:]))) < 2:
        return ErrorPrediction(*[float("nan")] * 4)
    # log p has long tails: its rank among the first half, so that outliers do not steer the fit
    columns[:, 1] = np.searchsorted(np.sort(columns[:half, 1]), columns[:, 1]) / half
    columns = StandardScaler().fit(columns[:half]).transform(columns)

    def fitted(used: slice) -> float:
        model = LogisticRegression().fit(columns[:half, used], truth[:half])
        return float(roc_auc_score(truth[half:], model.decision_function(columns[half:, used])))

    return ErrorPrediction(
        density=float(roc_auc_score(truth[half:], -log_density.double().numpy()[half:])),
        confidence=float(roc_auc_score(truth[half:], -columns[half:, 0])),
        confidence_fitted=fitted(slice(0, 1)),
        both=fitted(slice(0, 2)),
    )


@torch.no_grad()
def density_quality(
    estimator: DensityEstimator, seen: Embeddings, unseen: Embeddings, seed: int = 0
) -> dict[str, float]:
    """Compare a learned density with simpler ones, and with the network's confidence.

    Args:
        estimator: the flow and its mixture.
        seen: features of training images, to which the simpler densities are fitted.
        unseen: features of validation images, image after image.
        seed: of all draws.

    Returns:
        ``log-likelihood, flow``, ``..., mixture`` (16 Gaussians) and ``..., Gaussian``: means over
        validation features, in nats; and four areas under the ROC curve, see
        :class:`ErrorPrediction`: ``AUROC (%), density``, ``..., confidence``,
        ``..., confidence fitted`` and ``..., both``.
    """
    rng = generator(seed, "quality")
    chosen = torch.randperm(len(unseen.rows), generator=rng)[:ROWS].sort().values
    rows, probability = unseen.rows.cpu()[chosen], unseen.probability.cpu()[chosen]
    device = next(estimator.parameters()).device
    learned = torch.cat([estimator.log_prob(some.to(device)).cpu() for some in rows.split(4096)])
    densities = {
        "flow": learned.double(),
        "mixture": IndependentDensity(seen.rows, seed, COMPONENTS).log_prob(rows),
        "Gaussian": IndependentDensity(seen.rows, seed, 1).log_prob(rows),
    }
    found = {f"log-likelihood, {name}": float(p.mean()) for name, p in densities.items()}
    confidence, predicted = probability.max(dim=1)
    wrong = predicted != unseen.labels.cpu()[chosen]
    areas = predict_errors(learned, confidence, wrong)
    return found | {
        "AUROC (%), density": 100 * areas.density,
        "AUROC (%), confidence": 100 * areas.confidence,
        "AUROC (%), confidence fitted": 100 * areas.confidence_fitted,
        "AUROC (%), both": 100 * areas.both,
    }
