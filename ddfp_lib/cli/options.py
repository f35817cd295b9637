"""Options that several commands share, and the conversion of options to values."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfp_lib.errors import UserError

if TYPE_CHECKING:
    import torch

Benchmark = Annotated[
    str,
    typer.Argument(help="A benchmark below reproduce/configs (digits, camvid), or a .yaml file."),
]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the data set; digits need none.")
]
Device = Annotated[
    str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or cuda:1.")
]
Labeled = Annotated[
    str | None, typer.Option("--labeled", help="Labeled images: a count, a fraction (1/8), or all.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="The backbone's starting weights: a file such as resnet101.pth, or package:NAME.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="One of the benchmark's published splits, such as 732."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, such as --set training.steps=100; can be repeated."),
]
Accumulate = Annotated[
    int,
    typer.Option(min=0, help="Micro-batches of a step on each GPU; 0: as its memory requires."),
]
Jobs = Annotated[
    int, typer.Option(min=0, help="Number of runs at a time; 0: one on each core, or one on a GPU.")
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write the log for TensorBoard.")
]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, as given to --out.")]
Network = Annotated[str, typer.Option("--network", help="teacher or student.")]


def as_overrides(
    labeled: str | None, data: Path | None, weights: Path | None, settings: list[str] | None
) -> list[str]:
    """Return these options as ``key=value`` overrides, after those of ``--set``."""
    overrides = list(settings or [])
    if weights is not None:
        package = str(weights).startswith("package:")
        if not package and not weights.is_file():
            raise UserError(f"--weights {weights}: is not a file; give the starting weights")
        overrides.append(f"network.weights={weights if package else weights.resolve()}")
    if labeled is not None:
        overrides.append(f"data.labeled={labeled}")
    if data is not None:
        if not data.is_dir():
            raise UserError(f"--data {data}: is not a folder; give the folder of the data set")
        overrides.append(f"data.root={data.resolve()}")
    return overrides


def as_names(text: str) -> list[str]:
    """Return the names of a list, which commas separate."""
    return [name.strip() for name in text.split(",") if name.strip()]


def as_numbers(text: str) -> list[int]:
    """Return the seeds of a list, which commas separate."""
    try:
        return [int(name) for name in as_names(text)]
    except ValueError as error:
        raise UserError(
            f"--seeds {text}: give numbers and put commas between them, such as 0,1,2"
        ) from error


def as_pairs(option: str, texts: list[str]) -> list[tuple[str, str]]:
    """Return the names and values of options that are given as ``NAME=VALUE``."""
    pairs = []
    for text in texts:
        name, equals, value = text.lstrip("-").partition("=")
        if not (equals and re.fullmatch(r"[a-z][a-z0-9-]*", name)):
            raise UserError(f"{option} {text}: is not NAME=VALUE; write for example account=vision")
        pairs.append((name, value))
    return pairs


def as_device(name: str) -> "torch.device":
    """Return the device of this name; ``auto`` is a GPU where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if known is None:
        raise UserError(f"--device {name}: is unknown; use auto, cpu, cuda or cuda:1")
    if name != "cpu" and int(known[1] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine does not have this GPU; use --device cpu")
    return torch.device(name)


def as_ranks(device: str, gpus: int | None, processes: int | None) -> tuple[str, int]:
    """Return the device and the number of processes that a training asks for.

    Args:
        device: value of ``--device``.
        gpus: value of ``--gpus``; None if it is not given.
        processes: value of ``--processes``, the same on CPUs; None if it is not given.

    Returns:
        Name of the device, and the number of processes: 1 without either option.

    Raises:
        UserError: both options are given; torchrun has already started the processes; a number
            is below 1; ``--processes`` with a GPU as device; ``--gpus`` with more GPUs than this
            machine has, or with a device other than ``auto`` and ``cuda``; or the device is
            unknown or not there.
    """
    import os

    import torch

    if gpus is None and processes is None:
        return str(as_device(device)), 1
    option, count = ("--gpus", gpus) if processes is None else ("--processes", processes)
    if gpus is not None and processes is not None:
        raise UserError("--gpus and --processes: use one of them")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(f"{option}: torchrun has already started the processes; remove this option")
    if count < 1:
        raise UserError(f"{option} {count}: give at least 1")
    if processes is not None:
        if device not in ("auto", "cpu"):
            raise UserError(
                f"--processes {count}: are CPU processes; use --gpus for --device {device}"
            )
        return "cpu", count
    if count > torch.cuda.device_count():
        raise UserError(f"--gpus {count}: this machine has {torch.cuda.device_count()}")
    if device not in ("auto", "cuda"):
        raise UserError(f"--gpus {count}: remove --device {device}")
    return "cuda", count


def as_network(learner: object, name: str) -> "torch.nn.Module":
    """Return the teacher or the student of a learner."""
    if name not in ("teacher", "student"):
        raise UserError(f"--network {name}: is unknown; give teacher or student")
    return getattr(learner, name)
