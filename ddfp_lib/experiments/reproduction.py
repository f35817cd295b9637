"""papermill executes the experiment notebook; the executed notebook is the report."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddfp_lib.config import find_benchmark
from ddfp_lib.constants import QUIET_KERNEL
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.matrix import Cell, plan
from ddfp_lib.experiments.page import to_html
from ddfp_lib.experiments.study import find_study
from ddfp_lib.files import repository, write_atomically, write_text


@dataclass(frozen=True)
class Request:
    """All parameters of ``reproduce/experiment.ipynb``.

    Attributes:
        benchmark: name below ``reproduce/configs``, or path of a ``.yaml``.
        splits: names of the benchmark's published splits. Without any, the benchmark or a setting
            names the labeled images.
        methods: names of presets.
        seeds: one run of each method per seed.
        out: folder of runs and report.
        settings: ``key=value`` overrides.
        quick: use the benchmark's quick settings.
        jobs: runs at the same time; 0: one per core, or one on a GPU.
        gpus: processes of each run, one per GPU.
        accumulate: micro-batches in which each process takes its share of a step's images; 0: as
            many as its memory needs.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        tensorboard: also write each run's log for TensorBoard.
        only_finished: train nothing, report the runs that are finished.
    """

    benchmark: str
    splits: list[str]
    methods: list[str]
    seeds: list[int]
    out: str
    settings: list[str]
    quick: bool
    jobs: int
    gpus: int
    accumulate: int
    device: str
    tensorboard: bool
    only_finished: bool = False

    def cells(self) -> list[Cell]:
        """Return the runs of this request; see :func:`ddfp_lib.experiments.matrix.plan`."""
        return plan(
            find_benchmark(self.benchmark),
            self.methods,
            self.seeds,
            Path(self.out),
            self.settings,
            self.quick,
            self.splits,
        )


def reproduce(request: Request) -> dict[Path, str]:
    """Execute the experiment notebook and export it.

    The whole request is checked before the kernel starts.

    Returns:
        The files that were written, each with a description.

    Raises:
        UserError: the request is wrong, or a run failed; the same request resumes it. Or only
            finished runs are asked for, and there are none or their data have changed.
    """
    out = Path(request.out).resolve()
    cells = request.cells()
    if request.only_finished:
        finished = [cell for cell in cells if cell.finished()]
        if not finished:
            raise UserError(f"{out}: no run is finished yet; --status shows how far they are")
        # scenes of digits are made by the configuration alone
        if files := [cell for cell in finished if cell.config.data.dataset != "digits"]:
            check_data(files)
        print(f"{len(finished)} of {len(cells)} runs are finished, in {out}", flush=True)
    else:
        check_inputs(cells)
        print(f"{len(cells)} runs of {request.benchmark} on {request.device}, in {out}", flush=True)
    report = out / "report.ipynb"
    html = execute("experiment", {**asdict(request), "out": str(out)}, report)
    return {
        html: "the report, one file",
        report: "the same as an executed notebook",
        out / "results.csv": "a row for each run",
        out / "runs": "configuration, log and checkpoints of each run",
    }


def run_study(
    name: str, out: Path, *, root: Path | None, jobs: int, device: str
) -> dict[Path, str]:
    """Execute the study notebook and export it; see :mod:`ddfp_lib.experiments.study`.

    Args:
        name: name of the study, or path of its file.
        out: folder of all studies.
        root: folder of the data set; digit scenes need none.
        jobs: runs at the same time; 0: one per core, or one on a GPU.
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Returns:
        The files that were written, each with a description.

    Raises:
        UserError: a setting is wrong, or a run failed; the same study resumes it.
    """
    study, out = find_study(name), Path(out).resolve()
    cells = study.cells(out, root)
    check_inputs(cells)
    print(f"{len(cells)} runs of the study {study.name} on {device}, in {out}", flush=True)
    report = out / f"{study.name}.ipynb"
    parameters = {"study": name, "out": str(out), "jobs": jobs, "device": device}
    parameters |= {"root": None if root is None else str(Path(root).resolve())}
    html = execute("study", parameters, report)
    return {
        html: "the report, one file",
        report: "the same as an executed notebook",
        out / f"{study.name}.csv": "a row for each run",
    }


def execute(name: str, parameters: dict[str, Any], report: Path) -> Path:
    """Execute a notebook of ``reproduce/`` with papermill, and export it as HTML.

    Args:
        name: name of the notebook, without the suffix.
        parameters: each must be one of its ``parameters`` cell.
        report: path of the executed notebook; the ``.html`` is written next to it.

    Returns:
        The exported page.

    Raises:
        UserError: a parameter is unknown, or a cell raised a ``UserError``.
    """
    import papermill

    notebook = repository() / "reproduce" / f"{name}.ipynb"
    check_parameters(notebook, parameters)
    try:
        papermill.execute_notebook(
            notebook,
            _prepared(report),
            parameters=parameters,
            cwd=Path.cwd(),  # paths in benchmarks and settings may be relative to it
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            extra_arguments=QUIET_KERNEL,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(error.evalue) from error
        raise
    html = report.with_suffix(".html")
    write_text(html, to_html(report))
    return html


def print_plan(request: Request) -> None:
    """Print the runs of a request and what they would cost; no data is needed."""
    from ddfp_lib.experiments.cost import table
    from ddfp_lib.experiments.ledger import read_ledger

    ledger = read_ledger(repository() / "reproduce" / "results.csv")
    print(table(request.cells(), ledger, request.gpus, request.accumulate))


def _prepared(report: Path) -> str:
    # an empty file, written early, shows whether the folder can be written
    write_atomically(report, lambda partial: partial.touch())
    return str(report)


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook does not have; papermill only warns about them.

    Args:
        notebook: path of the .ipynb, with a cell tagged ``parameters``.
        parameters: values by the names of the notebook's variables.

    Raises:
        UserError: a parameter is unknown, or the notebook is missing.
    """
    import papermill

    if not notebook.is_file():
        raise UserError(f"{notebook}: is missing; clone the whole repository")
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise UserError(
            f"{notebook}: has no parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )


def check_inputs(cells: list[Cell]) -> None:
    """Inspect the data of a matrix, draw its splits and build its network, before any run starts.

    Raises:
        UserError: a folder, file or list is missing or wrong, a run in the folder used other data,
            the starting weights belong to another network, or a perturbation of the user's own
            cannot be used.
    """
    from ddfp_lib.models.network import SegmentationNetwork
    from ddfp_lib.training.learner import perturbation_for

    config = cells[0].config
    for cell in cells:
        perturbation_for(cell.config)
    classes = check_data(cells)
    if any(cell.steps_done() == 0 for cell in cells):  # others resume from their checkpoints
        SegmentationNetwork(config.network, classes)


def check_data(cells: list[Cell]) -> int:
    """Inspect the data of runs, compare them with what each run has stored, and print notices.

    Returns:
        The number of classes.

    Raises:
        UserError: a folder, file or list is missing or wrong, or a run in the folder used other
            data.
    """
    from ddfp_lib.runs.identity import check_identity
    from ddfp_lib.training.data import open_run_data

    notices: dict[str, None] = {}
    for settings in dict.fromkeys(cell.config.data for cell in cells):
        same = [cell for cell in cells if cell.config.data == settings]
        data = open_run_data(same[0].config, say=print)
        identity = data.identity
        for cell in same:  # a finished run counts only if it used these data
            check_identity(cell.folder, identity, settings.root)
        notices |= dict.fromkeys(data.findings.notices)
    for notice in notices:
        print(notice, flush=True)
    return len(data.training.classes)
