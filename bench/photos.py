"""What a training step on photographs costs, beside the same step of another checkout.

    .venv/bin/python -m bench.photos                          # this checkout's numbers
    git worktree add ../before e01cd57
    .venv/bin/python -m bench.photos --against ../before      # the ratios, five minutes
    .venv/bin/python -m bench.photos --against ../before --evaluate RUN --data DIR    # see below
    .venv/bin/python -m bench.photos --against ../before --digits    # a step on digit scenes
    .venv/bin/python -m bench.photos --shares --methods ddfp  # where the time of a step goes

EfficientNet-Lite0 with output stride 16 and random weights, 6 labeled and 6 unlabeled crops of 160
pixels from scikit-learn's two photographs, 7 classes, one thread: a network that a laptop can train
on real photographs. Batches are made beforehand, and every step is one of the last stage, where
everything that a method has is switched on.

Each checkout computes in a process of its own, with this Python and this torch. The processes take
turns step by step, and only one of them computes at a time. So whatever else the machine does
disturbs all of them alike. Each number is the median over the turns of the process's CPU time.

``memory`` is the peak of a fresh process during its first steps, beyond what stood before them.
``gradient`` is the difference of the two checkouts' gradients of one step from equal weights, as a
fraction of the gradient's norm. The step is computed in float32, so the other checkout's gradient
has a rounding error of its own, which ``rounding`` shows: its difference from its own gradient in
float64.

``--evaluate`` compares evaluations instead of steps: the CPU time that ``evaluate`` of student and
teacher takes, and the pixels that get another class. RUN is a run of the benchmark ``voc_animals``,
whose network is the one above with trained weights, and DIR is its folder of photographs.

``--shares`` profiles the steps of this checkout, and prints which kind of work takes which
fraction of their time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench import photo_evaluation, photo_shares, photo_steps
from bench.goals import Goal, goal_table
from bench.photo_steps import WARM_UP

METHODS = ("supervised", "consistency", "noise", "ddfp")

PAGE = Path(__file__).parent / "PHOTOS.md"
"""What one comparison with e01cd57 gave, and what was tried and not kept; written by hand."""

TARGETS = {"supervised": 0.65, "consistency": 0.7, "ddfp": 0.7}
"""CPU time of a step, relative to e01cd57, that was aimed at."""


class Checkout:
    """A process that computes with the ``ddfp_lib`` of a folder.

    Args:
        folder: a checkout of this project, any since e01cd57; absolute.
    """

    def __init__(self, folder: Path) -> None:
        # -P and PYTHONPATH: the folder's packages, none that lie beside this file
        self.process = subprocess.Popen(
            [sys.executable, "-P", photo_steps.__file__],
            env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        where = Path(self.ask("where"))
        if where.parent.parent != folder:
            raise RuntimeError(f"{folder}: its process took ddfp_lib from {where.parent}")

    def __enter__(self) -> "Checkout":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request and wait for its answer."""
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process stopped in {do!r}; its error stands above")
        return json.loads(answer)


def measure(
    folders: Sequence[Path], methods: Sequence[str], repeats: int, digits: bool = False
) -> dict[str, list[float]]:
    """Return the median CPU seconds of a step: for each method, of each checkout.

    Args:
        folders: the checkouts.
        methods: names of presets.
        repeats: number of turns.
        digits: steps on digit scenes, with that benchmark's network.
    """
    seconds: dict[str, list[list[float]]] = {m: [[] for _ in folders] for m in methods}
    with ExitStack() as stack:
        checkouts = [stack.enter_context(Checkout(folder)) for folder in folders]
        for checkout in checkouts:
            for method in methods:
                checkout.ask("prepare", method=method, digits=digits)
        for turn in range(WARM_UP + repeats):
            for method in methods:
                pairs = list(zip(checkouts, seconds[method], strict=True))
                for checkout, times in pairs[:: 1 if turn % 2 else -1]:  # each is first in turn
                    times.append(checkout.ask("step", method=method, turn=turn))
    return {m: [statistics.median(t[WARM_UP:]) for t in times] for m, times in seconds.items()}


def peaks(folders: Iterable[Path], method: str) -> list[float]:
    """Return what the steps of a method need at their peak, in megabytes, of each checkout."""
    found = []
    for folder in folders:
        with Checkout(folder) as checkout:
            found.append(checkout.ask("memory", method=method))
    return found


def gradients(folders: Sequence[Path], scratch: Path) -> tuple[float, float]:
    """Compare the first checkout's gradient with the second's, and that with its float64 one.

    Returns:
        Norm of the difference over the norm of the gradient, of each of the two.
    """
    here, there, exact = (scratch / name for name in ("here.pt", "there.pt", "exact.pt"))
    for folder, path, double in (
        (folders[0], here, False),
        (folders[1], there, False),
        (folders[1], exact, True),
    ):
        with Checkout(folder) as checkout:
            checkout.ask("gradient", path=str(path), double=double)
    a, b, c = (torch.load(path) for path in (here, there, exact))
    return float((a - b).norm() / b.norm()), float((b - c).norm() / c.norm())


