"""The page on pictures: density percentile and class of each feature, before and after a step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfp_lib.config import Config, find_benchmark, load_config
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.descent import Trained
from ddfp_lib.evaluation.mechanism import percentiles
from ddfp_lib.explorer.encoding import data_url, packed
from ddfp_lib.method.perturb import (
    AdversarialVAT,
    DensityDescent,
    FeaturePerturbation,
    UniformNoise,
)
from ddfp_lib.models.network import evaluating
from ddfp_lib.plots.training import panels
from ddfp_lib.runs.folder import Run
from ddfp_lib.seeds import generator
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import Learner, load_learner
from ddfp_lib.training.loop import train

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
DIRECTIONS = ("descent", "random", "adversarial")

IMAGES = 8
"""Images of the data set that the page shows at most."""

REFERENCE_IMAGES = 60
"""Images whose confident features percentiles are taken among."""

LARGE = 96
"""Images with a longer side are stored as JPEG."""

SETTINGS = {
    "data.digits.classes": 3,
    "data.digits.digits": [1, 1],
    "data.digits.digit_size": [26, 36],
    "data.digits.train": 400,
    "data.digits.val": 60,
    "data.digits.test": 10,
    "data.labeled": 60,
    "eps": 1.0,
    "training.steps": 240,
    "training.batch_unlabeled": 8,
    "training.consistency_from": 0.25,
    "training.perturb_from": 0.4,
    "training.ema_decay": 0.95,
    "training.evaluate_every": 240,
    "training.checkpoint_every": 240,
}
"""The run of the page, small enough for a CPU: lesson 3 trains the same one."""


def small_run(folder: Path, settings: dict[str, Any] | None = None) -> Learner:
    """Train DDFP on small digit scenes in ``folder`` and return what it learned.

    Args:
        folder: folder of the run.
        settings: keys that differ from :data:`SETTINGS`.
    """
    given = [f"{key}={value}" for key, value in (SETTINGS | (settings or {})).items()]
    config = load_config(find_benchmark("digits"), "ddfp", 0, given)
    train(config, folder, device=torch.device("cpu"))
    return load_learner(Run.open(folder), torch.device("cpu"))


def learner_of(folder: Path, root: Path | None) -> Learner:
    """Return what a finished run has learned, on the CPU.

    Args:
        folder: folder of the run.
        root: folder of its data set now; None: the folder that the run used.

    Raises:
        UserError: the run is not finished, or it learned no density.
    """
    learner = load_learner(Run.open(folder), torch.device("cpu"))
    if learner.density is None:
        raise UserError(
            f"{folder}: the run has learned no density, so there is none to show; give a run of "
            "a method with one, such as ddfp"
        )
    learner.config = learner.config.at(root)
    return learner


def picture_data(
    learner: Trained,
    dataset: SegmentationDataset,
    *,
    images: int = IMAGES,
    lengths: Sequence[float] = LENGTHS,
    others: Sequence[tuple[str, Tensor]] = (),
) -> dict[str, Any]:
    """Measure steps of three directions and several lengths from each feature of some images.

    As in training, confident features move, all of an image at once; the others stay. Log-densities
    are those of the flow, percentiles are taken among the confident features of the data set.

    Args:
        learner: with a density estimator.
        dataset: images with masks.
        images: number of images that are shown, spread over the data set.
        lengths: lengths of the steps, in units of the features.
        others: names and images, uint8 (3, H, W), without masks.

    Returns:
        Numbers, lists and base64 texts, ready for JSON; ``templates/pictures.js`` reads them.
    """
    reference = _reference(learner, dataset)
    chosen = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).long().unique().tolist()
    shown: list[tuple[str, Tensor, Tensor | None]] = [
        (f"scene {n + 1}", dataset.image(index), dataset.mask(index))
        for n, index in enumerate(chosen)
    ]
    shown += [(name, image, None) for name, image in others]
    return {
        "classes": list(dataset.classes),
        "palette": [list(colour) for colour in dataset.palette],
        "lengths": list(lengths),
        "confidence": learner.config.training.confidence,
        "features": len(reference),
        "images": [
            {
                "name": name,
                "height": image.shape[1],
                "width": image.shape[2],
                "image": data_url(image, 85 if max(image.shape) > LARGE else None),
                "truth": None if mask is None else packed(mask, "u1"),
                **_steps(learner, image, lengths, reference),
            }
            for name, image, mask in shown
        ],
    }


@torch.no_grad()
def _reference(learner: Trained, dataset: SegmentationDataset) -> Tensor:
    """Return the log-densities of confident features of the data set, (N,), sorted."""
    found, seen = [], 0
    models = learner.feature_models(generator("unused"), learner.teacher)
    with evaluating(learner.teacher):
        for pictures, _ in evaluation_batches(dataset, 16):
            features = _moved_features(learner, pictures)
            confident = models.logits(features).softmax(1).amax(1) > _confidence(learner)
            found.append(models.log_density(features)[confident])
            seen += len(pictures)
            if seen >= REFERENCE_IMAGES:
                break
    values = torch.cat(found).sort().values
    if len(values) < 2:
        raise UserError(
            "the network is confident nowhere, so percentiles have no meaning; train it for longer"
        )
    return values


@torch.no_grad()
def _steps(
    learner: Trained, image: Tensor, lengths: Sequence[float], reference: Tensor
) -> dict[str, Any]:
    """Return density, percentile and class of each feature of an image, before and after steps."""
    models = learner.feature_models(generator("unused"), learner.teacher)
    with evaluating(learner.teacher):
        features = _moved_features(learner, image[None])
        probability, labels = models.logits(features).softmax(1).max(1)
        moved = probability > _confidence(learner)
        after = {}
        for direction in DIRECTIONS:
            for eps in lengths:
                step = _perturbation(direction, eps)
                rng = generator("explorer", direction)
                there = features + step(features, moved, models, rng)
                log_prob = models.log_density(there)[0]
                after[f"{direction} {eps:g}"] = {
                    "log_prob": packed(log_prob, "f4"),
                    "percentile": _percentile_bytes(log_prob, reference),
                    "label": packed(models.logits(there).argmax(1)[0], "u1"),
                }
        before = models.log_density(features)[0]
    return {
        "rows": features.shape[2],
        "columns": features.shape[3],
        "log_prob": packed(before, "f4"),
        "percentile": _percentile_bytes(before, reference),
        "label": packed(labels[0], "u1"),
        "confident": packed(moved[0], "u1"),
        "after": after,
    }


def _moved_features(learner: Trained, pictures: Tensor) -> Tensor:
    """Return what the run's method moves, (B, C, H, W): features F, or embeddings v."""
    features = learner.teacher.encode(pictures.to(learner.device) / 255)
    at_embedding = learner.config.method.perturb_at == "embedding"
    return learner.teacher.embed(features) if at_embedding else features


