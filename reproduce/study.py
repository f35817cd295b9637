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
# # A study: one question, and the runs that answer it
#
# `ddfp study NAME` executes this notebook with the name of a file in `reproduce/studies`; executed,
# it is the report. Runs that are finished are not repeated.

# %% tags=["parameters"]
study = "perturbations"
out = "runs/study"
root = None
jobs = 0
device = "cpu"

# %% tags=["imports"]
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown, display

from ddfp_lib.experiments.ledger import ledger, write_ledger
from ddfp_lib.experiments.matrix import run_matrix
from ddfp_lib.experiments.mechanism import measure_run
from ddfp_lib.experiments.study import SCORES, class_table, find_study
from ddfp_lib.files import write_text
from ddfp_lib.plots import runs as figures
from ddfp_lib.plots.study import boundary
from ddfp_lib.reports import studies as study_report
from ddfp_lib.runs.folder import Run

# %% [markdown]
# ## Training

# %% tags=["progress"]
asked = find_study(study)
cells = asked.cells(Path(out), root)
results = run_matrix(
    cells,
    device=torch.device(device),
    jobs=jobs,
    say=lambda line: print(line, flush=True),
)
opened = [Run.open(cell.folder) for cell in cells]
classes = class_table(opened)
write_ledger(results, Path(out) / f"{asked.name}.csv")
write_text(
    Path(out) / f"{asked.name}-classes.csv",
    classes.round(2).to_csv(index=False, lineterminator="\n"),
)
table = ledger(results)

# %% tags=["answer"]
display(Markdown(study_report.section(asked, table, classes=classes)))

# %% tags=["scores"]
for _, runs in table.groupby("split", sort=False):
    display(figures.scores(runs, asked.baseline, asked.score, SCORES[asked.score]))

# %% [markdown]
# ## How did they get there?

# %% tags=["curves"]
by_variant = {
    name: [run.metrics() for run in opened if run.config.method.name == name]
    for name in asked.variants
}
display(figures.curves(by_variant))

# %% [markdown]
# ## Does the boundary move to lower density?

# %% tags=["mechanism"]
measured = [
    measure_run(run, device=torch.device(device))
    for run in opened
    if run.config.method.name in asked.mechanism
]
if measured:
    inside = pd.concat(measured)
    write_text(
        Path(out) / f"{asked.name}-mechanism.csv",
        inside.round(3).to_csv(index=False, lineterminator="\n"),
    )
    display(boundary(inside))
else:
    display(Markdown("Not asked in this study."))

# %% [markdown]
# ## Every run

# %% tags=["ledger"]
filled = table.dropna(axis="columns", how="all")  # without a GPU, columns such as its name
display(filled.style.hide(axis="index").format(precision=2, na_rep="-"))
