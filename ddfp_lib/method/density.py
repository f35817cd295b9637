"""The online density estimator: it learns where features of the network are dense or sparse.

A flow carries features v to latents z, where each class is one Gaussian. The estimator learns
beside the network, from detached features, with its own optimizer, and is discarded at test
time.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfp_lib.constants import UNLABELED
from ddfp_lib.errors import UserError
from ddfp_lib.kernels import tf32
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.flow import Flow
from ddfp_lib.method.mixture import GaussianMixture
from ddfp_lib.method.rows import chunks, draw_counted_of_all, draw_rows, rows_of_all
from ddfp_lib.ranks import sum_gradients, total

Method = TypeVar("Method", bound=Callable)


@dataclass(frozen=True)
class FitResult:
    """What one training step saw, before it moved: detached 0-d tensors on the features' device.

    Attributes:
        nll: mean negative log-likelihood of a row, in nats.
        bits_per_dim: the same in bits, divided by the number of features.
        grad_norm: gradient norm before clipping.
    """

    nll: Tensor
    bits_per_dim: Tensor
    grad_norm: Tensor


def _in_full_precision(method: Method) -> Method:
    """Run a method of the estimator, and any backward in it, without autocast and TF32."""

    @functools.wraps(method)
    def run(self: "DensityEstimator", *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.mixture.means.device.type, enabled=False), tf32(False):
            return method(self, *args, **kwargs)

    return run


class DensityEstimator(nn.Module):
    r"""A normalizing flow over a class-conditional Gaussian mixture, trained one step at a time.

    .. math:: \log p(v \mid y) = \log \mathcal{N}(f(v); \mu_y, I)
        + \log \left| \det \frac{\partial f}{\partial v} \right|, \qquad
        p(v) = \frac1K \sum_{y=1}^{K} p(v \mid y)

    Every method computes in the parameters' dtype (float32, or float64 after ``.double()``),
    whatever the dtype of its input, under autocast and where TF32 is allowed too: log-determinants
    do not survive half precision. Adam's state and the step count are part of ``state_dict()``, so
    a training that is saved and resumed gives the same bits as one left alone. Move the estimator
    to its device before the first step.

    Args:
        features: D, width of the features.
        classes: K.
        config: shape and training, see :class:`DensityConfig`.
        total_steps: length of the schedule, in calls of :meth:`fit_step`.
        seed: seed of the starting weights, means and permutations.
        progress: fraction of the schedule that is over, as a function of the number of steps;
            ``None``: steps / total_steps, at most 1.

    Raises:
        UserError: fewer than 2 features, no class, or no step.

    Example:
        >>> estimator = DensityEstimator(features=8, classes=3, total_steps=100)
        >>> generator = torch.Generator().manual_seed(0)
        >>> v = torch.randn(50, 8, generator=generator)
        >>> step = estimator.fit_step(v, generator=generator)
        >>> estimator.log_prob(v).shape, estimator.score(v).shape
        (torch.Size([50]), torch.Size([50, 8]))
    """

    def __init__(
        self,
        features: int,
        classes: int,
        config: DensityConfig = DensityConfig(),
        *,
        total_steps: int,
        seed: int = 0,
        progress: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        if total_steps < 1:
            raise UserError(f"the density's schedule needs at least 1 step, got {total_steps}")
        self.features, self.classes = features, classes
        self.config = config
        self.total_steps = total_steps
        self.progress = progress or (lambda steps: min(steps / total_steps, 1.0))
        self.steps = 0
        # Two streams: equal seeds would start the means with numbers that the flow has too.
        seeds = torch.Generator().manual_seed(seed)
        flow_seed, mixture_seed = torch.randint(2**62, (2,), generator=seeds).tolist()
        self.flow = Flow(features, config.blocks, config.hidden, config.clamp, flow_seed)
        self.mixture = GaussianMixture(classes, features, mixture_seed)
        self.optimizer = torch.optim.Adam(
            self.parameters(), lr=config.lr, betas=config.betas, fused=True
        )

    @_in_full_precision
    def log_prob(self, v: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(v), or log p(v | y) where the class is known.

        Differentiable once, and in v alone: the call does not train the density. The
        gradient is made along with the value, so no activation of the flow outlives the call.

        Args:
            v: (N, D), any float dtype.
            labels: (N,), class 0..K-1 or UNLABELED (-1) for the marginal; None: no labels.

        Returns:
            (N,), in nats.

        Raises:
            UserError: v is not (N, D), or a label is not a class.
        """
        if torch.is_grad_enabled() and v.requires_grad:
            return _LogProb.apply(self._rows(v), labels, self)
        with torch.no_grad():
            return self._log_prob(v, labels)

    @_in_full_precision
    @torch.no_grad()
    def class_log_prob(self, v: Tensor) -> Tensor:
        """Return log p(v | y = k) for every class; its argmax over k predicts the class.

        Args:
            v: (N, D), any float dtype.

        Returns:
            (N, K), detached, in nats.
        """
        z, log_det = self.flow(self._rows(v))
        return self.mixture.class_log_prob(z) + log_det[:, None]

    @_in_full_precision
    def score(self, v: Tensor) -> Tensor:
        r"""Return the gradient of the marginal log-density, :math:`\nabla_v \log p(v)`.

        Args:
            v: (N, D), any float dtype.

        Returns:
            (N, D), detached, of the parameters' dtype, in nats per unit of v.
        """
        return self._log_prob_and_gradient(v, None)[1]

    @_in_full_precision
    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw features from p(v): a point of the mixture, sent back through the flow.

        Args:
            count: N.
            generator: source of all randomness, on any device.

        Returns:
            (N, D), of the parameters' dtype and device.
        """
        return self.flow.inverse(self.mixture.sample(count, generator))

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """Turn log-densities of any shape, in nats, into negative bits per dimension."""
        return log_prob / (-self.features * math.log(2))

    @_in_full_precision
    def fit_step(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator,
        counted: Tensor | None = None,
    ) -> FitResult:
        r"""Take one step of maximum likelihood on noisy features.

        .. math:: \min \; - \frac1N \sum_i \log p(v_i + \sigma \epsilon_i \mid y_i),
            \qquad \epsilon_i \sim \mathcal{N}(0, I)

        Adam, on at most ``config.samples`` rows drawn at random, with the gradient norm clipped
        and the learning rate falling geometrically over ``total_steps``, flat afterwards
        (train_ddfp_pascal.py:455-500, 121-123). Nothing flows back into the network that made the
        features.

        Where several processes train together, N counts the rows of all of them. Each draws its
        share of ``config.samples`` from its own rows, in proportion to their number, with its own
        generator; gradients are summed, so parameters stay the same on every rank.

        Args:
            features: (N, D), any float dtype. With N = 0 nothing happens: no step is counted,
                and the result is NaN. A rank alone may have no rows.
            labels: (N,), class 0..K-1 or UNLABELED (-1); None: no labels. Not used if
                ``config.labels`` is ``none``.
            generator: generator of the row choice and the noise; fastest on the features' device.
            counted: (N,) bool, the rows that are learned; None: all. With it the host never waits
                for a GPU: where no row counts, the result is 0, and where loss or gradient is not
                finite, the result says so. In both cases the parameters stay as they are.

        Returns:
            Loss and gradient norm at the parameters before the step.
            Without a row: NaN, in a step that is not counted; with ``counted`` 0, in one that is.

        Raises:
            FloatingPointError: loss or gradient is not finite, without ``counted``; the parameters
                are as before.
            UserError: features is not (N, D), or a label is not a class.
        """
        v, labels, counted = self._draw(features, labels, counted, generator)
        nll = torch.zeros((), dtype=v.dtype, device=v.device)
        rows = rows_of_all(v) if counted is None else total(counted.sum())
        if counted is None and rows == 0:
            nan = torch.full_like(nll, math.nan)
            return FitResult(nan, nan, nan)

        self.optimizer.zero_grad()
        with torch.enable_grad():
            for chunk in chunks(v):
                log_prob = self._log_prob(v[chunk], labels[chunk])
                if counted is not None:
                    log_prob = log_prob.where(counted[chunk], 0.0)
                loss = -log_prob.sum() / (rows if counted is None else rows.clamp(min=1))
                loss.backward()
                nll += loss.detach()
        nll = total(nll)
        sum_gradients(self.parameters())
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.clip)
        if counted is None and not torch.isfinite(nll + norm):  # waits for the device
            self.optimizer.zero_grad()
            raise FloatingPointError(
                f"density step {self.steps}: loss {nll.item()}, gradient norm {norm.item()}; "
                "the features are not finite or the learning rate is too high"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self.config.lr_decay ** self.progress(self.steps)
        if counted is not None:
            # what torch.amp.GradScaler sets: where it is 1, a fused optimizer changes nothing
            self.optimizer.found_inf = (~(nll + norm).isfinite() | (rows == 0)).float()
        self.optimizer.step()
        self.optimizer.found_inf = None
        self.optimizer.zero_grad()
        self.steps += 1
        return FitResult(nll, self.bits_per_dim(-nll), norm)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what ``state_dict()`` holds besides parameters: plain values and tensors."""
        return {
            "shape": self._shape(),
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take back step count and optimizer; called by ``load_state_dict`` before all else.

        Raises:
            UserError: the saved estimator has other sizes; nothing was changed.
        """
        if state["shape"] != self._shape():
            raise UserError(
                f"the saved density has {state['shape']}, this one {self._shape()}; "
                "use the configuration that it was trained with"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def _shape(self) -> dict[str, int]:
        """Return the sizes that two estimators share if one can take the other's state."""
        sizes = {key: asdict(self.config)[key] for key in ("blocks", "hidden")}
        return {"features": self.features, "classes": self.classes, **sizes}

    def _rows(self, v: Tensor) -> Tensor:
        """Return v, which must be (N, D), in the parameters' dtype."""
        if v.ndim != 2 or v.shape[1] != self.features:
            raise UserError(
                f"the density takes features of shape (N, {self.features}), got {tuple(v.shape)}"
            )
        return v.to(self.mixture.means.dtype)

    def _log_prob(self, v: Tensor, labels: Tensor | None) -> Tensor:
        """Return the log-density, (N,), differentiable in the parameters too."""
        z, log_det = self.flow(self._rows(v))
        return self.mixture.log_prob(z, labels) + log_det

    @torch.enable_grad()
    def _log_prob_and_gradient(self, v: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the log-density, (N,), and its gradient in v, (N, D), both detached.

        No row's gradient depends on another row, so only one chunk's graph is ever alive.
        """
        v = self._rows(v.detach())
        log_prob, gradient = v.new_empty(len(v)), torch.empty_like(v)
        for chunk in chunks(v):
            rows = v[chunk].requires_grad_()
            value = self._log_prob(rows, labels if labels is None else labels[chunk])
            gradient[chunk] = torch.autograd.grad(value.sum(), rows)[0]
            log_prob[chunk] = value.detach()
        return log_prob, gradient

    @torch.no_grad()
    def _draw(
        self,
        features: Tensor,
        labels: Tensor | None,
        counted: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return random rows with noise, their labels, and which of them count."""
        v = self._rows(features.detach())
        if labels is None or self.config.labels == "none":
            labels = torch.full((len(v),), UNLABELED, device=v.device)
        if counted is None:
            v, labels = draw_rows(v, labels, self.config.samples, generator)
        else:
            chosen, counted = draw_counted_of_all(counted, self.config.samples, generator)
            v, labels = v[chosen], labels[chosen]
        noise = torch.randn(v.shape, generator=generator, device=generator.device, dtype=v.dtype)
        return v + self.config.noise * noise.to(v.device), labels, counted


class _LogProb(torch.autograd.Function):
    """log p as a function of v alone, whose backward is one product: see ``log_prob``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, labels: Tensor | None, estimator: DensityEstimator) -> Tensor:
        log_prob, gradient = estimator._log_prob_and_gradient(v, labels)
        ctx.save_for_backward(gradient)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None] * gradient, None, None
