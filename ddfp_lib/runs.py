"""Run folders: what a training leaves behind, and how to read it again.

==================  ===========================================================================
file                content
==================  ===========================================================================
``config.yaml``     the resolved configuration
``environment.json``  versions, threads, GPUs, commit, and the classes with their colours
``metrics.jsonl``   one line per logged step and per validation
``tensorboard/``    the numbers of ``metrics.jsonl`` again, where they were asked for
``checkpoints/``    the last two, see :mod:`ddfp_lib.training.checkpoint`
``result.json``     written at the end: a folder that has it is finished
==================  ===========================================================================
"""

import fcntl
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import ReduceOp

from ddfp_lib.config import Config, from_dict, read_yaml, to_yaml
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.errors import UserError
from ddfp_lib.files import told_as_user_error, write_text
from ddfp_lib.machine import peak_resident
from ddfp_lib.training.checkpoint import Checkpoints
from ddfp_lib.training.distributed import total, world_size
from ddfp_lib.training.objective import Learner

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to; mIoU in percent.

    Validation images chose the ``best`` values (the evaluation with the highest mIoU), so they are
    optimistic; ``last`` values chose nothing. ``test_miou`` is of the teacher after the last step.

    ``protocol`` is how images were segmented to be scored. ``processes`` trained together, on as
    many ``gpus`` of the name ``gpu``, none on a CPU. ``peak_memory`` is of the process that needed
    most since it last started, GiB: on a GPU what PyTorch allocated, else all that is resident.
    ``data`` names the images, see :func:`data_digest`.
    """

    benchmark: str
    split: str
    method: str
    seed: int
    miou_last: float
    miou_best: float
    teacher_miou_last: float
    teacher_miou_best: float
    test_miou: float
    test_iou: list[float]
    steps: int
    seconds: float
    commit: str
    config_hash: str
    protocol: str
    processes: int
    gpu: str | None
    gpus: int
    peak_memory: float
    data: str


def finished_result(out: Path, config: Config) -> RunResult | None:
    """Return the result of a finished run, ``None`` where it has not ended.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    path = Path(out) / "result.json"
    if not path.is_file():
        return None
    try:
        result = RunResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is no result; remove it to let the run end again") from error
    if result.config_hash != config.config_hash:
        raise UserError(
            f"{out}: holds a finished run of configuration {result.config_hash}, this one is "
            f"{config.config_hash}; choose another --out"
        )
    return result


