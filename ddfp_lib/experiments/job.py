"""One run in its own process: on this machine, or as a job that a cluster may requeue.

This module is imported on every compute node before a run starts, so it imports nothing heavy.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddfp_lib.files import write_text

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

PLANNED = "planned.yaml"
"""The configuration of a run that is about to start, in its folder."""

LOG = "train.log"
"""What the process of a run printed, in its folder."""

SUBMITTED, STARTED = "submitted.json", "started.json"
"""The job that a run was submitted as, and the job that last started it, in its folder."""

ENDED_BY_TERM = {-signal.SIGTERM, 128 + signal.SIGTERM}
"""Exit status of a training that SIGTERM ended: of one process, or of the launcher of several."""

PATIENCE = 1800.0
"""Seconds that a job waits for what its cluster does after SIGTERM."""


def start_training(
    folder: Path, keep: int, options: Sequence[str], threads: int, *, append: bool = False
) -> subprocess.Popen:
    """Start ``ddfp train`` on the planned configuration of a run folder.

    Nothing is ever written to its standard input. That pipe closes when this process ends, even
    by ``kill -9``, and the training then ends too. Otherwise it would go on alone and hold its
    folder against the next start.

    Args:
        folder: folder of the run; holds :data:`PLANNED`. Output goes to :data:`LOG` in it.
        keep: number of checkpoints to keep.
        options: further options of ``ddfp train``.
        threads: CPU threads of each process of the run. Results depend on them in the last bits.
        append: keep what earlier starts wrote to the log.

    Returns:
        The process.
    """
    command = [sys.executable, "-m", "ddfp_lib.cli", "train", "--config", str(folder / PLANNED)]
    command += ["--out", str(folder), "--keep", str(keep), "--leashed", *options]
    with (folder / LOG).open("a" if append else "w") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )


def end(training: subprocess.Popen, patience: float = 20.0) -> None:
    """End a training and, where there are several, its processes; nothing if it has ended."""
    training.terminate()
    try:
        training.wait(patience)
    except subprocess.TimeoutExpired:
        training.kill()
        training.wait()


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, or an empty string."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    # a progress bar overwrites its line: keep only its final state
    shown = (line.rstrip("\r").split("\r")[-1].strip() for line in reversed(lines))
    return next((line for line in shown if line), "")


@dataclass(frozen=True)
class Record:
    """Which job a run belongs to, as :data:`SUBMITTED` and :data:`STARTED` keep it.

    Attributes:
        launcher: name of the launcher that knows the job.
        job: its number there, as text.
        host: machine that wrote the record.
        pid: process that wrote the record.
    """

    launcher: str
    job: str
    host: str
    pid: int

    @classmethod
    def here(cls, launcher: str, job: str) -> "Record":
        """Return the record of a job, as this process writes it."""
        return cls(launcher, job, socket.gethostname(), os.getpid())

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """Read a record; ``None`` where there is none, or where it is damaged."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(frozen=True)
class TrainJob:
    """One run as a job of a cluster: submitit pickles it, and calls it on a compute node.

    The training is a process of its own and resumes from its checkpoints, so the job holds no
    state. When the cluster takes the node back, submitit asks for :meth:`checkpoint` and puts the
    same job into the queue again.

    Attributes:
        launcher: name of the launcher that submitted the job.
        folder: folder of the run, absolute, on a file system that the compute nodes see.
        keep: number of checkpoints to keep.
        options: further options of ``ddfp train``.
        threads: CPU threads of each process of the run.
    """

    launcher: str
    folder: str
    keep: int
    options: tuple[str, ...]
    threads: int

    def __call__(self) -> None:
        """Train until the end.

        Raises:
            RuntimeError: the training ended without a result; the message is its last line.
        """
        from submitit import JobEnvironment

        folder = Path(self.folder)
        record = Record.here(self.launcher, JobEnvironment().job_id)
        record.write(folder / STARTED)
        with (folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"job {record.job} on {record.host}\n")
        terminated: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
        # Clusters send the signal of submitit to every process of a job. It is for this one: the
        # training is started with the signal blocked, and keeps it blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            training = start_training(folder, self.keep, self.options, self.threads, append=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            status = training.wait()
            if status in ENDED_BY_TERM:
                self._wait_for_the_cluster(terminated)
        finally:  # also when submitit leaves from its signal handler, by SystemExit
            end(training)
        if status:
            raise RuntimeError(f"{folder}: exit status {status} ({last_line(folder / LOG)})")

    def checkpoint(self) -> "DelayedSubmission":
        """Return what submitit puts into the queue again: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    @staticmethod
    def _wait_for_the_cluster(terminated: list[int]) -> None:
        """Leave it to the cluster to end this job after SIGTERM.

        Slurm sends SIGTERM to all processes of a job that it preempts or cancels. After a preempted
        job's grace period it ends and requeues the job, unless the job itself has failed by then.
        """
        time.sleep(1.0)  # the signal reached the training first
        end = time.monotonic() + (PATIENCE if terminated else 0.0)
        while time.monotonic() < end:
            time.sleep(0.5)
