"""What runs say: means, paired differences with their uncertainty, and where features go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.models.network import evaluating
from ddfp_lib.perturb import AdversarialVAT, DensityDescent, FeaturePerturbation, UniformNoise
from ddfp_lib.seeds import generator
from ddfp_lib.training.objective import Learner, resize_nearest, to_rows


def score_table(ledger: pd.DataFrame, score: str = "test_miou") -> pd.DataFrame:
    """Return one row a method: mean, spread and each seed.

    Args:
        ledger: see :func:`ddfp_lib.matrix.ledger`.
        score: the column to tabulate, mIoU in percent.

    Returns:
        Columns ``mean``, ``std`` (of single runs, n - 1), ``seed 0``, ...; methods in the ledger's
        order.
    """
    seeds = ledger.pivot(index="method", columns="seed", values=score)
    seeds = seeds.reindex(ledger["method"].unique())
    table = seeds.rename(columns=lambda seed: f"seed {seed}")
    table.insert(0, "mean", seeds.mean(axis=1))
    table.insert(1, "std", seeds.std(axis=1))
    return table.rename_axis(columns=None)


def paired_difference(
    ledger: pd.DataFrame,
    method: str,
    rival: str,
    score: str = "test_miou",
    confidence: float = 0.95,
) -> dict[str, float]:
    """Compare two methods seed by seed.

    Both methods see the same scenes, split and data order under one seed, so that differences vary
    less than scores. The interval is Student's t over the differences.

    Returns:
        ``difference`` (mean of method minus rival), ``low`` and ``high`` of its interval, NaN with
        fewer than two common seeds, and their number ``seeds``.
    """
    wide = ledger.pivot(index="seed", columns="method", values=score)
    if method not in wide or rival not in wide:
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "seeds": 0}
    gaps = (wide[method] - wide[rival]).dropna()
    low, high = np.nan, np.nan
    if len(gaps) > 1 and gaps.std() == 0:
        low = high = gaps.mean()
    elif len(gaps) > 1:
        low, high = stats.t.interval(confidence, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
    return {"difference": gaps.mean(), "low": low, "high": high, "seeds": len(gaps)}


def difference_table(ledger: pd.DataFrame, rival: str, score: str = "test_miou") -> pd.DataFrame:
    """Return :func:`paired_difference` of every other method to ``rival``, one row each."""
    others = [name for name in ledger["method"].unique() if name != rival]
    rows = {name: paired_difference(ledger, name, rival, score) for name in others}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def signed(difference: Mapping[str, float]) -> str:
    """Write a :func:`paired_difference` in points, as ``+1.7 (+0.7 to +2.8)``; never as -0.0."""
    gap, low, high = (f"{difference[name]:+z.1f}" for name in ("difference", "low", "high"))
    return gap if np.isnan(difference["low"]) else f"{gap} ({low} to {high})"


def verdict(difference: dict[str, float]) -> str:
    """Say in words what an interval allows one to say."""
    low, high = difference["low"], difference["high"]
    if np.isnan(low):
        return "one seed: no statement about noise is possible"
    if low > 0:
        return "better, beyond the noise of these seeds"
    if high < 0:
        return "worse, beyond the noise of these seeds"
    return "not told apart from the noise of these seeds"


AT_REST = "at rest"
"""How :class:`Descent` calls features that were not moved."""


@dataclass(frozen=True)
class Descent:
    """Log-densities of confidently predicted features, at rest and after a step, in nats.

    Attributes:
        before: (N,) float, log p(v) of the features.
        after: for each kind of step its (N,) float, same features in the same order.
        kept: for each kind of step the part of features that the classifier still gives the
            class it gave before.
        right: ``at rest`` and for each kind of step the part of features that the classifier
            gives their true class.
        judged: ``at rest`` and for each kind of step its (N,) float, what the judge says of the
            embeddings there; empty without a judge.
    """

    before: Tensor
    after: dict[str, Tensor]
    kept: dict[str, float]
    right: dict[str, float]
    judged: dict[str, Tensor]


@torch.no_grad()
def measure_descent(
    learner: Learner,
    dataset: SegmentationDataset,
    *,
    eps: float,
    images: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    judge: Callable[[Tensor], Tensor] | None = None,
) -> Descent:
    """Step from a trained network's features in three directions and ask the flow where it leads.

    All steps have length eps and start from F at the teacher's confident pixels: down the density,
    at random, and to where the prediction changes fastest.

    Args:
        learner: with a density estimator.
        dataset: images with masks.
        eps: length of the steps, in units of F.
        images: how many images, the first ones.
        batch_size: images at a time.
        seed: of the random steps.
        judge: asked about embeddings v, (N, D) float to (N,); see :mod:`ddfp_lib.mechanism`.
    """
    network, rng = learner.teacher, generator(seed, 3, device=learner.device)
    query = learner.query(rng, network)
    steps: dict[str, FeaturePerturbation] = {
        "density descent": DensityDescent(eps),
        "random": UniformNoise(eps),
        "adversarial (VAT)": AdversarialVAT(eps),
    }
    log_p: dict[str, list[Tensor]] = {name: [] for name in (AT_REST, *steps)}
    kept, right, judged = ({name: [] for name in log_p} for _ in range(3))

    def embed(features: Tensor) -> Tensor:
        at_embedding = learner.config.method.perturb_at == "embedding"
        return features if at_embedding else network.embed(features, frozen=True)

    with evaluating(network):
        for number, (pictures, masks) in enumerate(evaluation_batches(dataset, batch_size)):
            if number * batch_size >= images:
                break
            features = network.encode(pictures.to(learner.device) / 255)
            if learner.config.method.perturb_at == "embedding":
                features = network.embed(features)
            truth = resize_nearest(masks.to(learner.device), features.shape[2:])
            probability, labels = query.logits(features).softmax(dim=1).max(dim=1)
            confident = probability > learner.config.training.confidence
            moved = confident & (truth != IGNORE_INDEX)
            places = {AT_REST: features}
            for name, step in steps.items():
                places[name] = features + step(features, moved, query, rng)
            for name, place in places.items():
                v = embed(place)
                predicted = network.classify(v).argmax(dim=1)
                log_p[name].append(query.log_density(place)[moved])
                kept[name].append((predicted == labels)[moved])
                right[name].append((predicted == truth)[moved])
                if judge is not None:
                    judged[name].append(judge(to_rows(v)[moved.flatten()]))
    after = {name: torch.cat(values).cpu() for name, values in log_p.items()}
    return Descent(
        after.pop(AT_REST),
        after,
        {name: _part(kept[name]) for name in steps},
        {name: _part(values) for name, values in right.items()},
        {name: torch.cat(values).cpu() for name, values in judged.items() if values},
    )


def _part(truths: list[Tensor]) -> float:
    return float(torch.cat(truths).float().mean())
