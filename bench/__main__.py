"""Run every bench that needs no GPU; write RESULTS.md and its figures: ``make bench``."""

import argparse
import os
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from bench import density, gpu, gpu_check, growth, loading, photos, step
from bench.alone import alone
from bench.goals import Goal, goal_table
from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.files import write_text
from ddfp_lib.training.data import data_of

HERE = Path(__file__).parent
GPU_COMMAND = ".venv/bin/python -m bench.gpu --set training.precision=bfloat16"

ABOUT = """\
`make bench` makes this page. For photographs and GPUs, this command measures nothing: it copies
stored results. In most parts of this page, you find a command that makes only that part, such as
`python -m bench.step`. The command `python -m bench.step` runs the file `bench/step.py`. The first
lines of this file explain what the command measures.

| name on this page | meaning |
|---|---|
| `ddfp`, as an estimator | this project's density estimator: a normalizing flow with one Gaussian \
per class as its base density |
| `reference` | the density estimator of the released code, reimplemented for this comparison |
| `zuko` | the flow of the library [zuko](https://zuko.readthedocs.io), with the same number of \
couplings |
| fit, VOC | one training step of the density, at VOC's size: 20,480 features of 256 numbers, \
21 classes |
| gradient, VOC | the gradient of the log-density, which gives the direction of a step, for 66,564 \
features of the same size |
| gradient, 20,480 rows | the same gradient for 20,480 of these features |
| fit, digits; gradient, digits | the same at the size of the digit scenes: 512 and 1,600 features \
of 32 numbers, 6 classes |
| the machine's rate | the rate of one product of two large matrices on this machine, in \
operations per second; a percentage says how much of this rate `ddfp` reaches, \
averaged over its whole time |
| `e01cd57` | an earlier commit of this project, without the faster layers of \
`ddfp_lib/models/fast.py` |
"""

COMMANDS = {
    "Density estimator": "python -m bench.density",
    "Training step": "python -m bench.step",
    "Growth, each quantity alone": "python -m bench.growth",
    "Loading": "make bench",
}
"""Which command makes a part of the page; photographs and GPUs name theirs themselves."""


