"""How time and memory grow with the number of rows, features, classes, pixels and images.

    .venv/bin/python -m bench.growth

Each quantity grows alone, to twice, four and eight times as much. ``time`` is CPU time (median of
interleaved repeats, one thread), ``memory`` counts the elements that all operations together put
out, which is exact and the same on every machine; both as ratios to the start. Linear is 2, 4, 8,
and less where a part does not grow.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullLocator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.step import batches_of
from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.step import training_step

Work = Callable[[], object]


class Tensors(TorchDispatchMode):
    """Counts what operations put out: ``written`` elements in all, ``largest`` in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.written = self.largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and count."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn:
                # an expanded view is as large as its memory
                size = min(leaf.numel(), leaf.untyped_storage().nbytes() // leaf.element_size())
                self.written += size
                self.largest = max(self.largest, size)
        return result


def count(work: Work) -> Tensors:
    """Run ``work`` once and return what it put out."""
    with Tensors() as counted:
        work()
    return counted


def fit(rows: int = 1024, features: int = 64, classes: int = 8) -> Work:
    """Return a training step of the density estimator."""
    estimator, v, labels = _estimator(rows, features, classes)
    generator = torch.Generator().manual_seed(0)
    return lambda: estimator.fit_step(v, labels, generator=generator)


def gradient(rows: int = 1024, features: int = 64, classes: int = 8) -> Work:
    """Return the gradient of the density in its input."""
    estimator, v, _ = _estimator(rows, features, classes)
    return lambda: estimator.score(v)


def step(side: int = 32, images: int = 4) -> Work:
    """Return a step of ddfp on digit scenes of ``side`` pixels, ``images`` of each kind."""
    settings = [f"data.augment.crop={side}", f"data.digits.size={side}", "data.digits.train=100"]
    settings += [f"training.batch_labeled={images}", f"training.batch_unlabeled={images}"]
    settings += ["density.samples=1000000", "data.augment.cutmix_p=0"]
    config = load_config(find_benchmark("digits"), "ddfp", 0, settings)
    learner = Learner(config, config.data.digits.classes + 1, torch.device("cpu"))
    (batch,) = batches_of(config, 1)
    return lambda: training_step(learner, batch, config.training.steps // 2)


FACTORS = (1, 2, 4, 8)

CASES: dict[str, Callable[[int], Work]] = {
    "fit, rows": lambda factor: fit(rows=1024 * factor),
    "fit, features": lambda factor: fit(features=64 * factor),
    "fit, classes": lambda factor: fit(classes=8 * factor),
    "gradient, rows": lambda factor: gradient(rows=1024 * factor),
    "gradient, features": lambda factor: gradient(features=64 * factor),
    "gradient, classes": lambda factor: gradient(classes=8 * factor),
    "step, pixels": lambda factor: step(side=round(32 * factor**0.5)),
    "step, images": lambda factor: step(images=4 * factor),
}
"""What grows, and the work when there is ``factor`` times as much of it."""


@dataclass(frozen=True)
class Grown:
    """What one quantity does, one number for each of ``FACTORS``.

    Attributes:
        seconds: CPU time.
        written: elements that all operations together put out.
        largest: elements of the largest tensor.
    """

    seconds: list[float]
    written: list[int]
    largest: list[int]


def measure(name: str, repeats: int) -> Grown:
    """Measure one quantity at every factor, in turns."""
    works = [CASES[name](factor) for factor in FACTORS]
    for work in works:
        work()  # optimizers make their state
    counts = [count(work) for work in works]
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, times, strict=True):
            begin = time.process_time()
            work()
            taken.append(time.process_time() - begin)
    return Grown(
        [statistics.median(taken) for taken in times],
        [counted.written for counted in counts],
        [counted.largest for counted in counts],
    )


def table(measured: dict[str, Grown]) -> str:
    """Return the table, in Markdown."""
    heads = [
        f"{quantity} at x {factor}" for quantity in ("time", "memory") for factor in FACTORS[1:]
    ]
    lines = [
        f"| grows | {' | '.join(heads)} | largest tensor at x {FACTORS[-1]}, elements |",
        "|---|" + "---:|" * (len(heads) + 1),
    ]
    for name, grown in measured.items():
        cells = [
            f"{value / values[0]:.2f}"
            for values in (grown.seconds, grown.written)
            for value in values[1:]
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {grown.largest[-1]:,} |")
    return "\n".join(lines)


def plot(measured: dict[str, Grown], path: Path) -> None:
    """Draw how time and memory grow, beside a straight line."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, title in zip(axes, ("CPU time", "memory written"), strict=True):
        axis.plot(FACTORS, FACTORS, color="black", linestyle=":", label="linear")
        for name, grown in measured.items():
            values = grown.seconds if title == "CPU time" else grown.written
            axis.plot(
                FACTORS, [value / values[0] for value in values], marker="o", ms=3, label=name
            )
        axis.set(xscale="log", yscale="log", xticks=FACTORS, yticks=FACTORS, title=title)
        axis.set(xlabel="times as much of one quantity alone", ylim=(0.8, 10))
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter("{x:.0f}")
            one.set_minor_locator(NullLocator())
    axes[0].set(ylabel="times as much as at the start")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _estimator(
    rows: int, features: int, classes: int
) -> tuple[DensityEstimator, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = DensityConfig(hidden=64, samples=rows)  # narrow: oneDNN's tensors cannot be counted
    estimator = DensityEstimator(features, classes, config, total_steps=1000)
    v = torch.randn(rows, features, generator=generator)
    return estimator, v, torch.randint(-1, classes, (rows,), generator=generator)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}\n")
    print(table({name: measure(name, repeats=15) for name in CASES}))
