"""Densities that are fitted once and then stay fixed: controls for the online flow.

A normalizing flow follows the features while they change. These do not: they remember features
until perturbation starts, are fitted to those, and do not change afterwards. Both are textbook
methods: a mixture of Gaussians with full covariances (fitted by scikit-learn), and a kernel
density.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfp_lib.kernels import tf32
from ddfp_lib.method.density import FitResult

MEMORY = 2048
"""Features that are remembered."""


STEPS_REMEMBERED = 16
"""The memory holds features of so many steps, the last ones."""


class FrozenDensity(nn.Module):
    r"""A density of features as they were when perturbation started.

    ``gmm``: :math:`p(v) = \sum_c \pi_c \mathcal{N}(v; \mu_c, \Sigma_c)`.
    ``kde``: :math:`p(v) = \frac1M \sum_i \mathcal{N}(v; v_i, \mathrm{diag}(h^2))` with Scott's
    bandwidth :math:`h_d = \sigma_d M^{-1 / (D + 4)}`.

    It has the methods of :class:`~ddfp_lib.method.density.DensityEstimator` that training calls,
    and like that is differentiable in v alone. Ours: a control for the online flow.

    Args:
        kind: ``gmm`` or ``kde``.
        features: D.
        components: Gaussians of the mixture.
        freeze_after: calls of :meth:`fit_step` after which it is fitted; at least 1.
        seed: seed of the mixture's starting means.
    """

    def __init__(
        self, kind: str, features: int, components: int, *, freeze_after: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.kind, self.seed = kind, seed
        self.freeze_after, self.steps = max(1, freeze_after), 0
        self.register_buffer("memory", torch.zeros(MEMORY, features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("log_weights", torch.zeros(components))
        self.register_buffer("means", torch.zeros(components, features))
        self.register_buffer("whitening", torch.zeros(components, features, features))

    @property
    def frozen(self) -> bool:
        """Whether the density has been fitted."""
        return self.steps >= self.freeze_after

    @torch.no_grad()
    def fit_step(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator,
        counted: Tensor | None = None,
    ) -> FitResult:
        """Remember some of these features, or, once frozen, say how likely they are.

        Args:
            features: (N, D), any float dtype.
            labels: not used.
            generator: generator of the choice of rows.
            counted: (N,) bool, the rows that are used; None: all. The host waits for a GPU to
                select them.

        Returns:
            Of at most :data:`MEMORY` rows; NaN before the density is frozen, or without rows.
        """
        rows = features.detach() if counted is None else features.detach()[counted]
        rows = rows.to(self.memory.dtype)
        order = torch.randperm(len(rows), generator=generator, device=generator.device)
        rows = rows[order[:MEMORY].to(rows.device)]
        nll = torch.full((), math.nan, device=rows.device)
        if self.frozen and len(rows):
            nll = -self.log_prob(rows).mean()
        elif len(rows):
            share = MEMORY // STEPS_REMEMBERED
            filled = self.memory.roll(share, dims=0)
            # the first features fill it whole: no row is ever empty
            count = MEMORY if self.steps == 0 else share
            filled[:count] = rows[torch.arange(count, device=rows.device) % len(rows)]
            self.memory.copy_(filled)
            self.steps += 1
            if self.frozen:
                self._fit()
        return FitResult(nll, nll / (self.memory.shape[1] * math.log(2)), torch.zeros_like(nll))

    def log_prob(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(v) in float32; before the fit it is 0 everywhere and has no gradient.

        Like the flow it is differentiable once, and computes without TF32.

        Args:
            v: (N, D), any float dtype.
            labels: not used: these densities are marginal.

        Returns:
            (N,), in nats.
        """
        v = v.to(self.memory.dtype)
        if not self.frozen:
            return (0 * v).sum(dim=1)
        if torch.is_grad_enabled() and v.requires_grad:
            return _LogProb.apply(v, self)
        with torch.no_grad(), torch.autocast(v.device.type, enabled=False), tf32(False):
            return self._log_prob(v)

    def _log_prob(self, v: Tensor) -> Tensor:
        if self.kind == "kde":
            distance = torch.cdist(v / self.scale, self.memory / self.scale).square()
            constant = math.log(MEMORY) + self.scale.log().sum() + self._half_log_tau()
            return (-0.5 * distance).logsumexp(dim=1) - constant
        parts = [
            weight + whiten.diagonal().log().sum() - 0.5 * ((v - mean) @ whiten).square().sum(1)
            for weight, mean, whiten in zip(
                self.log_weights, self.means, self.whitening, strict=True
            )
        ]
        return torch.stack(parts).logsumexp(dim=0) - self._half_log_tau()

    def _half_log_tau(self) -> float:
        return 0.5 * self.memory.shape[1] * math.log(2 * math.pi)

    def _fit(self) -> None:
        if self.kind == "kde":
            dimensions = self.memory.shape[1]
            scott = MEMORY ** (-1 / (dimensions + 4))
            self.scale.copy_((self.memory.std(dim=0) * scott).clamp(min=1e-3))
            return
        from sklearn.mixture import GaussianMixture  # an ablation: training needs it nowhere else

        mixture = GaussianMixture(len(self.means), reg_covar=1e-3, random_state=self.seed)
        mixture.fit(self.memory.cpu().numpy())
        for buffer, found in (
            (self.log_weights, mixture.weights_),
            (self.means, mixture.means_),
            (self.whitening, mixture.precisions_cholesky_),
        ):
            buffer.copy_(torch.as_tensor(found))
        self.log_weights.log_()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the step count, which ``state_dict()`` holds in addition to the buffers."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the step count back."""
        self.steps = state["steps"]


class _LogProb(torch.autograd.Function):
    """log p as a function of v; the gradient is made along with the value, in full precision."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, density: FrozenDensity) -> Tensor:
        with (
            torch.enable_grad(),
            torch.autocast(v.device.type, enabled=False),
            tf32(False),
        ):
            rows = v.detach().requires_grad_()
            log_prob = density._log_prob(rows)
            (gradient,) = torch.autograd.grad(log_prob.sum(), rows)
        ctx.save_for_backward(gradient)
        return log_prob.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None] * gradient, None
