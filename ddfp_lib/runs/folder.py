"""Run folders: the files that a training run writes, and how to read them.

====================  =========================================================================
file                  content
====================  =========================================================================
``config.yaml``       the resolved configuration
``environment.json``  versions, threads, GPUs, commit, and the classes with their colors
``metrics.jsonl``     one line per logged step and per validation
``tensorboard/``      the numbers of ``metrics.jsonl`` again, with ``--tensorboard``
``checkpoints/``      the last two, see :mod:`ddfp_lib.runs.checkpoints`
``result.json``       written at the end: the run is finished
====================  =========================================================================
"""

import fcntl
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddfp_lib.config import Config, from_dict, read_yaml, to_yaml
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.ranks import world_size
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.runs.commit import commit
from ddfp_lib.runs.environment import gpu_name
from ddfp_lib.runs.metrics import read_metrics


@dataclass(frozen=True)
class RunResult:
    """Scores and circumstances of a finished run; mIoU in percent.

    ``best`` values are those of the evaluation with the highest validation mIoU, so they are
    optimistic; ``last`` values are those after the last step. ``test_miou`` is the teacher's after
    the last step.

    ``protocol`` names how images were segmented for scores. ``processes`` trained together, on as
    many ``gpus`` called ``gpu``; 0 on a CPU. ``peak_memory`` is the largest of all processes, in
    GiB, see :func:`~ddfp_lib.runs.environment.peak_memory`. ``data`` identifies the images, see
    :func:`~ddfp_lib.runs.identity.data_digest`. ``micro_batches`` is in how many parts each process
    took its share of a step's images, which changes the statistics of BatchNorm; it has several
    numbers if the run went on with another one, and none if the run is older than this entry.
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
    micro_batches: list[int] = field(default_factory=list)


def finished_result(out: Path, config: Config) -> RunResult | None:
    """Return the result of a finished run, ``None`` if it is not finished.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    path = Path(out) / "result.json"
    if not path.is_file():
        return None
    try:
        result = RunResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is not a result; remove it and start the run again") from error
    if result.config_hash != config.config_hash:
        raise UserError(
            f"{out}: holds a finished run of configuration {result.config_hash}, this one is "
            f"{config.config_hash}; choose another --out"
        )
    return result


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Lock a run folder for this process.

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
        for left in out.rglob(".*.partial"):  # of a process that was killed while writing
            left.unlink(missing_ok=True)
        yield


def stored_micro_batches(out: Path) -> list[int]:
    """Return the numbers of micro-batches that a run folder was trained with so far, in order.

    Args:
        out: the run folder.

    Returns:
        One number for each change; empty if the folder has no ``environment.json``.

    Raises:
        UserError: ``environment.json`` is damaged.
    """
    path = Path(out) / "environment.json"
    return _environment(path).get("micro_batches", []) if path.is_file() else []


def _environment(path: Path) -> dict[str, Any]:
    """Read ``environment.json``.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> UserError:
    finished = (path.parent / "result.json").is_file()
    first = "remove it and result.json and" if finished else "remove it and"
    return UserError(
        f"{path}: is missing or damaged; restore it from a copy, or {first} start the same "
        "training again, which writes it"
    )


def describe(
    out: Path,
    config: Config,
    dataset: SegmentationDataset,
    device: torch.device,
    micro_batches: Sequence[int],
) -> None:
    """Write ``config.yaml`` and ``environment.json`` of a run that is about to train."""
    write_text(out / "config.yaml", to_yaml(config))
    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
    environment = {
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "threads": torch.get_num_threads(),
        "weights": config.network.weights_sha256,
        "processes": world_size(),
        "micro_batches": list(micro_batches),
        "gpu": gpu_name(device),
        "precision": config.training.precision,
        "protocol": config.data.protocol,
        "packages": {name: version(name) for name in packages},
        "classes": list(dataset.classes),
        "palette": [list(colour) for colour in dataset.palette],
    }
    write_text(out / "environment.json", json.dumps(environment, indent=2))


@dataclass(frozen=True)
class Run:
    """A run folder, opened for reading.

    Attributes:
        folder: folder of the run.
        config: its resolved configuration.
        classes: names of the classes, K of them.
        palette: color of each class, red, green and blue in 0..255.
    """

    folder: Path
    config: Config
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a folder that :func:`~ddfp_lib.training.loop.train` wrote.

        Args:
            folder: folder of the run, finished or not.

        Raises:
            UserError: it is not a run folder, ``config.yaml`` is not a configuration, or
                ``environment.json`` is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / "config.yaml").is_file():
            raise UserError(
                f"{folder}: is not a run folder (no config.yaml); give the --out of a run"
            )
        values = read_yaml(folder / "config.yaml")
        config = from_dict(values, str(folder / "config.yaml"))
        path = folder / "environment.json"
        environment = _environment(path)
        try:
            palette = tuple(tuple(colour) for colour in environment["palette"])
            return cls(folder, config, tuple(environment["classes"]), palette)
        except (KeyError, TypeError) as error:
            raise _damaged(path) from error

    def newest_checkpoint(self, device: torch.device) -> dict[str, Any]:
        """Return the newest checkpoint of this run that is not damaged.

        Args:
            device: device of its tensors.

        Raises:
            UserError: the run has no checkpoint, or one of another configuration.
        """
        checkpoints = Checkpoints(self.folder / "checkpoints", self.config.config_hash)
        state, _ = checkpoints.load(device)
        if state is None:
            raise UserError(f"{self.folder}: has no checkpoint; train this run first")
        return state

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``, one dictionary per line; [] without the file.

        Raises:
            UserError: a line other than the last is damaged.
        """
        return read_metrics(self.folder / "metrics.jsonl")

    def result(self) -> RunResult | None:
        """Return the result, ``None`` if the run is not finished.

        Raises:
            UserError: ``result.json`` is damaged, or belongs to another configuration.
        """
        return finished_result(self.folder, self.config)
