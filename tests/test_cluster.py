"""A matrix as jobs of a cluster: submitit's local executor for real, Slurm's commands by stand-ins.

A real Slurm: ``tests/slurm``.
"""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import submitit
import torch
import yaml

from ddfp_lib.cli import app, run
from ddfp_lib.errors import UserError
from ddfp_lib.experiments import cluster
from ddfp_lib.experiments.cluster import Cluster, Resources, Slurm, submit
from ddfp_lib.experiments.job import LOG, STARTED, SUBMITTED, Record, last_line
from ddfp_lib.experiments.ledger import write_ledger
from ddfp_lib.experiments.matrix import LOCAL, plan, run_matrix
from ddfp_lib.experiments.reproduction import Request
from ddfp_lib.experiments.status import status_table, statuses
from ddfp_lib.runs.folder import finished_result
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.test_loop import assert_same_run
from tests.test_matrix import wait_for

CPU = torch.device("cpu")
ON_CPU = Resources(gpus=0)


class Processes(Cluster):
    """submitit's local executor: a job is a process of this machine. It knows no dependencies."""

    name = "processes"

    def __init__(self):
        self.jobs = []

    def executor(self, folder, name, resources, after=()):
        if after:
            raise UserError("no job here waits for another")
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=5)
        submitted = executor.submit
        executor.submit = lambda job: self.jobs.append(submitted(job)) or self.jobs[-1]
        return executor

    def states(self, jobs):
        alive = {job.job_id for job in self.jobs if not job.done()}
        return {job: "running" for job in jobs if job in alive}

    def cancel(self, job):
        raise AssertionError("nothing is cancelled")


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def processes(monkeypatch):
    local = Processes()
    monkeypatch.setitem(cluster.CLUSTERS, local.name, local)
    return local


def request_for(tiny, out, settings, methods) -> Request:
    return Request(str(tiny), [], methods, [0], str(out), settings, False, 0, 1, 0, "cpu", False)


@pytest.mark.soak  # three processes import PyTorch
@pytest.mark.fault(
    "a signal", "a cluster's job at its time limit: it goes back into the queue and is resumed"
)
def test_a_requeued_job_resumes_and_nothing_is_submitted_twice(tiny, tmp_path, processes):
    settings = ["training.steps=30", "training.evaluate_every=30"]
    request = request_for(tiny, tmp_path / "out", settings, ["supervised", "ddfp"])
    done, cell = request.cells()
    train(done.config, done.folder, device=CPU)
    assert [status.state for status in statuses([done, cell])] == ["done", "not started"]

    lines = submit([done, cell], request, processes, ON_CPU)
    (job,) = processes.jobs
    assert lines[:2] == ["1 of 2 runs are finished already", f"ddfp-0: job {job.job_id}"]
    assert lines[2].startswith("the report was not submitted (no job here waits for another)")
    wait_for(lambda: (cell.folder / "checkpoints" / "index.json").is_file())
    (_, running) = statuses([done, cell])
    assert (running.state, running.job) == ("running", job.job_id)
    assert "1 runs are in the queue already" in submit([done, cell], request, processes, ON_CPU)
    assert len(processes.jobs) == 1

    first = Record.read(cell.folder / STARTED)
    os.kill(first.pid, signal.SIGUSR2)
    wait_for(lambda: Record.read(cell.folder / STARTED).pid != first.pid or job.done())
    wait_for(job.done)
    assert job.result() is None
    result = finished_result(cell.folder, cell.config)
    assert (cell.folder / LOG).read_text().count(f"job {job.job_id} on ") == 2
    assert result.test_iou == train(cell.config, tmp_path / "other", device=CPU).test_iou
    assert_same_run(cell.folder, tmp_path / "other")

    results = run_matrix([done, cell], device=CPU, say=lambda line: None)
    write_ledger(results, tmp_path / "results.csv")
    assert pd.read_csv(tmp_path / "results.csv")["method"].tolist() == ["supervised", "ddfp"]
    assert submit([done, cell], request, processes, ON_CPU)[-1] == "write the report with --report"


def test_states_of_runs_are_told_by_their_folders(tiny, tmp_path, processes, monkeypatch):
    """No job is needed to see them: a record, a log and an answer of the queue are enough."""
    names = ["supervised", "consistency", "noise", "vat", "ddfp"]
    cells = plan(tiny, names, [0], tmp_path / "out", ["training.steps=100"])
    _, failed, stopped, waiting, running = cells
    for cell, launcher, number in (
        (failed, "processes", "1"),
        (stopped, LOCAL, "999999999"),
        (waiting, "processes", "3"),
        (running, "processes", "4"),
    ):
        cell.prepare()
        Record.here(launcher, number).write(cell.folder / STARTED)
    (failed.folder / LOG).write_text("step 25/100\nout of GPU memory\n\n")
    (stopped.folder / LOG).write_text("  3%|  | 3/100\r  4%|  | 4/100\r\n")
    lines = [{"step": step, "seconds": step / 10.0} for step in (0, 25, 50)]
    text = pd.DataFrame(lines).to_json(orient="records", lines=True)
    (running.folder / "metrics.jsonl").write_text(text)
    monkeypatch.setattr(processes, "states", lambda jobs: {"3": "waiting", "4": "running"})
    found = statuses(cells)
    assert [s.state for s in found] == ["not started", "failed", "stopped", "waiting", "running"]
    assert [s.said for s in found[1:3]] == ["out of GPU memory", "4%|  | 4/100"]
    assert found[4].seconds_left == pytest.approx(5.0, abs=1.0)
    table = status_table(found)
    assert "5 runs: 1 running, 1 waiting, 1 failed, 1 stopped, 1 not started" in table
    assert "ddfp-0         running              50/100" in table
    assert "start the same command again" in table


