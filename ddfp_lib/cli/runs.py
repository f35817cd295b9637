"""One run: ``ddfp train``, ``evaluate``, ``predict``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddfp_lib.cli import options
from ddfp_lib.errors import UserError

if TYPE_CHECKING:
    from ddfp_lib.data.base import SegmentationDataset
    from ddfp_lib.runs.folder import Run


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
    keep: Annotated[int, typer.Option(min=2, help="Number of newest checkpoints to keep.")] = 2,
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
    """Train one run. Run the command again to continue after an interruption."""
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


Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="whole, slideN (windows of N pixels) or cropN (the middle) [the run's own].",
    ),
]


def evaluate(
    run: options.RunFolder,
    subset: Annotated[
        str, typer.Option(help="train (its labeled images), val, test, or a list of a VOC folder.")
    ] = "val",
    network: Annotated[
        str, typer.Option("--network", help="teacher, student or both.")
    ] = "teacher",
    data: options.Data = None,
    protocol: Protocol = None,
    device: options.Device = "auto",
) -> None:
    """Print the mIoU and the IoU of each class, for the newest checkpoint of a run."""
    from ddfp_lib.evaluation.scores import evaluate_all
    from ddfp_lib.runs.folder import Run
    from ddfp_lib.training.learner import load_learner

    opened, where = Run.open(run), options.as_device(device)
    chosen = ["teacher", "student"] if network == "both" else [network]
    dataset = _data_of(opened, subset, data)
    learner = load_learner(opened, where)
    protocol = protocol or opened.config.data.protocol
    found = evaluate_all(
        [options.as_network(learner, name) for name in chosen],
        dataset,
        device=where,
        protocol=protocol,
        confidence=opened.config.training.confidence,
    )
    named = "teacher and student" if network == "both" else network
    kind = "labeled images" if subset == "train" else "images"
    print(f"{subset}: {len(dataset)} {kind}, {named}, protocol {protocol}, single scale")
    for index, name in enumerate(opened.classes):
        values = "".join(f" {scores.iou[index]:6.2f}" for scores in found)
        print(f"  {name:<12}{values}")
    print(f"  {'mIoU':<12}" + "".join(f" {scores.miou:6.2f}" for scores in found))


def predict(
    run: options.RunFolder,
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures, folders of pictures, or patterns such as 'photos/*.jpg'."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the overlays.")] = Path("predictions"),
    network: options.Network = "teacher",
    subset: Annotated[
        str | None, typer.Option(help="Instead of pictures: train (labeled), val or test images.")
    ] = None,
    data: options.Data = None,
    long_side: Annotated[
        int | None,
        typer.Option(help="Shrink larger pictures to this many pixels [as the run was trained]."),
    ] = None,
    protocol: Protocol = None,
    device: options.Device = "auto",
) -> None:
    """Segment pictures; write NAME.png (class indices) and NAME-overlay.png (colors) for each."""
    from ddfp_lib.evaluation.prediction import Pictures, predict_files
    from ddfp_lib.runs.folder import Run
    from ddfp_lib.training.learner import load_learner

    opened, where = Run.open(run), options.as_device(device)
    if images and (subset or data):
        raise UserError("predict: give pictures, or --subset for images of the data set; not both")
    if images:
        pictures = Pictures.of_files(images, opened, long_side)
        if turned := pictures.turned():
            print(
                f"note: {turned} pictures are stored turned (EXIF orientation) and are read "
                "upright; training and evaluation read them as they are stored"
            )
    elif subset or data:
        if long_side is not None:
            raise UserError("--long-side: is for pictures; images of --subset are read as trained")
        pictures = Pictures.of_dataset(_data_of(opened, subset or "val", data))
    else:
        raise UserError("predict: give pictures, such as picture.jpg or a folder, or --subset val")
    chosen = options.as_network(load_learner(opened, where), network)
    for path in predict_files(chosen, opened, pictures, out, device=where, protocol=protocol):
        print(path)


def _data_of(run: "Run", subset: str, data: Path | None) -> "SegmentationDataset":
    """Open and inspect the images that a run will segment; of ``train`` the labeled ones.

    Raises:
        UserError: the data are not there or not right, or have other classes than the run.
    """
    from ddfp_lib.data.base import Part
    from ddfp_lib.data.inspection import inspect_data
    from ddfp_lib.data.pairs import FilePairs
    from ddfp_lib.runs.identity import changed_since, check_classes
    from ddfp_lib.training.data import data_of, split_of

    config = run.config.at(data)
    dataset, root = data_of(config, subset), config.data.root
    check_classes(run.classes, dataset.classes, root or config.data.dataset)
    labeled = split_of(config, dataset)[0] if subset == "train" else None
    if not isinstance(dataset, FilePairs):
        return dataset if labeled is None else Part(dataset, labeled)
    dataset = dataset if labeled is None else dataset.only(labeled)
    title = {"train": "labeled", "val": "validation"}.get(subset, subset)
    findings = inspect_data(root, {title: dataset})
    findings.check(config.data.dataset, root)
    if changed := changed_since(run.folder, title, findings):
        findings.notices.append(f"{root}: other {title} {changed} than when the run was trained")
    for notice in findings.notices:
        print(f"note: {notice}")
    return dataset


def _end_with_standard_input() -> None:
    """Terminate this process when the process at the other end of its standard input ends."""
    import os
    import signal
    import threading

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher of ranks takes them along

    threading.Thread(target=wait, daemon=True).start()
