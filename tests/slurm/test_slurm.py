"""A matrix on a real Slurm of one node: killed, preempted, requeued, resumed, reported once.

Not part of ``make test``. ``make slurm-test`` runs it, as root, with Debian's ``slurm-wlm`` and
``munge``; without them it skips.
"""

import os
import signal
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ddfp_lib.cli import app, run
from ddfp_lib.experiments.job import STARTED, Record
from ddfp_lib.experiments.matrix import plan
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.slurm.one_node import OneNode, missing, wait_for
from tests.test_loop import assert_same_run

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

LONG = ["training.steps=300", "training.evaluate_every=300", "training.checkpoint_every=5"]


@pytest.fixture(scope="module")
def slurm():
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        OneNode(Path(folder)) as node,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in node.environment.items():
            patch.setenv(name, value)
        yield node


def ddfp(capsys, *words: object) -> str:
    """Call ``ddfp reproduce`` with these words; return what it prints."""
    capsys.readouterr()
    command = lambda: app([str(word) for word in words], standalone_mode=False)  # noqa: E731
    status, printed = run(command), capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def row(table: str, name: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(name))
    return line.split()


def begun(folder: Path) -> bool:
    return (folder / "checkpoints" / "index.json").is_file()


def newest_step(folder: Path) -> int:
    paths = [path.stem for path in folder.glob("checkpoints/step-*.pt")]
    return max((int(stem.removeprefix("step-")) for stem in paths), default=0)


def requeue_now(slurm: OneNode, job: str) -> None:
    """Wait until a job is back in the queue, and spare it the two minutes that Slurm waits."""
    wait_for(lambda: slurm.state(job) == "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_matrix_with_a_killed_and_a_preempted_run_ends_with_each_row_once(
    slurm, tmp_path, capsys
):
    benchmark, out = tmp_path / "tiny.yaml", tmp_path / "out"
    benchmark.write_text(yaml.safe_dump(TINY))
    command = ["reproduce", benchmark, "--out", out, "--methods", "consistency,ddfp", "--seeds", 0]
    command += ["--device", "cpu", "--launcher", "slurm", "--partition", "main", "--hours", 2]
    command += [word for setting in LONG for word in ("--set", setting)]
    killed, preempted = plan(benchmark, ["consistency", "ddfp"], [0], out, LONG)

    submitted = ddfp(capsys, *command)
    assert "consistency-0: job " in submitted and "report, when all" in submitted
    wait_for(lambda: begun(killed.folder) and begun(preempted.folder))
    table = ddfp(capsys, *command, "--status")
    assert row(table, "ddfp-0")[1] == row(table, "consistency-0")[1] == "running"

    # one process is killed: its training ends too, the job fails, and the status says so
    job = Record.read(killed.folder / STARTED)
    os.kill(job.pid, signal.SIGKILL)
    wait_for(lambda: slurm.state(job.job) == "FAILED")
    table = ddfp(capsys, *command, "--status")
    assert row(table, "consistency-0")[1] == "failed"
    assert "step 0/300" in next(line for line in table.splitlines() if "consistency-0" in line)

    # the other reaches its time limit, as the signal says, and resumes
    first = Record.read(preempted.folder / STARTED)
    slurm.run("scancel", "--signal=USR2", first.job)
    requeue_now(slurm, first.job)
    wait_for(lambda: Record.read(preempted.folder / STARTED).pid != first.pid)
    second = Record.read(preempted.folder / STARTED)
    before = newest_step(preempted.folder)
    wait_for(lambda: newest_step(preempted.folder) > before)

    # then a job of a higher priority needs the node: SIGTERM to all, and Slurm requeues it
    wrap = ["--wrap", "sleep 3", "--output=/dev/null", f"--cpus-per-task={slurm.cpus}"]
    slurm.run("sbatch", "--partition=high", *wrap)
    requeue_now(slurm, second.job)
    table = ddfp(capsys, *command, "--status")
    assert row(table, "ddfp-0")[1] in ("waiting", "running")

    # the same command submits the killed run alone, and the report anew
    submitted = ddfp(capsys, *command)
    assert "1 runs are in the queue already" in submitted
    assert "consistency-0: job " in submitted and "ddfp-0: job" not in submitted
    wait_for(lambda: killed.finished() and preempted.finished(), 400)
    assert Record.read(preempted.folder / STARTED).pid not in (first.pid, second.pid)
    wait_for(lambda: (out / "report.html").is_file(), 300)
    rows = pd.read_csv(out / "results.csv")
    assert rows["method"].tolist() == ["consistency", "ddfp"]
    assert "2 done" in ddfp(capsys, *command, "--status")
    assert "write the report with --report" in ddfp(capsys, *command)

    # and nothing of all this can be seen in what they learned
    for cell in (killed, preempted):
        undisturbed = train(cell.config, tmp_path / cell.name, device=torch.device("cpu"))
        assert undisturbed.test_iou == cell_result(cell).test_iou
        assert_same_run(cell.folder, tmp_path / cell.name)


def cell_result(cell):
    from ddfp_lib.runs.folder import finished_result

    return finished_result(cell.folder, cell.config)


def test_a_refused_request_is_one_line_and_leaves_no_job(slurm, tmp_path, capsys):
    benchmark = tmp_path / "tiny.yaml"
    benchmark.write_text(yaml.safe_dump(TINY))
    command = ["reproduce", benchmark, "--out", tmp_path / "out", "--methods", "ddfp"]
    command += ["--seeds", 0, "--device", "cpu", "--launcher", "slurm"]
    for words, said in (["--partition", "nowhere"], "partition"), (["--cpus", 99], "processors"):
        status = run(
            lambda words=words: app([str(w) for w in (*command, *words)], standalone_mode=False)
        )
        printed = capsys.readouterr()
        assert status == 2
        assert "sbatch refused the jobs" in printed.err and said in printed.err
        assert len(printed.err.splitlines()) == 1
    table = ddfp(capsys, *command, "--status")
    assert row(table, "ddfp-0")[1:3] == ["not", "started"]
