"""Where to move a feature: down the density, and other directions to compare with.

A perturbation answers one question: given features and the pixels that may move, by which shift?
All of them have the same signature, so that swapping one for another is a change of one line:

>>> import torch
>>> rng = torch.Generator().manual_seed(0)
>>> models = FeatureModels(log_density=lambda v: -0.5 * v.square().sum(1), logits=lambda v: v)
>>> features, confident = torch.tensor([[3.0, 4.0]]), torch.tensor([True])
>>> DensityDescent(eps=1.0)(features, confident, models, rng)  # away from the mode at 0
tensor([[0.6000, 0.8000]])
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddfp_lib.errors import UserError
from ddfp_lib.method.own import make_own


@dataclass(frozen=True)
class FeatureModels:
    """What a perturbation may ask about features of shape (B, C, *S).

    Args:
        log_density: (B, C, *S) -> (B, *S), log p of each feature in nats, differentiable.
        logits: (B, C, *S) -> (B, K, *S), the class scores of each feature, differentiable.
    """

    log_density: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]


class FeaturePerturbation(Protocol):
    """A rule that shifts features.

    Args:
        features: (B, C, *S) float, treated as constants.
        moved: (B, *S) bool, the pixels that were asked to move.
        models: the density and the classifier, to be asked for directions.
        generator: the source of all randomness, on the device of ``features``.

    Returns:
        The shift, like ``features``, without a graph. With default settings its norm over C is eps
        where ``moved``, and 0 elsewhere; see each class for its other settings.
    """

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor: ...


def scale_to_length(direction: Tensor, moved: Tensor, eps: float) -> Tensor:
    """Return ``eps * direction / |direction|`` where ``moved``, 0 elsewhere.

    Args:
        direction: (B, C, *S) float; its length means nothing. A zero has no direction and stays.
        moved: (B, *S) bool.
        eps: length of the result, in units of the features.
    """
    # Largest entry first: squares of tiny gradients would underflow before the root is taken.
    largest = direction.abs().amax(dim=1, keepdim=True)
    direction = direction / largest.where(largest > 0, 1.0)
    norm = direction.norm(dim=1, keepdim=True)
    asked = moved.unsqueeze(1) & (norm > 0)
    return torch.where(asked, direction * (eps / norm.where(norm > 0, 1.0)), 0.0)


def _checked(eps: float) -> float:
    if not 0 <= eps < float("inf"):
        raise UserError(f"eps: {eps} is not a step length; give a finite number of at least 0")
    return eps


class Identity:
    """Move nothing: the control in which only the second decoder pass remains."""

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor:
        return torch.zeros_like(features)


class DensityDescent:
    """Step towards lower density, the perturbation of DDFP.

    ``delta = eps * g / |g|`` with ``g = grad_F of the sum over moved pixels of -log p(F)``, the
    norm being taken over the channels of each pixel. The sum is the paper's mean up to a factor
    that the normalization cancels, and unlike the mean it does not underflow on large images.

    Where ``log_density`` looks through 3x3 convolutions, g is non-zero in a ring of unconfident
    neighbors too. The released code moves them (model/model/attack.py divides every non-zero
    gradient by its norm); here they stay, unless ``leak`` is set.

    Args:
        eps: length of the step, in units of the features.
        steps: the path may bend: this many steps of length eps / steps each. With one step
            (the method) the shift has norm eps exactly, with more at most eps.
        leak: move every pixel with a non-zero gradient, as released.
        max_fall: in nats. A pixel's step is shorter where moving this pixel alone would lower the
            sum of log p by more, to first order; neighbors that move too can add to the fall.
            Infinity (the method) leaves all steps eps long.

    Raises:
        UserError: eps is negative or not finite, steps is less than 1, or max_fall is not positive.

    Source: the paper's abstract and figure; model/model/attack.py of the release. ``steps`` and
    ``max_fall`` are ours.
    """

    def __init__(
        self, eps: float, steps: int = 1, leak: bool = False, max_fall: float = math.inf
    ) -> None:
        if steps < 1:
            raise UserError(f"steps: {steps} is too few; give at least 1")
        if not max_fall > 0:
            raise UserError(f"max_fall: {max_fall} leaves no step; give a number of nats above 0")
        self.eps, self.steps, self.leak, self.max_fall = _checked(eps), steps, leak, max_fall

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor:
        shift = torch.zeros_like(features)
        reach = torch.ones_like(moved) if self.leak else moved
        for _ in range(self.steps):
            with torch.enable_grad():
                at = (features + shift).detach().requires_grad_()
                surprise = -models.log_density(at).where(moved, 0.0).sum()
                (gradient,) = torch.autograd.grad(surprise, at)
            step = scale_to_length(gradient, reach, self.eps / self.steps)
            if self.max_fall < math.inf:
                fall = (step * gradient).sum(dim=1, keepdim=True)
                step = step * (self.max_fall / self.steps / fall).clamp(max=1.0)
            shift = shift + step
        return shift


class UniformNoise:
    """Step in a random direction, uniform on the sphere of radius eps.

    The control for "any shift of this length would do". A normalized standard normal vector.

    Args:
        eps: length of the step, in units of the features.
    """

    def __init__(self, eps: float) -> None:
        self.eps = _checked(eps)

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor:
        direction = torch.empty_like(features).normal_(generator=generator)
        return scale_to_length(direction, moved, self.eps)


class AdversarialVAT:
    """Step to where the prediction changes fastest (virtual adversarial training).

    One power iteration: with a random unit vector d per pixel,
    ``g = grad_d KL(p(F) || p(F + probe * eps * d))`` summed over the moved pixels, and
    ``delta = eps * g / |g|``.

    Args:
        eps: length of the step, in units of the features.
        probe: length of the finite difference as a fraction of eps; large enough that the KL, which
            grows with its square, is above float32's noise.

    Source: Miyato et al., Virtual Adversarial Training, TPAMI 2018, section 3.3.
    """

    def __init__(self, eps: float, probe: float = 0.1) -> None:
        self.eps, self.probe = _checked(eps), probe

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor:
        if self.eps == 0:
            return torch.zeros_like(features)
        features = features.detach()
        direction = torch.empty_like(features).normal_(generator=generator)
        with torch.no_grad():
            before = models.logits(features).float().log_softmax(dim=1)
        with torch.enable_grad():
            probe = scale_to_length(direction, moved, self.probe * self.eps).requires_grad_()
            after = models.logits(features + probe).float().log_softmax(dim=1)
            divergence = (before.exp() * (before - after)).sum(dim=1)
            (gradient,) = torch.autograd.grad(divergence.where(moved, 0.0).sum(), probe)
        return scale_to_length(gradient, moved, self.eps)


class ChannelDropout:
    """Drop whole channels of an image, the feature perturbation of UniMatch.

    Each channel of an image is zeroed with probability p and scaled by 1 / (1 - p) otherwise; the
    shift is the difference to the features.

    Args:
        eps: length to which each moved pixel's shift is brought, so that it compares with the
            other perturbations; ``None`` leaves dropout's own length, as UniMatch has it.
        p: probability that a channel is dropped.

    Source: Yang et al., Revisiting Weak-to-Strong Consistency, CVPR 2023.
    """

    def __init__(self, eps: float | None = None, p: float = 0.5) -> None:
        if not 0 < p < 1:
            raise UserError(f"p: {p} is not a dropout probability; give a number between 0 and 1")
        self.eps, self.p = None if eps is None else _checked(eps), p

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor:
        features = features.detach()
        channels = (*features.shape[:2], *[1] * (features.dim() - 2))
        kept = features.new_empty(channels).bernoulli_(1 - self.p, generator=generator)
        shift = features * (kept / (1 - self.p) - 1)
        if self.eps is None:
            return shift.where(moved.unsqueeze(1), 0.0)
        return scale_to_length(shift, moved, self.eps)


def complementary_masks(
    images: int, channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw channel dropout masks of two views that never drop the same channel.

    The masks are 2 m and 2 - 2 m with m = 0 or 1, equally likely, for each channel of an image.
    Half of the images, drawn at random, keep all channels in both views (of an odd number, one
    more or one less). The mean of both masks is 1 everywhere.

    Args:
        images: B.
        channels: C.
        generator: source of all randomness; the masks are on its device.

    Returns:
        Two factors for features (B, C, h, w): (B, C, 1, 1) float32.

    Source: Yang et al., UniMatch V2, arXiv 2410.10777, complementary dropout.
    """
    device = generator.device
    drawn = torch.rand(images, channels, 1, 1, generator=generator, device=device)
    order = torch.randperm(images, generator=generator, device=device)
    coin = torch.rand((), generator=generator, device=device)
    undropped = (order + coin < images / 2)[:, None, None, None]
    first = (2.0 * (drawn < 0.5)).where(~undropped, 1.0)
    return first, 2.0 - first


