"""The picture of the paper's claim: ``python -m ddfp_lib.plots.overview docs/overview.png``."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.datasets import make_moons
from torch import Tensor, nn

from ddfp_lib.constants import UNLABELED
from ddfp_lib.files import write_atomically
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.perturb import DensityDescent, FeatureModels, UniformNoise
from ddfp_lib.plots.style import CLASS_COLOURS, METHOD_COLOURS, WIDTH, figure_style
from ddfp_lib.seeds import generator

EPS = 0.25
BOUNDARY_COLOURS = {
    "labels": METHOD_COLOURS["supervised"],
    "random": CLASS_COLOURS[2],  # there is no class 2 here; the color of noise is class 1's
    "descent": METHOD_COLOURS["ddfp"],
}


def two_moons(labels_per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points (600, 2) and their labels (600,), ``UNLABELED`` for all but a few."""
    points, classes = make_moons(600, noise=0.09, random_state=seed)
    points, classes = torch.from_numpy(points).float(), torch.from_numpy(classes)
    labels = torch.full_like(classes, UNLABELED)
    for k in range(2):
        members = torch.nonzero(classes == k)[:, 0]
        order = torch.randperm(len(members), generator=generator(seed, k))
        labels[members[order[:labels_per_class]]] = k
    return points, labels


def fit_density(points: Tensor, labels: Tensor, steps: int = 1500, seed: int = 0) -> FeatureModels:
    """Fit a flow to points of the plane, and return it as what a perturbation uses.

    Args:
        points: (N, 2) float32.
        labels: (N,) int64, 0, 1 or ``UNLABELED``.
        steps: number of training steps; each uses all points.
        seed: seed of the flow's starting weights and of the noise on the points.

    Returns:
        The log-density, (N, 2) to (N,) in nats. ``logits`` is the identity: it returns its points,
        and takes the place of a classifier that density descent does not use.
    """
    config = DensityConfig(blocks=4, hidden=64, lr=3e-3, noise=0.02)
    estimator = DensityEstimator(2, 2, config, total_steps=steps, seed=seed)
    rng = generator(seed, 7)
    for _ in range(steps):
        estimator.fit_step(points, labels, generator=rng)
    return FeatureModels(estimator.log_prob, lambda v: v)


def train_classifier(
    points: Tensor, labels: Tensor, shift: Tensor | None, steps: int = 1200, seed: int = 0
) -> nn.Module:
    """Train a small network on the labeled points, and with a shift on shifted points too.

    The network is its own teacher: where it is confident of a point (probability above 0.8), it
    has to predict the same class for the point itself and for the shifted point.

    Args:
        points: (N, 2).
        labels: (N,), ``UNLABELED`` where there is none.
        shift: (N, 2), or None: train on the labels alone.
        steps: number of training steps.
        seed: seed of the starting weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    known = labels != UNLABELED
    for step in range(steps):
        loss = nn.functional.cross_entropy(network(points[known]), labels[known])
        if shift is not None and step >= steps // 8:
            with torch.no_grad():
                probability, pseudo = network(points).softmax(dim=1).max(dim=1)
            confident = probability > 0.8
            for views in (points, points + shift):
                each = nn.functional.cross_entropy(network(views), pseudo, reduction="none")
                loss = loss + 0.5 * each.where(confident, 0.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def overview(seed: int = 1) -> Figure:
    """Draw the claim of the paper on two moons with three labels each, next to a random control."""
    points, labels = two_moons(3, seed)
    models = fit_density(points, labels)
    everywhere = torch.ones(len(points), dtype=torch.bool)
    shift = DensityDescent(EPS)(points, everywhere, models, generator(0))
    aside = UniformNoise(EPS)(points, everywhere, models, generator(1))
    boundaries = {
        "labels": (train_classifier(points, labels, None), "--"),
        "random": (train_classifier(points, labels, aside), "-."),
        "descent": (train_classifier(points, labels, shift), "-"),
    }
    x, y = np.meshgrid(np.linspace(-1.6, 2.6, 240), np.linspace(-1.15, 1.65, 160))
    plane = torch.from_numpy(np.stack([x, y], axis=-1)).float().view(-1, 2)
    with torch.no_grad():
        height = models.log_density(plane).view(x.shape).clamp(min=-9)
        margins = {
            name: (network(plane)[:, 1] - network(plane)[:, 0]).view(x.shape)
            for name, (network, _) in boundaries.items()
        }
        _, truth = make_moons(600, noise=0.09, random_state=seed)
        right = {
            name: 100 * (network(points).argmax(dim=1) == torch.from_numpy(truth)).float().mean()
            for name, (network, _) in boundaries.items()
        }
    with figure_style():
        figure, row = plt.subplots(1, 3, figsize=(WIDTH, 2.75), sharex=True, sharey=True)
        for axes in row:
            # a vmax above the data keeps the densest regions gray, so that marks stay readable
            axes.imshow(
                height,
                cmap="Greys",
                vmin=-7,
                vmax=4,
                origin="lower",
                extent=(x.min(), x.max(), y.min(), y.max()),
                interpolation="bilinear",
            )
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.grid(visible=False)
            for k, colour in enumerate(CLASS_COLOURS[:2]):
                chosen = points[labels == k]
                axes.scatter(*chosen.T, color=colour, edgecolor="white", s=60, zorder=5)
        row[0].scatter(*points.T, color="black", s=2)
        row[0].set_title("1  learn the density of the features")
        some = slice(0, None, 4)
        lower = models.log_density(points + shift) < models.log_density(points)
        row[1].quiver(
            *points[some].T,
            *shift[some].T,
            color=BOUNDARY_COLOURS["descent"],
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.005,
        )
        row[1].set_title("2  step down the density")
        row[1].set_xlabel(f"{100 * lower.float().mean():.0f} % of the steps go down", fontsize=8.5)
        for name, (_, style) in boundaries.items():
            look = {"colors": [BOUNDARY_COLOURS[name]], "linewidths": 2, "linestyles": style}
            row[2].contour(x, y, margins[name], levels=[0], **look)
        row[2].set_title("3  claim: the boundary moves there")
        found = ", ".join(f"{name} {percent:.0f} %" for name, percent in right.items())
        row[2].set_xlabel(f"right class: {found}", fontsize=7.5)
        lines = [
            Line2D([], [], color=BOUNDARY_COLOURS[name], ls=style, lw=2, label=name)
            for name, (_, style) in boundaries.items()
        ]
        row[2].legend(handles=lines, fontsize=7, loc="lower right")
        row[0].set_xlabel("dark: dense; large dots: the six labels", fontsize=8.5)
    return figure


if __name__ == "__main__":
    write_atomically(Path(sys.argv[1]), lambda partial: overview().savefig(partial, format="png"))
