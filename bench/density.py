"""Time and memory of the density estimator, compared with the released design and with zuko.

    .venv/bin/python -m bench.density               # the table, ten minutes

Three estimators of the same size, float32, on the CPU:

ddfp       this project's.
reference  the released design, written anew: FrEIA's GLOW blocks with the same weights, a mixture
           that repeats every point for every class (N x K x D numbers), a loop over the classes.
zuko       its RealNVP of as many couplings. Its base is one Gaussian, so it does less.

``fit`` is one training step on N rows, ``gradient`` the gradient of the marginal log-density in N
rows. ddfp and reference must agree before they are timed. The estimators take turns in one process,
so that other load on the machine affects all of them; each number is the median CPU time of a turn,
on one thread. ``in the kernel`` is the fraction that the system needs to provide memory. It is most
of the reference's time at VOC's size, where its arrays are gigabytes, so the ratio depends on how
fast a machine provides memory. Memory is the peak of a new process during its first call, minus
what it held before.

``of the machine`` is the rate of ddfp's matrix products over its whole time, as a fraction of the
rate of one product of two 2048 x 2048 matrices by MKL or oneDNN, whichever is faster; both take
turns with the estimators. With AVX-512 ddfp multiplies by oneDNN and the others by MKL, which
explains part of the ratio on AMD processors; elsewhere all of them use MKL.
"""

import math
import re
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.alone import alone
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator

PRODUCT = 2048
"""Rows and columns of the matrices that the machine's own rate is measured with."""

ESTIMATORS = ("ddfp", "reference", "zuko")

BUDGET = 60
"""Seconds in which a case takes as many turns as it can, within the limits ``TURNS``."""

TURNS = (3, 50)

SMALLEST_PEAK = 10
"""Megabytes below which memories are not compared: a peak varies by five between runs."""


@dataclass(frozen=True)
class Case:
    """The size of a problem: ``rows`` of ``features`` numbers, and ``classes``."""

    rows: int
    features: int
    classes: int
    gradient: bool
    hidden: int = DensityConfig.hidden

    @property
    def flops(self) -> int:
        """Operations that the matrix products of subnets and mixture need."""
        half, blocks = self.features // 2, DensityConfig.blocks
        subnet = half * self.hidden + self.hidden**2 + self.hidden * self.features
        forward = 2 * blocks * subnet + self.features * self.classes
        # backward needs one product for each input and one for each weight; the gradient in v
        # needs none for weights, and the training step none for v
        products = 2 * forward if self.gradient else 3 * forward - half * self.hidden
        return 2 * self.rows * products


CASES = {
    "fit, VOC": Case(20480, 256, 21, gradient=False),
    "gradient, VOC": Case(66564, 256, 21, gradient=True),
    "gradient, 20,480 rows": Case(20480, 256, 21, gradient=True),
    "fit, digits": Case(512, 32, 6, gradient=False, hidden=64),
    "gradient, digits": Case(1600, 32, 6, gradient=True, hidden=64),
}


@dataclass(frozen=True)
class Measured:
    """The measurements of one case.

    Attributes:
        seconds: CPU time of each estimator.
        kernel: the fraction of it in the kernel, 0 to 1, of each estimator.
        megabytes: of each estimator.
        gigaflops: rate of one product of large matrices on this machine, GFLOP/s.
        machine: rate of ddfp's matrix products, as a fraction of that.
    """

    seconds: dict[str, float]
    kernel: dict[str, float]
    megabytes: dict[str, float]
    gigaflops: float
    machine: float

    def slower(self, name: str) -> float:
        """Return how many times as long as ddfp an estimator takes."""
        return self.seconds[name] / self.seconds["ddfp"]

    def fatter(self, name: str) -> float:
        """Return how many times as much memory as ddfp an estimator takes."""
        return self.megabytes[name] / self.megabytes["ddfp"]


