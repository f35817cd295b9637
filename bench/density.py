"""How fast and how lean the density estimator is, against the released design and against zuko.

    .venv/bin/python -m bench.density               # the table, a few minutes
    .venv/bin/python -m bench.density --repeats 9

Three estimators of the same size, float32, on the CPU:

ddfp       this project's.
reference  the released design, written anew: FrEIA's GLOW blocks with the same weights, a mixture
           that repeats every point for every class (N x K x D numbers), a loop over the classes.
zuko       its RealNVP of as many couplings. Its base is one Gaussian, so it does less.

``fit`` is one training step on N rows, ``gradient`` the gradient of the marginal log-density in N
rows, at the size of VOC (D 256, K 21) and of the digits benchmark (D 64, K 6). Time is CPU time on
one thread, the best of the repeats: other processes disturb it less than wall time. Memory is the
peak of the process beyond what stood before the first call. Each number comes from a fresh process,
in which ddfp and reference have to agree before they are timed. ddfp multiplies by oneDNN and the
others by torch's default, MKL: a part of the ratio on some of AMD's processors, on others none.

``of the machine`` is the rate of ddfp's matrix products over its whole time, as a part of the rate
at which the same process multiplies two 2048 x 2048 matrices right afterwards.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import FrEIA.framework
import FrEIA.modules
import torch
import zuko
from torch import Tensor, nn

from ddfp_lib.density import DensityConfig, DensityEstimator

CASES = {
    "fit, VOC": {"rows": 20480, "features": 256, "classes": 21, "gradient": False},
    "gradient, VOC": {"rows": 66564, "features": 256, "classes": 21, "gradient": True},
    "fit, digits": {"rows": 2000, "features": 64, "classes": 6, "gradient": False},
    "gradient, digits": {"rows": 2000, "features": 64, "classes": 6, "gradient": True},
}
CONFIG = DensityConfig()


class Reference(nn.Module):
    """The released design with the weights of a given estimator."""

    def __init__(self, like: DensityEstimator) -> None:
        super().__init__()
        self.flow = FrEIA.framework.SequenceINN(like.features)
        for block in like.flow.blocks:
            self.flow.append(
                FrEIA.modules.GLOWCouplingBlock, subnet_constructor=mlp, clamp=CONFIG.clamp
            )
            self.flow.append(FrEIA.modules.PermuteRandom)
            coupling, permutation = self.flow.module_list[-2:]
            coupling.subnet1.load_state_dict(block.from_left.state_dict())
            coupling.subnet2.load_state_dict(block.from_right.state_dict())
            permutation.perm.copy_(block.permutation)
        self.means = nn.Parameter(like.mixture.means.detach().clone())
        self.precisions = torch.ones(like.classes, 1)

    def log_prob(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Build all N x K differences, then sum their squares (distributions.py:31)."""
        z, log_det = self.flow(v)
        classes, features = self.means.shape
        difference = z.unsqueeze(1).repeat(1, classes, 1) - self.means.unsqueeze(0)
        distance = (difference**2 * self.precisions.unsqueeze(0)).sum(2)
        per_class = -0.5 * (distance + features * math.log(2 * math.pi))
        marginal = (per_class - math.log(classes)).logsumexp(1)
        if labels is None:
            return marginal + log_det
        chosen = torch.zeros_like(marginal)
        chosen[labels < 0] += marginal[labels < 0]
        for label in range(classes):
            chosen[labels == label] += per_class[:, label][labels == label]
        return chosen + log_det


class Zuko(nn.Module):
    """zuko's affine coupling flow over one Gaussian: no classes, so labels mean nothing to it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        widths = (CONFIG.hidden, CONFIG.hidden)
        self.flow = zuko.flows.RealNVP(
            features, transforms=2 * CONFIG.blocks, hidden_features=widths
        )

    def log_prob(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Ask the flow."""
        return self.flow().log_prob(v)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Return the subnet of a coupling."""
    width = CONFIG.hidden
    layers = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def plain_fit(model: nn.Module, v: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Return the usual training step of a module with ``log_prob``."""
    optimizer = torch.optim.Adam(model.parameters(), CONFIG.lr, CONFIG.betas)

    def step() -> Tensor:
        loss = -model.log_prob(v + CONFIG.noise * torch.randn_like(v), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip)
        optimizer.step()
        return loss.detach()

    return step


