"""Does the boundary move to lower density? Measured in trained networks, method by method alike.

A method's own flow cannot judge it: some methods have none, and one that was trained along might
flatter the network it was trained with. So every network is judged by another kind of density, a
mixture of Gaussians (scikit-learn's) fitted after the fact to its own features of training images,
and densities are told as percentiles among its features of validation images: 50 is the median
feature, 0 the sparsest.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.runs import Run
from ddfp_lib.seeds import generator
from ddfp_lib.training.checkpoint import read_checkpoint
from ddfp_lib.training.loop import data_of
from ddfp_lib.training.objective import Learner, resize_nearest, to_rows

MARGIN = 0.2
"""A feature lies at the decision boundary where its two highest probabilities differ by less."""

COMPONENTS = 16
"""Gaussians of the judging mixture, with full covariances."""

JUDGE_ROWS = 10_000
"""Features that it is fitted to, at most."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of pixels that have a label, in evaluation mode.

    Attributes:
        rows: (N, D) float32, v.
        probability: (N, K) float32, the classifier's.
        labels: (N,) int64, the true classes.
    """

    rows: Tensor
    probability: Tensor
    labels: Tensor


@torch.no_grad()
def embeddings(
    network: SegmentationNetwork, dataset: SegmentationDataset, images: int, batch_size: int = 16
) -> Embeddings:
    """Embed the first ``images`` images of a data set that has masks, whole and unaugmented."""
    device = next(network.parameters()).device
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(network):
        for number, (pictures, masks) in enumerate(evaluation_batches(dataset, batch_size)):
            if number * batch_size >= images:
                break
            v = network.embed(network.encode(pictures.to(device) / 255))
            labels = resize_nearest(masks.to(device), v.shape[2:]).flatten()
            known = labels != IGNORE_INDEX
            probability = to_rows(network.classify(v).float().softmax(dim=1))
            parts.append((to_rows(v.float())[known], probability[known], labels[known]))
    return Embeddings(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Judge:
    """A mixture of Gaussians fitted to a network's features, each dimension standardised.

    Args:
        rows: (N, D) float, the features; at most :data:`JUDGE_ROWS` of them, drawn at random.
        seed: of the draw and of the starting means.
    """

    def __init__(self, rows: Tensor, seed: int = 0) -> None:
        rng = generator(seed, "judge")
        rows = rows.cpu()[torch.randperm(len(rows), generator=rng)[:JUDGE_ROWS]]
        self.mean, self.std = rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-6)
        self.mixture = GaussianMixture(
            min(COMPONENTS, len(rows)), reg_covar=1e-4, max_iter=50, tol=1e-2, random_state=seed
        )
        with warnings.catch_warnings():  # a judge that is still improving is good enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.mixture.fit(((rows - self.mean) / self.std).numpy())

    def log_prob(self, rows: Tensor) -> Tensor:
        """Return log p of features (N, D) as (N,) float64, in nats, up to a constant."""
        standard = (rows.cpu() - self.mean) / self.std
        return torch.from_numpy(self.mixture.score_samples(standard.numpy()))


def percentiles(values: Tensor) -> Tensor:
    """Return each value's percentile among all, (N,) in 0..100; ties in order of appearance."""
    ranks = values.argsort(stable=True).argsort().float()
    return 100 * ranks / max(1, len(values) - 1)


def boundary_density(
    network: SegmentationNetwork,
    seen: SegmentationDataset,
    unseen: SegmentationDataset,
    *,
    images: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how dense the features are where the decision boundary runs.

    Args:
        network: to be judged.
        seen: training images; their first ``images`` teach the judge.
        unseen: validation images with masks.
        images: of each data set.
        seed: of the judge.

    Returns:
        ``boundary percentile``: mean density percentile of the features at the boundary, NaN where
        there is none; ``boundary share``: their part of all features, in percent; ``error
        percentile``: the same of wrongly classified features.
    """
    judge = Judge(embeddings(network, seen, images).rows, seed)
    there = embeddings(network, unseen, images)
    rank = percentiles(judge.log_prob(there.rows))
    first, second = there.probability.topk(2, dim=1).values.unbind(dim=1)
    boundary = first - second < MARGIN
    wrong = there.probability.argmax(dim=1) != there.labels
    return {
        "boundary percentile": float(rank[boundary.cpu()].mean()),
        "boundary share": 100 * float(boundary.float().mean()),
        "error percentile": float(rank[wrong.cpu()].mean()),
    }


def measure_run(run: Run, *, device: torch.device) -> pd.DataFrame:
    """Measure :func:`boundary_density` of the teacher at every kept checkpoint of a run.

    Returns:
        Columns ``method``, ``seed``, ``step``, ``quantity``, ``value``.
    """
    seen, unseen = data_of(run.config, "train"), data_of(run.config, "val")
    rows = []
    for step, learner in _learners(run, device):
        for quantity, value in boundary_density(learner.teacher, seen, unseen).items():
            rows.append((run.config.method.name, run.config.seed, step, quantity, value))
    return pd.DataFrame(rows, columns=["method", "seed", "step", "quantity", "value"])


def _learners(run: Run, device: torch.device) -> Iterator[tuple[int, Learner]]:
    for path in sorted((run.folder / "checkpoints").glob("step-*.pt")):
        state = read_checkpoint(path, device)
        learner = Learner(run.config, len(run.classes), device)
        learner.load_state_dict(state["learner"])
        yield state["step"], learner
