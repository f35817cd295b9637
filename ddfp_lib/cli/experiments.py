"""Many runs: ``ddfp reproduce``, ``study``, ``record``, ``report``."""

from pathlib import Path
from typing import Annotated

import typer

from ddfp_lib.cli import options
from ddfp_lib.errors import UserError


def reproduce(
    benchmark: options.Benchmark = "digits",
    splits: Annotated[
        str | None,
        typer.Option(
            help="Some of the benchmark's splits, separated by commas, such as 732,1464 [all]."
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods or .yaml files, separated by commas; see `ddfp methods`.")
    ] = "supervised,consistency,noise,ddfp",
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and the report [runs/BENCHMARK].")
    ] = None,
    labeled: options.Labeled = None,
    data: options.Data = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="The benchmark's quick settings with one seed, for a first try."
        ),
    ] = False,
    jobs: options.Jobs = 0,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each run, a process each.")] = 1,
    accumulate: options.Accumulate = 0,
    device: options.Device = "auto",
    tensorboard: options.TensorBoard = False,
    launcher: Annotated[
        str, typer.Option(help="local: processes of this machine; slurm: jobs of a cluster.")
    ] = "local",
    partition: Annotated[
        str | None, typer.Option(help="slurm: partition of the jobs [the cluster's default].")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="slurm: time limit of a job; longer runs resume [24].")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="slurm: CPU cores of each run [8 per GPU, else 1].")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Any option of sbatch, such as --slurm account=vision; can be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, steps, hours and memory, and stop.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print how far each run is, and stop.")
    ] = False,
    only_report: Annotated[
        bool, typer.Option("--report", help="Write the report of the finished runs, and stop.")
    ] = False,
) -> None:
    """Train methods on splits and seeds, and write a report. Run the command again to continue.

    Without --splits, all splits of the benchmark are used. With --labeled or --quick, no split is
    used; the labeled images are those of --labeled, or else those that the benchmark itself names.
    papermill executes reproduce/experiment.ipynb; the
    executed notebook is the report. With --launcher slurm each run is a job of a cluster, and the
    report is one more job.
    """
    from dataclasses import replace

    from ddfp_lib.config import find_benchmark, splits_of
    from ddfp_lib.experiments.reproduction import Request, print_plan
    from ddfp_lib.experiments.reproduction import reproduce as run_notebook

    if splits is not None and labeled is not None:
        raise UserError("--splits and --labeled: both name the labeled images; give one of them")
    if sum((dry_run, status, only_report)) > 1:
        raise UserError("--dry-run, --status and --report: give one of them")
    on_cluster = launcher != "local"
    asked = {"--partition": partition, "--hours": hours, "--cpus": cpus, "--slurm": slurm}
    named = [option for option, value in asked.items() if value is not None]
    if named and not on_cluster:
        raise UserError(f"{named[0]}: belongs to --launcher slurm; add that, or leave this out")
    if splits is not None:
        chosen = options.as_names(splits)
    else:
        chosen = [] if quick or labeled else splits_of(find_benchmark(benchmark))
    here = options.as_device(device) if not on_cluster or only_report else None
    request = Request(
        benchmark=benchmark,
        splits=chosen,
        methods=options.as_names(methods),
        seeds=options.as_numbers(seeds)[:1] if quick else options.as_numbers(seeds),
        out=str(out or Path("runs") / f"{Path(benchmark).stem}{'-quick' if quick else ''}"),
        settings=options.as_overrides(labeled, data, weights, settings),
        quick=quick,
        jobs=jobs,
        gpus=gpus,
        accumulate=accumulate,
        device=_cluster_device(device, gpus) if here is None else str(here),
        tensorboard=tensorboard,
    )
    if dry_run:
        print_plan(request)
        return
    if status:
        from ddfp_lib.experiments.status import status_table, statuses

        print(status_table(statuses(request.cells())))
        return
    if on_cluster and not only_report:
        from ddfp_lib.experiments.cluster import Resources, find_cluster, submit_request

        cluster = find_cluster(launcher)
        extra = dict(options.as_pairs("--slurm", slurm or []))
        count = gpus if request.device == "cuda" else 0
        resources = Resources(
            partition, 24.0 if hours is None else hours, count, cpus or 0, jobs, extra
        )
        for line in submit_request(request, cluster, resources):
            print(line)
        print("see how far they are: the same command with --status")
        return
    written = run_notebook(replace(request, only_finished=only_report))
    print("\nLook here:")
    for path, what in written.items():
        print(f"  {path}  {what}")