def load_learner(config: Config, out: Path, device: torch.device, classes: int) -> Learner:
    """Return the learner of a run's newest checkpoint.

    Raises:
        UserError: the run has no checkpoint, or one of another configuration.
    """
    state, _ = Checkpoints(Path(out) / "checkpoints", config.config_hash).load(device)
    if state is None:
        raise UserError(f"{out}: has no checkpoint; train this run first")
    learner = Learner(config.bare(), classes, device)
    learner.load_state_dict(state["learner"])
    return learner


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, each with its step.

    Args:
        path: of the file.
        start: lines of later steps are dropped: they are of a try that was interrupted, and the
            resumed run writes them again.
        tensorboard: write all numbers for TensorBoard too, into ``tensorboard`` beside the file.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, start: int, *, tensorboard: bool = False) -> None:
        self.path = path
        # A step is logged after it is taken, an evaluation before: at `start` only the latter
        # was done when the checkpoint was written.
        kept = [
            line
            for line in self.lines()
            if line["step"] < start or (line["step"] == start and "loss" not in line)
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.board = _board(path.with_name("tensorboard"), start) if tensorboard else None
        for line in kept:
            if line["step"] == start:  # TensorBoard drops all that it has from here on
                self._show(line)

    def lines(self) -> list[dict[str, Any]]:
        """Return all whole lines; a last one that was cut short is left out."""
        return read_metrics(self.path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: the file cannot be written, or the disk is full.
        """
        with told_as_user_error(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._show({"step": step, **values})

    def _show(self, line: dict[str, Any]) -> None:
        if self.board is None:
            return
        for name, value in line.items():
            if name != "step":
                self.board.add_scalar(name, value, line["step"])
        self.board.flush()


def _board(folder: Path, start: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: TensorBoard is not installed; pip install 'ddfp[tensorboard]', or "
            "leave the flag out"
        ) from error
    return SummaryWriter(str(folder), purge_step=start)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl`` of a run, also of one that is being written.

    Raises:
        UserError: a line other than the last is damaged.
    """
    if not Path(path).is_file():
        return []
    *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: is damaged; delete the line") from error
    return metrics


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Raises:
        UserError: another process trains there, or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another process is training there; wait for it") from error
        for left in out.rglob(".*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield


def describe(out: Path, config: Config, dataset: SegmentationDataset, device: torch.device) -> None:
    """Write ``config.yaml`` and ``environment.json`` of a run that is about to train."""
    write_text(out / "config.yaml", to_yaml(config))
    packages = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "scikit-learn")
    environment = {
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "threads": torch.get_num_threads(),
        "weights": config.network.weights_sha256,
        "processes": world_size(),
        "gpu": gpu_name(device),
        "precision": config.training.precision,
        "protocol": config.data.protocol,
        "packages": {name: version(name) for name in packages},
        "classes": list(dataset.classes),
        "palette": [list(colour) for colour in dataset.palette],
    }
    write_text(out / "environment.json", json.dumps(environment, indent=2))


def data_digest(
    training: SegmentationDataset,
    labeled: Sequence[int],
    unlabeled: Sequence[int],
    validation: SegmentationDataset,
) -> str:
    """Return eight hexadecimal digits that name the images of a run, cheaply.

    They change with the name of an image, the size of its file, the order of the lists, and with
    an image's being labeled. No file is opened: that every pixel is right is the business of
    ``ddfp data verify``.
    """
    lists = {
        "labeled": [(training.names[i], training.file_size(i)) for i in labeled],
        "unlabeled": [(training.names[i], training.file_size(i)) for i in unlabeled],
        "validation": [(name, validation.file_size(i)) for i, name in enumerate(validation.names)],
    }
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:8]


def gpu_name(device: torch.device) -> str | None:
    """Return what the GPU that trains is called, ``None`` on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> float:
    """Return the most memory, in GiB, that one of the processes has held since its start.

    On a GPU what PyTorch allocated; on a CPU all that is resident, Python and libraries included.
    """
    on_gpu = device.type == "cuda"
    held = torch.cuda.max_memory_allocated(device) if on_gpu else peak_resident()
    return round(float(total(torch.tensor(held / 2**30), ReduceOp.MAX)), 2)


def commit() -> str:
    """Return the short hash of this checkout's commit, ``+`` appended where files differ from it.

    ``unknown`` where the package does not lie in a git checkout.
    """

    def git(*words: str) -> str:
        call = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=8", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True)
class Run:
    """A run folder, opened for reading.

    Attributes:
        folder: of the run.
        config: its resolved configuration.
        classes: names of the classes, K of them.
        palette: colour of each class, red, green and blue in 0..255.
    """

    folder: Path
    config: Config
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a folder that :func:`~ddfp_lib.training.loop.train` has made.

        Raises:
            UserError: it is no run folder.
        """
        folder = Path(folder)
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: is no run folder (no config.yaml); give the --out of a run")
        values = read_yaml(folder / "config.yaml")
        config = from_dict(values, str(folder / "config.yaml"))
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        palette = tuple(tuple(colour) for colour in environment["palette"])
        return cls(folder, config, tuple(environment["classes"]), palette)

    def learner(self, device: torch.device) -> Learner:
        """Return the learner of the newest checkpoint; see :func:`load_learner`."""
        return load_learner(self.config, self.folder, device, len(self.classes))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``."""
        return read_metrics(self.folder / "metrics.jsonl")

    def result(self) -> RunResult | None:
        """Return the result, ``None`` where the run has not ended."""
        return finished_result(self.folder, self.config)