def plot(densities: dict[str, density.Measured], seconds: dict[str, float], path: Path) -> None:
    """Draw both ratios: estimators against ddfp's, methods against consistency."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for index, name in enumerate(density.ESTIMATORS):
        ratios = [found.slower(name) for found in densities.values()]
        left.barh([y + 0.25 * index for y in range(len(ratios))], ratios, 0.25, label=name)
    left.set(yticks=[y + 0.25 for y in range(len(densities))], yticklabels=list(densities))
    left.set(xlabel="CPU time, relative to ddfp", title="Density estimator")
    left.invert_yaxis()
    left.legend(frameon=False)
    relative, goal = [s / seconds["consistency"] for s in seconds.values()], 1.5
    right.barh(list(seconds), relative, color="0.6")
    right.set(xlim=(0, 1.08 * max(goal, *relative)))  # keep the line off the edge
    right.axvline(goal, color="black", linewidth=1, linestyle=":")
    right.set(xlabel="CPU time, relative to consistency;\ndotted: goal for ddfp")
    right.set(title="Training step, digit scenes")
    right.invert_yaxis()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def goals(densities: dict[str, density.Measured], seconds: dict[str, float]) -> str:
    """Compare what was measured with what was aimed at; return the table, in Markdown."""
    rows = []
    for case, least in (("fit, VOC", 4), ("gradient, VOC", 5), ("gradient, 20,480 rows", 5)):
        found = densities[case]
        ratio, leaner = found.slower("reference"), found.fatter("reference")
        text = f"{ratio:.1f}"
        if ratio < least:  # on some machines that is more than plain products reach
            needed = found.machine * least / ratio
            text += f" (a ratio of {least} needs {100 * needed:.0f} % of the machine's rate)"
        rows += [
            Goal(f"{case}: time of reference / ddfp at least {least}", text, ratio >= least),
            Goal(
                f"{case}: extra memory at most 1/8 of the reference's",
                f"1/{leaner:.0f}",
                leaner >= 8,
            ),
            Goal(
                f"{case}: at least 70 % of the machine's rate of matrix products",
                f"{100 * found.machine:.0f} %",
                found.machine >= 0.7,
            ),
        ]
    for baseline, most in (("noise", 1.25), ("consistency", 1.5)):
        ratio = seconds["ddfp"] / seconds[baseline]
        rows.append(
            Goal(
                f"training step: time of ddfp / {baseline} at most {most}",
                f"{ratio:.2f}",
                ratio <= most,
            )
        )
    return goal_table(rows)


def loading_table(seconds: float) -> str:
    """Compare what one core makes of digit scenes with what a ddfp step of ``seconds`` takes."""
    config = load_config(find_benchmark("digits"), "ddfp")
    images = config.training.batch_labeled + config.training.batch_unlabeled
    _, used = alone(loading.measure, data_of(config, "train"), config.data.augment.crop, 640, 0)
    return "\n".join(
        [
            "| data | images loaded per CPU second | "
            "images on which `ddfp` trains per CPU second |",
            "|---|---:|---:|",
            f"| digit scenes | {1000 / used:.0f} | {images / seconds:.0f} |",
        ]
    )


def gpu_page(page: Path, command: str) -> str:
    """Return a page that was filled on a GPU, or the command that fills it."""
    if page.is_file():
        return page.read_text(encoding="utf-8").strip()
    return (
        "The measurements of this section have not been run on a GPU yet. The command "
        f"`{command}` fills this section."
    )


def by(title: str) -> str:
    """Return a line that names the command of a part of the page, or nothing."""
    if title not in COMMANDS:
        return ""
    return f"The command `{COMMANDS[title]}` measured the numbers in this section.\n\n"


def main() -> None:
    """Measure everything, a few minutes on a quiet machine."""
    parser = argparse.ArgumentParser(description="Run all benches.")
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    densities = {name: density.measure(name) for name in density.CASES}
    seconds = alone(step.measure, step.METHODS, [], repeats)
    grown = {name: alone(growth.measure, name, repeats) for name in growth.CASES}
    parts = {
        "Goals": goals(densities, seconds),
        "Density estimator": density.table(densities),
        "Training step": step.table(seconds),
        "Training step on photographs": photos.PAGE.read_text().strip(),
        "Growth, each quantity alone": (
            "Each line of the next table is about one quantity, for example the number of "
            "classes. This quantity grows to 2, 4 and 8 times its first value, while all other "
            "quantities stay the same. The columns for time and memory show ratios. For example, "
            '"time at x 2" is the time at twice the first value, divided by the time at the first '
            "value. To measure memory, we count the elements that each operation writes, and add "
            "these numbers over all operations. The last column is the number of elements of the "
            "largest tensor.\n\n"
            "![Curves of time and memory while rows, "
            "features, classes, pixels or images grow]"
            f"(growth.png)\n\n{growth.table(grown)}"
        ),
        "Loading": loading_table(seconds["ddfp"]),
        "First check of a GPU": gpu_page(gpu_check.PAGE, "make gpu-check"),
        "On a GPU, compared with the released step": gpu_page(gpu.PAGE, GPU_COMMAND),
    }
    machine = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    text = f"# Speed and memory\n\n{ABOUT}\nWe measured the results on this page, except those for "
    text += f"photographs and GPUs, with torch {torch.__version__} and one thread, on {machine}. "
    text += (
        "The load average of the operating system (the number of programs that want to run) was "
    )
    text += f"{before:.1f} before the measurements and {os.getloadavg()[0]:.1f} after them.\n\n"
    text += "![Relative times of estimators and of methods](results.png)\n"
    for title, part in parts.items():
        text += f"\n## {title}\n\n{by(title)}{part}\n"
    write_text(HERE / "RESULTS.md", text)
    plot(densities, seconds, HERE / "results.png")
    growth.plot(grown, HERE / "growth.png")
    print(text)


if __name__ == "__main__":
    main()