def table(seconds: dict[str, list[float]]) -> str:
    """Return the table of steps, in Markdown: one checkout's, or two and their ratio."""
    both = all(len(times) == 2 for times in seconds.values())
    head = "| method | CPU ms a step |" + (" of the other | ratio |" if both else "")
    lines = [head, "|---" + (len(head.split("|")) - 3) * "|---:" + "|"]
    for method, times in seconds.items():
        cells = [method, *(f"{1000 * value:.0f}" for value in times)]
        cells += [f"{times[0] / times[1]:.2f}"] if both else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(
    seconds: dict[str, list[float]],
    megabytes: Sequence[float] = (),
    difference: float | None = None,
    rounding: float | None = None,
) -> list[Goal]:
    """Compare what was measured with what was aimed at.

    Args:
        seconds: of :func:`measure`.
        megabytes: of :func:`peaks`, this checkout's and the other's.
        difference: of :func:`gradients`, the first number.
        rounding: the second number.
    """
    made = []
    for method, most in TARGETS.items():
        times = seconds.get(method, [])
        if len(times) == 2:
            ratio = times[0] / times[1]
            text = f"{method}: CPU time at most {most} of the other's"
            made.append(Goal(text, f"{ratio:.2f}", ratio <= most))
    if "noise" in seconds and "ddfp" in seconds:
        ratio = seconds["ddfp"][0] / seconds["noise"][0]
        made.append(Goal("ddfp / noise at most 1.12", f"{ratio:.2f}", ratio <= 1.12))
    if len(megabytes) == 2:
        ratio = megabytes[0] / megabytes[1]
        measured = f"{ratio:.2f} ({megabytes[0]:.0f} of {megabytes[1]:.0f} MB)"
        made.append(Goal("ddfp: memory at most 0.9 of the other's", measured, ratio <= 0.9))
    if difference is not None and rounding is not None:
        measured = f"{difference:.1e} (rounding {rounding:.1e})"
        made.append(Goal("gradient: difference at most 1e-5", measured, difference <= 1e-5))
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Time a training step on photographs.")
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--evaluate", type=Path, help="a run: compare its evaluation instead")
    parser.add_argument("--data", type=Path, help="photographs in the VOC layout, for --evaluate")
    parser.add_argument("--images", type=int, default=150, help="photographs, for --evaluate")
    parser.add_argument("--digits", action="store_true", help="time steps on digit scenes instead")
    parser.add_argument("--shares", action="store_true", help="profile the steps instead")
    arguments = parser.parse_args(words)
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: use 1 or more")
    if arguments.evaluate and not (arguments.against and arguments.data):
        parser.error("--evaluate: needs --against and --data")
    folders = [Path(__file__).resolve().parent.parent]
    if arguments.against:
        if not (arguments.against / "ddfp_lib").is_dir():
            parser.error(f"--against: {arguments.against} holds no ddfp_lib; give a checkout")
        folders.append(arguments.against.resolve())
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, ",
        end="",
    )
    print(f"median of {arguments.repeats}, load {os.getloadavg()[0]:.1f}\n", flush=True)
    if arguments.evaluate:
        with tempfile.TemporaryDirectory() as scratch:
            stored = Path(scratch) / "networks.pt"
            images = photo_evaluation.store(
                arguments.evaluate, arguments.data, arguments.images, stored
            )
            compared = photo_evaluation.compare(Checkout, folders, stored, arguments.repeats)
        print(f"{images} photographs, student and teacher\n")
        print(goal_table(photo_evaluation.goals(compared)))
        return
    if arguments.shares:
        torch.set_num_threads(1)
        for method in arguments.methods:
            seconds_each, shares = photo_shares.measure(method, arguments.repeats)
            print(f"{method}: {1000 * seconds_each:.0f} ms a step, with the profiler\n")
            print(photo_shares.table(shares) + "\n", flush=True)
        return
    seconds = measure(folders, arguments.methods, arguments.repeats, arguments.digits)
    print(table(seconds) + "\n", flush=True)
    if arguments.digits:
        return
    megabytes: list[float] = []
    pair: tuple[float, ...] = ()
    if arguments.against:
        if "ddfp" in arguments.methods and sys.platform == "linux":
            megabytes = peaks(folders, "ddfp")
        with tempfile.TemporaryDirectory() as scratch:
            pair = gradients(folders, Path(scratch))
    print(goal_table(goals(seconds, megabytes, *pair)))


if __name__ == "__main__":
    main()
