"""Measurements in networks: does the boundary move to low density, and where do steps lead?

A method's own flow is not a fair measure: some methods have none, and a flow that was trained with
a network may favor it. So a density of another kind is fitted to the features of each trained
network: a mixture of Gaussians (scikit-learn's) on its features of training images. Densities are
reported as percentiles among its features of validation images: 50 is the median, 0 the lowest.
"""

import warnings
from dataclasses import dataclass

import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.evaluation.descent import Descent
from ddfp_lib.evaluation.features import labeled_features
from ddfp_lib.models.maps import to_rows
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.seeds import generator

MARGIN = 0.2
"""A feature is at the decision boundary if its two highest probabilities differ by less."""


COMPONENTS = 16
"""Gaussians of the independent mixture, with full covariances."""


INDEPENDENT_ROWS = 10_000
"""Largest number of features that it is fitted to."""


COLUMNS = ["method", "seed", "step", "features", "quantity", "value"]
"""Columns of a table of measurements inside networks, one value in a row."""


ALL = "all"
"""Value of the column ``features`` for measurements on all features, not on one kind of step."""


DENSITY = "density"
"""Value of the column ``features`` for measurements of the density that a method has learned."""


def learned_densities(mechanism: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what was measured of each method's density, as a table of paired differences needs it.

    Args:
        mechanism: columns :data:`COLUMNS`.

    Returns:
        By method: a row for each seed and quantity at the end of training. The quantities are in
        the column ``method``, their values in ``value``; see
        :func:`ddfp_lib.evaluation.quality.density_quality` for their names and units.
    """
    last = mechanism[mechanism["step"] == mechanism["step"].max()]
    learned = last[last["features"] == DENSITY]
    return {
        name: some.drop(columns="method").rename(columns={"quantity": "method"})
        for name, some in learned.groupby("method")
    }


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of the pixels that have a label, in evaluation mode.

    Attributes:
        rows: (N, D) float32, v.
        logits: (N, K) float32, by the classifier.
        labels: (N,) int64, the true classes.
    """

    rows: Tensor
    logits: Tensor
    labels: Tensor

    @property
    def probability(self) -> Tensor:
        """(N, K) float32, of the classes."""
        return self.logits.softmax(dim=1)


@torch.no_grad()
def embeddings(
    network: SegmentationNetwork, dataset: SegmentationDataset, images: int, batch_size: int = 16
) -> Embeddings:
    """Return the embeddings of the first ``images`` images of a data set, without augmentation."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(network):
        for features, truth in labeled_features(network, dataset, images, batch_size):
            v, labels = network.embed(features), truth.flatten()
            known = labels != IGNORE_INDEX
            logits = to_rows(network.classify(v).float())
            parts.append((to_rows(v.float())[known], logits[known], labels[known]))
    return Embeddings(*(torch.cat(column) for column in zip(*parts, strict=True)))


class IndependentDensity:
    """A mixture of Gaussians fitted to the standardized features of a network.

    Args:
        rows: (N, D) float, the features; at most :data:`INDEPENDENT_ROWS`, drawn at random, are
            used.
        seed: seed of the draw and of the starting means.
        components: number of Gaussians.
    """

    def __init__(self, rows: Tensor, seed: int = 0, components: int = COMPONENTS) -> None:
        # a second to import, which reports of stored measurements do without
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        rng = generator(seed, "judge")
        rows = rows.cpu()[torch.randperm(len(rows), generator=rng)[:INDEPENDENT_ROWS]]
        self.mean, self.std = rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-6)
        self.mixture = GaussianMixture(
            min(components, len(rows)), reg_covar=1e-4, max_iter=50, tol=1e-2, random_state=seed
        )
        # The matrices are small, so threads would only wait for one another. A fit that has not
        # converged is good enough.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.mixture.fit(((rows - self.mean) / self.std).numpy())

    def log_prob(self, rows: Tensor) -> Tensor:
        """Return log p of features (N, D) as (N,) float64, in nats."""
        if len(rows) == 0:
            return torch.empty(0, dtype=torch.float64)
        standard = (rows.cpu() - self.mean) / self.std
        with threadpool_limits(1):
            log_p = torch.from_numpy(self.mixture.score_samples(standard.numpy()))
        return log_p - self.std.double().log().sum()


def percentiles(values: Tensor, among: Tensor) -> Tensor:
    """Return the percentile of each value (N,) among others (M,): how many percent are below it.

    The percentiles of values among themselves reach from 0 to 100.
    """
    below = torch.searchsorted(among.sort().values, values)
    return (100.0 * below / max(1, len(among) - 1)).clamp(max=100)


def boundary_density(there: Embeddings, density: Tensor) -> dict[str, float]:
    """Measure the density of the features at the decision boundary.

    Args:
        there: features of validation images, N of them.
        density: (N,) float, their log-densities by the independent estimator.

    Returns:
        ``boundary percentile``: mean density percentile of the features at the boundary, NaN
        without one; ``boundary share``: their share of all features, in percent; ``error
        percentile``: mean density percentile of wrongly classified features.
    """
    rank = percentiles(density, density)
    first, second = there.probability.topk(2, dim=1).values.unbind(dim=1)
    boundary = first - second < MARGIN
    wrong = there.probability.argmax(dim=1) != there.labels
    return {
        "boundary percentile": float(rank[boundary.cpu()].mean()),
        "boundary share": 100 * float(boundary.float().mean()),
        "error percentile": float(rank[wrong.cpu()].mean()),
    }


CHANGE, RANK, RIGHT = "change of log p", "percentile", "true class"
FLIPPED, DIVERGENCE, RELATIVE = "flipped class", "KL", "relative length"
"""What :func:`step_effects` reports of each kind of step."""


def step_effects(measured: Descent, among: Tensor) -> dict[str, dict[str, float]]:
    """Summarize where steps from confident features lead.

    Args:
        measured: result of :func:`~ddfp_lib.evaluation.descent.measure_descent`, with an
            independent density.
        among: (N,) float, log-densities of all features of the data set by the same estimator.

    Returns:
        By kind of step, unperturbed features first: the mean ``percentile`` of the independent
        density; the percentage of features that are predicted as their ``true class``; and for
        steps the median ``change of log p`` by the flow, in nats. How strong a step is: the
        percentage of features whose predicted class it changes (``flipped class``), the mean ``KL``
        of the prediction in nats, and the ``relative length``, the mean of ``eps / |F|`` in %.
    """
    effects = {}
    for kind, density in measured.independent.items():
        rank = float(percentiles(density, among).mean())
        effects[kind] = {RANK: rank, RIGHT: 100 * measured.right[kind]}
    for kind, after in measured.after.items():
        effects[kind] |= {
            CHANGE: float((after - measured.before).median()),
            FLIPPED: 100 * (1 - measured.kept[kind]),
            DIVERGENCE: measured.divergence[kind],
            RELATIVE: 100 * measured.relative_length,
        }
    return effects