def test_a_local_run_is_seen_while_its_process_lives(tiny, tmp_path):
    (cell,) = plan(tiny, ["ddfp"], [0], tmp_path / "out")
    cell.prepare()
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "train", str(cell.folder)]) as process:
        Record.here(LOCAL, str(process.pid)).write(cell.folder / STARTED)
        wait_for(lambda: statuses([cell])[0].state == "running", 10)
        process.kill()
    assert statuses([cell])[0].state == "stopped"
    # its number may be another program's by now
    Record.here(LOCAL, str(os.getpid())).write(cell.folder / STARTED)
    assert statuses([cell])[0].state == "stopped"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder first on PATH; ``fake("squeue", "echo ...")`` puts a command there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


def test_the_queue_is_what_squeue_says(fake):
    rows = ["7_0|RUNNING", "7_1|PENDING", "7_2|COMPLETING", "7_3|SUSPENDED", "70_0|RUNNING"]
    fake("squeue", "printf '%s\\n' " + " ".join(f"'{row}'" for row in rows))
    states = Slurm().states(["7_0", "7_1", "7_2", "7_3", "7_4", "9"])
    assert states == {"7_0": "running", "7_1": "waiting", "7_2": "running", "7_3": "waiting"}
    assert Slurm().states([]) == {}
    fake("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert Slurm().states(["7_0"]) == {}
    fake("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match="squeue: Unable to contact slurm controller; try again"):
        Slurm().states(["7_0"])


SBATCH = """
for file; do :; done
cp "$file" {folder}/script-$$.sh
echo "Submitted batch job $(ls {folder} | grep -c script)"
"""


def test_jobs_ask_for_what_was_asked_for(fake, tiny, tmp_path):
    fake("srun", "exit 1")
    fake("squeue", "true")
    fake("sbatch", SBATCH.format(folder=tmp_path))
    request = request_for(tiny, tmp_path / "out", [], ["supervised", "ddfp"])
    resources = Resources("gpu", 1.5, 4, 0, 1, {"account": "vision", "mem": "64G"})
    lines = submit(request.cells(), request, Slurm(), resources)
    assert lines == [
        "supervised-0: job 1_0",
        "ddfp-0: job 1_1",
        "report, when all of these have ended: job 2",
    ]
    runs, report = sorted(
        (path.read_text() for path in tmp_path.glob("script-*.sh")), key=lambda t: "afterany" in t
    )
    for option in ("partition=gpu", "time=90", "gpus-per-node=4", "cpus-per-task=32", "requeue"):
        assert f"#SBATCH --{option}\n" in runs
    for option in ("account=vision", "mem=64G", "array=0-1%1", "job-name=ddfp-tiny"):
        assert f"#SBATCH --{option}\n" in runs
    assert "--dependency=afterany:1_0:1_1" in report
    assert "#SBATCH --gpus-per-node=1\n" in report
    for cell, job in zip(request.cells(), ("1_0", "1_1"), strict=True):
        assert Record.read(cell.folder / SUBMITTED).job == job


def test_a_refused_job_is_one_line_and_no_run_has_a_record(fake, tiny, tmp_path):
    fake("srun", "exit 1")
    fake("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    request = request_for(tiny, tmp_path / "out", [], ["ddfp"])
    with pytest.raises(UserError, match=r"\(invalid partition specified: x\); change --partition"):
        submit(request.cells(), request, Slurm(), ON_CPU)
    assert statuses(request.cells())[0].state == "not started"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partition", "gpu"], "--partition: belongs to --launcher slurm"),
        (["--slurm", "qos=high"], "--slurm: belongs to --launcher slurm"),
        (["--launcher", "pbs"], "choose one of local, slurm"),
        (["--launcher", "slurm", "--slurm", "qos"], "--slurm qos: is not NAME=VALUE"),
        (["--launcher", "slurm", "--hours", "0"], "--hours 0: give more than 0"),
        (["--launcher", "slurm", "--device", "cuda:1"], "on a cluster use cuda or cpu"),
        (["--launcher", "slurm", "--device", "cpu", "--gpus", "2"], "--gpus 2: leave it out"),
        (["--launcher", "slurm", "--device", "cpu"], "this machine has no sbatch"),
        (["--status", "--report"], "give one of them"),
        (["--report"], "no run is finished yet"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(words, said, fake, tiny, tmp_path, capsys):
    os.environ["PATH"] = str(tmp_path / "bin")  # restored by `fake`
    command = ["reproduce", str(tiny), "--out", str(tmp_path / "out"), "--methods", "ddfp", *words]
    assert run(lambda: app(command, standalone_mode=False)) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_what_a_job_imports_before_it_starts_is_light():
    """Each of 75 jobs does, and again whenever it is requeued."""
    code = "import ddfp_lib.experiments.job, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "papermill", "submitit"} & set(done.stdout.split())


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "train.log"
    assert last_line(log) == ""
    log.write_text("first\nsecond\n\n \n")
    assert last_line(log) == "second"


def test_a_record_that_is_no_record_is_as_good_as_none(tmp_path):
    path = tmp_path / STARTED
    for text in ("", "{", "[]", '{"job": "1"}'):
        path.write_text(text)
        assert Record.read(path) is None
    Record.here("slurm", "7").write(path)
    assert Record.read(path) == Record("slurm", "7", os.uname().nodename, os.getpid())
    assert time.time() - path.stat().st_mtime < 60
