"""Where steps from confident features lead: density descent, random, adversarial."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddfp_lib.config import Config
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.evaluation.features import labeled_features
from ddfp_lib.method.perturb import (
    AdversarialVAT,
    DensityDescent,
    FeatureModels,
    FeaturePerturbation,
    UniformNoise,
)
from ddfp_lib.models.maps import to_rows
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.seeds import generator

UNPERTURBED = "at rest"
"""The key of unperturbed features in :class:`Descent`, and in stored tables."""


@dataclass(frozen=True)
class Descent:
    """Log-densities of confidently predicted features, before and after a step, in nats.

    Attributes:
        before: (N,) float, log p(v) of the features.
        after: for each kind of step (N,) float, log p(v) of the same features after it.
        kept: for each kind of step the fraction of features whose predicted class it keeps.
        right: for unperturbed features (key :data:`UNPERTURBED`) and for each kind of step the
            fraction of features that are predicted correctly.
        independent: for the same keys (N,) float, the log-density of the embeddings by an
            independent estimator; empty without one.
        divergence: for each kind of step the mean KL divergence of the class probabilities after
            it from those before, in nats.
        relative_length: mean of ``eps / |F|`` over these features.
    """

    before: Tensor
    after: dict[str, Tensor]
    kept: dict[str, float]
    right: dict[str, float]
    independent: dict[str, Tensor]
    divergence: dict[str, float]
    relative_length: float


class Trained(Protocol):
    """What is measured of a training; a :class:`~ddfp_lib.training.learner.Learner` is one.

    Attributes:
        config: configuration of the run.
        device: device that the teacher is on.
        teacher: the network whose features are moved.
    """

    config: Config
    device: torch.device
    teacher: SegmentationNetwork

    def feature_models(
        self, dropout: torch.Generator, network: SegmentationNetwork | None = None
    ) -> FeatureModels:
        """Return density and classifier as functions of the features of ``network``."""
        ...


@torch.no_grad()
def measure_descent(
    learner: Trained,
    dataset: SegmentationDataset,
    *,
    eps: float,
    images: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    independent: Callable[[Tensor], Tensor] | None = None,
) -> Descent:
    """Perturb the features of a trained network in three directions and measure the density.

    All steps have length eps and start from the features F of the teacher's confident pixels:
    density descent, a random direction, and the direction in which the prediction changes fastest.

    Args:
        learner: with a density estimator.
        dataset: images with masks.
        eps: length of the steps, in units of F.
        images: number of images, the first ones of the data set.
        batch_size: number of images at a time; on a GPU fewer of large ones, as for scores.
        seed: seed of the random steps.
        independent: log-density of embeddings by an estimator that no method trained with,
            (N, D) float to (N,) in nats; see :mod:`ddfp_lib.evaluation.mechanism`.
    """
    network, rng = learner.teacher, generator(seed, 3, device=learner.device)
    models = learner.feature_models(rng, network)
    steps: dict[str, FeaturePerturbation] = {
        "density descent": DensityDescent(eps),
        "random": UniformNoise(eps),
        "adversarial (VAT)": AdversarialVAT(eps),
    }
    log_p: dict[str, list[Tensor]] = {name: [] for name in (UNPERTURBED, *steps)}
    kept, right, at_density, divergence = ({name: [] for name in log_p} for _ in range(4))
    relative: list[Tensor] = []

    def embed(features: Tensor) -> Tensor:
        at_embedding = learner.config.method.perturb_at == "embedding"
        return features if at_embedding else network.embed(features, eval_mode=True)

    with evaluating(network):
        for features, truth in labeled_features(network, dataset, images, batch_size):
            if learner.config.method.perturb_at == "embedding":
                features = network.embed(features)
            logits = network.classify(embed(features)).float()
            before = logits.log_softmax(dim=1)
            probability, labels = logits.softmax(dim=1).max(dim=1)
            confident = probability > learner.config.training.confidence
            moved = confident & (truth != IGNORE_INDEX)
            relative.append((eps / features.norm(dim=1))[moved])
            places = {UNPERTURBED: features}
            for name, step in steps.items():
                places[name] = features + step(features, moved, models, rng)
            for name, place in places.items():
                v = embed(place)
                found = network.classify(v).float().log_softmax(dim=1)
                predicted = found.argmax(dim=1)
                divergence[name].append((before.exp() * (before - found)).sum(dim=1)[moved])
                log_p[name].append(models.log_density(place)[moved])
                kept[name].append((predicted == labels)[moved])
                right[name].append((predicted == truth)[moved])
                if independent is not None:
                    at_density[name].append(independent(to_rows(v)[moved.flatten()]))
    after = {name: torch.cat(values).cpu() for name, values in log_p.items()}
    return Descent(
        after.pop(UNPERTURBED),
        after,
        {name: _mean(kept[name]) for name in steps},
        {name: _mean(values) for name, values in right.items()},
        {name: torch.cat(values).cpu() for name, values in at_density.items() if values},
        {name: _mean(divergence[name]) for name in steps},
        _mean(relative),
    )


def _mean(values: list[Tensor]) -> float:
    return float(torch.cat(values).float().mean())
