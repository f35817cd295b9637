"""Training steps on fake CUDA tensors: no GPU, no arithmetic, but devices that must agree.

``python -m tests.fake_cuda METHOD:PRECISION:MICRO_BATCHES ...`` prints a line of JSON for each
case: for each stage, what was on a wrong device and what would make the host wait for a GPU. The
first line is of steps that do both, to show that it is seen.
PyTorch's fake tensors have shapes, dtypes and devices, and refuse operations across devices. What
they lack has a stand-in here: a GPU's generators are CPU ones with a tag, a value that is read is
some value, half of a mask is True, modules are moved by hand, and autocast believes in a GPU. The
engine of the backward pass needs a real GPU: every parameter gets a gradient of zeros in its place.

It changes PyTorch's classes for the whole process, so tests run it in a process of its own.
"""

import gc
import json
import os
import sys
import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ddfp_lib.training.learner as learners
from ddfp_lib.config import load_method
from ddfp_lib.data.loaders import Batch
from ddfp_lib.seeds import derive_seed
from ddfp_lib.training.step import training_step
from tests.conftest import make_tiny_config

SIDE = 32
STAGES = {"supervised": 0, "consistency": 2, "perturbed": 4}
STAGED = 2**16
"""Bytes that CUDA copies from ordinary host memory without a wait (CUDA C++ Programming Guide,
Asynchronous Concurrent Execution)."""
aten = torch.ops.aten
waits: Counter = Counter()
wrong: Counter = Counter()
trained: list[nn.Module] = []
kept: list[Any] = []
"""Nothing fake is freed before the process ends: PyTorch crashes as it frees some of it."""


class TaggedGenerator(torch.Generator):
    """A CPU generator that claims to belong to another device."""

    def __new__(cls, device: Any) -> "TaggedGenerator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any) -> None:
        self.tag = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.tag


def generator(*parts: int | str, device: Any = "cpu") -> torch.Generator:
    made = TaggedGenerator(device)
    made.manual_seed(derive_seed(*parts) % 2**63)
    return made


def where() -> str:
    """Return file and function of the project that is being run."""
    for frame in reversed(traceback.extract_stack()[:-2]):
        if "ddfp_lib/" in frame.filename:
            return f"{frame.filename.split('ddfp_lib/')[-1]}:{frame.name}"
    return "no file of the project"


