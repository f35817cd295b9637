"""Looking inside the networks of finished runs."""

from collections.abc import Iterator

import pandas as pd
import torch

from ddfp_lib.evaluation.descent import measure_descent
from ddfp_lib.evaluation.mechanism import (
    ALL,
    COLUMNS,
    IndependentDensity,
    boundary_density,
    embeddings,
    step_effects,
)
from ddfp_lib.runs.checkpoints import read_checkpoint
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import Learner

PSEUDO = {
    "pseudo_precision": "pseudo-label precision",
    "pseudo_coverage": "pseudo-label coverage",
}
"""What a run's log says of pseudo-labels on validation images, and how it is called here."""


def measure_run(run: Run, *, device: torch.device, images: int = 200) -> pd.DataFrame:
    """Look into the teacher of a run, at every kept checkpoint.

    Args:
        run: finished, its checkpoints kept.
        device: where the networks run.
        images: of the training images, and of the validation images, the first ones.

    Returns:
        Columns :data:`COLUMNS`. Of ``all`` features the quantities are those of
        :func:`boundary_density`, and precision and coverage of pseudo-labels in percent; where a
        density was learned, confident features ``at rest`` and after each kind of step have those
        of :func:`step_effects`.
    """
    seen, unseen = data_of(run.config, "train"), data_of(run.config, "val")
    logged = {line["step"]: line for line in run.metrics() if "pseudo_precision" in line}
    rows = []
    for step, learner in _learners(run, device):
        judge = IndependentDensity(embeddings(learner.teacher, seen, images).rows)
        there = embeddings(learner.teacher, unseen, images)
        density = judge.log_prob(there.rows)
        of_all = boundary_density(there, density)
        for name, called in PSEUDO.items():
            of_all[called] = 100 * logged.get(step, {}).get(name, float("nan"))
        told = {ALL: of_all}
        if learner.density is not None:
            moved = measure_descent(
                learner, unseen, eps=run.config.eps, images=images, judge=judge.log_prob
            )
            told |= step_effects(moved, density)
        rows += [
            (run.config.method.name, run.config.seed, step, features, quantity, value)
            for features, quantities in told.items()
            for quantity, value in quantities.items()
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _learners(run: Run, device: torch.device) -> Iterator[tuple[int, Learner]]:
    for path in sorted((run.folder / "checkpoints").glob("step-*.pt")):
        state = read_checkpoint(path, device)
        learner = Learner(run.config, len(run.classes), device)
        learner.load_state_dict(state["learner"])
        yield state["step"], learner