def plain_gradient(model: nn.Module, v: Tensor) -> Callable[[], Tensor]:
    """Return the usual gradient of a module with ``log_prob``."""
    v.requires_grad_()
    return lambda: torch.autograd.grad(model.log_prob(v).sum(), v)[0]


def prepare(name: str, case: dict) -> Callable[[], Tensor]:
    """Return what is to be timed, its answer checked where it can be."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(case["rows"], case["features"], generator=generator)
    labels = torch.randint(-1, case["classes"], (case["rows"],), generator=generator)
    ddfp = DensityEstimator(case["features"], case["classes"], CONFIG, total_steps=1000)
    other = Zuko(case["features"]) if name == "zuko" else Reference(ddfp)
    if name != "zuko":
        some = slice(0, 50)
        torch.testing.assert_close(
            ddfp.log_prob(v[some], labels[some]), other.log_prob(v[some], labels[some])
        )
        theirs = plain_gradient(other, v[some].clone())()
        torch.testing.assert_close(ddfp.score(v[some]), theirs, rtol=1e-4, atol=1e-4)
    if name != "ddfp":
        return plain_gradient(other, v) if case["gradient"] else plain_fit(other, v, labels)
    if case["gradient"]:
        return lambda: ddfp.score(v)
    return lambda: ddfp.fit_step(v, labels, generator=generator).nll


def measure(name: str, case: dict, repeats: int) -> dict[str, float]:
    """Time one estimator in this process."""
    run = prepare(name, case)
    before = peak_megabytes()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    megabytes = peak_megabytes() - before
    rate = flops(case) / min(times) / matmul_rate(repeats)
    return {"seconds": min(times), "megabytes": megabytes, "rate": rate}


def flops(case: dict) -> float:
    """Return what the matrix products of a case need: those of subnets and of the mixture."""
    half, hidden = case["features"] / 2, CONFIG.hidden
    subnet = half * hidden + hidden * hidden + hidden * case["features"]
    forward = 2 * CONFIG.blocks * subnet + case["features"] * case["classes"]
    return 2 * case["rows"] * forward * (2 if case["gradient"] else 3)


def matmul_rate(repeats: int) -> float:
    """Return the float32 operations a second of a plain matrix product."""
    side = 2048
    matrix, times = torch.ones(side, side), []
    for _ in range(repeats):
        start = time.process_time()
        matrix @ matrix
        times.append(time.process_time() - start)
    return 2 * side**3 / min(times)


def peak_megabytes() -> float:
    """Return the largest resident size that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def table(repeats: int) -> str:
    """Measure every case for every estimator; return the table, in Markdown."""
    lines = [
        "| case | estimator | CPU ms | extra MB | time / ddfp | memory / ddfp | of the machine |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        ours = None
        for name in ("ddfp", "reference", "zuko"):
            command = [sys.executable, "-m", "bench.density", "--repeats", str(repeats)]
            got = json.loads(subprocess.check_output([*command, "--one", name, case]))
            ours = ours or got
            rate = f"{100 * got['rate']:.0f} %" if name == "ddfp" else ""
            lines.append(
                f"| {case} | {name} | {1000 * got['seconds']:.1f} | {got['megabytes']:.0f} | "
                f"{got['seconds'] / ours['seconds']:.1f} | "
                f"{got['megabytes'] / max(ours['megabytes'], 1):.1f} | {rate} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Time the density estimator.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        name, case = arguments.one
        print(json.dumps(measure(name, CASES[case], arguments.repeats)))
        return
    print(f"torch {torch.__version__}, one thread, best of {arguments.repeats}\n")
    print(table(arguments.repeats))


if __name__ == "__main__":
    main()
