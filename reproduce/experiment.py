# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Methods compared on one benchmark

# %% tags=["parameters"]
benchmark = "digits"
splits = []
methods = ["supervised", "consistency", "noise", "ddfp"]
seeds = [0, 1, 2]
out = "runs/digits"
settings = []
quick = False
jobs = 0
gpus = 1
accumulate = 0
device = "cpu"
tensorboard = False
only_finished = False

# %% tags=["imports"]
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown, display

from ddfp_lib.config import find_benchmark, summary
from ddfp_lib.evaluation.descent import measure_descent
from ddfp_lib.evaluation.prediction import segment
from ddfp_lib.experiments.conclusion import comparisons, conclusion, expectation
from ddfp_lib.experiments.ledger import ledger, read_ledger, write_ledger
from ddfp_lib.experiments.matrix import Cell, plan, run_matrix
from ddfp_lib.experiments.published import released_curve
from ddfp_lib.experiments.statistics import score_table
from ddfp_lib.files import repository
from ddfp_lib.plots import runs as figures
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import load_learner

# This notebook trains every method once per split and seed and reports the results.
# `ddfp reproduce` executes it with other parameters; executed, it is the report. Finished runs are
# not repeated, so it may be executed again at any time.

# %% tags=["progress"]
planned = plan(find_benchmark(benchmark), methods, seeds, Path(out), settings, quick, splits)
cells = [cell for cell in planned if cell.finished() or not only_finished]
asked_for = {Path(given).stem: given for given in methods}  # names, or paths of presets
methods = list(dict.fromkeys(cell.config.method.name for cell in cells))
results = run_matrix(
    cells,
    device=torch.device(device),
    jobs=jobs,
    gpus=gpus,
    accumulate=accumulate,
    tensorboard=tensorboard,
    say=lambda line: print(line, flush=True),
)
write_ledger(results, Path(out) / "results.csv")
table = ledger(results)


def each_split() -> Iterator[tuple[list[Cell], pd.DataFrame]]:
    """Yield the runs of each split and their rows of the ledger, under a heading of their own."""
    for split, rows in table.groupby("split", sort=False):
        if len(splits) > 1:
            display(Markdown(f"### {split} labeled"))
        yield [cell for cell in cells if cell.config.data.split == split], rows


def by_method(runs: list[Cell]) -> dict[str, list[Run]]:
    """Return the run folders of each method that has runs, one per seed."""
    folders = {}
    for cell in runs:
        folders.setdefault(cell.config.method.name, []).append(Run.open(cell.folder))
    return folders


# %% tags=["verdict"]
baseline = "consistency" if "consistency" in methods else methods[0]
others = [method for method in methods if method != baseline]
described = {cell.config.method.name: cell.config.method for cell in cells}
asked = next((m for m in others if described[m].perturbation == "density"), (others or methods)[-1])
controls = [baseline] + [m for m in ("noise",) if m in others and m != asked]
for _, rows in each_split():
    display(Markdown(f"**{conclusion(rows, asked, controls)}**"))

# %% tags=["expected"]
stored = read_ledger(repository() / "reproduce" / "results.csv")
if not settings and not quick:
    for split, rows in table.groupby("split", sort=False):
        if said := expectation(stored, rows, asked, controls):
            display(Markdown(f"{split} labeled. {said}" if len(splits) > 1 else said))

# %% tags=["methods"]
lines = [f"- `{method}`: {summary(asked_for.get(method, method))}" for method in methods]
display(Markdown("\n".join(lines)))

# %% tags=["summary"]
config = cells[0].config
test = data_of(config, config.data.test)
steps = {cell.config.data.split: cell.config.training.steps for cell in cells}
where_run = device if gpus == 1 else f"{gpus} GPUs"
parts = ", ".join(table["micro_batches"].dropna().unique()) or "not stored"
of_all = f" **{len(cells)} of {len(planned)} runs.**" if len(cells) < len(planned) else ""
display(
    Markdown(
        f"Benchmark {benchmark}{' (quick)' if quick else ''}. Labeled: "
        + ", ".join(f"{split} ({count:,} steps)" for split, count in steps.items())
        + f". A step sees {config.training.batch_labeled} labeled images, and with every method "
        f"but `supervised` {config.training.batch_unlabeled} unlabeled ones. {len(test)} test "
        f"images, classes: {', '.join(test.classes)}. Seeds {', '.join(map(str, seeds))}. "
        f"Commit `{results[0].commit}`, on {where_run}, evaluation protocol "
        f"{config.data.protocol}. Micro-batches of a step: {parts}.{of_all}"
    )
)

