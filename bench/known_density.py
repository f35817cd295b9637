"""How well does the estimator learn a density that is known?

Nobody knows the true density of a network's features, so nobody can say how close the flow comes to
it. Here the flow learns a density of 64 dimensions. This density has a formula, so we can compare
the flow's log-densities and gradients with the exact values. We train a new flow for each number of
steps in the table at the end of this page (the smallest number is 50, the largest is 1,500). For
comparison: a run of the benchmark `voc_animals` has 900 training steps.

We make the known density from a mixture of seven Gaussians with different widths. One Gaussian has
the weight 0.6, and the other six Gaussians have equal weights. Then we apply a nonlinear monotone
function to each coordinate. Next, we multiply each coordinate by a fixed factor. We chose these
factors: they go from 1 (first coordinate) down to 0.1 (last coordinate). After this, we rotate the
axes. The class of a sample is the Gaussian from which the sample was drawn. The training of the
flow uses the class of only one sample in thirty, on average. At each training step, the flow learns
from new samples, as in the training of DDFP.

Let p be the known density. Let q be an estimate of p, for example the density that the flow has
learned. The table at the end of this page reports three quantities. We computed them on new samples
from p. No estimate was fitted to these samples. ``gap`` is the mean of log p - log q in nats. This
is the KL divergence, and 0 is perfect. ``order`` is the rank correlation of log q with log p.
``direction`` is the mean cosine between the gradients of log q and log p. (A step of DDFP goes
against the gradient of log q.) We compare the flow with one Gaussian and with a mixture of 16
Gaussians. We fitted each of these two once, to 10,000 other samples from p.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ddfp_lib.constants import UNLABELED
from ddfp_lib.evaluation.mechanism import COMPONENTS, IndependentDensity
from ddfp_lib.files import write_text
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.seeds import generator

FEATURES, CLASSES = 64, 7
STEPS = (50, 150, 500, 900, 1500)
PAGE = Path(__file__).parent / "KNOWN_DENSITY.md"


class KnownDensity:
    """A density of which rows and exact log-densities can be had.

    ``u = turn^T x / scale``, ``z_i = u_i + bend tanh(2 u_i)``, z from a mixture of Gaussians:
    log p(x) = log p(z) + sum_i log(1 + 2 bend (1 - tanh^2(2 u_i))) - sum_i log scale_i.

    Args:
        seed: of its shape.
        bend: strength of the bending, above -0.5; 0 leaves a mixture of Gaussians.
    """

    def __init__(self, seed: int = 0, bend: float = 1.0) -> None:
        rng = generator(seed, "known density")
        self.bend = bend
        normal = torch.randn(FEATURES, FEATURES, generator=rng, dtype=torch.float64)
        self.turn = torch.linalg.qr(normal).Q
        self.scale = torch.logspace(0, -1, FEATURES, dtype=torch.float64)
        self.means = 1.5 * torch.randn(CLASSES, FEATURES, generator=rng, dtype=torch.float64)
        self.stds = 0.5 + torch.rand(CLASSES, generator=rng, dtype=torch.float64)
        self.weights = torch.tensor([0.6, *[0.4 / 6] * 6], dtype=torch.float64)

    def sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return rows (count, 64) float64 and their classes (count,) int64."""
        classes = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn(count, FEATURES, generator=rng, dtype=torch.float64)
        z = self.means[classes] + self.stds[classes, None] * noise
        low, high = z - abs(self.bend) - 1, z + abs(self.bend) + 1
        for _ in range(40):  # the monotone function is inverted by bisection
            middle = (low + high) / 2
            above = middle + self.bend * torch.tanh(2 * middle) > z
            low, high = middle.where(~above, low), middle.where(above, high)
        return ((low + high) / 2 * self.scale) @ self.turn.T, classes

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the exact log p of rows (N, 64) float64, in nats."""
        u = x @ self.turn / self.scale
        bent = torch.tanh(2 * u)
        z = u + self.bend * bent
        squares = ((z[:, None] - self.means) / self.stds[:, None]).square().sum(dim=2)
        normal = -0.5 * squares - FEATURES * (self.stds.log() + 0.5 * math.log(2 * math.pi))
        jacobian = torch.log1p(2 * self.bend * (1 - bent.square())).sum(dim=1)
        return (
            torch.logsumexp(self.weights.log() + normal, dim=1) + jacobian - self.scale.log().sum()
        )

    def score(self, x: Tensor) -> Tensor:
        """Return the exact gradient of log p in rows (N, 64) float64."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.log_prob(x).sum(), x)
        return gradient


