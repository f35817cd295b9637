r"""Estimate the time of a training step on a named GPU from its number of operations.

The step runs on tensors without memory (PyTorch's ``meta`` device), forward and backward, and each
kernel is priced by a roofline:

.. math:: t = \max \left( \frac{\text{floating-point operations}}{0.4 \cdot \text{peak}},
    \frac{\text{bytes read and written}}{0.7 \cdot \text{bandwidth}}, 10\,\mu s \right)

The fractions are assumptions, and :data:`ASSUMPTIONS` says so wherever a number is printed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ddfp_lib.config import Config
from ddfp_lib.config.expected import expected_classes, expected_image_size
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.models.maps import resize, to_rows
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.models.shapes import ANSWERS, ShapesAlone

COMPUTE, BANDWIDTH, KERNEL = 0.4, 0.7, 10e-6
"""Assumed fractions of a card's peak and bandwidth, and the least time of a kernel in seconds."""

ASSUMPTIONS = (
    "hours on cards are counted, not measured: every kernel reaches "
    f"{COMPUTE:.0%} of the card's dense peak or {BANDWIDTH:.0%} of its memory bandwidth and takes "
    f"at least {KERNEL * 1e6:.0f} us; float32 without TF32; every pixel is confident; images are "
    "loaded in time; several GPUs share the work without loss"
)


@dataclass(frozen=True)
class Card:
    """A GPU, by the numbers of its maker's data sheet.

    Attributes:
        name: name in the table of costs.
        half: 10^12 dense operations per second in bfloat16 or float16, summed in float32.
        single: the same in float32.
        bandwidth: 10^9 bytes per second between memory and chip.
        memory: GiB that PyTorch reports, a little less than the name of the card says.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: float


CARDS = (
    Card("A100", 312.0, 19.5, 2039.0, 79.0),
    Card("H100", 989.0, 67.0, 3350.0, 79.0),
    Card("4090", 165.0, 82.6, 1008.0, 23.5),
    Card("3090", 71.0, 35.6, 936.0, 23.5),
)
"""A100 and H100: SXM cards with 80 GB. 4090 and 3090: GeForce cards with 24 GB."""


@dataclass(frozen=True)
class Kernel:
    """What one operation costs.

    Attributes:
        flops: floating-point operations; a multiplication and an addition are two.
        bytes: bytes of all tensors that it reads and writes.
        half: whether it computes in bfloat16 or float16.
    """

    flops: int
    bytes: int
    half: bool

    def seconds(self, card: Card) -> float:
        """Return its time on a card."""
        peak = 1e12 * (card.half if self.half else card.single)
        moved = self.bytes / (BANDWIDTH * card.bandwidth * 1e9)
        return max(self.flops / (COMPUTE * peak), moved, KERNEL)


class _Tally(TorchDispatchMode):
    """Note every kernel that runs inside the ``with`` block.

    Args:
        half: whether the networks compute in half precision.
    """

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half = half
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = ANSWERS.get(func, func)(*args, **kwargs)
        if func.is_view or func in _NO_KERNEL:
            return out
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors)
        # attention without a GPU multiplies in float32 what a GPU multiplies in half precision
        half |= self.half and func.overloadpacket is torch.ops.aten.bmm
        self.kernels.append(Kernel(int(flops), moved, half))
        return out


aten = torch.ops.aten

_NO_KERNEL = {aten.detach.default, aten.empty.memory_format, aten.empty_like.default}
"""Operations that look at memory, or take some, and compute nothing."""


@dataclass(frozen=True)
class Operations:
    """The kernels of a run, by where they run.

    Attributes:
        stages: kernels of one step in each stage: ``supervised``, ``consistency``, ``perturbed``.
        validation: kernels of one validation image, by student and teacher.
    """

    stages: dict[str, list[Kernel]]
    validation: list[Kernel]

    def flops(self, stage: str, half: bool | None = None) -> int:
        """Return the floating-point operations of a step; all, or those in one kind of numbers."""
        return sum(k.flops for k in self.stages[stage] if half is None or k.half == half)

    def step_seconds(self, stage: str, card: Card) -> float:
        """Return the time of a step on one card."""
        return sum(kernel.seconds(card) for kernel in self.stages[stage])

    def validation_seconds(self, card: Card) -> float:
        """Return the time of one validation image on one card."""
        return sum(kernel.seconds(card) for kernel in self.validation)


def operations(config: Config) -> Operations:
    """Count the operations of a run; nothing is computed and no data are needed.

    Args:
        config: configuration of the run, with any backbone.
    """
    training, data = config.training, config.data
    batch = (training.batch_labeled, training.batch_unlabeled, training.optimizer)
    views = (data.dataset, data.size, data.protocol, data.augment.size)
    parts = (config.bare().network, config.method, config.density, training.precision, batch, views)
    key = repr(parts)  # seed, split and schedule do not change what a step costs
    if key not in _COUNTED:
        _COUNTED[key] = _operations(config)
    return _COUNTED[key]


_COUNTED: dict[str, Operations] = {}


def _operations(config: Config) -> Operations:
    dtype = getattr(torch, config.training.precision)
    with torch.device("meta"), ShapesAlone():
        network = SegmentationNetwork(config.bare().network, expected_classes(config)).to(dtype)
    method = config.method

    def count(run: Callable[[], object]) -> list[Kernel]:
        with _Tally(dtype != torch.float32) as tally:
            run()
        return tally.kernels

    stages = {"supervised": count(lambda: _supervised(config, network))}
    if method.consistency:
        stages["consistency"] = count(lambda: _consistency(config, network, perturb=False))
    if method.perturbation != "none":
        stages["perturbed"] = count(lambda: _consistency(config, network, perturb=True))
    return Operations(stages, count(lambda: _validation(config, network)))


def _images(config: Config, network: nn.Module, count: int) -> Tensor:
    dtype = next(network.parameters()).dtype
    return torch.empty(count, 3, *config.data.augment.size, dtype=dtype, device="meta")


def _loss(logits: Tensor, size: torch.Size) -> Tensor:
    labels = torch.empty(len(logits), *size, dtype=torch.int64, device="meta")
    return nn.functional.cross_entropy(resize(logits.float(), size), labels)


def _update(config: Config, network: nn.Module) -> None:
    """Clip, take the optimizer's step and move the EMA teacher, each a pass over all weights."""
    moments = {"sgd": 1, "adamw": 2}[config.training.optimizer]
    weights = torch.empty(sum(p.numel() for p in network.parameters()), device="meta")
    for _ in range(2 + moments):
        weights.add(weights)
    network.zero_grad()


