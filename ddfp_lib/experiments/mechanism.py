"""Measurements inside the networks of finished runs."""

from collections.abc import Iterator

import pandas as pd
import torch

from ddfp_lib.evaluation.descent import measure_descent
from ddfp_lib.evaluation.mechanism import (
    ALL,
    COLUMNS,
    DENSITY,
    IndependentDensity,
    boundary_density,
    embeddings,
    step_effects,
)
from ddfp_lib.evaluation.quality import density_quality
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.runs.checkpoints import read_checkpoint
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import Learner

PSEUDO = {
    "pseudo_precision": "pseudo-label precision",
    "pseudo_coverage": "pseudo-label coverage",
}
"""Keys of the log about pseudo-labels on validation images, and their names in the table."""


def measure_run(run: Run, *, device: torch.device, images: int = 200) -> pd.DataFrame:
    """Measure the teacher of a run at every checkpoint that is kept.

    Args:
        run: finished, with its checkpoints.
        device: device of the networks.
        images: number of training images and of validation images, the first ones of each.

    Returns:
        A table with the columns :data:`~ddfp_lib.evaluation.mechanism.COLUMNS`. The rows of ``all``
        features hold the quantities of :func:`~ddfp_lib.evaluation.mechanism.boundary_density`, and
        precision and coverage of pseudo-labels in percent. If a flow was learned at v, the rows of
        ``density`` hold those of :func:`~ddfp_lib.evaluation.quality.density_quality`, and other
        rows those of :func:`~ddfp_lib.evaluation.mechanism.step_effects`.
    """
    seen, unseen = data_of(run.config, "train"), data_of(run.config, "val")
    logged = {line["step"]: line for line in run.metrics() if "pseudo_precision" in line}
    of_embeddings = run.config.method.density_of == "embedding"
    rows = []
    for step, learner in _learners(run, device):
        learned = embeddings(learner.teacher, seen, images)
        mixture = IndependentDensity(learned.rows)
        there = embeddings(learner.teacher, unseen, images)
        density = mixture.log_prob(there.rows)
        of_all = boundary_density(there, density)
        for name, called in PSEUDO.items():
            of_all[called] = 100 * logged.get(step, {}).get(name, float("nan"))
        found = {ALL: of_all}
        if learner.density is not None:
            moved = measure_descent(
                learner, unseen, eps=run.config.eps, images=images, independent=mixture.log_prob
            )
            found |= step_effects(moved, density)
            if isinstance(learner.density, DensityEstimator) and of_embeddings:
                found[DENSITY] = density_quality(learner.density, mixture, learned, there)
        rows += [
            (run.config.method.name, run.config.seed, step, features, quantity, value)
            for features, quantities in found.items()
            for quantity, value in quantities.items()
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _learners(run: Run, device: torch.device) -> Iterator[tuple[int, Learner]]:
    for path in sorted((run.folder / "checkpoints").glob("step-*.pt")):
        state = read_checkpoint(path, device)
        learner = Learner(run.config.bare(), len(run.classes), device)
        learner.load_state_dict(state["learner"])
        yield state["step"], learner
