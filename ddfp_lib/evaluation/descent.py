"""Where steps from confident features lead: down the density, at random, adversarially."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddfp_lib.config import Config
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.method.perturb import (
    AdversarialVAT,
    DensityDescent,
    FeatureModels,
    FeaturePerturbation,
    UniformNoise,
)
from ddfp_lib.models.maps import resize_nearest, to_rows
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.seeds import generator

UNPERTURBED = "at rest"
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


class Trained(Protocol):
    """What is measured of a training; a :class:`~ddfp_lib.training.learner.Learner` is one.

    Attributes:
        config: of the run.
        device: where the teacher is.
        teacher: whose features are moved.
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
        judge: an independent log-density of embeddings, (N, D) float to (N,) in nats; see
            :mod:`ddfp_lib.evaluation.mechanism`.
    """
    network, rng = learner.teacher, generator(seed, 3, device=learner.device)
    models = learner.feature_models(rng, network)
    steps: dict[str, FeaturePerturbation] = {
        "density descent": DensityDescent(eps),
        "random": UniformNoise(eps),
        "adversarial (VAT)": AdversarialVAT(eps),
    }
    log_p: dict[str, list[Tensor]] = {name: [] for name in (UNPERTURBED, *steps)}
    kept, right, judged = ({name: [] for name in log_p} for _ in range(3))

    def embed(features: Tensor) -> Tensor:
        at_embedding = learner.config.method.perturb_at == "embedding"
        return features if at_embedding else network.embed(features, eval_mode=True)

    with evaluating(network):
        for number, (pictures, masks) in enumerate(evaluation_batches(dataset, batch_size)):
            if number * batch_size >= images:
                break
            features = network.encode(pictures.to(learner.device) / 255)
            if learner.config.method.perturb_at == "embedding":
                features = network.embed(features)
            truth = resize_nearest(masks.to(learner.device), features.shape[2:])
            probability, labels = models.logits(features).softmax(dim=1).max(dim=1)
            confident = probability > learner.config.training.confidence
            moved = confident & (truth != IGNORE_INDEX)
            places = {UNPERTURBED: features}
            for name, step in steps.items():
                places[name] = features + step(features, moved, models, rng)
            for name, place in places.items():
                v = embed(place)
                predicted = network.classify(v).argmax(dim=1)
                log_p[name].append(models.log_density(place)[moved])
                kept[name].append((predicted == labels)[moved])
                right[name].append((predicted == truth)[moved])
                if judge is not None:
                    judged[name].append(judge(to_rows(v)[moved.flatten()]))
    after = {name: torch.cat(values).cpu() for name, values in log_p.items()}
    return Descent(
        after.pop(UNPERTURBED),
        after,
        {name: _part(kept[name]) for name in steps},
        {name: _part(values) for name, values in right.items()},
        {name: torch.cat(values).cpu() for name, values in judged.items() if values},
    )


def _part(truths: list[Tensor]) -> float:
    return float(torch.cat(truths).float().mean())
