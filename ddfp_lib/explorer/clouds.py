"""Clouds of points with a known density, and classifiers that learn from a few labeled points.

The clouds, the points and the labels are those of lesson 1, and training follows the same recipe.
One thing differs: the losses of all seeds are added here and averaged there. Adam divides by the
size of the gradient, so this factor matters only beside its epsilon. But where gradients are tiny,
at the end of training, weights come to differ, and the accuracy of a seed by about a point.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ddfp_lib.constants import UNLABELED
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.perturb import FeatureModels, make_perturbation
from ddfp_lib.plots.planes import OnPlane, Window
from ddfp_lib.seeds import generator

POINTS, LABELS_PER_CLASS = 240, 3

CONFIDENCE = 0.95
"""A prediction below this probability is not a pseudo-label."""

WARMUP, STEPS = 60, 400
"""Training steps on labels alone, and in all."""

DENSITY_STEPS = 400


class Cloud:
    r"""Points scattered around a skeleton, each part of which has a class.

    .. math:: p(x) = \frac1M \sum_{m=1}^M \mathcal{N}(x; s_m, \sigma^2 I)

    Args:
        skeleton: (M, 2), the centers s.
        classes: (M,) int, the class of each center.
        scatter: sigma, in units of the plane.
    """

    def __init__(
        self, skeleton: Tensor | Sequence, classes: Tensor | Sequence, scatter: float
    ) -> None:
        self.skeleton = torch.as_tensor(skeleton, dtype=torch.float64)
        self.classes, self.scatter = torch.as_tensor(classes), scatter

    def sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points, (N, 2) float64, and their classes, (N,) int64."""
        part = torch.randint(len(self.skeleton), (count,), generator=rng)
        noise = torch.randn(count, 2, generator=rng, dtype=torch.float64)
        return self.skeleton[part] + self.scatter * noise, self.classes[part]

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) of points (N, 2) float64 as (N,), in nats."""
        squared = torch.cdist(x, self.skeleton).square() / self.scatter**2
        area = 2 * math.pi * self.scatter**2
        return (-squared / 2).logsumexp(1) - math.log(len(self.skeleton) * area)


def make_clouds() -> dict[str, Cloud]:
    """Return four clouds by name; their centers are float64, lengths are in units of the plane.

    Returns:
        ``moons``: two half circles of radius 1, one for each class, scatter 0.1. ``circles``: a
        class at radius 1 and one at 0.45, scatter 0.08. ``blobs``: three points, each a class,
        scatter 0.4. ``gap``: points at x = -1.6, 0 and 0.9, scatter 0.3; the first two are one
        class, which has a gap inside, and the third, with twice the weight, is the other.
    """
    turn = torch.linspace(0, 2 * math.pi, 401, dtype=torch.float64)[:-1]
    circle = torch.stack([turn.cos(), turn.sin()], dim=1)
    upper, one_of_each = circle[:200], torch.arange(2).repeat_interleave(200)
    return {
        "moons": Cloud(torch.cat([upper, torch.tensor([1, 0.5]) - upper]), one_of_each, 0.1),
        "circles": Cloud(torch.cat([circle[::2], 0.45 * circle[::2]]), one_of_each, 0.08),
        "blobs": Cloud([[-1, -0.6], [1, -0.6], [0, 1.1]], [0, 1, 2], 0.4),
        "gap": Cloud([[-1.6, 0], [0, 0], [0.9, 0], [0.9, 0]], [0, 0, 1, 1], 0.3),
    }


@dataclass(frozen=True)
class Sample:
    """A cloud and what was drawn from it.

    Attributes:
        cloud: the truth.
        x: (N, 2) float64, training points.
        classes: (N,) int64, their classes.
        labels: (S, N) int64, for each seed the class of a few points, UNLABELED elsewhere.
        fresh_x: (M, 2) float64, test points.
        fresh_classes: (M,) int64.
    """

    cloud: Cloud
    x: Tensor
    classes: Tensor
    labels: Tensor
    fresh_x: Tensor
    fresh_classes: Tensor

    @property
    def window(self) -> Window:
        """The square of the plane that is shown, and in which boundaries are measured."""
        return Window.around(self.cloud.skeleton, margin=5 * self.cloud.scatter).square()


def draw(cloud: Cloud, seeds: int, points: int = POINTS, fresh: int = 2000) -> Sample:
    """Draw training points, labels for each seed, and test points."""
    x, classes = cloud.sample(points, generator("train"))
    labels = torch.full((seeds, points), UNLABELED)
    for seed, row in enumerate(labels):
        rng = generator("labels", seed)
        for k in classes.unique():
            members = (classes == k).nonzero().squeeze(1)
            row[members[torch.randperm(len(members), generator=rng)[:LABELS_PER_CLASS]]] = k
    return Sample(cloud, x, classes, labels, *cloud.sample(fresh, generator("test")))


def learn_density(sample: Sample, steps: int = DENSITY_STEPS) -> DensityEstimator:
    """Return a flow, in float64, trained on all points without any label."""
    config = DensityConfig(blocks=4, hidden=32, lr=0.01)
    classes = int(sample.classes.max()) + 1
    density = DensityEstimator(2, classes, config, total_steps=steps).double()
    rng = generator("density")
    for _ in range(steps):
        density.fit_step(sample.x, generator=rng)
    return density


class Classifiers(nn.Module):
    """S networks of three linear layers side by side: (S, 2, N) -> class scores (S, K, N).

    Args:
        seeds: S; network s starts from the numbers of seed s, whatever S is.
        classes: K.
        hidden: width of both hidden layers.
    """

    def __init__(self, seeds: int, classes: int, hidden: int = 24) -> None:
        super().__init__()
        sources = [generator("weights", seed) for seed in range(seeds)]

        def start(scale: float, *shape: int) -> nn.Parameter:
            rows = [torch.randn(shape, generator=rng, dtype=torch.float64) for rng in sources]
            return nn.Parameter(scale * torch.stack(rows))

        widths = list(pairwise([2, hidden, hidden, classes]))
        self.weights = nn.ParameterList(start(math.sqrt(2 / n_in), n, n_in) for n_in, n in widths)
        self.biases = nn.ParameterList(start(0.5, n, 1) for _, n in widths)

    def forward(self, x: Tensor, which: slice = slice(None)) -> Tensor:
        """Return the scores of the networks in ``which``."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias[which], weight[which], x if layer == 0 else x.relu())
        return x

    def of(self, seed: int) -> OnPlane:
        """Return one network as a function on the plane: (N, 2) -> (N, K)."""
        return lambda x: self(x.T[None], slice(seed, seed + 1))[0].T


