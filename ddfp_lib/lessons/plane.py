"""Data in the plane, and networks for these data: lessons use them and do not explain them."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from ddfp_lib.constants import UNLABELED
from ddfp_lib.seeds import generator


class Cloud:
    r"""Points scattered around a skeleton, so that their exact density is known.

    .. math:: p(x) = \frac1M \sum_m \mathcal N(x; s_m, \sigma^2 I)

    Args:
        skeleton: (M, 2), the points s.
        classes: (M,), class of each point of the skeleton.
        scatter: standard deviation of the Gaussian around each of them.
    """

    def __init__(self, skeleton: Tensor, classes: Tensor, scatter: float) -> None:
        self.skeleton, self.classes, self.scatter = skeleton.double(), classes, scatter

    def sample(self, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Return points (N, 2) float64 and their classes (N,)."""
        chosen = torch.randint(len(self.skeleton), (count,), generator=rng)
        noise = torch.randn(count, 2, generator=rng, dtype=torch.float64)
        return self.skeleton[chosen] + self.scatter * noise, self.classes[chosen]

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) of points (N, 2), in nats, (N,)."""
        squared = torch.cdist(x, self.skeleton).square() / self.scatter**2
        area = 2 * math.pi * self.scatter**2
        return (-squared / 2).logsumexp(1) - math.log(len(self.skeleton) * area)


def circle(count: int = 400) -> Tensor:
    """Return points on the unit circle, (N, 2) float64, the upper half first."""
    turn = torch.linspace(0, 2 * math.pi, count + 1, dtype=torch.float64)[:-1]
    return torch.stack([turn.cos(), turn.sin()], dim=1)


def two_moons() -> Cloud:
    """Return two half circles, a class each; the gap between them is about 0.5 wide."""
    upper, classes = circle()[:200], torch.arange(2).repeat_interleave(200)
    return Cloud(torch.cat([upper, torch.tensor([1, 0.5]) - upper]), classes, 0.1)


def two_rings() -> Cloud:
    """Return a ring of radius 1 around a ring of radius 0.45, a class each."""
    ring, classes = circle(200), torch.arange(2).repeat_interleave(200)
    return Cloud(torch.cat([ring, 0.45 * ring]), classes, 0.08)


def three_blobs() -> Cloud:
    """Return three round clusters, a class each."""
    return Cloud(torch.tensor([[-1, -0.6], [1, -0.6], [0, 1.1]]), torch.arange(3), 0.4)


def misplaced_gap() -> Cloud:
    """Return class 0 as two clusters with a wide gap between them, and class 1 next to one."""
    centres = torch.tensor([[-1.6, 0], [0, 0], [0.9, 0], [0.9, 0]])
    return Cloud(centres, torch.tensor([0, 0, 1, 1]), 0.3)


def draw_labels(classes: Tensor, per_class: int, seed: int) -> Tensor:
    """Return (N,) labels: the class of a few points of each class, UNLABELED elsewhere."""
    rng, labels = generator("labels", seed), torch.full_like(classes, UNLABELED)
    for k in classes.unique():
        members = (classes == k).nonzero().squeeze(1)
        labels[members[torch.randperm(len(members), generator=rng)[:per_class]]] = k
    return labels


class Classifiers(nn.Module):
    """S networks of three linear layers side by side, one for each seed.

    In the shapes of this library, (B, C, pixels), the seed takes the place of the image and a point
    that of the pixel.

    Args:
        seeds: each draws its own starting weights.
        classes: K.
        hidden: width of both hidden layers.
    """

    def __init__(self, seeds: Sequence[int], classes: int, hidden: int = 24) -> None:
        super().__init__()
        widths = [2, hidden, hidden, classes]
        sources = [generator("weights", seed) for seed in seeds]

        def draw(scale: float, *shape: int) -> nn.Parameter:
            rows = [torch.randn(shape, generator=rng, dtype=torch.float64) for rng in sources]
            return nn.Parameter(scale * torch.stack(rows))

        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(draw(math.sqrt(2 / n_in), n, n_in) for n_in, n in pairs)
        self.biases = nn.ParameterList(draw(0.5, n, 1) for _, n in pairs)

    def forward(self, x: Tensor, which: slice = slice(None)) -> Tensor:
        """Map points (S, 2, N) to class scores (S, K, N)."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias[which], weight[which], x if layer == 0 else x.relu())
        return x

    def accuracy(self, points: Tensor, classes: Tensor) -> Tensor:
        """Return the percentage of points that each network gives the right class.

        Args:
            points: (N, 2) float64.
            classes: (N,) int64, the right ones.

        Returns:
            (S,) float64, in %.
        """
        with torch.no_grad():
            found = self(points.T.expand(len(self.weights[0]), 2, -1)).argmax(1)
        return 100 * (found == classes).double().mean(1)

    def of(self, number: int) -> "OnPlane":
        """Return one network as a function on the plane: (N, 2) -> (N, K)."""
        return OnPlane(self, number)


class OnPlane:
    """One of several networks, as a function on the plane: points (N, 2) -> scores (N, K)."""

    def __init__(self, networks: Classifiers, number: int) -> None:
        self.networks, self.number = networks, number

    def __call__(self, x: Tensor) -> Tensor:
        """Return class scores (N, K) of points (N, 2)."""
        return self.networks(x.T[None], slice(self.number, self.number + 1))[0].T


def train_consistently(
    points: Tensor,
    labels: Tensor,
    perturb: "Perturb",
    *,
    steps: int = 400,
    warmup: int = 60,
    confidence: float = 0.95,
) -> Classifiers:
    """Train one network per seed as in lesson 1: labels, then pseudo-labels at x and at x + shift.

    Args:
        points: (N, 2) float64.
        labels: (S, N), ``UNLABELED`` where there is none; the same number of them for each seed.
        perturb: returns the shift (S, 2, N) of points (S, 2, N), given the students.
        steps: number of training steps.
        warmup: number of steps, at the start, on labels alone.
        confidence: a teacher's probability has to exceed it for a pseudo-label.
    """
    seeds = len(labels)
    x = points.T.expand(seeds, 2, -1)
    labeled = (labels != UNLABELED).nonzero()[:, 1].view(seeds, -1)
    known_x, known = points[labeled].mT, labels.gather(1, labeled)
    students = Classifiers(range(seeds), int(labels.max()) + 1)
    teachers = copy.deepcopy(students).requires_grad_(False)
    optimizer = torch.optim.Adam(students.parameters(), lr=0.01)
    for step in range(steps):
        loss = cross_entropy(students(known_x), known)
        if step >= warmup:
            probability, pseudo = teachers(x).softmax(1).max(1)
            target = pseudo.masked_fill(probability <= confidence, UNLABELED).repeat(1, 2)
            both = students(torch.cat([x, x + perturb(students, x)], dim=2))
            summed = cross_entropy(both, target, ignore_index=UNLABELED, reduction="sum")
            loss = loss + summed / target.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teachers.parameters(), students.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(1 - 1 / (step + 1), 0.98))
    return students


Perturb = Callable[[Classifiers, Tensor], Tensor]
"""Networks and points (S, 2, N) -> shifts (S, 2, N)."""
