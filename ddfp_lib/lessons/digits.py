"""The small digit scenes of the lessons: three kinds of digits, and one large digit per scene."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from ddfp_lib.config import Config, find_benchmark, load_config
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import Batch, evaluation_batches, training_batches
from ddfp_lib.evaluation.prediction import overlay
from ddfp_lib.method.perturb import DensityDescent, FeatureModels, UniformNoise
from ddfp_lib.models.maps import at_centres, to_rows
from ddfp_lib.models.network import evaluating
from ddfp_lib.plots.style import CLASS_COLOURS
from ddfp_lib.seeds import generator
from ddfp_lib.training.data import data_of, split_of
from ddfp_lib.training.learner import Learner

PALETTE = [(64, 64, 64)] + [tuple(round(255 * x) for x in to_rgb(c)) for c in CLASS_COLOURS]
"""Background, then the colors that classes have in every lesson, 0..255."""


def small_config(method: str, seed: int, steps: int, *overrides: str) -> Config:
    """Return the benchmark's configuration of a method, made small.

    Args:
        method: name of a preset.
        seed: seed of the run.
        steps: number of training steps; the benchmark has 2,000.
        overrides: more settings, each ``key=value``.
    """
    smaller = {
        "data.digits.classes": 3,
        "data.digits.digits": [1, 1],
        "data.digits.digit_size": [26, 36],
        "data.digits.train": 400,
        "data.digits.val": 60,
        "data.digits.test": 120,
        "data.labeled": 60,
        "eps": 1.0,
        "training.steps": steps,
        "training.batch_unlabeled": 8,
        "training.consistency_from": 0.25,
        "training.perturb_from": 0.4,
        "training.ema_decay": 0.95,
        "training.evaluate_every": max(1, steps // 8),
        "training.checkpoint_every": max(1, steps // 2),
    }
    settings = [f"{key}={value}" for key, value in smaller.items()]
    return load_config(find_benchmark("digits"), method, seed, [*settings, *overrides])


def batch_of_step(config: Config, step: int) -> Batch:
    """Return the batch that training takes at a step."""
    scenes, training = data_of(config, "train"), config.training
    labeled, unlabeled = split_of(config, scenes)
    batches = training_batches(
        scenes,
        labeled,
        unlabeled,
        config.data.augment,
        batch_labeled=training.batch_labeled,
        batch_unlabeled=training.batch_unlabeled,
        seed=config.seed,
        start_step=step,
        stop_step=step + 1,
    )
    return next(batches)


def tinted(images: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
    """Return images with their classes' colors laid over them; the background stays as it is."""
    shown = [found.where(found > 0, IGNORE_INDEX) for found in labels]
    return [overlay(*pair, PALETTE) for pair in zip(images, shown, strict=True)]


@dataclass(frozen=True)
class Steps:
    """Features of images before and after steps, see :func:`steps_of`.

    Attributes:
        images: (N, 3, H, W) uint8.
        moved: (N, h, w) bool, the confident features.
        classes: (N, h, w) true classes.
        log_p: for each kind of step its (N, h, w) log-densities, in nats.
        v: for each kind of step the (M, D) embeddings of the moved features.
    """

    images: Tensor
    moved: Tensor
    classes: Tensor
    log_p: dict[str, Tensor]
    v: dict[str, Tensor]


@torch.no_grad()
def steps_of(learner: Learner, dataset: SegmentationDataset) -> Steps:
    """Perturb the teacher's confident features of all images by a random step and by descent."""
    images, masks = next(evaluation_batches(dataset, len(dataset)))
    network, config, rng = learner.teacher, learner.config, generator("map")
    with evaluating(network):
        models: FeatureModels = learner.feature_models(rng, network)
        features = network.encode(images / 255)
        truth = at_centres(masks, features.shape[2:])
        confidence = models.logits(features).softmax(1).amax(1)
        moved = (confidence > config.training.confidence) & (truth != IGNORE_INDEX)
        random, descent = UniformNoise(config.eps), DensityDescent(config.eps)
        places = {
            "unperturbed": features,
            "random step": features + random(features, moved, models, rng),
            "density descent": features + descent(features, moved, models, rng),
        }
        log_p = {name: models.log_density(place) for name, place in places.items()}
        v = {
            name: to_rows(network.embed(place, eval_mode=True))[moved.flatten()]
            for name, place in places.items()
        }
    return Steps(images, moved, truth, log_p, v)