def _cluster_device(name: str, gpus: int) -> str:
    """Return the device of runs on a cluster, which may be another than this machine has."""
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(f"--device {name}: on a cluster use cuda or cpu")
    if name == "cpu" and gpus > 1:
        raise UserError(f"--gpus {gpus}: leave it out with --device cpu")
    return "cpu" if name == "cpu" else "cuda"


def study(
    name: Annotated[str | None, typer.Argument(help="A study; without it, list all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs/study"),
    data: Annotated[Path | None, typer.Option("--data", help="Folder of the data set.")] = None,
    jobs: options.Jobs = 0,
    device: options.Device = "auto",
    keep: Annotated[
        bool, typer.Option("--record", help="Keep the study's tables in reproduce/studies.")
    ] = False,
) -> None:
    """Train the runs of one study. Run the command again to continue."""
    from ddfp_lib.experiments.reproduction import run_study
    from ddfp_lib.experiments.study import find_study, studies
    from ddfp_lib.experiments.study import record as keep_study

    if name is None:
        for each in studies():
            print(f"{each.name:<12} {each.question}")
        return
    written = run_study(name, out, root=data, jobs=jobs, device=str(options.as_device(device)))
    if keep:
        written |= dict.fromkeys(keep_study(find_study(name), out), "kept for `ddfp report`")
    print("\nLook here:")
    for path, what in written.items():
        print(f"  {path}  {what}")


def record(
    out: Annotated[
        Path | None, typer.Argument(help="Folder of a reproduction, with its results.csv.")
    ] = None,
    contributor: Annotated[
        str | None, typer.Option(help="Keep its runs as contributed ones, under this name.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check its runs, or all contributed ones; keep nothing.")
    ] = False,
) -> None:
    """Copy finished runs into reproduce/results.csv, then renew the tables made from it.

    With --contributor NAME, the finished runs go to reproduce/contributed/NAME instead, each with
    configuration, environment, log and result. They are listed in a separate table.
    """
    from ddfp_lib.experiments.contributed import check_run, contribute, home, run_folders
    from ddfp_lib.experiments.ledger import record as merge
    from ddfp_lib.files import repository

    if check:
        if contributor is not None:
            raise UserError("--check and --contributor: give one of them")
        folders = run_folders(out or home()) if out is not None or home().is_dir() else []
        for folder in folders:
            result, changed = check_run(folder)
            words = ", ".join(changed) if changed else "none" if changed == [] else "unknown"
            print(f"{folder}: agrees, test mIoU {result.test_miou:.1f}, changed settings: {words}")
        print(f"{len(folders)} runs checked")
        return
    if out is None:
        raise UserError(
            "record: name the folder of a reproduction, such as runs/voc, or use --check"
        )
    if contributor is None:
        kept = repository() / "reproduce" / "results.csv"
        print(f"{kept}: {len(merge(out / 'results.csv', kept))} runs")
    else:
        for path in contribute(out, contributor):
            print(path)
    report()


def report() -> None:
    """Renew the pages of recorded results; list results whose configuration has changed.

    The pages are RESULTS.md and STUDY.md with their figures, and the tables of README.md and
    docs/architecture.md.
    """
    from ddfp_lib.experiments.ledger import read_ledger
    from ddfp_lib.experiments.matches import unmatched_lines
    from ddfp_lib.files import repository
    from ddfp_lib.reports.pages import write_pages

    for path in write_pages():
        print(path)
    kept = repository() / "reproduce" / "results.csv"
    for line in unmatched_lines(read_ledger(kept), kept):
        print(line)