class Generators(TorchFunctionMode):
    """Check that random numbers come from a generator of their own device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        source = kwargs.get("generator")
        if isinstance(source, TaggedGenerator):
            first = args[0] if args and isinstance(args[0], Tensor) else None
            device = torch.device(kwargs.get("device") or "cpu") if first is None else first.device
            if device.type != source.tag.type:
                name = getattr(func, "__name__", func)
                wrong[f"generator of {source.tag} for {name} on {device} in {where()}"] += 1
            kwargs.pop("generator")
        return func(*args, **kwargs)


class Waits(TorchDispatchMode):
    """Count what makes the host wait for a GPU, and answer what only a GPU could."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], FakeTensor) else None
        on_gpu = first is not None and first.device.type == "cuda"
        if func is aten._local_scalar_dense.default and first is not None:
            if on_gpu:
                waits[f"a value is read in {where()}"] += 1
            return True if first.dtype == torch.bool else 0.3 if first.is_floating_point() else 3
        if func is aten.nonzero.default and first is not None:
            if on_gpu:
                waits[f"nonzero in {where()}"] += 1
            return first.new_empty(first.numel() // 2, first.dim(), dtype=torch.int64)
        if func is aten.index.Tensor:
            masks = [each for each in args[1] if each is not None and each.dtype == torch.bool]
            if masks:
                if on_gpu:
                    waits[f"a mask selects in {where()}"] += 1
                return first[: max(1, len(first) // 2)]
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[1] if func is aten.copy_.default else first
            target = first.device if func is aten.copy_.default else kwargs.get("device")
            self._copied(source, target, kwargs.get("non_blocking", args[2:3] == (True,)))
        return func(*args, **kwargs)

    @staticmethod
    def _copied(source: Any, target: Any, non_blocking: bool) -> None:
        if source is None or target is None:
            return
        ends = source.device.type, torch.device(target).type
        staged = non_blocking and source.numel() * source.element_size() <= STAGED
        if ends == ("cuda", "cpu") or (ends == ("cpu", "cuda") and not staged):
            waits[f"a copy from {ends[0]} to {ends[1]} in {where()}"] += 1


def module_to(self: nn.Module, device: Any = None, memory_format: Any = None) -> nn.Module:
    """Move parameters and buffers; fake ones cannot change in place, so optimizers follow."""
    moved: dict[Any, Any] = {}
    for module in self.modules():
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                if value is None:
                    continue
                if value not in moved:
                    there = value.detach().to(device)
                    if memory_format is not None and there.dim() == 4:
                        there = there.to(memory_format=memory_format)
                    is_parameter = isinstance(value, nn.Parameter)
                    moved[value] = (
                        nn.Parameter(there, value.requires_grad) if is_parameter else there
                    )
                store[key] = moved[value]
    optimizer = getattr(self, "optimizer", None)
    if isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            group["params"] = [moved[parameter] for parameter in group["params"]]
    return self


def backward(self: Tensor) -> None:
    if self.device.type != "cuda" or self.dim() != 0:
        wrong[f"loss on {self.device} of shape {tuple(self.shape)}"] += 1
    for module in trained:
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def grad(outputs: Any, inputs: Any) -> tuple[Tensor, ...]:
    inputs = inputs if isinstance(inputs, (tuple, list)) else [inputs]
    return tuple(torch.zeros_like(each) for each in inputs)


def install() -> None:
    """Put the stand-ins into PyTorch, for the rest of this process."""
    gc.disable()  # see ``kept``
    learners.generator = generator
    Tensor.backward = backward
    torch.autograd.grad = grad
    nn.Module.to = module_to
    nn.utils.skip_init = lambda cls, *args, **options: cls(*args, **options)
    torch.cuda.is_bf16_supported = lambda *args, **options: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False


def run(method: str, precision: str, micro_batches: int) -> dict[str, dict[str, dict[str, int]]]:
    """Take a step in each stage and return what was wrong, and what waits."""
    images = max(2, micro_batches, load_method(method).shares)  # labeled ones, and as many others
    sizes = {"batch_labeled": images, "batch_unlabeled": images}
    config = make_tiny_config(method, training={"precision": precision, **sizes})
    device = torch.device("cuda", 0)
    found = {}
    learner = learners.Learner(config, 4, device, micro_batches)
    pictures = torch.empty(images, 3, SIDE, SIDE, dtype=torch.uint8)
    area = torch.ones(images, SIDE, SIDE, dtype=torch.bool)
    batch = Batch(pictures, area.long(), pictures, area, area).to(device)
    kept.extend((learner, batch))
    held = [part for part in (learner.student, learner.teacher, learner.density) if part]
    trained[:] = [part for part in held if part is not learner.teacher]
    taken = set()
    for stage, step in STAGES.items():
        if learner.stage(step) in taken:  # a method without this stage
            continue
        taken.add(learner.stage(step))
        waits.clear()
        wrong.clear()
        for part in held:
            for name, value in part.state_dict().items():
                if isinstance(value, Tensor) and value.device != device:
                    wrong[f"{name} on {value.device}"] += 1
        losses = training_step(learner, batch, step)
        kept.append(losses)
        for name, value in losses.items():
            if value.device != device:
                wrong[f"loss {name} on {value.device}"] += 1
        found[stage] = {"wrong": dict(wrong), "waits": dict(waits)}
    return found


def self_check() -> dict[str, Any]:
    """Do what training must not do, and return what was seen of it."""
    x = torch.empty(4, device="cuda")
    torch.empty_like(x).uniform_(generator=generator(0))
    bool(x.sum() > 0), x.sum().item(), x.tolist(), x.nonzero(), x[x > 0]
    x.to("cpu"), x.cpu(), torch.ones(4).to("cuda"), torch.tensor(1.0, device="cuda")
    torch.ones(STAGED // 4).to("cuda", non_blocking=True)
    before = sum(waits.values())
    torch.ones(STAGED // 4 + 1).to("cuda", non_blocking=True)
    try:
        x + torch.ones(4)
        mixed = False
    except RuntimeError:
        mixed = True
    large = sum(waits.values()) - before
    return {"wrong": dict(wrong), "waits": dict(waits), "mixed": mixed, "large copies": large}


if __name__ == "__main__":
    install()
    with FakeTensorMode(allow_non_fake_inputs=True), Generators(), Waits():
        print(json.dumps({"self-check": self_check()}))
        for case in sys.argv[1:]:
            method, precision, micro_batches = case.split(":")
            print(json.dumps({case: run(method, precision, int(micro_batches))}), flush=True)
    os._exit(0)  # classes of PyTorch are changed: nothing of it is to be torn down
