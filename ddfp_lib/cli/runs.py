"""One run: ``ddfp train``, ``evaluate``, ``predict``."""

from pathlib import Path
from typing import Annotated

import typer

from ddfp_lib.cli import options
from ddfp_lib.errors import UserError


def train(
    benchmark: Annotated[str | None, typer.Argument(help="A benchmark, or a .yaml file.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    method: Annotated[
        str, typer.Option(help="One of `ddfp methods`, or a .yaml file of your own.")
    ] = "ddfp",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    split: options.Split = None,
    labeled: options.Labeled = None,
    data: options.Data = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    config: Annotated[
        Path | None, typer.Option(help="A whole configuration, instead of benchmark and method.")
    ] = None,
    device: options.Device = "auto",
    keep: Annotated[int, typer.Option(min=2, help="Checkpoints that stay, the last ones.")] = 2,
    tensorboard: options.TensorBoard = False,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of this machine that train this run together.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="The same on a CPU: processes that train together.")
    ] = None,
    accumulate: options.Accumulate = 0,
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
        overrides = options.as_overrides(labeled, data, weights, settings)
        chosen = load_config(find_benchmark(benchmark), method, seed, overrides, split=split)
    if chosen.network.weights:
        print(f"weights {chosen.network.weights}, SHA-256 {chosen.network.weights_sha256}")
    where, ranks = options.as_ranks(device, gpus, processes)
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


def evaluate(
    run: options.RunFolder,
    subset: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    network: options.Network = "teacher",
    data: options.Data = None,
    protocol: Annotated[
        str | None, typer.Option(help="whole, slideN or cropN, as slide801 [the run's own].")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Print mIoU and each class's IoU of a run's newest checkpoint."""
    from ddfp_lib.evaluation.scores import evaluate as count
    from ddfp_lib.runs.folder import Run
    from ddfp_lib.training.data import data_of
    from ddfp_lib.training.learner import load_learner

    opened, where = Run.open(run), options.as_device(device)
    chosen = options.as_network(load_learner(opened, where), network)
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


def predict(
    run: options.RunFolder,
    images: Annotated[list[Path], typer.Argument(help="Pictures of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the overlays.")] = Path("predictions"),
    network: options.Network = "teacher",
    long_side: Annotated[
        int | None, typer.Option(help="Shrink the picture to this many pixels first.")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Segment pictures: for each, NAME.png (class indices) and NAME-overlay.png (colours)."""
    from ddfp_lib.evaluation.prediction import predict_files
    from ddfp_lib.runs.folder import Run
    from ddfp_lib.training.learner import load_learner

    opened, where = Run.open(run), options.as_device(device)
    chosen = options.as_network(load_learner(opened, where), network)
    for path in predict_files(chosen, opened, images, out, device=where, long_side=long_side):
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
