"""How long must a random or an adversarial step be to do what a step of DDFP does?

Run by ``python -m bench.equal_effect RUN [RUN ...]`` with finished runs of a method that has a
density. "Equal length" is one way to make two steps comparable, and not the only one: a step down
the density and a random step of the same length change the prediction by different amounts. This
finds the lengths at which they change it equally, in the trained networks, on validation images:

- equal KL: the mean KL divergence of the class probabilities after the step from those before is
  that of density descent with the run's own eps;
- equal flips: as many features change their predicted class.

Both grow with the length. They are measured at the lengths of a grid; between two of these, the
logarithm of the length is interpolated linearly in the logarithm of the quantity. The result is the
geometric mean over the runs. Study 10 trains with these lengths.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.descent import Descent, measure_descent
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import load_learner

GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Lengths of steps, in units of F."""

EFFECTS = ("KL (nats)", "flips (%)")


def effects(found: Descent) -> pd.DataFrame:
    """Return a row for each kind of step, with the columns :data:`EFFECTS`."""
    flips = {kind: 100 * (1 - kept) for kind, kept in found.kept.items()}
    return pd.DataFrame(dict(zip(EFFECTS, (found.divergence, flips), strict=True)))


def length_of(wanted: float, lengths: Sequence[float], values: Sequence[float]) -> float:
    """Return the length at which a growing quantity has the value ``wanted``.

    Args:
        wanted: positive.
        lengths: (N,) of the steps that were measured, growing.
        values: (N,) of the quantity; steps without an effect (0) are left out.

    Returns:
        The first length that reaches the value; NaN if it lies outside the measured ones.
    """
    pairs = [(x, y) for x, y in zip(lengths, values, strict=True) if y > 0]
    for (short, low), (long, high) in pairwise(pairs):
        if low <= wanted <= high:
            share = 0.0 if high == low else np.log(wanted / low) / np.log(high / low)
            return float(short * (long / short) ** share)
    return float("nan")


def measure(folder: Path, images: int) -> pd.DataFrame:
    """Measure one run at each length.

    Args:
        folder: of a finished run.
        images: number of validation images.

    Returns:
        Columns ``eps``, ``step`` and :data:`EFFECTS`. The first row is that of the run's own step.
    """
    run = Run.open(folder)
    learner = load_learner(run, torch.device("cpu"))
    if learner.density is None:
        raise UserError(f"{folder}: its method has no density; give runs of ddfp")
    unseen = data_of(run.config, "val")
    tables = []
    for eps in (run.config.eps, *GRID):
        found = effects(measure_descent(learner, unseen, eps=eps, images=images))
        tables.append(found.rename_axis("step").reset_index().assign(eps=eps))
    return pd.concat(tables, ignore_index=True)


def equal_lengths(measured: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the lengths of equal effect: a row for each kind of step, geometric means over runs.

    Args:
        measured: :func:`measure` of each run.
    """
    rows = []
    for table in measured:
        own = table[table["step"] == "density descent"].iloc[0]
        grid = table[table["eps"].isin(GRID)].drop_duplicates(["eps", "step"]).sort_values("eps")
        for kind, some in grid.groupby("step", sort=False):
            row = {name: length_of(own[name], some["eps"], some[name]) for name in EFFECTS}
            rows.append({"step": kind} | {f"equal {name}": eps for name, eps in row.items()})
    logs = pd.DataFrame(rows).set_index("step").apply(np.log)
    return np.exp(logs.groupby("step", sort=False).mean())


def main() -> None:
    """Measure the runs and print both tables."""
    parser = argparse.ArgumentParser(description="Lengths of steps with equal effect.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--images", type=int, default=100, help="validation images of each run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    measured = []
    for folder in asked.runs:
        measured.append(measure(folder, asked.images))
        print(f"{folder}: measured", flush=True)
    means = pd.concat(measured).groupby(["eps", "step"], sort=True)[list(EFFECTS)].mean()
    print(means.round(4).to_string())
    print(equal_lengths(measured).round(2).to_string())


if __name__ == "__main__":
    main()
