"""Estimate the memory of a training step, and divide its batch into micro-batches."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ddfp_lib.config import Config, NetworkConfig
from ddfp_lib.config.expected import expected_classes
from ddfp_lib.data.workers import default_workers
from ddfp_lib.errors import UserError
from ddfp_lib.models.maps import resize
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.models.shapes import ShapesAlone
from ddfp_lib.ranks import ranks_here, world_size

GIB, MIB = 2**30, 2**20

SHARED = Path("/dev/shm")
"""Where processes of Linux share memory; other systems have no such folder."""

AHEAD = 2
"""Batches that PyTorch's ``DataLoader`` makes ahead in each worker, by default."""


def training_memory(config: Config, parts: int = 1) -> int:
    """Count the bytes that a training step keeps on each GPU, without computing anything.

    Weights of student and teacher, gradients, the optimizer's moments; what autograd keeps for the
    backward pass of labeled, strong and perturbed images, in ``training.precision``; and the
    largest maps that a step holds in addition: images, the teacher's v, perturbed features, and
    gradients of logits at full size. Weights, F, v and losses are float32 in any precision. Left
    out: the density estimator, the workspace of convolutions, what the allocator holds back.

    Args:
        config: configuration of the run; backbones of any kind.
        parts: number of parts of a step's images, side by side on GPUs or one after another.
    """
    method, training = config.method, config.training
    shares = [-(-n // parts) for n in (training.batch_labeled, training.batch_unlabeled)]
    labeled, unlabeled = shares if method.consistency else (shares[0], 0)
    perturbed_at = method.perturb_at if method.perturbation != "none" else None
    strong = method.strong_views * unlabeled
    extra = unlabeled if perturbed_at and method.perturbed_view == "weak" else 0
    network, size = config.bare().network, config.data.augment.size
    classes = expected_classes(config)
    copies = 4 if training.optimizer == "sgd" else 5
    dtype = getattr(torch, training.precision)
    learns = method.has_density
    counted = network, classes, labeled, strong, extra, size, perturbed_at, copies, dtype
    case = repr((*counted, unlabeled, learns))
    if case not in _COUNTED:
        kept, of_v, of_moved = _count(*counted)
        seen, pixels = labeled + strong + extra, size[0] * size[1]
        images = 3 * pixels * (labeled + unlabeled + strong + seen)  # as they come, as one batch
        logits = 2 * classes * pixels * seen  # gradients before and after the softmax
        maps = images + logits + of_moved + (of_v if learns else 0)
        labels = pixels * (labeled + unlabeled + strong)
        _COUNTED[case] = kept + 4 * maps + 8 * labels
    return _COUNTED[case]


_COUNTED: dict[str, int] = {}
"""Bytes by what they depend on. A plan needs the same few counts many times, and one of a
ResNet-101 takes a second of CPU time."""


def _count(
    config: NetworkConfig,
    classes: int,
    labeled: int,
    strong: int,
    extra: int,
    size: tuple[int, int],
    perturbed_at: str | None,
    copies: int,
    dtype: torch.dtype,
) -> tuple[int, int, int]:
    """Count what autograd and weights keep for this many images of ``size``.

    Args:
        config: configuration of the network.
        classes: K.
        labeled: number of labeled images.
        strong: number of strong views.
        extra: number of weak views whose features are perturbed, instead of the strong ones'.
        size: (height, width) of them.
        perturbed_at: ``features`` or ``embedding``, what is perturbed; ``None`` for nothing.
        copies: how often the weights are held, with gradients and moments.
        dtype: dtype of the convolutions.

    Returns:
        Bytes, numbers in v of all images, and numbers in the perturbed features.
    """
    with torch.device("meta"), ShapesAlone():  # no memory, no arithmetic
        # there is no autocast without memory: the network itself is in half precision
        network = SegmentationNetwork(config, classes).to(dtype)
        images = torch.empty(labeled + strong + extra, 3, *size, dtype=dtype)
        labels = torch.empty(len(images), *images.shape[2:], dtype=torch.int64)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def classified(embedded: Tensor, target: Tensor) -> Tensor:
        logits = network.classify(embedded).float()
        return nn.functional.cross_entropy(resize(logits, target.shape[1:]), target)

    with ShapesAlone(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network.encode(images)
        clean = network.embed(features[: labeled + strong])
        losses = [classified(clean, labels[: len(clean)])]  # alive, and with them what they need
        of_moved = 0
        if perturbed_at is not None:
            at_features = perturbed_at == "features"
            first = labeled + strong if extra else labeled
            of_moved = (features if at_features else clean)[first:].numel()
            moved = network.embed(features[first:]) if at_features else clean[first:]
            losses.append(classified(moved, labels[first:]))
    weights = {p.untyped_storage()._cdata: p for p in network.parameters()}
    activations = sum(
        tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights
    )
    numbers = sum(p.numel() for p in weights.values())
    bytes_kept = activations + 4 * copies * numbers
    if dtype != torch.float32:
        # F and v stay alive in float32, with the halves that convolutions keep; so do the weights
        bytes_kept += 4 * (features.numel() + clean.numel()) + dtype.itemsize * numbers
    return bytes_kept, clean.numel(), of_moved


def fitting_parts(config: Config, processes: int, memory: int) -> int:
    """Return the fewest parts of each process's share with which a step should fit its GPU.

    Counted by :func:`training_memory`, in the precision of the run.

    Args:
        config: configuration of the run.
        processes: number of processes that share the batch.
        memory: memory of each GPU, bytes; a fifth of it is left for what is not counted.

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


def micro_batches_for(config: Config, device: torch.device) -> int:
    """Return in how many micro-batches a rank takes its share: one on a CPU, else what fits."""
    if device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(device).total_memory
    return fitting_parts(config, world_size(), memory)


def micro_batches_changed(before: Sequence[int], now: int) -> list[str]:
    """Return a line for the log where a run goes on with another number of micro-batches.

    Args:
        before: numbers of micro-batches until now, in order; empty if they are not known.
        now: the number from here on.
    """
    if not before or before[-1] == now:
        return []
    return [
        f"micro-batches: {now} from here on, {before[-1]} until now: BatchNorm's statistics are "
        f"over other numbers of images, so the result changes; --accumulate {before[-1]} goes on "
        "as before"
    ]


def batch_division(config: Config, accumulate: int, device: torch.device) -> str:
    """Say how a step's images are divided: ``global batch 16+16 = 4 GPUs x 2 x 2+2``.

    The global batch is the configuration's, whatever it is trained on, and so is the learning
    rate, which belongs to it.

    Args:
        config: configuration of the run.
        accumulate: parts in which each process takes its share.
        device: device of the processes.

    Raises:
        UserError: the images cannot be shared out evenly.
    """
    training, processes = config.training, world_size()
    sizes = {"labeled": training.batch_labeled}
    if config.method.consistency:
        sizes["unlabeled"] = training.batch_unlabeled
    if accumulate < 1:
        raise UserError(f"--accumulate {accumulate}: give at least 1")
    kind = "GPU" if device.type == "cuda" else "process"
    many = f"{processes} {kind}" + ("" if processes == 1 else "s" if kind == "GPU" else "es")
    for name, size in sizes.items():
        if size % (processes * accumulate):
            raise UserError(
                f"training.batch_{name}: {size} images cannot be divided among {many} with "
                f"{accumulate} micro-batch{'es' if accumulate > 1 else ''} each; change "
                "--accumulate or the number of processes so that their product divides the batch"
            )
    whole = "+".join(str(size) for size in sizes.values())
    part = "+".join(str(size // (processes * accumulate)) for size in sizes.values())
    return f"global batch {whole} = {many} x {accumulate} x {part}"


def loading_workers(config: Config, device: torch.device) -> tuple[int, list[str]]:
    """Return how many processes read images ahead, as many as shared memory has room for.

    A worker hands batches over in shared memory, on Linux a file system of its own, and Docker
    gives it 64 MB. PyTorch makes ``AHEAD`` batches ahead in each worker, and where there is no room
    for one, the worker dies amid the training.

    Args:
        config: configuration of the run.
        device: device of the training.

    Returns:
        The number, and lines for the log where that is less than usual.

    Raises:
        UserError: there is no room for as many as the configuration asks for, or for a single one.
    """
    asked = config.data.workers
    workers = default_workers(device, ranks_here()) if asked is None else asked
    if workers == 0 or not SHARED.is_dir():
        return workers, []
    free = shutil.disk_usage(SHARED).free
    each = AHEAD * batch_bytes(config) * ranks_here()
    room = int(free // each)
    if workers <= room:
        return workers, []
    need = f"{workers * each / MIB:,.0f} MiB in {SHARED}, which has {free / MIB:,.0f} MiB left"
    if asked is None and room > 0:
        return room, [f"data.workers: {room} instead of {workers}, which would need {need}"]
    raise UserError(
        f"data.workers: {workers} need {need}; set data.workers={room}, or enlarge shared memory, "
        f"for example with docker run --shm-size={math.ceil(workers * each / GIB)}g"
    )


def batch_bytes(config: Config) -> int:
    """Return the bytes of a rank's share of a batch, as a worker hands it over."""
    training, (height, width) = config.training, config.data.augment.size
    unlabeled = training.batch_unlabeled if config.method.consistency else 0
    # uint8 images and masks of the valid area, int64 labels
    of_pixel = (3 + 1) * (training.batch_labeled + unlabeled) + 8 * training.batch_labeled
    return of_pixel * height * width // world_size()


@contextmanager
def memory_advice(accumulate: int | None) -> Iterator[None]:
    """Turn a lack of memory or of a compiler into one line that says what helps.

    Args:
        accumulate: micro-batches of a step; ``None``: images are segmented for scores.

    Raises:
        UserError: there is too little memory, or no compiler.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if accumulate is None:
            raise UserError(
                "out of GPU memory while images were segmented for scores; segment them in "
                "windows (--set data.protocol=slide513), or set training.precision=bfloat16"
            ) from error
        raise UserError(
            f"out of GPU memory; split the batch into more micro-batches with --accumulate "
            f"{2 * accumulate}, or use more GPUs, or --set training.precision=bfloat16"
        ) from error
    except Exception as error:
        # torch.compile's exceptions have no public name
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().split("\n\n")[0].split())
        raise UserError(
            f"training.compile: PyTorch cannot compile the networks here ({reason}); leave it out"
        ) from error
