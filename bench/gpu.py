"""Density estimators and training steps at the paper's size, on a GPU: time and memory.

    .venv/bin/python -m bench.gpu --set training.precision=bfloat16    # fills bench/GPU_SPEED.md
    .venv/bin/python -m bench.gpu --toy --device cpu                   # does it run at all?

ResNet-101 with the deep stem, crops of 513, 16 labeled and 16 unlabeled random images, 21 classes,
each method with all that it has switched on. ``released step`` is written for this bench: the same
network, with the order of work of the released code (train_ddfp_pascal.py) in its float16, its
density (a mixture that repeats every pixel for every class, pixels drawn by NumPy on the host, a
loop over classes), its three forward passes of the decoder and its average of the teacher
parameter by parameter. Its barriers are left out: one process has nobody to wait for.

The density estimators are those of ``bench/density.py``, in float32: each number is the median of
repeated calls, memory the peak of torch's allocator, data and parameters included.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from bench import density
from bench.goals import Goal, goal_table
from ddfp_lib.config import Config, from_dict, load_method, to_dict
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.augment import cutmix_box, mix, strong_view
from ddfp_lib.data.loaders import Batch
from ddfp_lib.files import write_text
from ddfp_lib.kernels import compiling, training_kernels
from ddfp_lib.models.maps import resize, to_rows
from ddfp_lib.seeds import generator
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.losses import cross_entropy
from ddfp_lib.training.step import training_step

PAGE = Path(__file__).parent / "GPU_SPEED.md"
METHODS = ("supervised", "consistency", "noise", "ddfp")
CLASSES = 21
STEPS = 1000  # of the schedule; the bench takes a few in its middle
PAPER = {
    "crop": 513,
    "batch": 16,
    "network": {
        "encoder": "resnet101",
        "encoder_options": {"stem_type": "deep", "stem_width": 64},
    },
    "density": {},
}
TOY = {
    "crop": 33,
    "batch": 2,
    "network": {
        "encoder": "test_resnet",
        "low_width": 4,
        "aspp_width": 8,
        "dilations": [1, 2],
        "embedding": 8,
    },
    "density": {"hidden": 8, "samples": 64},
}
PAPER_CASES = {name: case for name, case in density.CASES.items() if "digits" not in name}
TOY_CASES = {
    "fit": density.Case(60, 6, 3, gradient=False, hidden=8),
    "gradient": density.Case(60, 6, 3, gradient=True, hidden=8),
}


def configuration(method: str, size: dict, settings: Sequence[str] = ()) -> Config:
    """Return a run of this size; ``settings`` are ``training.key=value``."""
    training = {"steps": STEPS, "batch_labeled": size["batch"], "batch_unlabeled": size["batch"]}
    for one in settings:
        key, _, value = one.removeprefix("training.").partition("=")
        training[key] = yaml.safe_load(value)
    values = {
        "benchmark": "speed",
        "eps": 4.0,
        "data": {"dataset": "voc", "labeled": 1, "augment": {"crop": size["crop"]}},
        "network": size["network"],
        "density": size["density"],
        "training": training,
        "method": to_dict(load_method(method)),
    }
    return from_dict(values)


def random_batch(size: dict, device: torch.device) -> Batch:
    """Return images and labels of noise, on the device."""
    rng = generator(0, "speed")
    shape = (size["batch"], size["crop"], size["crop"])
    images = torch.randint(256, (2, size["batch"], 3, *shape[1:]), generator=rng).byte()
    labels = torch.randint(CLASSES, shape, generator=rng)
    valid = torch.ones(shape, dtype=torch.bool)
    return Batch(images[0], labels, images[1], valid, valid).to(device)


def ours(
    config: Config, batch: Batch, device: torch.device, accumulate: int = 1
) -> Callable[[int], object]:
    """Return a step of this project's training, in so many micro-batches."""
    learner = Learner(config, CLASSES, device, accumulate)
    return lambda n: training_step(learner, batch, STEPS // 2 + n)


def released(config: Config, batch: Batch, device: torch.device) -> Callable[[int], object]:
    """Return a step as the released code takes it: a reference for speed, not for results."""
    learner = Learner(config, CLASSES, device)
    student, teacher = learner.student, learner.teacher.train()
    flow = density.Reference(learner.density).to(device)
    flow_optimizer = torch.optim.Adam(flow.parameters(), 1e-3, (0.5, 0.9))
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    draw = np.random.default_rng(0)

    def step(n: int) -> None:
        host, rng = learner.generators(n)
        labeled, weak = batch.labeled_images / 255, batch.weak_images / 255
        size, count = weak.shape[2:], len(labeled)
        with torch.autocast(device.type, torch.float16, enabled=half):
            # the teacher, in training mode, on weak images
            with torch.no_grad():
                seen = teacher.embed(teacher.encode(torch.cat([labeled, weak])), generator=rng)
                belief = resize(teacher.classify(seen[count:]), size).float().softmax(1)
                probability, pseudo = belief.max(1)
                pseudo = pseudo.where(probability > config.training.confidence, IGNORE_INDEX)
            box = cutmix_box(*size, config.data.augment, host).to(device)
            strong = mix(strong_view(weak, config.data.augment, host), box)
            pseudo = mix(pseudo, box)

            # the student; then its strong features once more, for the gradient of their density
            features = student.encode(torch.cat([labeled, strong]))
            logits = resize(student.classify(student.embed(features, generator=rng)), size)
            at = features[count:].detach().requires_grad_()
            embedded = student.embed(at, auxiliary=True, generator=rng)
            confident = resize(pseudo[:, None].float(), embedded.shape[2:])[:, 0] != IGNORE_INDEX
            with torch.autocast(device.type, enabled=False):
                surprise = -flow.log_prob(to_rows(embedded).float())
            weight = confident.flatten().float()
            surprise = (surprise * weight).sum() / weight.sum().clamp(min=1)
            (gradient,) = torch.autograd.grad(surprise, at)
            shift = config.eps * nn.functional.normalize(gradient.float(), dim=1)
            moved = student.embed(features[count:] + shift, auxiliary=True, generator=rng)
            perturbed = resize(student.classify(moved), size)
            loss = cross_entropy(logits[:count], batch.labels)
            loss = loss + 0.5 * cross_entropy(logits[count:], pseudo)
            loss = loss + 0.5 * cross_entropy(perturbed, pseudo)
        learner.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(learner.optimizer)
        scaler.update()

        # the flow, on pixels that NumPy draws
        rows = to_rows(seen).float()
        small = nn.functional.interpolate(batch.labels[:, None].float(), size=seen.shape[2:])
        labels = torch.full((len(rows),), -1, device=device)
        labels[: small.numel()] = small.flatten().long()
        chosen = draw.permutation(len(rows))[: config.density.samples]
        chosen = torch.from_numpy(chosen).to(device)
        v = rows[chosen] + 0.05 * torch.randn_like(rows[chosen])
        nll = -flow.log_prob(v, labels[chosen]).mean()
        flow_optimizer.zero_grad()
        nll.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 50)
        flow_optimizer.step()

        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.copy_(0.999 * slow + 0.001 * fast)

    return step


