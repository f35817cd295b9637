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
        typer.Option(help="Comma list of the benchmark's published splits, as 732,1464 [all]."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Comma list of methods or of .yaml files, see `ddfp methods`.")
    ] = "supervised,consistency,noise,ddfp",
    seeds: Annotated[str, typer.Option(help="Comma list of numbers.")] = "0,1,2",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and the report [runs/BENCHMARK].")
    ] = None,
    labeled: options.Labeled = None,
    data: options.Data = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The benchmark's quick settings, one seed: a look.")
    ] = False,
    jobs: options.Jobs = 0,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each run, a process each.")] = 1,
    accumulate: options.Accumulate = 0,
    device: options.Device = "auto",
    tensorboard: options.TensorBoard = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, steps, hours and memory, and stop.")
    ] = False,
) -> None:
    """Train methods over splits and seeds and write a report; start it again to go on.

    Without --splits all published splits of the benchmark run; with --labeled or --quick only the
    images that these, or the benchmark, name. papermill executes reproduce/experiment.ipynb; the
    executed notebook is the report.
    """
    from ddfp_lib.config import find_benchmark, splits_of
    from ddfp_lib.experiments.reproduction import Request, print_plan
    from ddfp_lib.experiments.reproduction import reproduce as run_notebook

    if splits is not None and labeled is not None:
        raise UserError("--splits and --labeled: both name the labeled images; give one of them")
    if splits is not None:
        chosen = options.as_names(splits)
    else:
        chosen = [] if quick or labeled else splits_of(find_benchmark(benchmark))
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
        device=str(options.as_device(device)),
        tensorboard=tensorboard,
    )
    if dry_run:
        print_plan(request)
        return
    written = run_notebook(request)
    print("\nLook here:")
    for path, what in written.items():
        print(f"  {path}  {what}")


def study(
    name: Annotated[str | None, typer.Argument(help="A study; none: list them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs/study"),
    data: Annotated[Path | None, typer.Option("--data", help="Folder of the data set.")] = None,
    jobs: options.Jobs = 0,
    device: options.Device = "auto",
    keep: Annotated[
        bool, typer.Option("--record", help="Take its tables into reproduce/studies.")
    ] = False,
) -> None:
    """Answer one question by a set of runs; start it again to go on."""
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
    out: Annotated[Path, typer.Argument(help="Folder of a reproduction, with its results.csv.")],
) -> None:
    """Take a reproduction's runs into reproduce/results.csv, then renew the tables made of it."""
    from ddfp_lib.experiments.ledger import record as merge
    from ddfp_lib.files import repository

    kept = repository() / "reproduce" / "results.csv"
    print(f"{kept}: {len(merge(out / 'results.csv', kept))} runs")
    report()


def report() -> None:
    """Renew the pages made of kept results, and list results of no configuration of today.

    The pages are README.md's tables, RESULTS.md, STUDY.md and their figures.
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
