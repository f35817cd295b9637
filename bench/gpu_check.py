"""What to run first on a machine with a GPU: ``make gpu-check``, at most 4 minutes on one card.

    .venv/bin/python -m bench.gpu_check                          # fills bench/GPU.md
    .venv/bin/python -m bench.gpu_check --toy --device cpu       # does the check itself run?

agree      100 steps of ``ddfp`` on digit scenes, on the GPU and on the CPU, from the same weights,
           in float32 without TF32, with nothing random that depends on the device. Only rounding
           differs, and it grows: losses of the first five steps agree to 1e-3, the mean of the last
           25 to 10 %.
waits      how often the host waits for the GPU in a step, by PyTorch's own count.
resume     20 steps at once, and 10 steps, a checkpoint, and 10 more, with deterministic kernels:
           all weights agree to 1e-3 of the largest.
group      a process group of one process, NCCL on a GPU: a sum, a gather, and an object.
steps      ``ddfp`` at the size of VOC in float32 (TF32), bfloat16 and float16: time and peak memory
           beside the counted memory, in as many micro-batches as training would take.
density    the estimators of ``bench/density.py``, in float32.

The page ends with how long each of these took. The exit status is 1 if one of the goals is missed.
"""

import argparse
import dataclasses
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from bench import gpu
from bench.goals import Goal, goal_table
from bench.step import batches_of
from ddfp_lib.config import Config, find_benchmark, load_config
from ddfp_lib.files import write_text
from ddfp_lib.kernels import training_kernels
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.loop import train
from ddfp_lib.training.memory import GIB, fitting_parts, training_memory
from ddfp_lib.training.step import training_step

PAGE = Path(__file__).parent / "GPU.md"
FIRST, LAST, WEIGHTS = 1e-3, 0.1, 1e-3
"""Tolerances: of the losses of the first steps, of their mean in the last ones, of weights."""

FEW = ("training.batch_labeled=2", "training.batch_unlabeled=2")
"""Settings of trainings that only show that the check itself runs."""

PRECISIONS = ("float32", "bfloat16", "float16")
Part = tuple[list[Goal], str]
"""Goals, and a table in Markdown or nothing."""


def digits(steps: int, *settings: str) -> Config:
    """Return a run of ``ddfp`` on digit scenes that draws nothing on the device."""
    # all of the method from the third of 100 steps on
    schedule = [f"training.steps={steps}", "training.consistency_from=0.01"]
    schedule += ["training.perturb_from=0.03", "training.confidence=0.5", "training.tf32=false"]
    # all rows of the flow, without noise, and no dropout
    still = ["network.dropout=0", "density.noise=0", "density.samples=1000000"]
    overrides = [*schedule, *still, *settings]
    return load_config(find_benchmark("digits"), "ddfp", overrides=overrides)


def small(config: Config) -> Config:
    """Return the same run on a few images, which are made in a second."""
    digits = dataclasses.replace(config.data.digits, train=80, val=4, test=4)
    data = dataclasses.replace(config.data, digits=digits, labeled=20, workers=0)
    return dataclasses.replace(config, data=data)


def losses(config: Config, device: torch.device) -> list[float]:
    """Train on a device from weights and batches that the configuration alone determines."""
    training = config.training
    learner = Learner(config, config.data.digits.classes + 1, device)
    found = []
    with training_kernels(training.tf32, training.cudnn_benchmark, training.deterministic):
        for step, batch in enumerate(batches_of(config, training.steps)):
            found.append(training_step(learner, batch.to(device), step)["loss"])
        learner.finite_check.check()
        return [float(loss) for loss in found]


def agree(device: torch.device, toy: bool) -> Part:
    """Compare the losses of a short training with those on the CPU."""
    config = small(digits(6, *FEW)) if toy else digits(100)
    here, there = (losses(config, where) for where in (device, torch.device("cpu")))
    first = max(abs(a - b) / abs(b) for a, b in zip(here[:5], there[:5], strict=True))
    means = [sum(each[-25:]) / len(each[-25:]) for each in (here, there)]
    last = abs(means[0] - means[1]) / means[1]
    goals = [
        Goal(
            f"loss of the first 5 steps as on the CPU to {FIRST:g}", f"{first:.1e}", first < FIRST
        ),
        Goal(f"mean of the last 25 as on the CPU to {LAST:.0%}", f"{last:.1%}", last < LAST),
    ]
    return goals, ""


