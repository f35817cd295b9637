"""How time and memory grow with the number of rows, features, classes, pixels and images.

    .venv/bin/python -m bench.growth

Each quantity is doubled alone. ``time`` is the ratio of CPU times (median of interleaved repeats,
one thread), ``memory`` the ratio of the bytes that all operations together put out, which is exact
and the same on every machine: 2 is linear. ``largest`` is the largest single tensor after doubling.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.step import batches_of
from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.density import DensityConfig, DensityEstimator
from ddfp_lib.training.objective import Learner, training_step

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


def cases() -> dict[str, tuple[Work, Work]]:
    """Return, for each quantity, the work before and after it is doubled."""
    return {
        "fit, rows": (fit(), fit(rows=2048)),
        "fit, features": (fit(), fit(features=128)),
        "fit, classes": (fit(), fit(classes=16)),
        "gradient, rows": (gradient(), gradient(rows=2048)),
        "gradient, features": (gradient(), gradient(features=128)),
        "gradient, classes": (gradient(), gradient(classes=16)),
        "step, pixels a side": (step(), step(side=64)),
        "step, images": (step(), step(images=8)),
    }


def table(repeats: int) -> str:
    """Measure; return the table, in Markdown."""
    lines = ["| doubled | time | memory | largest tensor, elements |", "|---|---:|---:|---:|"]
    for name, pair in cases().items():
        for work in pair:
            work()
        before, after = (count(work) for work in pair)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(repeats):
            for work, taken in zip(pair, times, strict=True):
                begin = time.process_time()
                work()
                taken.append(time.process_time() - begin)
        ratio = statistics.median(times[1]) / statistics.median(times[0])
        grown = after.written / before.written
        lines.append(f"| {name} | {ratio:.2f} | {grown:.2f} | {after.largest:,} |")
    return "\n".join(lines)


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
    print(table(repeats=15))