def measure(step: Callable[[int], object], device: torch.device, repeats: int) -> tuple[float, int]:
    """Return the median seconds of a step, and the peak of memory in bytes (0 on a CPU)."""
    on_gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    times = []
    for n in range(3 + repeats):
        if on_gpu and n == 3:
            torch.cuda.reset_peak_memory_stats()
        wait()
        begin = time.perf_counter()
        step(n)
        wait()
        times.append(time.perf_counter() - begin)
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    return statistics.median(times[3:]), memory


Table = dict[str, tuple[float, int]]
"""Seconds and bytes of what was measured, by name."""


def measure_steps(
    size: dict, device: torch.device, settings: Sequence[str], repeats: int, accumulate: int = 1
) -> Table:
    """Measure a step of each method, and the released one, which has no micro-batches."""
    batch, measured = random_batch(size, device), {}
    for name in METHODS:
        config = configuration(name, size, settings)
        training = config.training
        kernels = training.tf32, training.cudnn_benchmark, training.deterministic
        with training_kernels(*kernels), compiling(training.compile):
            measured[name] = measure(ours(config, batch, device, accumulate), device, repeats)
    step = released(configuration("ddfp", size), batch, device)
    measured["released step"] = measure(step, device, repeats)
    return measured


def step_table(measured: Table, images: int) -> str:
    """Return the table of steps on ``images`` labeled and as many unlabeled ones, in Markdown."""
    lines = ["| step | images a second | peak GB | time / noise |", "|---|---:|---:|---:|"]
    for name, (seconds, memory) in measured.items():
        count = images * (1 if name == "supervised" else 2)
        ratio = seconds / measured["noise"][0]
        lines.append(f"| {name} | {count / seconds:.1f} | {memory / 2**30:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def measure_densities(
    cases: dict[str, density.Case], device: torch.device, repeats: int
) -> dict[str, Table]:
    """Measure each estimator in each case."""
    measured: dict[str, Table] = {}
    for case, what in cases.items():
        measured[case] = {}
        for name in density.ESTIMATORS:
            run = density.prepare(name, what, device)
            measured[case][name] = measure(lambda n, run=run: run(), device, repeats)
            del run  # before the next one's memory is measured
    return measured


