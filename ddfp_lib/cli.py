"""The command line, ``ddfp``: data, train, evaluate, predict, reproduce, record, report.

Heavy imports stand inside the commands: ``ddfp --help`` shall answer at once.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfp_lib import cli_data
from ddfp_lib.errors import UserError

if TYPE_CHECKING:
    import torch

INTERRUPTED = 130
"""Exit status after Ctrl-C, by custom of the shells: 128 and the number of the signal."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Density-Descending Feature Perturbation for semi-supervised segmentation.",
    epilog="Start with: ddfp reproduce digits   (a CPU and a quarter of an hour are enough)",
)

app.add_typer(cli_data.app, name="data")

Benchmark = Annotated[
    str,
    typer.Argument(help="A benchmark below reproduce/configs (digits, camvid), or a .yaml file."),
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the data set; digits need none.")
]
Device = Annotated[
    str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda or cuda:1.")
]
Labeled = Annotated[
    str | None, typer.Option("--labeled", help="Labeled images: a count, a part as 1/8, or all.")
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="File of the backbone's starting weights, as resnet101.pth."),
]
Split = Annotated[
    str | None, typer.Option("--split", help="One of the benchmark's published splits, as 732.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, as --set training.steps=100; can be repeated."),
]
Accumulate = Annotated[
    int,
    typer.Option(min=0, help="Parts of a step's images on each GPU; 0: as its memory asks for."),
]
Jobs = Annotated[int, typer.Option(min=0, help="Runs side by side; 0: one a core, or one GPU.")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write the log for TensorBoard too.")
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, as given to --out.")]
Network = Annotated[str, typer.Option("--network", help="teacher or student.")]


@app.command()
def train(
    benchmark: Annotated[str | None, typer.Argument(help="A benchmark, or a .yaml file.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    method: Annotated[str, typer.Option(help="A method below ddfp_lib/presets.")] = "ddfp",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    split: Split = None,
    labeled: Labeled = None,
    data: Data = None,
    weights: Weights = None,
    settings: Settings = None,
    config: Annotated[
        Path | None, typer.Option(help="A whole configuration, instead of benchmark and method.")
    ] = None,
    device: Device = "auto",
    keep: Annotated[int, typer.Option(min=2, help="Checkpoints that stay, the last ones.")] = 2,
    tensorboard: TensorBoard = False,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of this machine that train this run together.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="The same on a CPU: processes that train together.")
    ] = None,
    accumulate: Accumulate = 0,
    leashed: Annotated[
        bool, typer.Option(hidden=True, help="End when standard input ends: see run_matrix.")
    ] = False,
) -> None:
    """Train one run; start it again to go on after an interruption."""
    if leashed:
        _end_with_standard_input()
    from ddfp_lib.config import find_benchmark, load_config, read_config
    from ddfp_lib.training.distributed import launch
    from ddfp_lib.training.loop import train_rank

    if (benchmark is None) == (config is None):
        raise UserError("train: give a benchmark (as: ddfp train digits) or --config FILE")
    if config:
        chosen = read_config(config)
    else:
        overrides = _overrides(labeled, data, weights, settings)
        chosen = load_config(find_benchmark(benchmark), method, seed, overrides, split=split)
    if chosen.network.weights:
        print(f"weights {chosen.network.weights}, SHA-256 {chosen.network.weights_sha256}")
    where, ranks = _ranks(device, gpus, processes)
    if ranks == 1:
        result = train_rank(chosen, out, where, accumulate, keep, tensorboard)
    else:
        result = launch(train_rank, ranks, chosen, out, where, accumulate, keep, tensorboard)
    if result is None:  # this is a rank that torchrun started, and not the first
        return
    print(
        f"{out}: teacher {result.teacher_miou_last:.1f} mIoU on validation images "
        f"(best {result.teacher_miou_best:.1f}), {result.test_miou:.1f} on test images, "
        f"{result.seconds:.0f} s"
    )


@app.command()
def evaluate(
    run: RunFolder,
    subset: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    network: Network = "teacher",
    data: Data = None,
    protocol: Annotated[
        str | None, typer.Option(help="whole, slideN or cropN, as slide801 [the run's own].")
    ] = None,
    device: Device = "auto",
) -> None:
    """Print mIoU and each class's IoU of a run's newest checkpoint."""
    from ddfp_lib.evaluation import evaluate as count
    from ddfp_lib.runs import Run
    from ddfp_lib.training.loop import data_of

    opened, where = Run.open(run), _device(device)
    chosen = _network(opened.learner(where), network)
    dataset = data_of(opened.config.at(data), subset)
    protocol = protocol or opened.config.data.protocol
    found = count(
        chosen,
        dataset,
        device=where,
        protocol=protocol,
        confidence=opened.config.training.confidence,
    )
    print(f"{subset}: {len(dataset)} images, {network}, protocol {protocol}, single scale")
    for name, iou in zip(opened.classes, found.iou.tolist(), strict=True):
        print(f"  {name:<12} {iou:6.2f}")
    print(f"  {'mIoU':<12} {found.miou:6.2f}")


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(help="Pictures of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the overlays.")] = Path("predictions"),
    network: Network = "teacher",
    long_side: Annotated[
        int | None, typer.Option(help="Shrink the picture to this many pixels first.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment pictures: for each, NAME.png (class indices) and NAME-overlay.png (colours)."""
    from ddfp_lib.prediction import predict_files
    from ddfp_lib.runs import Run

    opened, where = Run.open(run), _device(device)
    chosen = _network(opened.learner(where), network)
    for path in predict_files(chosen, opened, images, out, device=where, long_side=long_side):
        print(path)


@app.command()
def reproduce(
    benchmark: Benchmark = "digits",
    splits: Annotated[
        str | None,
        typer.Option(help="Comma list of the benchmark's published splits, as 732,1464 [all]."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Comma list of presets.")
    ] = "supervised,consistency,noise,ddfp",
    seeds: Annotated[str, typer.Option(help="Comma list of numbers.")] = "0,1,2",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and the report [runs/BENCHMARK].")
    ] = None,
    labeled: Labeled = None,
    data: Data = None,
    weights: Weights = None,
    settings: Settings = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The benchmark's quick settings, one seed: a look.")
    ] = False,
    jobs: Jobs = 0,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each run, a process each.")] = 1,
    accumulate: Accumulate = 0,
    device: Device = "auto",
    tensorboard: TensorBoard = False,
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
    from ddfp_lib.reproduction import Request, print_plan
    from ddfp_lib.reproduction import reproduce as run_notebook

    if splits is not None and labeled is not None:
        raise UserError("--splits and --labeled: both name the labeled images; give one of them")
    if splits is not None:
        chosen = _names(splits)
    else:
        chosen = [] if quick or labeled else splits_of(find_benchmark(benchmark))
    request = Request(
        benchmark=benchmark,
        splits=chosen,
        methods=_names(methods),
        seeds=_numbers(seeds)[:1] if quick else _numbers(seeds),
        out=str(out or Path("runs") / f"{Path(benchmark).stem}{'-quick' if quick else ''}"),
        settings=_overrides(labeled, data, weights, settings),
        quick=quick,
        jobs=jobs,
        gpus=gpus,
        accumulate=accumulate,
        device=str(_device(device)),
        tensorboard=tensorboard,
    )
    if dry_run:
        print_plan(request)
        return
    written = run_notebook(request)
    print("\nLook here:")
    for path, what in written.items():
        print(f"  {path}  {what}")


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(help="A study; none: list them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs/study"),
    data: Annotated[Path | None, typer.Option("--data", help="Folder of the data set.")] = None,
    jobs: Jobs = 0,
    device: Device = "auto",
    keep: Annotated[
        bool, typer.Option("--record", help="Take its tables into reproduce/studies.")
    ] = False,
) -> None:
    """Answer one question by a set of runs; start it again to go on."""
    from ddfp_lib.reproduction import run_study
    from ddfp_lib.study import find_study, studies
    from ddfp_lib.study import record as keep_study

    if name is None:
        for each in studies():
            print(f"{each.name:<12} {each.question}")
        return
    written = run_study(name, out, root=data, jobs=jobs, device=str(_device(device)))
    if keep:
        written |= dict.fromkeys(keep_study(find_study(name), out), "kept for `ddfp report`")
    print("\nLook here:")
    for path, what in written.items():
        print(f"  {path}  {what}")


@app.command()
def record(
    out: Annotated[Path, typer.Argument(help="Folder of a reproduction, with its results.csv.")],
) -> None:
    """Take a reproduction's runs into reproduce/results.csv, then renew the tables made of it."""
    from ddfp_lib.files import repository
    from ddfp_lib.results import record as merge

    kept = repository() / "reproduce" / "results.csv"
    print(f"{kept}: {len(merge(out / 'results.csv', kept))} runs")
    report()


@app.command()
def report() -> None:
    """Renew README.md's table, RESULTS.md and STUDY.md from what is kept in reproduce/."""
    from ddfp_lib.pages import write_pages

    for path in write_pages():
        print(path)


def _end_with_standard_input() -> None:
    """Terminate this process when whoever holds the other end of its standard input is gone."""
    import os
    import signal
    import threading

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher of ranks takes them along

    threading.Thread(target=wait, daemon=True).start()


def _overrides(
    labeled: str | None, data: Path | None, weights: Path | None, settings: list[str] | None
) -> list[str]:
    overrides = list(settings or [])
    if weights is not None:
        if not weights.is_file():
            raise UserError(f"--weights {weights}: is no file; give the one with starting weights")
        overrides.append(f"network.weights={weights.resolve()}")
    if labeled is not None:
        overrides.append(f"data.labeled={labeled}")
    if data is not None:
        if not data.is_dir():
            raise UserError(f"--data {data}: is no folder; give the one that holds the data set")
        overrides.append(f"data.root={data.resolve()}")
    return overrides


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError as error:
        raise UserError(f"--seeds {text}: is no comma list of numbers, as 0,1,2") from error


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if known is None:
        raise UserError(f"--device {name}: is unknown; use auto, cpu, cuda or cuda:1")
    if name != "cpu" and int(known[1] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has no such GPU; use --device cpu")
    return torch.device(name)


def _ranks(device: str, gpus: int | None, processes: int | None) -> tuple[str, int]:
    """Return the device and the number of processes that a training asks for."""
    import os

    import torch

    if gpus is None and processes is None:
        return str(_device(device)), 1
    option, count = ("--gpus", gpus) if processes is None else ("--processes", processes)
    if gpus is not None and processes is not None:
        raise UserError("--gpus and --processes: give one of them, for GPUs or for a CPU")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(f"{option}: torchrun has started the processes already; leave it out")
    if count < 1:
        raise UserError(f"{option} {count}: give at least 1")
    if processes is not None:
        if device not in ("auto", "cpu"):
            raise UserError(f"--processes {count}: are of a CPU; use --gpus for --device {device}")
        return "cpu", count
    if count > torch.cuda.device_count():
        raise UserError(f"--gpus {count}: this machine has {torch.cuda.device_count()}")
    if device not in ("auto", "cuda"):
        raise UserError(f"--gpus {count}: leave --device {device} out")
    return "cuda", count


def _network(learner: object, name: str) -> "torch.nn.Module":
    if name not in ("teacher", "student"):
        raise UserError(f"--network {name}: is neither teacher nor student")
    return getattr(learner, name)


def run(command: Callable[[], object]) -> int:
    """Call ``command``; return its exit status.

    Bad input is one line and status 2; a loss that is no longer a number, or a lost process, one
    line and status 1; Ctrl-C one line and status 130.
    """
    try:
        command()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("ddfp: interrupted; start the same command again to go on", file=sys.stderr)
        raise
    except UserError as error:
        print(f"ddfp: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, ConnectionError) as error:
        print(f"ddfp: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> None:
    """Run the command line."""
    sys.exit(run(app))


if __name__ == "__main__":
    main()