class AfterDropout:
    """Drop whole channels, at dropout's own length, and step on from there.

    ``delta = drop + step(F + drop)``: is a step worth anything to features that have been perturbed
    already? Ours.

    Args:
        step: the perturbation that starts from the dropped features.
        p: probability that a channel is dropped.
    """

    def __init__(self, step: FeaturePerturbation, p: float) -> None:
        self.step, self.drop = step, ChannelDropout(p=p)

    def __call__(
        self, features: Tensor, moved: Tensor, models: FeatureModels, generator: torch.Generator
    ) -> Tensor:
        dropped = self.drop(features, moved, models, generator)
        return dropped + self.step(features.detach() + dropped, moved, models, generator)


def make_perturbation(
    name: str,
    eps: float,
    *,
    options: Mapping[str, Any] | None = None,
    leak: bool = False,
    steps: int = 1,
    max_fall: float = math.inf,
    drop: float = 0.0,
) -> FeaturePerturbation:
    """Return the perturbation of this name, at length ``eps``.

    Args:
        name: one of :data:`~ddfp_lib.method.config.PERTURBATIONS`, or a class of your own,
            ``package.module:Class``.
        eps: length of the step, in units of the features.
        options: keyword arguments of a class of your own, see :mod:`ddfp_lib.method.own`.
        leak: an argument of :class:`DensityDescent`, like ``steps`` and ``max_fall``; see there.
        steps: see there.
        max_fall: see there.
        drop: probability that a channel is dropped before the step, see :class:`AfterDropout`.

    Raises:
        UserError: the name is unknown, or a number makes no sense.
    """
    makers: dict[str, Callable[[], FeaturePerturbation]] = {
        "none": Identity,
        "density": lambda: DensityDescent(eps, steps, leak, max_fall),
        "noise": lambda: UniformNoise(eps),
        "vat": lambda: AdversarialVAT(eps),
        "dropout": lambda: ChannelDropout(eps),
        "channel_dropout": ChannelDropout,
    }
    if ":" in name:
        makers[name] = lambda: make_own(name, eps, options or {})
    if name not in makers:
        raise UserError(f"perturbation: {name!r} is unknown; choose one of {', '.join(makers)}")
    made = makers[name]()
    return AfterDropout(made, drop) if drop else made