def _supervised(config: Config, network: SegmentationNetwork) -> None:
    images = _images(config, network, config.training.batch_labeled)
    _loss(network.classify(network.embed(network.encode(images))), images.shape[2:]).backward()
    _update(config, network)


def _consistency(config: Config, network: SegmentationNetwork, perturb: bool) -> None:
    method, training = config.method, config.training
    labeled, unlabeled = training.batch_labeled, training.batch_unlabeled
    with torch.no_grad():
        seen = _images(config, network, unlabeled + labeled * (method.perturbation == "density"))
        encoded = network.encode(seen)
        embedded = network.embed(encoded)
        logits = resize(network.classify(embedded[-unlabeled:]).float(), seen.shape[2:])
        logits.softmax(dim=1).max(dim=1)
    strong = labeled + method.strong_views * unlabeled
    weak = unlabeled * (perturb and method.perturbed_view == "weak")
    images = _images(config, network, strong + weak)
    features = network.encode(images)
    clean = network.embed(features[:strong])
    loss = _loss(network.classify(clean), images.shape[2:])
    if perturb:
        at_features = method.perturb_at == "features"
        start = (features if at_features else clean)[strong if weak else labeled :]
        moved = start + _direction(config, network, start.detach())
        moved = network.embed(moved) if at_features else moved
        loss = loss + _loss(network.classify(moved), images.shape[2:])
    loss.backward()
    if method.perturbation == "density" and config.density.kind == "flow":
        learned = encoded if method.density_of == "features" else embedded
        rows = to_rows(learned)[: method.shares * config.density.samples].float()
        estimator = _estimator(config, rows.shape[1])
        (-estimator._log_prob(rows, None).mean()).backward()
    _update(config, network)


def _direction(config: Config, network: SegmentationNetwork, start: Tensor) -> Tensor:
    """Return a shift of features, with what it costs to find it."""
    method = config.method
    if method.perturbation not in ("density", "vat"):
        return torch.empty_like(start).normal_()
    for _ in range(method.descent_steps if method.perturbation == "density" else 1):
        start = start.detach().requires_grad_()
        asks_embedding = method.perturb_at == "features" and method.density_of == "embedding"
        if method.perturbation == "vat":
            v = network.embed(start) if method.perturb_at == "features" else start
            value = network.classify(v).float().log_softmax(dim=1).sum()
        else:
            v = network.embed(start) if asks_embedding else start
            rows = to_rows(v).float()
            if config.density.kind != "flow":
                value = rows.square().sum()
            else:
                value = _estimator(config, rows.shape[1])._log_prob(rows, None).sum()
        (start,) = torch.autograd.grad(value, start)
    return start


def _estimator(config: Config, width: int) -> DensityEstimator:
    return DensityEstimator(width, expected_classes(config), config.density, total_steps=1).to(
        "meta"
    )


@torch.no_grad()
def _validation(config: Config, network: SegmentationNetwork) -> None:
    protocol, side = Protocol.parse(config.data.protocol), expected_image_size(config)
    side = (protocol.size, protocol.size) if protocol.kind == "crop" else side
    image = torch.empty(1, 3, *side, dtype=next(network.parameters()).dtype, device="meta")

    def logits(images: Tensor) -> Tensor:
        embedded = network.embed(network.encode(images), eval_mode=True)
        return resize(network.classify(embedded).float(), images.shape[2:])

    for _ in ("student", "teacher"):
        protocol.probabilities(logits, image)
