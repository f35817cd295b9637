"""Train the flows of lesson 2, which takes some minutes: ``python notebooks/weights/02_flows.py``.

``02_flows.npz`` beside this file holds the parameters of each flow as one vector, float32, and for
the flows of the moons the log-likelihood of training points and of held-out ones while they train.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector

from ddfp_lib import DensityConfig, DensityEstimator
from ddfp_lib.lessons.plane import draw_labels, two_moons, two_rings
from ddfp_lib.seeds import generator

SEEDS = range(4)
LABELS = (0, 3, 30)  # of each class
POINTS, HELD_OUT = 300, 2000
STEPS = (25, 50, 100, 200, 500, 1000, 2000)
CONFIG = DensityConfig(blocks=6, hidden=32, lr=0.005)


def new_flow(seed: int) -> DensityEstimator:
    return DensityEstimator(2, 2, CONFIG, total_steps=STEPS[-1], seed=seed).double()


def vector(density: DensityEstimator) -> np.ndarray:
    return parameters_to_vector(density.parameters()).detach().float().numpy()


def train_on_moons(per_class: int, seed: int) -> tuple[DensityEstimator, list[list[float]]]:
    """Return the flow, and at each of STEPS the log-likelihood of training and held-out points."""
    moons = two_moons()
    x, classes = moons.sample(POINTS, generator("moons", seed))
    unseen, _ = moons.sample(HELD_OUT, generator("held out", seed))
    labels = draw_labels(classes, per_class, seed)
    density, noise, curve = new_flow(seed), generator("noise", seed), []
    for step in range(1, STEPS[-1] + 1):
        density.fit_step(x, labels, generator=noise)
        if step in STEPS:
            curve.append([density.log_prob(points).mean().item() for points in (x, unseen)])
    return density, curve


def train_on_rings(seed: int) -> DensityEstimator:
    """Return a flow that saw fresh points of the rings at every step."""
    density, noise = new_flow(seed), generator("noise", seed)
    for step in range(STEPS[-1]):
        x, _ = two_rings().sample(POINTS, generator("rings", seed, step))
        density.fit_step(x, generator=noise)
    return density


def main() -> None:
    torch.set_num_threads(1)
    kept: dict[str, np.ndarray] = {"steps": np.array(STEPS)}
    for per_class in LABELS:
        for seed in SEEDS:
            density, curve = train_on_moons(per_class, seed)
            kept[f"moons, {per_class} labels, seed {seed}"] = vector(density)
            kept[f"likelihood, {per_class} labels, seed {seed}"] = np.array(curve)
            print(per_class, seed, np.round(curve, 2).tolist(), flush=True)
    for seed in (0, 1):
        kept[f"rings, seed {seed}"] = vector(train_on_rings(seed))
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **kept)


if __name__ == "__main__":
    main()
