"""How far each run of a matrix is: finished, running, waiting, failed, stopped, or not started."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddfp_lib.errors import UserError
from ddfp_lib.experiments.cluster import CLUSTERS, live_jobs
from ddfp_lib.experiments.job import LOG, STARTED, SUBMITTED, Record, last_line
from ddfp_lib.experiments.matrix import LOCAL, Cell
from ddfp_lib.experiments.progress import in_words, seconds_left
from ddfp_lib.runs.folder import finished_result
from ddfp_lib.runs.metrics import read_metrics

STATES = ("done", "running", "waiting", "failed", "stopped", "not started")
"""In this order they are counted. A job of a cluster that ended without a result has *failed*; a
run of this machine without a process has *stopped*, since nobody knows whether it was meant to."""


@dataclass(frozen=True)
class Status:
    """The state of one run.

    Attributes:
        name: name of the run.
        state: one of :data:`STATES`.
        step: last step in its log.
        steps: number of steps of the whole run.
        job: number on the cluster; empty where there is none.
        seconds_left: estimate by the run's current speed; ``None`` without one.
        said: score of a finished run, or the last line of one that failed or stopped.
    """

    name: str
    state: str
    step: int
    steps: int
    job: str = ""
    seconds_left: float | None = None
    said: str = ""


def statuses(cells: Sequence[Cell]) -> list[Status]:
    """Return the state of each run of a matrix, in order.

    Raises:
        UserError: a folder holds another run, or the cluster does not answer.
    """
    live = live_jobs([cell for cell in cells if not cell.finished()])
    return [_status(cell, *live.get(cell.name, ("", ""))) for cell in cells]


def _status(cell: Cell, job: str, queued: str) -> Status:
    # read after the queue: a job that has left the queue has written its result before
    result = finished_result(cell.folder, cell.config)
    steps = cell.config.training.steps
    if result is not None:
        said = f"test mIoU {result.test_miou:.1f}, {in_words(result.seconds)}"
        return Status(cell.name, "done", steps, steps, said=said)
    log = cell.folder / "metrics.jsonl"
    lines = read_metrics(log)
    step = lines[-1]["step"] if lines else 0
    records = [Record.read(cell.folder / file) for file in (STARTED, SUBMITTED)]
    if queued == "running" or (not queued and _trains_here(records[0], cell.folder)):
        silent = max(0.0, time.time() - log.stat().st_mtime) if lines else 0.0
        left = seconds_left(lines, steps, silent)
        return Status(cell.name, "running", step, steps, job, left)
    if queued:
        said = "resumes from its checkpoint" if step else ""
        return Status(cell.name, "waiting", step, steps, job, said=said)
    if not any(records):
        return Status(cell.name, "not started", step, steps)
    said = last_line(cell.folder / LOG) or "it ended before it started; its log is empty"
    on_cluster = [each for each in records if each and each.launcher in CLUSTERS]
    state = "failed" if on_cluster else "stopped"
    return Status(
        cell.name, state, step, steps, on_cluster[-1].job if on_cluster else "", said=said
    )


def _trains_here(record: Record | None, folder: Path) -> bool:
    """Return whether the process that a record names still trains in this folder."""
    if record is None or record.launcher != LOCAL or record.host != os.uname().nodename:
        return False
    try:
        os.kill(int(record.job), 0)
    except PermissionError:
        return False  # somebody else's process has its number now
    except OSError:
        return False
    command = Path("/proc") / record.job / "cmdline"
    if not command.parent.parent.joinpath("self").exists():
        return True  # macOS: the number alone has to do
    with_it = command.read_bytes() if command.exists() else b""
    return os.fsencode(folder.name) in with_it and b"train" in with_it


def status_table(found: Sequence[Status]) -> str:
    """Return the state of a matrix as text: a line per run, then how many are in each state."""
    if not found:
        raise UserError("--status: there are no runs; name methods and seeds")
    width = max(len(status.name) for status in found)
    lines = [f"{'run':<{width}}  {'state':<11} {'step':>15}  {'left':>10}  {'job':<10} note"]
    for each in found:
        left = "" if each.seconds_left is None else in_words(each.seconds_left)
        step = f"{each.step}/{each.steps}"
        row = f"{each.name:<{width}}  {each.state:<11} {step:>15}  {left:>10}  {each.job:<10} "
        lines.append((row + each.said).rstrip())
    counts = {state: sum(each.state == state for each in found) for state in STATES}
    listed = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines.append(f"{len(found)} runs: {listed}")
    if counts["failed"] or counts["stopped"]:
        lines.append("start the same command again to resume those that failed or stopped")
    return "\n".join(lines)
