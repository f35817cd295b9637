"""The process of one checkout for :mod:`bench.photos`: takes steps, evaluates, answers.

This file runs on its own, with another checkout's ``ddfp_lib``: it imports nothing of ``bench``,
and of ``ddfp_lib`` what every checkout since e01cd57 has.
"""

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLASSES = 7
LONG_SIDE = 320
CROP = 160
IMAGES = 6
BATCHES = 4
WARM_UP = 3
SETTINGS = (
    "eps=3.0",
    f"data.augment.crop={CROP}",
    "data.augment.scale=[0.5,2.0]",
    "data.augment.flip=true",
    "network.encoder=tf_efficientnet_lite0",
    "network.low_width=24",
    "network.aspp_width=64",
    "network.dilations=[6,12,18]",
    "network.embedding=64",
    "density.hidden=128",
    "density.samples=4096",
    f"training.batch_labeled={IMAGES}",
    f"training.batch_unlabeled={IMAGES}",
    "training.lr_encoder=3.0e-4",
    "training.lr_head=3.0e-3",
    "training.confidence=0.9",
    "training.ema_decay=0.995",
)

MOVED = {
    "Learner": ("ddfp_lib.training.learner", "ddfp_lib.training.objective"),
    "training_step": ("ddfp_lib.training.step", "ddfp_lib.training.objective"),
    "evaluate": ("ddfp_lib.evaluation.scores", "ddfp_lib.evaluation"),
    "evaluate_all": ("ddfp_lib.evaluation.scores",),
    "segment": ("ddfp_lib.evaluation.prediction", "ddfp_lib.prediction"),
    "segment_all": ("ddfp_lib.evaluation.prediction",),
    "Pictures": ("ddfp_lib.evaluation.prediction",),
    "data_of": ("ddfp_lib.training.data", "ddfp_lib.training.loop"),
    "split_of": ("ddfp_lib.training.data", "ddfp_lib.training.loop"),
}
"""Where a checkout has what is measured: now, and at e01cd57."""


def found(name: str) -> Any:
    """Return a class or function of this process's checkout, wherever it has it."""
    for module in MOVED[name]:
        try:
            place = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:  # the module is there, something that it needs is not
                raise
        else:
            if hasattr(place, name):
                return getattr(place, name)
    raise ModuleNotFoundError(f"this checkout has {name} in none of {', '.join(MOVED[name])}")


