"""What a matrix of runs will cost, told before any of it is paid: hours and memory.

Neither number needs the data. Both say what they rest on, since neither is a measurement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ddfp_lib.config import Config
from ddfp_lib.matrix import Cell
from ddfp_lib.models.network import SegmentationNetwork, resize

RELEASED_SECONDS = {"supervised": 0.32, "consistency": 0.75, "perturbed": 0.83}
"""Seconds an iteration in the release's logs of VOC 732 and 1464: ResNet-101, 16 + 16 crops of 513,
4 GPUs that it does not name (reproduce/released). Its consistency trains the flow too."""

RELEASED_PIXELS = 2 * 16 * 513 * 513
RELEASED_GPUS = 4
GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """What one run will cost.

    Attributes:
        hours: of training and validation; ``None`` where there is nothing to tell it by.
        basis: what ``hours`` rests on.
        memory: GiB on each GPU, see :func:`training_memory`.
    """

    hours: float | None
    basis: str
    memory: float


def estimate(config: Config, ledger: pd.DataFrame, gpus: int = 1, accumulate: int = 1) -> Estimate:
    """Estimate the cost of a run.

    Hours come from earlier runs of the same benchmark and method where the ledger has some, on as
    many GPUs or on none; else from the release's log, in proportion to pixels a step and to GPUs,
    where the network is the release's.

    Args:
        config: of the run.
        ledger: ``reproduce/results.csv``.
        gpus: processes of the run.
        accumulate: parts in which each of them takes its share of a step's images.
    """
    memory = training_memory(config, gpus * accumulate) / GIB
    known = ledger[
        (ledger["benchmark"] == config.benchmark)
        & (ledger["method"] == config.method.name)
        & ledger["gpus"].fillna(0).isin([0, gpus])
    ]
    training = config.training
    if len(known):
        each = (known["seconds"] / known["steps"]).mean()
        on = ", ".join(known["gpu"].fillna("a CPU").unique())
        basis = f"runs in reproduce/results.csv, on {on}"
        return Estimate(each * training.steps / 3600, basis, memory)
    if config.network.encoder != "resnet101":
        return Estimate(None, "nothing like it was measured yet", memory)
    seconds, method = RELEASED_SECONDS, config.method
    ends = {  # the stage that begins at this part of the steps
        "consistency": training.consistency_from if method.consistency else 1.0,
        "perturbed": training.perturb_from if method.perturbation != "none" else 1.0,
    }
    each = seconds["supervised"]
    for before, stage in (("supervised", "consistency"), ("consistency", "perturbed")):
        each += (1 - ends[stage]) * (seconds[stage] - seconds[before])
    share = pixels(config) / RELEASED_PIXELS * RELEASED_GPUS / gpus
    basis = f"the release's log, 4 GPUs that it does not name, scaled to {gpus} and by pixels"
    return Estimate(each * training.steps * share / 3600, basis, memory)


def pixels(config: Config) -> int:
    """Return the number of image pixels that one step sees, over all processes."""
    height, width = config.data.augment.size
    training = config.training
    return height * width * (training.batch_labeled + training.batch_unlabeled)


def training_memory(config: Config, parts: int = 1) -> int:
    """Count the bytes that a training step keeps on each GPU, without computing anything.

    Weights of student and teacher, gradients, the optimizer's moments, and what autograd keeps for
    the backward pass of labeled, strong and perturbed images, in float32. Left out: the density
    estimator, the workspace of convolutions, what the allocator holds back. bfloat16 about halves
    the activations.

    Args:
        config: of the run; backbones of any kind.
        parts: that a step's images are taken in, side by side on GPUs or one after another.
    """
    method, training = config.method, config.training
    classes = _classes(config)
    with torch.device("meta"):  # shapes alone: no memory, no arithmetic
        network = SegmentationNetwork(config.bare().network, classes)
        shares = [-(-n // parts) for n in (training.batch_labeled, training.batch_unlabeled)]
        labeled, unlabeled = shares if method.consistency else (shares[0], 0)
        images = torch.empty(labeled + unlabeled, 3, *config.data.augment.size)
        labels = torch.empty(len(images), *images.shape[2:], dtype=torch.int64)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def classified(embedded: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(resize(network.classify(embedded), target.shape[1:]), target)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network.encode(images)
        clean = network.embed(features)
        losses = [classified(clean, labels)]  # alive, and with them what they need
        if method.perturbation != "none":
            at_features = method.perturb_at == "features"
            moved = network.embed(features[labeled:]) if at_features else clean[labeled:]
            losses.append(classified(moved, labels[labeled:]))
    weights = {p.untyped_storage()._cdata: p for p in network.parameters()}
    activations = sum(
        tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights
    )
    copies = 4 if training.optimizer == "sgd" else 5
    return activations + copies * sum(p.numel() * p.element_size() for p in weights.values())


def fitting_parts(config: Config, processes: int, memory: int) -> int:
    """Return the fewest parts of each process's share with which a step should fit its GPU.

    Counted by :func:`training_memory`, and so in float32: with half precision there is room left.

    Args:
        config: of the run.
        processes: that share the batch.
        memory: of each GPU, bytes; a fifth of it is left for what is not counted.

    Returns:
        A number that divides the shares of labeled and unlabeled images; as many parts as there are
        images where nothing fits.
    """
    training = config.training
    sizes = [training.batch_labeled]
    sizes += [training.batch_unlabeled] if config.method.consistency else []
    shares = [max(1, size // processes) for size in sizes]
    choices = [n for n in range(1, min(shares) + 1) if all(share % n == 0 for share in shares)]
    fitting = (n for n in choices if training_memory(config, processes * n) <= 0.8 * memory)
    return next(fitting, choices[-1])


def _classes(config: Config) -> int:
    from ddfp_lib.data import camvid, cityscapes, voc

    names = {"camvid": camvid.COLOURS, "cityscapes": cityscapes.CLASSES, "voc": voc.CLASSES}
    dataset = config.data.dataset
    return config.data.digits.classes + 1 if dataset == "digits" else len(names[dataset])


def table(cells: Sequence[Cell], ledger: pd.DataFrame, gpus: int = 1, accumulate: int = 1) -> str:
    """Return the plan of a matrix as text: a line a method and split, a sum, and its grounds."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.config.data.split, cell.config.method.name), []).append(cell)
    lines = ["labeled     method           runs     steps  images seen  hours a run  GiB a GPU"]
    grounds, hours, unknown = {}, 0.0, 0
    for (split, method), runs in groups.items():
        config = runs[0].config
        training = config.training
        cost = estimate(config, ledger, gpus, accumulate)
        batch = training.batch_labeled
        batch += training.batch_unlabeled if config.method.consistency else 0
        each = "?" if cost.hours is None else f"{cost.hours:.2f}"
        finished = sum(cell.finished() for cell in runs)
        lines.append(
            f"{split:<11} {method:<14} {len(runs):>6} {training.steps:>9,} "
            f"{training.steps * batch:>12,} {each:>12} {cost.memory:>10.1f}"
            + (f"  {finished} finished" if finished else "")
        )
        grounds[cost.basis] = None
        left = len(runs) - finished
        hours += left * (cost.hours or 0)
        unknown += left * (cost.hours is None)
    told = f"about {hours:.1f} hours one after another" if unknown < len(cells) else "hours unknown"
    told += f", and {unknown} runs of unknown length" if 0 < unknown < len(cells) else ""
    return "\n".join(
        [
            *lines,
            f"{len(cells)} runs, {told}",
            f"hours: {'; '.join(grounds)}",
            "memory: counted for float32, not measured: weights, gradients, optimizer, activations",
        ]
    )