def quality(known: KnownDensity, x: Tensor, log_q: Tensor, score: Tensor | None) -> list[str]:
    """Return gap, order and direction of an estimate at rows (N, 64), as cells of a table."""
    log_p = known.log_prob(x)
    gap = (log_p - log_q).mean()
    order = spearmanr(log_p.numpy(), log_q.numpy()).statistic
    cells = [f"{gap:.1f}", f"{order:.2f}"]
    if score is None:
        return [*cells, "-"]
    cosine = torch.nn.functional.cosine_similarity(score, known.score(x), dim=1)
    return [*cells, f"{cosine.mean():.2f}"]


def _gaussians(density: IndependentDensity, x: Tensor) -> Tensor:
    """Return the gradient of log q of a mixture of Gaussians in rows (N, 64)."""
    mixture, z = density.mixture, (x - density.mean) / density.std
    means, precisions = map(torch.from_numpy, (mixture.means_, mixture.precisions_))
    share = torch.from_numpy(mixture.predict_proba(z.numpy()))
    pulls = torch.einsum("kij,nkj->nki", precisions, means - z[:, None])
    return (share[..., None] * pulls).sum(dim=1) / density.std


def measure(steps: tuple[int, ...], samples: int, hidden: int, rows_at_once: int = 10_000) -> str:
    """Train flows for several numbers of steps and return the table.

    Args:
        steps: of each flow.
        samples: rows of a step.
        hidden: width of the flows.
        rows_at_once: rows that the simpler densities are fitted to.
    """
    known, rng = KnownDensity(), generator(0, "rows")
    test, _ = known.sample(min(4000, rows_at_once), generator(1, "rows"))
    rows, _ = known.sample(rows_at_once, rng)
    lines = []
    for name, components in (("one Gaussian", 1), (f"{COMPONENTS} Gaussians", COMPONENTS)):
        density = IndependentDensity(rows, components=components)
        cells = quality(known, test, density.log_prob(test), _gaussians(density, test))
        lines.append([name, "", *cells])
    for total in steps:
        config = DensityConfig(hidden=hidden, samples=samples)
        flow = DensityEstimator(FEATURES, CLASSES, config, total_steps=total)
        start = time.process_time()
        for _ in range(total):
            x, classes = known.sample(samples, rng)
            hidden_class = torch.rand(samples, generator=rng) > 1 / 30
            flow.fit_step(x.float(), classes.masked_fill(hidden_class, UNLABELED), generator=rng)
        print(f"{total} steps: {time.process_time() - start:.0f} s", flush=True)
        with torch.no_grad():
            log_q = flow.log_prob(test.float()).double()
        cells = quality(known, test, log_q, flow.score(test.float()).double())
        lines.append([f"flow, {hidden} wide", f"{total:,}", *cells])
    head = ["estimate", "steps", "gap (nats)", "order", "direction"]
    table = [head, ["---"] * 2 + ["---:"] * 3, *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def main() -> None:
    """Measure, print and keep the page."""
    parser = argparse.ArgumentParser(description="How well does the flow learn a known density?")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--samples", type=int, default=4096, help="rows of a step")
    parser.add_argument("--hidden", type=int, default=128, help="width of the flow")
    asked = parser.parse_args()
    table = measure(tuple(asked.steps), asked.samples, asked.hidden)
    introduction = (__doc__ or "").split("\n", 2)[2].strip().replace("``", "`")
    command = "The command `python -m bench.known_density` makes this table. At each training "
    command += f"step, the flow learns from {asked.samples:,} samples. We used one seed."
    write_text(
        PAGE, f"# A known density of 64 dimensions\n\n{introduction}\n\n{command}\n\n{table}\n"
    )
    print(table)


if __name__ == "__main__":
    main()
