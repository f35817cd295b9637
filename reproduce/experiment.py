# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Methods against one another, on one benchmark
#
# This notebook trains every method once per seed and reports what came out. `ddfp reproduce`
# executes it with other parameters; executed, it is the report. Runs that are finished are not
# repeated, so it may be executed again at any time.

# %% tags=["parameters"]
benchmark = "digits"
methods = ["supervised", "consistency", "noise", "ddfp"]
seeds = [0, 1, 2]
out = "runs/digits"
settings = []
quick = False
jobs = 0
device = "cpu"

# %% tags=["imports"]
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown, display

from ddfp_lib import analysis
from ddfp_lib.config import find_benchmark
from ddfp_lib.matrix import ledger, plan, run_matrix, write_ledger
from ddfp_lib.plots import runs as figures
from ddfp_lib.prediction import segment
from ddfp_lib.runs import Run
from ddfp_lib.training.loop import data_of

# %% [markdown]
# ## Training

# %% tags=["progress"]
cells = plan(find_benchmark(benchmark), methods, seeds, Path(out), settings, quick)
results = run_matrix(
    cells,
    device=torch.device(device),
    jobs=jobs,
    say=lambda line: print(line, flush=True),
)
write_ledger(results, Path(out) / "results.csv")
table = ledger(results)

# %% tags=["summary"]
config = cells[0].config
training = config.training
test = data_of(config, config.data.test)
names = ", ".join(test.classes)
display(
    Markdown(
        f"**Benchmark {benchmark}{' (quick)' if quick else ''}.** "
        f"{config.data.labeled} labeled images, {training.steps} steps of "
        f"{training.batch_labeled} labeled + {training.batch_unlabeled} unlabeled images, "
        f"{len(test)} test images, classes: {names}. "
        f"Seeds {', '.join(map(str, seeds))}. Commit `{results[0].commit}`, on {device}."
    )
)

# %% [markdown]
# ## Which method segments best?
#
# mIoU in percent, of the teacher after the last step, on test images: whole image, single scale.
# No test image was used to choose anything, and no step was chosen by validation.

# %% tags=["scores"]
display(analysis.score_table(table).style.format("{:.1f}", na_rep="-"))

# %% tags=["scores-figure"]
rival = "consistency" if "consistency" in methods else methods[0]
display(figures.scores(table, rival))

# %% [markdown]
# Paired differences: the same seed means the same labeled images, data order and starting weights.
# The interval is Student's t at 95 %.

# %% tags=["differences"]
against = [rival] + [m for m in ("noise", "supervised") if m in methods and m != rival]
sentences = []
for other in against:
    for method in [m for m in methods if m not in against[: against.index(other) + 1]]:
        gap = analysis.paired_difference(table, method, other)
        sentences.append(
            f"- `{method}` minus `{other}`: {gap['difference']:+.1f} points, "
            f"95 % interval {gap['low']:+.1f} to {gap['high']:+.1f} over {gap['seeds']} seeds: "
            f"{analysis.verdict(gap)}."
        )
display(Markdown("\n".join(sentences)))

# %% [markdown]
# The same runs on validation images. `best` values were chosen by validation, among all evaluations
# of the run, and so are optimistic; `last` values chose nothing. Student and teacher apart.

# %% tags=["validation"]
validation = ["miou_last", "miou_best", "teacher_miou_last", "teacher_miou_best"]
means = table.groupby("method", sort=False)[validation].agg(["mean", "std"])
display(means.style.format("{:.1f}", na_rep="-"))

# %% [markdown]
# ## How did they get there?

# %% tags=["curves"]
opened = {cell.name: Run.open(cell.folder) for cell in cells}
by_method = {
    method: [opened[cell.name] for cell in cells if cell.config.method.name == method]
    for method in methods
}
marks = {
    "consistency begins": training.consistency_from * training.steps,
    "perturbation begins": training.perturb_from * training.steps,
}
display(
    figures.curves(
        {method: [run.metrics() for run in runs] for method, runs in by_method.items()}, marks
    )
)

# %% [markdown]
# ## What do they see?
#
# The same test images by each method's teacher, first seed. White pixels are ignored.

# %% tags=["segmentations"]
where = torch.device(device)
shown = torch.linspace(0, len(test) - 1, 6).long().tolist()
images = [test.image(index) for index in shown]
learners = {method: runs[0].learner(where) for method, runs in by_method.items()}
predictions = {
    method: [segment(learner.teacher, image, where) for image in images]
    for method, learner in learners.items()
}
truths = [test.mask(index) for index in shown]
display(figures.segmentations(images, truths, predictions, test.classes, test.palette))

# %% [markdown]
# ## Which classes?

# %% tags=["classes"]
iou = {
    method: torch.tensor([r.test_iou for r in results if r.method == method]).numpy()
    for method in methods
}
display(figures.class_iou(iou, test.classes))

# %% [markdown]
# ## Does the step go down the density?
#
# Features of validation images where the teacher is confident, moved by steps of one length: down
# the density that the flow learned in training, at random, and to where the prediction changes
# fastest. This is the first `ddfp` run; the flow never saw these images.

# %% tags=["density"]
described = next((m for m in methods if learners[m].density is not None), None)
if described is None:
    display(Markdown("None of these methods learns a density."))
else:
    measured = analysis.measure_descent(learners[described], data_of(config, "val"), eps=config.eps)
    if len(measured.before) == 0:
        display(Markdown("The teacher is confident nowhere: there is no feature to move."))
if described is not None and len(measured.before) > 0:
    display(figures.descent(measured))
    lower = {
        name: float((after < measured.before).float().mean())
        for name, after in measured.after.items()
    }
    rows = {
        name: {
            "features whose density falls (%)": 100 * lower[name],
            "median change of log p (nats)": float((after - measured.before).median()),
            "features that keep their class (%)": 100 * measured.kept[name],
        }
        for name, after in measured.after.items()
    }
    display(pd.DataFrame.from_dict(rows, orient="index").style.format("{:.1f}"))

# %% [markdown]
# ## What does it cost?

# %% tags=["time"]
display(figures.seconds(table))

# %% [markdown]
# ## Every run

# %% tags=["ledger"]
display(table.style.hide(axis="index").format(precision=2, na_rep="-"))