# %% [markdown]
# ## Which method segments best?
#
# mIoU in percent on test images, of the teacher after the last step. Images are segmented at one
# scale, as `data.protocol` says. Nothing was chosen on test images, and no step was chosen on
# validation images.

# %% tags=["scores"]
for _, rows in each_split():
    display(score_table(rows).style.format("{:.1f}", na_rep="-"))

# %% tags=["scores-figure"]
for _, rows in each_split():
    display(figures.scores(rows, baseline))

# %% [markdown]
# Paired differences: the same seed means the same labeled images, data order and starting weights.
# The interval is Student's t at 95 %.

# %% tags=["differences"]
against = [baseline] + [m for m in ("noise", "supervised") if m in methods and m != baseline]
for _, rows in each_split():
    lines = comparisons(rows, methods, against)
    display(Markdown("\n".join(lines) or "No other method was run."))

# %% [markdown]
# The same runs on validation images. A `best` value is the highest of all evaluations of the run,
# so it is optimistic; a `last` value is that of the last step. Student and teacher have columns
# of their own.

# %% tags=["validation"]
validation = ["miou_last", "miou_best", "teacher_miou_last", "teacher_miou_best"]
for _, rows in each_split():
    means = rows.groupby("method", sort=False)[validation].agg(["mean", "std"])
    display(means.style.format("{:.1f}", na_rep="-"))

# %% [markdown]
# ## How did they get there?

# %% tags=["curves"]
for runs, _ in each_split():
    training = runs[0].config.training
    marks = {
        "consistency begins": training.consistency_from * training.steps,
        "perturbation begins": training.perturb_from * training.steps,
    }
    logs = {method: [run.metrics() for run in found] for method, found in by_method(runs).items()}
    display(figures.curves(logs, marks, released_curve(runs[0].config)))

# %% [markdown]
# ## What do they see?
#
# The same test images by each method's teacher, first seed. White pixels are ignored.

# %% tags=["segmentations"]
where = torch.device(device)
shown = torch.linspace(0, len(test) - 1, 6).long().tolist()
images = [test.image(index) for index in shown]
truths = [test.mask(index) for index in shown]
for runs, _ in each_split():
    predictions = {}
    for method, found in by_method(runs).items():
        teacher = load_learner(found[0], where).teacher
        predictions[method] = [segment(teacher, image, where) for image in images]
    display(figures.segmentations(images, truths, predictions, test.classes, test.palette))

# %% [markdown]
# ## Which classes?

# %% tags=["classes"]
for _, rows in each_split():
    iou = {
        method: torch.tensor([results[row].test_iou for row in found.index]).numpy()
        for method, found in rows.groupby("method", sort=False)
    }
    display(figures.class_iou(iou, test.classes))

# %% [markdown]
# ## Does the step go down the density?
#
# Features of validation images where the teacher is confident, moved by steps of one length: down
# the density that the flow learned in training, in a random direction, and in the direction in
# which the prediction changes fastest. This is the first `ddfp` run; the flow never saw these
# images.

# %% tags=["density"]
for runs, _ in each_split():
    described = next((cell for cell in runs if cell.config.method.perturbation == "density"), None)
    if described is None:
        display(Markdown("None of these methods learns a density."))
        continue
    learner = load_learner(Run.open(described.folder), where)
    measured = measure_descent(learner, data_of(config, "val"), eps=config.eps)
    if len(measured.before) == 0:
        display(Markdown("The teacher is confident at no pixel, so there is no feature to move."))
        continue
    display(figures.descent(measured))
    rows = {
        name: {
            "features whose density falls (%)": 100
            * float((after < measured.before).float().mean()),
            "median change of log p (nats)": float((after - measured.before).median()),
            "features that keep their class (%)": 100 * measured.kept[name],
        }
        for name, after in measured.after.items()
    }
    display(pd.DataFrame.from_dict(rows, orient="index").style.format("{:.1f}"))

# %% [markdown]
# ## What does it cost?

# %% tags=["time"]
for _, rows in each_split():
    display(figures.seconds(rows))

# %% [markdown]
# ## Every run

# %% tags=["ledger"]
filled = table.dropna(axis="columns", how="all")  # without a GPU, columns such as its name
display(filled.style.hide(axis="index").format(precision=2, na_rep="-"))
