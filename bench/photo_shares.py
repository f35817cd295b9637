"""What the parts of one training step on photographs cost, for :mod:`bench.photos`."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.photo_steps import WARM_UP, prepare
from ddfp_lib.training import step as step_module
from ddfp_lib.training import student_batch

OPERATIONS = {
    "matrix products (flow, 1x1 convolutions)": ("mm",),
    "other convolutions": ("convolution", "Convolution"),
    "BatchNorm": ("batch_norm",),
    "activation functions": ("hardtanh", "clamp", "relu", "ReLU6", "threshold"),
    "copies and fills": ("copy_", "fill_", "aten::cat", "index"),
    "resizing": ("upsample", "interpolate"),
}
"""Kinds of work, and what the names of their operations hold."""

WHOLE = {
    "strong augmentation with CutMix": (student_batch, "strong_views"),
    "EMA update": (step_module, "update_ema"),
}
"""Calls that are measured as a whole, with all operations inside."""


def kind_of(name: str) -> str:
    """Return the kind of work of an operation, by its name: the first that matches."""
    for kind, words in OPERATIONS.items():
        if any(word in name for word in words):
            return kind
    return "all else"


def _spanned(call: Callable[..., Any], label: str) -> Callable[..., Any]:
    """Return the same call, seen by the profiler under a label."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            answer = call(*args, **kwargs)
            return iter(list(answer)) if isinstance(answer, Iterator) else answer

    return watched


def split(events: list[FunctionEvent]) -> dict[str, float]:
    """Return the microseconds of each kind of work; no operation counts twice."""
    spans = [event for event in events if event.name in WHOLE]
    found: Counter[str] = Counter(dict.fromkeys((*OPERATIONS, *WHOLE, "all else"), 0.0))
    for span in spans:
        found[span.name] += span.cpu_time_total
    for event in events:
        inside = any(
            span.time_range.start <= event.time_range.start
            and event.time_range.end <= span.time_range.end
            for span in spans
        )
        if not inside:
            found[kind_of(event.name)] += event.self_cpu_time_total
    return dict(found)


def measure(method: str, repeats: int) -> tuple[float, dict[str, float]]:
    """Profile some steps of a method's last stage, on one thread.

    Args:
        method: name of a preset.
        repeats: number of steps.

    Returns:
        CPU seconds of a step, and each kind's fraction of the profiled time, the largest first.
    """
    _, step = prepare(method)
    for turn in range(WARM_UP):
        step(turn)
    with ExitStack() as stack:
        for label, (module, name) in WHOLE.items():
            call = _spanned(getattr(module, name), label)
            stack.enter_context(mock.patch.object(module, name, call))
        watched = stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        begin = time.process_time()
        for turn in range(repeats):
            step(WARM_UP + turn)
        seconds = (time.process_time() - begin) / repeats
    parts = split(list(watched.events()))
    total = sum(parts.values())
    return seconds, {k: parts[k] / total for k in sorted(parts, key=parts.get, reverse=True)}


def table(shares: dict[str, float]) -> str:
    """Return the fractions as a table in Markdown."""
    rows = [f"| {kind} | {100 * share:.1f} % |" for kind, share in shares.items()]
    return "\n".join(["| kind of work | fraction of the step |", "|---|---:|", *rows])
