"""Submit all runs of a matrix as jobs of a Slurm cluster, through submitit.

One job is one run. Its state is in the run folder alone: what is finished is never submitted, what
was interrupted resumes from its checkpoint, and nothing here depends on Slurm's accounting, which
many clusters do not have. ``squeue`` says which jobs still exist.
"""

import math
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from ddfp_lib.errors import UserError, one_line
from ddfp_lib.experiments.job import STARTED, SUBMITTED, Record, TrainJob
from ddfp_lib.experiments.matrix import Cell, training_options
from ddfp_lib.experiments.reproduction import Request, check_inputs, reproduce

if TYPE_CHECKING:
    import submitit
    from submitit.helpers import DelayedSubmission

CPUS_PER_GPU = 8
"""CPU cores for each GPU of a run: at most 8 processes read its images."""

TIMEOUTS = 50
"""How often a job that reaches its time limit is put into the queue again."""


@dataclass(frozen=True)
class Resources:
    """What each run asks a cluster for.

    Attributes:
        partition: partition of the cluster; ``None``: its default.
        hours: time limit of a job. A run that needs more is requeued and resumes.
        gpus: GPUs of each run; 0: the run trains on CPUs.
        cpus: CPU cores of each run; 0: :data:`CPUS_PER_GPU` per GPU, or 1 without a GPU.
        parallel: runs at the same time; 0: as many as the cluster admits.
        extra: further options of ``sbatch`` without dashes, such as ``{"account": "vision"}``.
    """

    partition: str | None = None
    hours: float = 24.0
    gpus: int = 1
    cpus: int = 0
    parallel: int = 0
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that no job can have."""
        if not 0 < self.hours <= 24 * 365:
            raise UserError(f"--hours {self.hours:g}: give more than 0 hours and at most a year")
        if self.parallel < 0 or self.cpus < 0:
            raise UserError(f"--jobs {self.parallel}, cpus {self.cpus}: give 0 or more")

    @property
    def cores(self) -> int:
        """CPU cores of each run."""
        return self.cpus or CPUS_PER_GPU * self.gpus or 1

    @property
    def minutes(self) -> int:
        """Time limit of a job in minutes, at least 1."""
        return max(1, math.ceil(60 * self.hours))


@dataclass(frozen=True)
class ReportJob:
    """The report of a matrix as a job of a cluster.

    Attributes:
        request: the reproduction to run.
    """

    request: Request

    def __call__(self) -> None:
        """Make the report of the runs that are finished by now."""
        reproduce(self.request)

    def checkpoint(self) -> "DelayedSubmission":
        """Return what submitit puts into the queue again: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Cluster(ABC):
    """Something that carries out jobs of submitit, and can say which of them still exist."""

    name: str
    """As ``--launcher`` names it."""

    @abstractmethod
    def executor(
        self, folder: Path, name: str, resources: Resources, after: Sequence[str] = ()
    ) -> "submitit.Executor":
        """Return an executor of submitit.

        Args:
            folder: for pickles and logs, on a file system that the compute nodes see.
            name: name of the jobs, as the cluster lists them.
            resources: resources of each job.
            after: jobs that have to end first, in whatever way.

        Raises:
            UserError: this machine cannot submit jobs.
        """

    @abstractmethod
    def states(self, jobs: Sequence[str]) -> dict[str, str]:
        """Return ``waiting`` or ``running`` of each job that has not ended.

        Raises:
            UserError: the cluster does not answer.
        """

    @abstractmethod
    def cancel(self, job: str) -> None:
        """End a job, if it still exists."""


class Slurm(Cluster):
    """A cluster run by Slurm; the commands ``sbatch``, ``squeue`` and ``scancel`` are used."""

    name = "slurm"

    def executor(  # noqa: D102
        self, folder: Path, name: str, resources: Resources, after: Sequence[str] = ()
    ) -> "submitit.Executor":
        submitit = _submitit()
        for command in ("sbatch", "srun"):
            if shutil.which(command) is None:
                raise UserError(
                    f"--launcher slurm: this machine has no {command}; start the command on a "
                    "machine that submits jobs to Slurm, or use --launcher local"
                )
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMEOUTS)
        extra = {"requeue": True, **resources.extra}
        if after:
            extra["dependency"] = "afterany:" + ":".join(after)
        values = {
            "job_name": name,
            "partition": resources.partition,
            "time": resources.minutes,
            "ntasks_per_node": 1,
            "cpus_per_task": resources.cores,
            "gpus_per_node": resources.gpus or None,
            "array_parallelism": resources.parallel or 1000,
            # since Slurm 22.05 srun does not take this number from sbatch
            "srun_args": [f"--cpus-per-task={resources.cores}"],
            "additional_parameters": extra,
        }
        executor.update_parameters(**{key: v for key, v in values.items() if v is not None})
        return executor

    def states(self, jobs: Sequence[str]) -> dict[str, str]:  # noqa: D102
        if not jobs:
            return {}
        # an array's number finds all of its tasks, and makes a short command
        numbers = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
        found = _run("squeue", "--noheader", "--array", f"--jobs={numbers}", "--format=%i|%T")
        if found.returncode and "Invalid job id" in found.stderr:
            return {}  # what squeue says when it has forgotten all of them
        if found.returncode:
            raise UserError(
                f"squeue: {one_line(found.stderr) or 'no answer'}; try again when Slurm answers"
            )
        rows = (line.strip().split("|") for line in found.stdout.splitlines() if "|" in line)
        known = {job: state for job, state in rows if job in set(jobs)}
        active = ("RUNNING", "COMPLETING")
        return {job: "running" if state in active else "waiting" for job, state in known.items()}

    def cancel(self, job: str) -> None:  # noqa: D102
        _run("scancel", job)