def density_table(measured: dict[str, Table]) -> str:
    """Return the table of density estimators, in Markdown."""
    lines = ["| case | estimator | ms | peak MB | time / ddfp |", "|---|---|---:|---:|---:|"]
    for case, found in measured.items():
        for name, (seconds, memory) in found.items():
            ratio = seconds / found["ddfp"][0]
            lines.append(
                f"| {case} | {name} | {1000 * seconds:.2f} | {memory / 2**20:.0f} | {ratio:.1f} |"
            )
    return "\n".join(lines)


def goals(steps: Table, densities: dict[str, Table]) -> str:
    """Compare what was measured with what was aimed at; return the table, in Markdown."""
    rows = []
    for case, found in densities.items():
        ratio = found["reference"][0] / found["ddfp"][0]
        rows.append(Goal(f"{case}: reference / ddfp at least 4", f"{ratio:.1f}", ratio >= 4))
    (noise, _), (ours_s, ours_b) = steps["noise"], steps["ddfp"]
    theirs_s, theirs_b = steps["released step"]
    ratio = ours_s / noise
    rows.append(Goal("step: ddfp / noise at most 1.10", f"{ratio:.2f}", ratio <= 1.1))
    ratio = theirs_s / ours_s
    goal = "step: images a second of ddfp / released at least 1.5"
    rows.append(Goal(goal, f"{ratio:.2f}", ratio >= 1.5))
    ratio = ours_b / max(theirs_b, 1)
    goal = "step: peak memory of ddfp / released below 1"
    rows.append(Goal(goal, f"{ratio:.2f}", ratio < 1))
    return goal_table(rows)


def main() -> None:
    """Measure, print, and keep the table of a GPU."""
    parser = argparse.ArgumentParser(description="Time training steps at the paper's size.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--toy", action="store_true", help="a size for CPUs; nothing is kept")
    parser.add_argument("--set", action="append", default=[], help="training.KEY=VALUE, of ours")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches, of ours")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    if not on_gpu:
        torch.set_num_threads(1)  # small tensors: more threads only wait for one another
    size, cases = (TOY, TOY_CASES) if arguments.toy else (PAPER, PAPER_CASES)
    densities = measure_densities(cases, device, arguments.repeats)
    steps = measure_steps(size, device, arguments.set, arguments.repeats, arguments.accumulate)
    settings = " ".join(arguments.set) or "float32"
    text = f"{where}, torch {torch.__version__}, steps of ours with {settings}, micro-batches: "
    text += f"{arguments.accumulate}\n\n"
    parts = goals(steps, densities), density_table(densities), step_table(steps, size["batch"])
    text += "\n\n".join(parts) + "\n"
    print(text)
    if not arguments.toy:
        write_text(PAGE, text)


if __name__ == "__main__":
    main()
