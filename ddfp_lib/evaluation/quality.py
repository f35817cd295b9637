"""Quality of the learned density: held-out log-likelihood, and prediction of errors.

Two questions about the flow of a trained network, asked of images that nothing was trained on:

- Does it give the features a higher log-likelihood than simpler densities, fitted to the same
  network's features of training images?
- Does a low density show where the network is wrong, and does it show more than the network's own
  confidence does?
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddfp_lib.evaluation.mechanism import Embeddings, IndependentDensity
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.seeds import generator

ROWS = 20_000
"""Largest number of validation features that are used; they are drawn at random."""


@dataclass(frozen=True)
class ErrorPrediction:
    """How well three scores tell wrong pixels from right ones: areas under the ROC curve.

    0.5 is chance, 1 is perfect.

    Attributes:
        density: area of low log p alone.
        confidence: area of low confidence of the network alone.
        confidence_fitted: area of a logistic regression on the confidence.
        both: area of a logistic regression on confidence and log p. What it has more than
            ``confidence_fitted`` is what the density knows beyond the confidence.
    """

    density: float
    confidence: float
    confidence_fitted: float
    both: float


def log_odds(logits: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` of the most probable class, (N,) float64, from logits (N, K).

    Confident pixels all have p = 1 in float32; their log-odds still differ.
    """
    log_p = logits.double().log_softmax(dim=1)
    first, best = log_p.max(dim=1)
    others = log_p.scatter(1, best[:, None], -torch.inf)
    return first - others.logsumexp(dim=1)


def predict_errors(log_density: Tensor, confidence: Tensor, wrong: Tensor) -> ErrorPrediction:
    """Measure how well density and confidence predict a network's errors.

    The logistic regressions are fitted to the first half of the pixels and all areas are measured
    on the second half. Give pixels in the order of their images, so that no image but one is in
    both.

    Args:
        log_density: (N,) float, log p of each feature in nats.
        confidence: (N,) float, the log-odds of the predicted class of each: :func:`log_odds`.
        wrong: (N,) bool, whether the predicted class is not the true one.

    Returns:
        The areas; NaN where one of the halves has no errors or nothing but errors.
    """
    # a second to import, which reports of stored measurements do without
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    columns = torch.stack([confidence.double(), log_density.double()], dim=1).numpy()
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
    estimator: DensityEstimator,
    mixture: IndependentDensity,
    seen: Embeddings,
    unseen: Embeddings,
    seed: int = 0,
) -> dict[str, float]:
    """Compare a learned density with simpler ones, and with the network's confidence.

    Args:
        estimator: the flow and its mixture.
        mixture: mixture of 16 Gaussians, fitted to ``seen``.
        seen: features of training images, to which one Gaussian is fitted as well.
        unseen: features of validation images, image after image.
        seed: seed of all draws.

    Returns:
        ``log-likelihood, flow``, ``..., mixture`` (16 Gaussians) and ``..., Gaussian``: means over
        validation features, in nats; and four areas under the ROC curve, see
        :class:`ErrorPrediction`: ``AUROC (%), density``, ``..., confidence``,
        ``..., confidence fitted`` and ``..., both``.
    """
    rng = generator(seed, "quality")
    chosen = torch.randperm(len(unseen.rows), generator=rng)[:ROWS].sort().values
    rows, logits = unseen.rows.cpu()[chosen], unseen.logits.cpu()[chosen]
    device = next(estimator.parameters()).device
    learned = torch.cat([estimator.log_prob(some.to(device)).cpu() for some in rows.split(4096)])
    densities = {
        "flow": learned.double(),
        "mixture": mixture.log_prob(rows),
        "Gaussian": IndependentDensity(seen.rows, seed, 1).log_prob(rows),
    }
    found = {f"log-likelihood, {name}": float(p.mean()) for name, p in densities.items()}
    wrong = logits.argmax(dim=1) != unseen.labels.cpu()[chosen]
    areas = predict_errors(learned, log_odds(logits), wrong)
    return found | {
        "AUROC (%), density": 100 * areas.density,
        "AUROC (%), confidence": 100 * areas.confidence,
        "AUROC (%), confidence fitted": 100 * areas.confidence_fitted,
        "AUROC (%), both": 100 * areas.both,
    }