def make_batches(count: int) -> list[Any]:
    """Make batches from scikit-learn's photographs; their masks are seven steps of brightness."""
    from sklearn.datasets import load_sample_images
    from torchvision.transforms.v2 import functional

    from ddfp_lib.data.augment import AugmentConfig
    from ddfp_lib.data.base import SegmentationDataset

    class Photographs(SegmentationDataset):
        """Two photographs, as a data set."""

        def __init__(self) -> None:
            self.name, self.names = "photographs", ["china", "flower"]
            self.classes = tuple(f"brightness {step}" for step in range(CLASSES))
            self.palette = tuple((step, step, step) for step in range(CLASSES))
            self.scenes = []
            for photo in load_sample_images().images:
                image = torch.from_numpy(photo.copy()).movedim(2, 0)
                size = [LONG_SIDE * side // max(image.shape[1:]) for side in image.shape[1:]]
                self.scenes.append(functional.resize(image, size, antialias=True))

        def image(self, index: int) -> Tensor:
            return self.scenes[index]

        def mask(self, index: int) -> Tensor:
            return (self.scenes[index].float().mean(0) * CLASSES // 256).to(torch.uint8)

    return _batches(
        Photographs(), ([0, 1], [0, 1]), AugmentConfig(crop=CROP), (IMAGES, IMAGES), count
    )


def scene_batches(config: Any, count: int) -> list[Any]:
    """Make the first batches of a run on digit scenes."""
    scenes, training = found("data_of")(config, "train"), config.training
    unlabeled = training.batch_unlabeled if config.method.consistency else 0
    sizes, split = (training.batch_labeled, unlabeled), found("split_of")(config, scenes)
    return _batches(scenes, split, config.data.augment, sizes, count)


def _batches(
    images: Any, split: Any, augment: Any, sizes: tuple[int, int], count: int
) -> list[Any]:
    """Make batches of a data set.

    Args:
        images: the data set.
        split: indices of its labeled and of its unlabeled images.
        augment: how views are made.
        sizes: labeled and unlabeled images of a batch.
        count: number of batches.
    """
    from ddfp_lib.data.loaders import training_batches

    labeled, unlabeled = sizes
    batches = training_batches(
        images,
        *split,
        augment,
        batch_labeled=labeled,
        batch_unlabeled=unlabeled,
        seed=0,
        start_step=0,
        stop_step=count,
    )
    return list(batches)


def prepare(method: str, digits: bool = False) -> tuple[Any, Callable[[int], object]]:
    """Return a learner, and what takes step number n of its run's last stage.

    Args:
        method: name of a preset.
        digits: the step of the benchmark ``digits`` instead of that on photographs.
    """
    from ddfp_lib.config import find_benchmark, load_config

    settings = [] if digits else list(SETTINGS)
    config = load_config(find_benchmark("digits"), method, 0, settings)
    batches = scene_batches(config, BATCHES) if digits else make_batches(BATCHES)
    classes = len(found("data_of")(config, "train").classes) if digits else CLASSES
    learner = found("Learner")(config, classes, torch.device("cpu"))
    step, first = found("training_step"), config.training.steps // 2
    return learner, lambda n: step(learner, batches[n % BATCHES], first + n)


def resident() -> int:
    """Return the memory that this process holds now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def gradient(double: bool) -> Tensor:
    """Return the gradient of one supervised loss in all of the student's weights, (P,) float64."""
    learner, _ = prepare("supervised")
    batch, student = make_batches(1)[0], learner.student
    if double:
        student.double()
    images = (batch.labeled_images / 255).to(student.mean.dtype)
    logits = student(images)
    torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=255).backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    return torch.cat([grad.flatten().double() for grad in grads])


def stored_networks(saved: dict[str, Any]) -> list[Any]:
    """Make the networks of a file that :func:`bench.photo_evaluation.store` wrote."""
    from ddfp_lib.config import NetworkConfig
    from ddfp_lib.models.network import SegmentationNetwork

    known = {field.name for field in dataclasses.fields(NetworkConfig)}
    config = NetworkConfig(**{key: v for key, v in saved["network"].items() if key in known})
    networks = []
    for weights in saved["weights"].values():
        network = SegmentationNetwork(config, saved["classes"])
        network.load_state_dict(weights)
        for name in ("mean", "std"):  # e01cd57 has ImageNet's always
            getattr(network, name).copy_(saved[name])
        networks.append(network.to(memory_format=torch.channels_last).eval())
    return networks


def stored_photographs(saved: dict[str, Any]) -> Any:
    """Open the photographs that such a file names, at most ``long_side`` pixels long."""
    from torchvision.transforms.v2 import functional

    from ddfp_lib.data.base import SegmentationDataset, image_size
    from ddfp_lib.data.voc import Voc

    class Listed(SegmentationDataset):
        """What each checkout reads from the same files; other classes are ignored."""

        def __init__(self) -> None:
            self.files = Voc(saved["data"], saved["list"])
            self.name, self.names = "photographs", self.files.names
            self.classes = tuple(self.files.classes[: saved["classes"]])
            self.palette = tuple(self.files.palette[: saved["classes"]])

        def image(self, index: int) -> Tensor:
            image = self.files.image(index)
            size = self.shape(index)
            return image if image.shape[1:] == size else functional.resize(image, size)

        def mask(self, index: int) -> Tensor:
            mask = self.files.mask(index)
            mask = mask.where(mask < saved["classes"], torch.full_like(mask, 255))
            nearest = functional.InterpolationMode.NEAREST_EXACT
            size = self.shape(index)
            if mask.shape == size:
                return mask
            return functional.resize(mask[None], size, interpolation=nearest)[0]

        def shape(self, index: int) -> tuple[int, int]:
            paths = getattr(self.files, "image_paths", None) or self.files._images
            stored = image_size(paths[index])
            factor = min(1.0, (saved["long_side"] or max(stored)) / max(stored))
            return tuple(max(1, round(side * factor)) for side in stored)

    return Listed()


def evaluation(stored: str) -> float:
    """Return the CPU seconds in which this checkout evaluates student and teacher."""
    saved = torch.load(stored)
    networks, images = stored_networks(saved), stored_photographs(saved)
    begin, where = time.process_time(), torch.device("cpu")
    try:
        found("evaluate_all")(networks, images, device=where)
    except ModuleNotFoundError:  # each network reads the files
        for network in networks:
            found("evaluate")(network, images, device=where)
    return time.process_time() - begin


def labels(stored: str) -> Tensor:
    """Return the class of each pixel by student and teacher, (P,) uint8, image after image."""
    saved = torch.load(stored)
    images, where, parts = stored_photographs(saved), torch.device("cpu"), []
    for network in stored_networks(saved):
        try:
            pictures = found("Pictures").of_dataset(images)
            answers = found("segment_all")(network, pictures, device=where, protocol="whole")
            by_image = {index: classes for index, _, classes in answers}
        except ModuleNotFoundError:
            segment = found("segment")
            by_image = {
                index: segment(network, images.image(index), where)
                for index in range(len(images.names))
            }
        parts += [by_image[index].flatten() for index in range(len(images.names))]
    return torch.cat(parts)


def serve() -> None:
    """Answer requests, one JSON line each, until there are no more: the process of a checkout."""
    torch.set_num_threads(1)
    steps: dict[str, Callable[[int], object]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        method = request.get("method")
        answer: float | str = 0.0
        if request["do"] == "where":
            answer = importlib.import_module("ddfp_lib").__file__
        elif request["do"] == "prepare":
            _, steps[method] = prepare(method, request["digits"])
        elif request["do"] == "step":
            begin = time.process_time()
            steps[method](request["turn"])
            answer = time.process_time() - begin
        elif request["do"] == "memory":
            from ddfp_lib.machine import peak_resident

            _, step = prepare(method)
            before = resident()
            for turn in range(WARM_UP):
                step(turn)
            answer = (peak_resident() - before) / 1e6
        elif request["do"] == "gradient":
            torch.save(gradient(request["double"]), request["path"])
        elif request["do"] == "labels":
            torch.save(labels(request["stored"]), request["path"])
        elif request["do"] == "evaluate":
            answer = evaluation(request["stored"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
