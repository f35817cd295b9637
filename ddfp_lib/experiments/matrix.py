"""A matrix of runs, splits by methods by seeds: each in a process and a folder of its own.

Finished runs are not repeated and interrupted ones go on, so starting the same matrix again is
always right.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ddfp_lib.config import Config, load_config, to_yaml
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.machine import usable_cores
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.runs.folder import Run, RunResult, finished_result
from ddfp_lib.runs.metrics import read_metrics


@dataclass
class Cell:
    """One run of the matrix, and how many of its checkpoints stay."""

    config: Config
    folder: Path
    keep: int = Checkpoints.KEEP
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """``split-method-seed``, or without the split, as the run's folder is called."""
        return self.folder.name

    def steps_done(self) -> int:
        """Return the step of the last line in the run's log."""
        lines = read_metrics(self.folder / "metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def finished(self) -> bool:
        """Whether the run has a result."""
        return finished_result(self.folder, self.config) is not None


def plan(
    benchmark: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    overrides: Sequence[str] = (),
    quick: bool = False,
    splits: Sequence[str] = (),
) -> list[Cell]:
    """Return the runs of a matrix, split by split and seed by seed, without starting any.

    All configurations are built, so that a wrong one is found before the first run and not after.

    Args:
        benchmark: path of the benchmark's YAML.
        methods: names of presets.
        seeds: one run of each method per seed.
        out: folder of the matrix; runs lie in ``out/runs/<split>-<method>-<seed>``, a ``/`` in the
            name of a split written as ``-``, or without splits in ``out/runs/<method>-<seed>``.
        overrides: see :func:`ddfp_lib.config.reading.load_config`.
        quick: the benchmark's ``quick`` settings, a look instead of a measurement.
        splits: names of the benchmark's published splits; none for the labeled images that it, or
            an override, names itself.

    Raises:
        UserError: a file, method, split, key or value is not right, or nothing is asked for, or a
            folder holds a finished run of other settings.
    """
    if not methods or not seeds:
        raise UserError("--methods and --seeds: name at least one of each, as --seeds 0,1,2")
    cells = []
    for split in dict.fromkeys(splits or [None]):
        for seed in dict.fromkeys(seeds):
            for method in dict.fromkeys(methods):
                config = load_config(benchmark, method, seed, overrides, quick=quick, split=split)
                called = f"{config.method.name}-{seed}"
                name = called if split is None else f"{split}-{called}"
                cells.append(Cell(config, Path(out) / "runs" / name.replace("/", "-")))
    folders = [cell.folder for cell in cells]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: two methods would train there; give their files other names")
    for cell in cells:
        cell.finished()
    return cells


def default_jobs(device: torch.device) -> int:
    """Return how many runs go side by side: one for each core, on a GPU one.

    Networks this small gain nothing from a second thread, so one thread a run it is.
    """
    return usable_cores() if device.type == "cpu" else 1


def run_matrix(
    cells: Sequence[Cell],
    *,
    device: torch.device,
    jobs: int = 0,
    gpus: int = 1,
    accumulate: int = 0,
    tensorboard: bool = False,
    say: Callable[[str], object] = print,
    every: float = 15.0,
) -> list[RunResult]:
    """Run what is not finished yet, ``jobs`` at a time, and return all results in order.

    Args:
        cells: from :func:`plan`.
        device: of every run.
        jobs: runs side by side; 0 for :func:`default_jobs`. On a CPU the cores are shared out.
        gpus: processes of each run, one a GPU.
        accumulate: parts in which each of them takes its share of a step's images; 0: as its
            memory asks for.
        tensorboard: let each run write its log for TensorBoard too.
        say: told of progress, a line at a time.
        every: seconds between two lines.

    Raises:
        UserError: a number makes no sense, or a run failed; then the others were stopped and can
            go on later.
    """
    if jobs < 0 or gpus < 1 or accumulate < 0:
        raise UserError(
            f"jobs {jobs}, gpus {gpus}, accumulate {accumulate}: give at least 0, 1 and 0"
        )
    jobs = jobs or default_jobs(device)
    if gpus > 1 and jobs > 1 and device.type == "cuda":
        raise UserError(f"--jobs {jobs}: runs on {gpus} GPUs each go one after the other; use 1")
    options = ["--device", str(device)]
    options += ["--gpus", str(gpus)] if gpus > 1 else []
    options += ["--accumulate", str(accumulate)] if accumulate else []
    options += ["--tensorboard"] if tensorboard else []
    threads = max(1, usable_cores() // (jobs * gpus))
    waiting = [cell for cell in cells if not cell.finished()]
    already = {cell.name: cell.steps_done() for cell in waiting}
    running: list[Cell] = []
    began = spoke = time.monotonic()
    if len(waiting) < len(cells):
        say(f"{len(cells) - len(waiting)} of {len(cells)} runs are finished already")
    queue = list(waiting)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                running.append(_start(queue.pop(0), options, threads))
            time.sleep(0.5)
            for cell in [c for c in running if c.process.poll() is not None]:
                running.remove(cell)
                _check_end(cell)
                result = finished_result(cell.folder, cell.config)
                say(f"{cell.name}: val mIoU {result.teacher_miou_last:.1f}, {result.seconds:.0f} s")
            if time.monotonic() - spoke >= every and running:
                spoke = time.monotonic()
                say(_progress(waiting, already, running, spoke - began))
    finally:
        for cell in running:
            cell.process.terminate()
        for cell in running:
            cell.process.wait()
    return [finished_result(cell.folder, cell.config) for cell in cells]


def _start(cell: Cell, options: Sequence[str], threads: int) -> Cell:
    """Start a run as ``ddfp train --config FILE``, its output in ``train.log``.

    We never write to its standard input: the pipe ends when this process does, even by ``kill -9``,
    and the run ends with it. Left alone it would hold its folder against the next matrix.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    planned = cell.folder / "planned.yaml"
    write_text(planned, to_yaml(cell.config))
    command = [sys.executable, "-m", "ddfp_lib.cli", "train", "--config", str(planned)]
    command += ["--out", str(cell.folder), "--keep", str(cell.keep), "--leashed", *options]
    with (cell.folder / "train.log").open("w") as log:
        cell.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    return cell


def _check_end(cell: Cell) -> None:
    log = cell.folder / "train.log"
    if cell.process.returncode != 0 or not cell.finished():
        said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"{cell.folder}: the run stopped with status {cell.process.returncode} ({said[-1]}); "
            f"see {log}, then start the same command again to go on"
        )


def _progress(
    waiting: Sequence[Cell], already: dict[str, int], running: Sequence[Cell], elapsed: float
) -> str:
    """Tell how far the matrix is and when it will end, by the steps that were done so far."""
    done = {cell.name: cell.steps_done() for cell in waiting}
    total = sum(cell.config.training.steps for cell in waiting)
    fresh = sum(done.values()) - sum(already.values())
    left = total - sum(done.values())
    end = f"about {left * elapsed / fresh / 60:.0f} min left" if fresh else "starting"
    now = ", ".join(f"{c.name} {done[c.name]}/{c.config.training.steps}" for c in running)
    return f"{100 * sum(done.values()) / total:3.0f} %  {end}  ({now})"


def find_runs(out: Path) -> list[Run]:
    """Return the runs below a matrix's folder that have begun, by name."""
    folders = sorted((Path(out) / "runs").glob("*/config.yaml"))
    return [Run.open(path.parent) for path in folders]
