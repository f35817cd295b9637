"""The training loop: evaluate, checkpoint, step, log, in this order, until the last step."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ddfp_lib.config import Config
from ddfp_lib.data import open_dataset
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import (
    batch_names,
    default_workers,
    lost_worker_named,
    training_batches,
)
from ddfp_lib.data.splits import make_split, read_split
from ddfp_lib.evaluation import evaluate
from ddfp_lib.files import write_text
from ddfp_lib.runs import (
    MetricsLog,
    RunResult,
    commit,
    data_digest,
    describe,
    exclusive,
    finished_result,
)
from ddfp_lib.training.checkpoint import Checkpoints
from ddfp_lib.training.objective import Learner, training_step
from ddfp_lib.training.watch import NotFiniteError

LOG_EVERY = 25  # steps between two lines of metrics.jsonl


def data_of(config: Config, subset: str) -> SegmentationDataset:
    """Open a subset (``train``, ``val`` or ``test``) of the configured data set."""
    data = config.data
    return open_dataset(data.dataset, subset, root=data.root, digits=data.digits, size=data.size)


def split_of(config: Config, dataset: SegmentationDataset) -> tuple[list[int], list[int]]:
    """Return the indices of the labeled and of the unlabeled training images.

    Raises:
        UserError: a list is missing, empty or names unknown images; or a count does not fit.
    """
    data = config.data
    if not str(data.labeled).endswith(".txt"):
        return make_split(dataset, data.labeled, data.split_seed)
    root = Path(data.root or "")
    unlabeled = None if data.unlabeled is None else root / data.unlabeled
    return read_split(dataset, root / str(data.labeled), unlabeled)


def train(
    config: Config,
    out: Path,
    *,
    device: torch.device,
    stop_at: int | None = None,
    keep: int = Checkpoints.KEEP,
    tensorboard: bool = False,
    progress: Callable[[int, int, str], object] = lambda done, steps, text: None,
) -> RunResult | None:
    """Train until the end, from the newest checkpoint in ``out`` or from the start.

    A run folder holds ``config.yaml``, ``environment.json``, ``metrics.jsonl`` (one line per
    logged step or evaluation), ``checkpoints/`` and at the end ``result.json``. A finished run is
    not repeated. An interrupted one goes on where it was and, on a CPU with the same number of
    threads, ends with the same bits as one that was never interrupted.

    Args:
        config: of the run.
        out: its folder.
        device: to train on.
        keep: checkpoints that stay, the last ones.
        tensorboard: write the log for TensorBoard too.
        stop_at: leave after the checkpoint of this step, as if interrupted.
        progress: called as (steps done, steps in all, text) now and then.

    Returns:
        The result, or ``None`` where ``stop_at`` came first.

    Raises:
        UserError: bad input, or ``out`` is in use or belongs to another configuration.
        FloatingPointError: a loss or gradient is no longer a finite number; the message names the
            step, its values and its images. The last checkpoint is of before.
    """
    out = Path(out)
    training = config.training
    with exclusive(out), lost_worker_named(), ExitStack() as held:
        finished = finished_result(out, config)
        if finished:
            return finished
        checkpoints = Checkpoints(out / "checkpoints", config.config_hash, keep)
        state, passed_over = checkpoints.load(device)  # or refuse, before anything is written
        dataset, validation = data_of(config, "train"), data_of(config, "val")
        describe(out, config, dataset)
        labeled, unlabeled = split_of(config, dataset)
        learner = Learner(config.bare() if state else config, len(dataset.classes), device)
        for line in passed_over:
            progress(0, training.steps, line)
        if state:
            learner.load_state_dict(state["learner"])
        start, before = (state["step"], state["seconds"]) if state else (0, 0.0)
        log = MetricsLog(out / "metrics.jsonl", start, tensorboard=tensorboard)
        began = time.perf_counter()
        workers = config.data.workers
        drawn = {
            "batch_labeled": training.batch_labeled,
            "batch_unlabeled": training.batch_unlabeled if config.method.consistency else 0,
            "seed": config.seed,
        }
        batches = training_batches(
            dataset,
            labeled,
            unlabeled,
            config.data.augment,
            **drawn,
            start_step=start,
            stop_step=training.steps,
            workers=default_workers(device) if workers is None else workers,
        )
        held.enter_context(
            _images_named(lambda step: batch_names(dataset, labeled, unlabeled, **drawn, step=step))
        )

        def seconds() -> float:
            return before + time.perf_counter() - began

        for step in range(start, training.steps + 1):
            due = step % training.evaluate_every == 0 or step == training.steps
            if due and step > start:
                scores = _evaluate_both(learner, validation, config)
                log.write(step, {"seconds": round(seconds(), 2), **scores})
                progress(step, training.steps, f"val mIoU {scores['teacher_miou']:.1f}")
            due = step % training.checkpoint_every == 0 or step == training.steps
            if due and step > start:
                checkpoints.save(
                    step, {"step": step, "seconds": seconds(), "learner": learner.state_dict()}
                )
            if step == training.steps:
                break
            if stop_at is not None and step >= stop_at:
                return None
            losses = training_step(learner, next(batches).to(device), step)
            if step % LOG_EVERY == 0:
                learner.watch.check()
                values = {name: float(value) for name, value in losses.items()}
                log.write(step, {"seconds": round(seconds(), 2), **values})
                progress(step, training.steps, "")
        data = data_digest(dataset, labeled, unlabeled, validation)
        result = _finish(out, config, learner, log, seconds(), data)
    return result


@contextmanager
def _images_named(names: Callable[[int], list[str]]) -> Iterator[None]:
    """Tell the images, too, of a step whose numbers are not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise FloatingPointError(
            f"{error}; start again with a lower training.lr_head, or look at its images: "
            + ", ".join(names(error.step))
        ) from error


def _evaluate_both(
    learner: Learner, dataset: SegmentationDataset, config: Config
) -> dict[str, Any]:
    """Validate student and teacher, and the pseudo-labels that the teacher would make."""
    learner.watch.check()
    options = {"device": learner.device, "confidence": config.training.confidence}
    student = evaluate(learner.student, dataset, **options)
    teacher = evaluate(learner.teacher, dataset, **options)
    return {
        "miou": student.miou,
        "teacher_miou": teacher.miou,
        "pseudo_coverage": teacher.coverage,
        "pseudo_precision": teacher.precision,
    }


def _finish(
    out: Path, config: Config, learner: Learner, log: MetricsLog, seconds: float, data: str
) -> RunResult:
    evaluations = [line for line in log.lines() if "teacher_miou" in line]
    test = evaluate(learner.teacher, data_of(config, config.data.test), device=learner.device)
    on_gpu = learner.device.type == "cuda"
    result = RunResult(
        benchmark=config.benchmark,
        split=config.data.split,
        method=config.method.name,
        seed=config.seed,
        miou_last=evaluations[-1]["miou"],
        miou_best=max(line["miou"] for line in evaluations),
        teacher_miou_last=evaluations[-1]["teacher_miou"],
        teacher_miou_best=max(line["teacher_miou"] for line in evaluations),
        test_miou=test.miou,
        test_iou=test.iou.tolist(),
        steps=config.training.steps,
        seconds=round(seconds, 1),
        commit=commit(),
        config_hash=config.config_hash,
        protocol="whole",
        gpu=torch.cuda.get_device_name(learner.device) if on_gpu else None,
        gpus=int(on_gpu),
        peak_memory=torch.cuda.max_memory_allocated(learner.device) / 2**30 if on_gpu else None,
        data=data,
    )
    write_text(out / "result.json", json.dumps(asdict(result), indent=2))
    return result