class Reference(nn.Module):
    """The released design with the weights of a given estimator."""

    def __init__(self, like: DensityEstimator) -> None:
        super().__init__()
        import FrEIA.framework  # 2 seconds of imports, of use to no other estimator
        import FrEIA.modules

        self.flow = FrEIA.framework.SequenceINN(like.features)
        for block in like.flow.blocks:
            self.flow.append(
                FrEIA.modules.GLOWCouplingBlock,
                subnet_constructor=lambda inputs, outputs: mlp(inputs, like.config.hidden, outputs),
                clamp=like.config.clamp,
            )
            self.flow.append(FrEIA.modules.PermuteRandom)
            coupling, permutation = self.flow.module_list[-2:]
            coupling.subnet1.load_state_dict(block.from_left.state_dict())
            coupling.subnet2.load_state_dict(block.from_right.state_dict())
            permutation.perm.copy_(block.permutation)
        self.means = nn.Parameter(like.mixture.means.detach().clone())
        self.register_buffer("precisions", torch.ones(like.classes, 1))

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

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        import zuko

        self.flow = zuko.flows.RealNVP(
            features, transforms=2 * DensityConfig.blocks, hidden_features=(hidden, hidden)
        )

    def log_prob(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Ask the flow."""
        return self.flow().log_prob(v)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return the subnet of a coupling."""
    layers = nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def plain_fit(model: nn.Module, v: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Return the usual training step of a module with ``log_prob``."""
    config = DensityConfig()
    optimizer = torch.optim.Adam(model.parameters(), config.lr, config.betas)

    def step() -> Tensor:
        loss = -model.log_prob(v + config.noise * torch.randn_like(v), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        return loss.detach()

    return step


def plain_gradient(model: nn.Module, v: Tensor) -> Callable[[], Tensor]:
    """Return the usual gradient of a module with ``log_prob``."""
    v = v.clone().requires_grad_()
    return lambda: torch.autograd.grad(model.log_prob(v).sum(), v)[0]


def prepare(name: str, case: Case, device: torch.device | str = "cpu") -> Callable[[], Tensor]:
    """Return what is to be timed, its answer checked where it can be."""
    generator = torch.Generator(device).manual_seed(0)
    v = torch.randn(case.rows, case.features, generator=generator, device=device)
    labels = torch.randint(-1, case.classes, (case.rows,), generator=generator, device=device)
    config = DensityConfig(hidden=case.hidden)
    ddfp = DensityEstimator(case.features, case.classes, config, total_steps=1000).to(device)
    other = Zuko(case.features, case.hidden) if name == "zuko" else Reference(ddfp)
    other.to(device)
    if name != "zuko":
        some = slice(0, 50)
        torch.testing.assert_close(
            ddfp.log_prob(v[some], labels[some]),
            other.log_prob(v[some], labels[some]),
            rtol=1e-5,  # sums on a GPU are in another order
            atol=1e-3,
        )
        theirs = plain_gradient(other, v[some])()
        torch.testing.assert_close(ddfp.score(v[some]), theirs, rtol=1e-4, atol=1e-4)
    if name != "ddfp":
        return plain_gradient(other, v) if case.gradient else plain_fit(other, v, labels)
    if case.gradient:
        return lambda: ddfp.score(v)
    return lambda: ddfp.fit_step(v, labels, generator=generator).nll


def measure(name: str) -> Measured:
    """Measure one case: times in one process, memory in one for each estimator."""
    seconds, kernel = alone(time_turns, name)
    own = 2 * PRODUCT**3 / min(seconds.pop(way) for way in seconds.keys() - set(ESTIMATORS))
    megabytes = {estimator: alone(memory, estimator, name) for estimator in ESTIMATORS}
    rate = CASES[name].flops / seconds["ddfp"]
    return Measured(seconds, kernel, megabytes, own / 1e9, rate / own)


def time_turns(name: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return CPU seconds of all estimators and plain products, and the kernel's share of them.

    They take turns.
    """
    work = {estimator: prepare(estimator, CASES[name]) for estimator in ESTIMATORS}
    work |= products()
    for run in work.values():
        run()
    taken: dict[str, list[tuple[float, float]]] = {key: [] for key in work}
    began, turns = time.monotonic(), 0
    while turns < TURNS[0] or (turns < TURNS[1] and time.monotonic() - began < BUDGET):
        for key, run in work.items():
            begin, begin_kernel = time.process_time(), kernel_seconds()
            run()
            taken[key].append((time.process_time() - begin, kernel_seconds() - begin_kernel))
        turns += 1
    seconds = {key: statistics.median(whole for whole, _ in pairs) for key, pairs in taken.items()}
    # its clock may be too coarse for one turn of a small case
    kernel = {
        key: sum(part for _, part in pairs) / sum(whole for whole, _ in pairs)
        for key, pairs in taken.items()
    }
    return seconds, kernel


def products() -> dict[str, Callable[[], Tensor]]:
    """Return what squares a large matrix: torch's default, and oneDNN where it is there."""
    matrix = torch.ones(PRODUCT, PRODUCT)
    ways = {"default": lambda: matrix @ matrix}
    if torch.backends.mkldnn.is_available():
        inner = matrix.to_mkldnn()
        ways["oneDNN"] = lambda: nn.functional.linear(inner, matrix)
    return ways


def kernel_seconds() -> float:
    """Return the CPU time that the system has spent for this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def memory(estimator: str, name: str) -> float:
    """Return what the first call adds to the peak of this process, in megabytes."""
    run = prepare(estimator, CASES[name])
    before = peak_megabytes()
    run()
    return peak_megabytes() - before


def peak_megabytes() -> float:
    """Return the largest resident size that this process ever had."""
    status = Path("/proc/self/status")
    if status.is_file():  # of the program alone; getrusage's number is inherited on Linux
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def table(measured: dict[str, Measured]) -> str:
    """Return the table, in Markdown."""
    lines = [
        "| case | estimator | CPU ms | CPU time in the system's kernel | extra MB | time / ddfp | "
        "memory / ddfp | "
        "fraction of the machine's rate, GFLOP/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, found in measured.items():
        for name in ESTIMATORS:
            fatter = f"{found.fatter(name):.1f}" if found.megabytes["ddfp"] >= SMALLEST_PEAK else ""
            machine = f"{100 * found.machine:.0f} % of {found.gigaflops:.0f}"
            lines.append(
                f"| {case} | {name} | {1000 * found.seconds[name]:.1f} | "
                f"{100 * found.kernel[name]:.0f} % | "
                f"{found.megabytes[name]:.0f} | {found.slower(name):.1f} | "
                f"{fatter} | {machine if name == 'ddfp' else ''} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    print(f"torch {torch.__version__}, one thread, median of {TURNS[0]} to {TURNS[1]} turns\n")
    print(table({name: measure(name) for name in CASES}))


if __name__ == "__main__":
    main()
