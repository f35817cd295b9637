"""What a whole training step costs, method by method, on digit scenes.

    .venv/bin/python -m bench.step                  # the table, about a minute
    .venv/bin/python -m bench.step --repeats 100

Steps of the last stage (everything a method has is switched on), batches made beforehand, one
thread. The methods take turns, step by step, so that whatever else the machine does hits all of
them alike; each number is the median over the turns of the process's CPU time, which other
processes disturb less than wall time.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ddfp_lib.config import Config, find_benchmark, load_config
from ddfp_lib.data.loaders import Batch, training_batches
from ddfp_lib.training.data import data_of, split_of
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.step import training_step

METHODS = ("supervised", "consistency", "noise", "vat", "dropout", "ddfp", "ddfp_released")
BATCHES = 8
WARM_UP = 5


def batches_of(config: Config, count: int) -> list[Batch]:
    """Make the first batches of a run."""
    dataset, training = data_of(config, "train"), config.training
    return list(
        training_batches(
            dataset,
            *split_of(config, dataset),
            config.data.augment,
            batch_labeled=training.batch_labeled,
            batch_unlabeled=training.batch_unlabeled if config.method.consistency else 0,
            seed=config.seed,
            start_step=0,
            stop_step=count,
        )
    )


def prepare(config: Config) -> Callable[[int], object]:
    """Return what takes step number n of a run's last stage, on batches that are there already."""
    learner = Learner(config, len(data_of(config, "train").classes), torch.device("cpu"))
    batches = batches_of(config, BATCHES)
    first = config.training.steps // 2
    return lambda n: training_step(learner, batches[n % BATCHES], first + n)


def measure(methods: Sequence[str], settings: Sequence[str], repeats: int) -> dict[str, float]:
    """Return the median CPU seconds of a step of each method."""
    benchmark = find_benchmark("digits")
    steps = {name: prepare(load_config(benchmark, name, 0, settings)) for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(WARM_UP + repeats):
        for name, step in steps.items():
            begin = time.process_time()
            step(turn)
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}


def table(seconds: dict[str, float]) -> str:
    """Return the table, in Markdown."""
    lines = [
        "| method | CPU ms a step | time / noise | time / consistency |",
        "|---|---:|---:|---:|",
    ]
    for name, value in seconds.items():
        ratios = (value / seconds[baseline] for baseline in ("noise", "consistency"))
        lines.append(f"| {name} | {1000 * value:.1f} | " + " | ".join(f"{r:.2f}" for r in ratios))
        lines[-1] += " |"
    return "\n".join(lines)


def main() -> None:
    """Measure all methods and print the table."""
    parser = argparse.ArgumentParser(description="Time a training step of each method.")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], help="as of `ddfp train`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, median of {arguments.repeats}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print(table(measure(METHODS, arguments.set, arguments.repeats)))


if __name__ == "__main__":
    main()
