"""The training loop: evaluate, checkpoint, step, log, in this order, until the last step."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ReduceOp
from tqdm import tqdm

from ddfp_lib.config import Config, tied_to_weights
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import batch_names, training_batches
from ddfp_lib.data.workers import lost_worker_named
from ddfp_lib.evaluation.scores import evaluate, evaluate_all
from ddfp_lib.files import write_text
from ddfp_lib.kernels import compiling, cudnn_benchmark, training_kernels
from ddfp_lib.ranks import rank, together, total, world_size
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.runs.commit import commit
from ddfp_lib.runs.environment import gpu_name, peak_memory
from ddfp_lib.runs.folder import (
    RunResult,
    describe,
    exclusive,
    finished_result,
    stored_micro_batches,
)
from ddfp_lib.runs.identity import check_identity, write_identity
from ddfp_lib.runs.metrics import MetricsLog
from ddfp_lib.training.data import RunData, open_run_data
from ddfp_lib.training.distributed import process_group
from ddfp_lib.training.finite import NotFiniteError
from ddfp_lib.training.learner import Learner, perturbation_for
from ddfp_lib.training.memory import (
    batch_division,
    loading_workers,
    memory_advice,
    micro_batches_changed,
    micro_batches_for,
)
from ddfp_lib.training.step import training_step

LOG_EVERY = 25  # steps between two lines of metrics.jsonl


def train(
    config: Config,
    out: Path,
    *,
    device: torch.device,
    accumulate: int = 0,
    stop_at: int | None = None,
    keep: int = Checkpoints.KEEP,
    tensorboard: bool = False,
    progress: Callable[[int, int, str], object] = lambda done, steps, text: None,
) -> RunResult | None:
    """Train until the end, from the newest checkpoint in ``out`` or from the start.

    A run folder holds ``config.yaml``, ``environment.json``, ``metrics.jsonl`` (one line per
    logged step or evaluation), ``checkpoints/`` and at the end ``result.json``. A finished run is
    not repeated. An interrupted one goes on where it was and, on a CPU with the same number of
    threads and processes, ends with the same bits as one that was never interrupted.

    Within :func:`~ddfp_lib.training.distributed.process_group` all ranks call this, on a folder
    that all of them see. Each takes its share of every batch, the first alone writes.

    Args:
        config: configuration of the run.
        out: its folder.
        device: to train on.
        accumulate: parts in which a process takes its share, where all of it is too much for the
            memory; see :class:`~ddfp_lib.training.learner.Learner`. 0: on a GPU as many as its
            memory asks for, else one. The number changes the statistics of BatchNorm and with them
            the result, so the result names it.
        keep: checkpoints that stay, the last ones.
        tensorboard: write the log for TensorBoard too.
        stop_at: leave before this step, as if interrupted. A checkpoint of it exists if
            ``checkpoint_every`` divides it.
        progress: called on the first rank as (steps done, steps in all, text) now and then.

    Returns:
        The result, or ``None`` where ``stop_at`` came first or this is not the first rank.

    Raises:
        UserError: bad input, or ``out`` is in use or belongs to another configuration, or the
            memory is too small.
        FloatingPointError: a loss or gradient is no longer a finite number; the message names the
            step, its values and its images. The last checkpoint is of before.
        ConnectionError: another rank was lost.
    """
    out = Path(out)
    config = tied_to_weights(config)
    training = config.training
    first = rank() == 0

    def say(line: str) -> None:
        progress(0, training.steps, line)

    with lost_worker_named(), ExitStack() as held:
        held.enter_context(
            training_kernels(training.tf32, training.cudnn_benchmark, training.deterministic)
        )
        held.enter_context(compiling(training.compile, strict=world_size() == 1))
        with together():
            # of cards with less memory than others, the smallest decides for all
            fitting = torch.tensor(micro_batches_for(config, device), device=device)
            accumulate = accumulate or int(total(fitting, ReduceOp.MAX))
            shares = batch_division(config, accumulate, device)
            if first:
                held.enter_context(exclusive(out))
        with together(), memory_advice(accumulate):
            finished = finished_result(out, config)
            if finished and config.data.dataset == "digits":  # made by the configuration alone
                return finished
            data = open_run_data(config, inspect=first, say=say)
            if first:  # or refuse, before anything is written
                check_identity(out, data.identity, config.data.root)
            if finished:
                return finished
            checkpoints = Checkpoints(out / "checkpoints", config.config_hash, keep)
            state, passed_over = checkpoints.load(device)
            workers, fewer = loading_workers(config, device)
            perturbation_for(config)  # a class of the user's own is checked before work starts
            dataset, labeled, unlabeled = data.training, data.labeled, data.unlabeled
            numbers = stored_micro_batches(out) if state else []
            changed = micro_batches_changed(numbers, accumulate)
            if numbers[-1:] != [accumulate]:
                numbers.append(accumulate)
            if first:
                describe(out, config, dataset, device, numbers)
                write_identity(out, data.identity)
            start_from = config.bare() if state else config
            learner = Learner(start_from, len(dataset.classes), device, accumulate)
            if state:
                learner.load_state_dict(state["learner"])
            start, before = (state["step"], state["seconds"]) if state else (0, 0.0)
            log = None
            if first:
                log = MetricsLog(out / "metrics.jsonl", start, tensorboard=tensorboard)
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
                rank=rank(),
                world=world_size(),
                workers=workers,
            )
        held.enter_context(
            _images_named(lambda step: batch_names(dataset, labeled, unlabeled, **drawn, step=step))
        )
        began = time.perf_counter()

        def seconds() -> float:
            return before + time.perf_counter() - began

        def note(step: int, values: dict[str, Any], text: str = "") -> None:
            if log is not None:
                log.write(step, {"seconds": round(seconds(), 2), **values})
                progress(step, training.steps, text)

        if first:
            if training.compile and world_size() > 1:
                say(
                    "training.compile: with several processes, BatchNorm communication splits the "
                    "compiled graph, so some code may run uncompiled"
                )
            for line in (*data.findings.notices, *passed_over, *changed, *fewer, shares):
                progress(start, training.steps, line)
        for step in range(start, training.steps + 1):
            due = step % training.evaluate_every == 0 or step == training.steps
            if due and step > start:
                scores = _evaluate_both(learner, data.validation, config)
                note(step, scores, f"val mIoU {scores['teacher_miou']:.1f}")
            due = step % training.checkpoint_every == 0 or step == training.steps
            if due and step > start:
                learner.finite_check.check()
                with together():
                    if first:
                        state = {"step": step, "seconds": seconds()}
                        checkpoints.save(step, {**state, "learner": learner.state_dict()})
            if step == training.steps:
                break
            if stop_at is not None and step >= stop_at:
                return None
            batch = next(batches).to(device)
            with memory_advice(accumulate):
                losses = training_step(learner, batch, step)
            if step % LOG_EVERY == 0:
                learner.finite_check.check()
                values = {name: float(value) for name, value in losses.items()}
                note(step, values)
        return _finish(out, config, learner, log, seconds(), data, numbers)


def train_rank(
    config: Config,
    out: Path,
    device: str,
    accumulate: int = 0,
    keep: int = Checkpoints.KEEP,
    tensorboard: bool = False,
) -> RunResult | None:
    """Join the process group of the environment and :func:`train`, with a bar on a terminal.

    What :func:`~ddfp_lib.training.distributed.launch` and torchrun start; see :func:`train`.
    """
    with (
        process_group(torch.device(device)) as mine,
        tqdm(
            total=config.training.steps, unit="step", disable=None if rank() == 0 else True
        ) as bar,
    ):

        def progress(done: int, steps: int, text: str) -> None:
            bar.update(done - bar.n)
            if text:
                bar.write(f"step {done}/{steps}  {text}")

        return train(
            config,
            out,
            device=mine,
            accumulate=accumulate,
            keep=keep,
            tensorboard=tensorboard,
            progress=progress,
        )


@contextmanager
def _images_named(names: Callable[[int], list[str]]) -> Iterator[None]:
    """Name the images of a step whose losses or gradients are not finite."""
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
    learner.finite_check.check()
    options = {
        "device": learner.device,
        "protocol": config.data.protocol,
        "confidence": config.training.confidence,
    }
    # the benchmark mode would time every layer for each new size of an image
    with memory_advice(None), cudnn_benchmark(False):
        student, teacher = evaluate_all([learner.student, learner.teacher], dataset, **options)
    return {
        "miou": student.miou,
        "teacher_miou": teacher.miou,
        "pseudo_coverage": teacher.coverage,
        "pseudo_precision": teacher.precision,
    }


def _finish(
    out: Path,
    config: Config,
    learner: Learner,
    log: MetricsLog | None,
    seconds: float,
    data: RunData,
    micro_batches: list[int],
) -> RunResult | None:
    with memory_advice(None), cudnn_benchmark(False):
        test = evaluate(
            learner.teacher,
            data.test,
            device=learner.device,
            protocol=config.data.protocol,
        )
    memory = peak_memory(learner.device)
    if log is None:
        return None
    evaluations = [line for line in log.lines() if "teacher_miou" in line]
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
        protocol=config.data.protocol,
        processes=world_size(),
        gpu=gpu_name(learner.device),
        gpus=world_size() if learner.device.type == "cuda" else 0,
        peak_memory=memory,
        data=data.identity.images,
        micro_batches=micro_batches,
    )
    write_text(out / "result.json", json.dumps(asdict(result), indent=2))
    return result