def waits(device: torch.device, toy: bool) -> Part:
    """Count the operations of a step, in each stage, for which the host waits."""
    if device.type != "cuda":
        return [], ""
    config = digits(10)
    learner = Learner(config, config.data.digits.classes + 1, device)
    batches = [batch.to(device) for batch in batches_of(config, 10)]
    for step, batch in enumerate(batches):  # what is made at first use
        training_step(learner, batch, step)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for step in (0, 1, 5):
                training_step(learner, batches[step], step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = {
        f"{Path(each.filename).name}:{each.lineno}"
        for each in caught
        if "synchronizing" in str(each.message)
    }
    told = ", ".join(sorted(places)) or "0"
    return [Goal("a step in float32 waits for nothing", told, not places)], ""


def resume(device: torch.device, toy: bool) -> Part:
    """Compare a run that was interrupted with one that was not."""
    count = 4 if toy else 20
    settings = ["training.deterministic=true", f"training.checkpoint_every={count // 2}"]
    settings += [f"training.evaluate_every={count}", *(FEW if toy else ())]
    config = small(digits(count, *settings))
    weights = []
    with tempfile.TemporaryDirectory() as folder:
        for name, stops in (("whole", [None]), ("cut", [count // 2, None])):
            for stop in stops:
                train(config, Path(folder) / name, device=device, stop_at=stop)
            kept = Checkpoints(Path(folder) / name / "checkpoints", config.config_hash)
            state, _ = kept.load(torch.device("cpu"))
            student = state["learner"]["student"].values()
            weights.append(torch.cat([each.double().flatten() for each in student]))
    whole, cut = weights
    error = float((whole - cut).abs().max() / whole.abs().max())
    told = "the same bits" if torch.equal(whole, cut) else f"{error:.1e}"
    return [Goal(f"a resumed run has the same weights to {WEIGHTS:g}", told, error < WEIGHTS)], ""


def group(device: torch.device, toy: bool) -> Part:
    """Let a group of one process exchange what training exchanges."""
    on_gpu = device.type == "cuda"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", init_method=address, rank=0, world_size=1
    )
    try:
        gradients = torch.ones(1000 if toy else 60_000_000, device=device)
        dist.all_reduce(gradients)
        begin = time.perf_counter()
        dist.all_reduce(gradients)
        right = bool((gradients == 1).all())
        seconds = time.perf_counter() - begin
        gathered, told = [torch.empty_like(gradients[:5])], [None]
        dist.all_gather(gathered, gradients[:5])
        dist.all_gather_object(told, "an error")
        right = right and torch.equal(gathered[0], gradients[:5]) and told == ["an error"]
    finally:
        dist.destroy_process_group()
    name = "NCCL" if on_gpu else "gloo"
    return [Goal(f"{name}: sum, gather, object", f"{1000 * seconds:.0f} ms", right)], ""


def steps(device: torch.device, toy: bool) -> Part:
    """Measure a step in each precision: time and memory."""
    size, goals = gpu.TOY if toy else gpu.PAPER, []
    batch = gpu.random_batch(size, device)
    lines = ["| precision | micro-batches | ms a step | images a second | peak GiB | counted GiB |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for precision in PRECISIONS:
        config = gpu.configuration("ddfp", size, [f"precision={precision}"])
        parts = 1
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            parts = fitting_parts(config, 1, memory)
        counted = training_memory(config, parts) / GIB
        training = config.training
        with training_kernels(training.tf32, training.cudnn_benchmark, training.deterministic):
            try:
                step = gpu.ours(config, batch, device, parts)
                seconds, peak = gpu.measure(step, device, 1 if toy else 5)
                del step
            except torch.OutOfMemoryError:
                seconds, peak = float("nan"), 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
        fits = seconds == seconds
        goals.append(Goal(f"a step in {precision} fits the memory", f"{peak / GIB:.1f} GiB", fits))
        images = 2 * size["batch"] / seconds
        lines.append(
            f"| {precision} | {parts} | {1000 * seconds:.0f} | {images:.1f} | {peak / GIB:.1f} | "
            f"{counted:.1f} |"
        )
    return goals, "\n".join(lines)


def densities(device: torch.device, toy: bool) -> Part:
    """Measure the density estimators."""
    cases = gpu.TOY_CASES if toy else gpu.PAPER_CASES
    return [], gpu.density_table(gpu.measure_densities(cases, device, 1 if toy else 5))


CHECKS: dict[str, Callable[[torch.device, bool], Part]] = {
    "agree": agree,
    "waits": waits,
    "resume": resume,
    "group": group,
    "steps": steps,
    "density": densities,
}


def page(device: torch.device, toy: bool) -> tuple[str, bool]:
    """Run all checks; return the page, in Markdown, and whether all goals were met."""
    goals, tables, times = [], [], []
    for number, (name, check) in enumerate(CHECKS.items(), start=1):
        print(f"{number}/{len(CHECKS)} {name} ...", flush=True)
        begin = time.perf_counter()
        found, table = check(device, toy)
        times.append(f"{name} {time.perf_counter() - begin:.0f} s")
        goals += found
        tables += [f"## {name}\n\n{table}"] if table else []
    where, memory = "CPU", ""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
        memory = f", {torch.cuda.get_device_properties(device).total_memory / GIB:.1f} GiB"
    head = f"{where}{memory}, torch {torch.__version__}. {', '.join(times)}."
    return "\n\n".join([head, goal_table(goals), *tables]) + "\n", all(g.met for g in goals)


def main() -> None:
    """Check, print, and keep the page of a GPU."""
    parser = argparse.ArgumentParser(description="Check a GPU, in at most 4 minutes.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="sizes for CPUs; nothing is kept")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "gpu-check: PyTorch sees no GPU here; --toy --device cpu runs the check itself on a CPU"
        )
    text, met = page(device, arguments.toy)
    print(text)
    if not arguments.toy:
        write_text(PAGE, text)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