def _confidence(learner: Trained) -> float:
    return learner.config.training.confidence


def _perturbation(direction: str, eps: float) -> FeaturePerturbation:
    kinds = {"descent": DensityDescent, "random": UniformNoise, "adversarial": AdversarialVAT}
    return kinds[direction](eps)


def _percentile_bytes(log_prob: Tensor, reference: Tensor) -> str:
    """Return percentiles, rounded to whole percent."""
    return packed(percentiles(log_prob.flatten(), reference).round(), "u1")


def photos(height: int = 128, width: int = 192) -> list[tuple[str, Tensor]]:
    """Return the middle of scikit-learn's two photographs, uint8 (3, height, width)."""
    from sklearn.datasets import load_sample_images

    cut = []
    for name, photo in zip(("China", "flower"), load_sample_images().images, strict=True):
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        middle = photo[top : top + height, left : left + width]
        cut.append((f"photograph: {name}", torch.from_numpy(middle.copy()).permute(2, 0, 1)))
    return cut


def still(learner: Trained, dataset: SegmentationDataset) -> tuple[bytes, str]:
    """Return the picture for browsers without scripts, as PNG, and its description."""
    chosen = torch.linspace(0, len(dataset) - 1, min(6, len(dataset))).long().tolist()
    models = learner.feature_models(generator("unused"), learner.teacher)
    before, falls = [], []
    with torch.no_grad(), evaluating(learner.teacher):
        for index in chosen:
            features = _moved_features(learner, dataset.image(index)[None])
            moved = models.logits(features).softmax(1).amax(1) > _confidence(learner)
            step = DensityDescent(learner.config.eps)(features, moved, models, generator("unused"))
            here, there = models.log_density(features), models.log_density(features + step)
            blank = torch.full_like(here, float("nan"))
            before.append(here.where(moved, blank)[0])
            falls.append((here - there).where(moved, blank)[0])
    alt = (
        "Three rows of maps for a few images: the image, the log-density of its confident "
        "features, and by how much it falls under one step of density descent."
    )
    rows = {
        "image": [dataset.image(index) for index in chosen],
        "log p": before,
        "fall by descent": falls,
    }
    return panels(rows).png(), alt


def validation_of(config: Config) -> SegmentationDataset:
    """Return the validation images of a run."""
    return data_of(config, "val")
