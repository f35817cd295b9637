"""A matrix of runs (splits, methods, seeds): each run has its own process and its own folder.

Finished runs are not repeated and interrupted runs resume, so it is always safe to start the same
matrix again. Here runs are processes of this machine; :mod:`ddfp_lib.experiments.cluster` submits
them to a cluster.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ddfp_lib.config import Config, load_config, to_yaml
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.job import LOG, PLANNED, STARTED, Record, last_line, start_training
from ddfp_lib.experiments.progress import Pace, in_words
from ddfp_lib.files import write_text
from ddfp_lib.machine import usable_cores
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.runs.folder import Run, RunResult, finished_result
from ddfp_lib.runs.metrics import read_metrics

LOCAL = "local"
"""Name of the launcher whose runs are processes of this machine."""


@dataclass
class Cell:
    """One run of a matrix.

    Attributes:
        config: configuration of the run.
        folder: folder of the run.
        keep: number of checkpoints to keep.
        process: the process that trains it, if this process has started one.
    """

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
        """Return whether the run has a result."""
        return finished_result(self.folder, self.config) is not None

    def prepare(self) -> None:
        """Make the run's folder and write the planned configuration into it."""
        write_text(self.folder / PLANNED, to_yaml(self.config))


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

    All configurations are built first, so that an error in one is reported before any run starts.

    Args:
        benchmark: path of the benchmark's YAML.
        methods: names of presets.
        seeds: one run of each method per seed.
        out: folder of the matrix. Runs are in ``out/runs/<split>-<method>-<seed>``, with ``-`` for
            a ``/`` in the name of a split, or without splits in ``out/runs/<method>-<seed>``.
        overrides: see :func:`ddfp_lib.config.reading.load_config`.
        quick: use the benchmark's ``quick`` settings, for a first look.
        splits: names of the benchmark's published splits. Without any, the benchmark or an
            override names the labeled images.

    Raises:
        UserError: a file, method, split, key or value is wrong, there are no methods or seeds, or
            a folder holds a finished run of other settings.
    """
    if not methods or not seeds:
        raise UserError(
            "--methods and --seeds: name at least one of each, for example --seeds 0,1,2"
        )
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
    """Return how many runs train at the same time: one per core, or one on a GPU.

    The small networks of the CPU benchmarks gain nothing from a second thread.
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
    """Train all runs that are not finished, and return all results in order.

    Args:
        cells: result of :func:`plan`.
        device: device of every run.
        jobs: runs at the same time; 0: see :func:`default_jobs`. On a CPU they share the cores.
        gpus: processes of each run, one per GPU.
        accumulate: micro-batches in which each process takes its share of a step's images; 0: as
            many as its memory needs.
        tensorboard: also write each run's log for TensorBoard.
        say: called with each line of progress.
        every: seconds between two lines of progress.

    Raises:
        UserError: a number is out of range, or a run failed. The other runs are then stopped, and
            resume when the same matrix is started again.
    """
    if jobs < 0 or gpus < 1 or accumulate < 0:
        raise UserError(
            f"jobs {jobs}, gpus {gpus}, accumulate {accumulate}: give at least 0, 1 and 0"
        )
    jobs = jobs or default_jobs(device)
    if gpus > 1 and jobs > 1 and device.type == "cuda":
        raise UserError(
            f"--jobs {jobs}: runs on {gpus} GPUs each train one after the other; use --jobs 1"
        )
    options = training_options(device, gpus, accumulate, tensorboard)
    threads = max(1, usable_cores() // (jobs * gpus))
    waiting = [cell for cell in cells if not cell.finished()]
    running: list[Cell] = []
    pace, spoke = Pace(), time.monotonic()
    pace.observe(spoke, sum(cell.steps_done() for cell in waiting))
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
                say(_progress(waiting, running, pace, spoke))
    finally:
        for cell in running:
            cell.process.terminate()
        for cell in running:
            cell.process.wait()
    return [finished_result(cell.folder, cell.config) for cell in cells]


def training_options(
    device: torch.device | str, gpus: int = 1, accumulate: int = 0, tensorboard: bool = False
) -> list[str]:
    """Return the options of ``ddfp train`` for how a run is trained; see :func:`run_matrix`."""
    options = ["--device", str(device)]
    options += ["--gpus", str(gpus)] if gpus > 1 else []
    options += ["--accumulate", str(accumulate)] if accumulate else []
    return options + (["--tensorboard"] if tensorboard else [])


def _start(cell: Cell, options: Sequence[str], threads: int) -> Cell:
    cell.prepare()
    cell.process = start_training(cell.folder, cell.keep, options, threads)
    Record.here(LOCAL, str(cell.process.pid)).write(cell.folder / STARTED)
    return cell


def _check_end(cell: Cell) -> None:
    log = cell.folder / LOG
    if cell.process.returncode != 0 or not cell.finished():
        said = last_line(log) or "its log is empty"
        raise UserError(
            f"{cell.folder}: the run stopped with status {cell.process.returncode} ({said}); "
            f"see {log}, then start the same command again to resume"
        )


def _progress(waiting: Sequence[Cell], running: Sequence[Cell], pace: Pace, now: float) -> str:
    """Return how far a matrix is, and when it will end at the current speed.

    Args:
        waiting: runs that were not finished when the matrix was started.
        running: those that train now.
        pace: pace of the whole matrix; observes this moment.
        now: seconds, of a clock that only goes forward.
    """
    done = {cell.name: cell.steps_done() for cell in waiting}
    total, so_far = sum(cell.config.training.steps for cell in waiting), sum(done.values())
    pace.observe(now, so_far)
    left = pace.seconds_for(total - so_far)
    end = "starting" if left is None else f"about {in_words(left)} left"
    if so_far == total:
        end = "all steps done, evaluating"
    now_training = ", ".join(f"{c.name} {done[c.name]}/{c.config.training.steps}" for c in running)
    return f"{100 * so_far / total:3.0f} %  {end}  ({now_training})"


def find_runs(out: Path) -> list[Run]:
    """Return the runs in a matrix's folder that have started, ordered by name.

    Args:
        out: folder of the matrix; its runs are in ``out/runs``.

    Raises:
        UserError: a run cannot be opened, see :meth:`~ddfp_lib.runs.folder.Run.open`.
    """
    folders = sorted((Path(out) / "runs").glob("*/config.yaml"))
    return [Run.open(path.parent) for path in folders]