@dataclass(frozen=True)
class Frame:
    """A moment of a training, all seeds side by side.

    Attributes:
        step: training steps done.
        student: the classifiers, as they were then.
        shift: (S, 2, N) float64, the steps that this training step takes; None in the warm-up.
        moved: (S, N) bool, the points with a confident pseudo-label; they alone move.
    """

    step: int
    student: Classifiers
    shift: Tensor | None
    moved: Tensor | None


def train(
    sample: Sample,
    direction: str,
    eps: float,
    density: DensityEstimator,
    *,
    frames: Sequence[int],
    steps: int = STEPS,
    warmup: int = WARMUP,
) -> list[Frame]:
    """Train on labels, and after the warm-up on pseudo-labels of points and of moved points.

    Args:
        sample: the data; there are as many networks as rows of labels.
        direction: a name of :func:`~ddfp_lib.method.perturb.make_perturbation`.
        eps: length of the steps, in units of the plane.
        density: for descent.
        frames: the moments to keep, in training steps; ``steps`` is the end of training.
        steps: training steps.
        warmup: number of steps, at the start, on labels alone.
    """
    seeds = len(sample.labels)
    x = sample.x.T.expand(seeds, 2, -1)
    labeled = (sample.labels != UNLABELED).nonzero()[:, 1].view(seeds, -1)
    known_x, known = sample.x[labeled].mT, sample.labels.gather(1, labeled)
    student = Classifiers(seeds, int(sample.classes.max()) + 1)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    perturb, rng = make_perturbation(direction, eps), generator(direction)
    models = FeatureModels(lambda v: density.log_prob(v.mT.flatten(0, 1)).view(seeds, -1), student)
    everywhere = torch.ones(seeds, x.shape[2], dtype=torch.bool)
    # Points and density stay as they are, so one look at the density is enough.
    descent = perturb(x, everywhere, models, rng) if direction == "density" else None
    kept = []
    for step in range(steps + 1):
        shift = confident = None
        if step >= warmup:
            probability, pseudo = teacher(x).softmax(1).max(1)
            confident = probability > CONFIDENCE
            if descent is None:
                shift = perturb(x, confident, models, rng)
            else:
                shift = descent * confident[:, None]
        if step in frames:
            kept.append(Frame(step, copy.deepcopy(student), shift, confident))
        if step == steps:
            return kept
        # Sums over the networks, so that none depends on how many there are.
        loss = seeds * cross_entropy(student(known_x), known)
        if shift is not None:
            target = pseudo.masked_fill(~confident, UNLABELED).repeat(1, 2)
            scores = student(torch.cat([x, x + shift], dim=2))
            # Over all points, so as long as few of them are confident, this loss is small.
            wrong = cross_entropy(scores, target, ignore_index=UNLABELED, reduction="sum")
            loss = loss + seeds * wrong / target.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(1 - 1 / (step + 1), 0.98))
    return kept


@torch.no_grad()
def accuracy(sample: Sample, student: Classifiers) -> Tensor:
    """Return the percentage of test points that each network classifies correctly, (S,)."""
    seeds = len(sample.labels)
    found = student(sample.fresh_x.T.expand(seeds, 2, -1)).argmax(1)
    return 100 * (found == sample.fresh_classes).double().mean(1)