CLUSTERS: dict[str, Cluster] = {Slurm.name: Slurm()}
"""Clusters by the name that ``--launcher`` knows them by."""


def find_cluster(name: str) -> Cluster:
    """Return the cluster of this name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in CLUSTERS:
        raise UserError(
            f"--launcher {name}: is unknown; choose one of local, {', '.join(CLUSTERS)}"
        )
    return CLUSTERS[name]


def live_jobs(cells: Sequence[Cell]) -> dict[str, tuple[str, str]]:
    """Return the job of each run that has one on a cluster: run to (job, its state).

    Both records of a run are asked for: the job that it was submitted as, and the one that last
    started it.
    """
    records: dict[str, dict[str, str]] = {}
    for cell in cells:
        for file in (STARTED, SUBMITTED):
            record = Record.read(cell.folder / file)
            if record and record.launcher in CLUSTERS:
                records.setdefault(record.launcher, {})[record.job] = cell.name
    found = {}
    for launcher, jobs in records.items():
        states = CLUSTERS[launcher].states(list(jobs))
        found |= {jobs[job]: (job, state) for job, state in states.items()}
    return found


def submit_request(request: Request, cluster: Cluster, resources: Resources) -> list[str]:
    """Check a whole request as a local reproduction does, then :func:`submit` its runs.

    Raises:
        UserError: the request is wrong, or the cluster refuses the jobs.
    """
    cells = request.cells()
    if any(not cell.finished() for cell in cells):
        check_inputs(cells)
    return submit(cells, request, cluster, resources)


def submit(
    cells: Sequence[Cell], request: Request, cluster: Cluster, resources: Resources
) -> list[str]:
    """Submit every run of a matrix that is neither finished nor in the queue, then the report.

    Args:
        cells: runs of the matrix, checked.
        request: the request that they come from. The report is made from it, after all runs have
            ended.
        cluster: the cluster that carries out the jobs.
        resources: resources of each run; the report takes one GPU where runs take any.

    Returns:
        Lines that say what was done.

    Raises:
        UserError: the cluster refuses the jobs, or does not answer. Then no run was submitted.
    """
    out = Path(request.out)
    folder = out / "jobs"
    live = live_jobs(cells)
    waiting = [cell for cell in cells if not cell.finished() and cell.name not in live]
    finished = sum(cell.finished() for cell in cells)
    lines = [f"{finished} of {len(cells)} runs are finished already"] if finished else []
    lines += [f"{len(live)} runs are in the queue already"] if live else []
    if not waiting:
        return lines if live else [*lines, "write the report with --report"]
    options = training_options(
        request.device, request.gpus, request.accumulate, request.tensorboard
    )
    threads = max(1, resources.cores // request.gpus)
    jobs = []
    for cell in waiting:
        cell.prepare()
        path = str(cell.folder.resolve())
        jobs.append(TrainJob(cluster.name, path, cell.keep, tuple(options), threads))
    name = f"ddfp-{Path(request.benchmark).stem}"
    numbers = _submit(cluster.executor(folder, name, resources), jobs)
    for cell, number in zip(waiting, numbers, strict=True):
        Record.here(cluster.name, number).write(cell.folder / SUBMITTED)
        lines.append(f"{cell.name}: job {number}")
    after = [*numbers, *(job for job, _ in live.values())]
    try:
        report = _submit_report(out, request, cluster, resources, after)
    except UserError as error:
        return [*lines, f"the report was not submitted ({error}); make it later with --report"]
    return [*lines, f"report, when all of these have ended: job {report}"]


def _submit_report(
    out: Path, request: Request, cluster: Cluster, resources: Resources, after: Sequence[str]
) -> str:
    """Submit the report of a matrix, in place of one that still waits for fewer runs."""
    file = out / "jobs" / "report.json"
    earlier = Record.read(file)
    if earlier and earlier.launcher == cluster.name:
        for job, state in cluster.states([earlier.job]).items():
            if state == "waiting":
                cluster.cancel(job)
    job = ReportJob(replace(request, out=str(out.resolve()), only_finished=True, jobs=0))
    needs = replace(resources, gpus=min(1, resources.gpus), parallel=0)
    name = f"ddfp-{Path(request.benchmark).stem}-report"
    (number,) = _submit(cluster.executor(out / "jobs", name, needs, after), [job])
    Record.here(cluster.name, number).write(file)
    return number


def _submit(executor: "submitit.Executor", jobs: Sequence[TrainJob | ReportJob]) -> list[str]:
    """Submit jobs, several of them as an array; return their numbers in order."""
    submitit = _submitit()
    try:
        with redirect_stderr(StringIO()):  # submitit prints what the error below holds as well
            several = len(jobs) > 1
            submitted = executor.submit_array(jobs) if several else [executor.submit(jobs[0])]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = [line for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        reason = re.sub(r"^sbatch: (error: )?", "", said[0].strip())
        raise UserError(
            f"sbatch refused the jobs ({reason}); change --partition, --hours, --gpus or --slurm"
        ) from error
    return [job.job_id for job in submitted]


def _submitit() -> "submitit":
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--launcher slurm: submitit is not installed; pip install 'ddfp[cluster]', or use "
            "--launcher local"
        ) from error
    return submitit


def _run(*command: str) -> subprocess.CompletedProcess:
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return subprocess.CompletedProcess(command, 1, "", f"{command[0]} does not answer")
