"""The base density of the flow: one Gaussian per class.

Semi-supervised likelihood of FlowGMM (Izmailov et al. 2020, https://arxiv.org/abs/1912.13025):
a labeled point is explained by the Gaussian of its class, an unlabeled one by their mixture.
"""

import math

import torch
from torch import Tensor, nn

from ddfp_lib.constants import UNLABELED
from ddfp_lib.errors import UserError


class GaussianMixture(nn.Module):
    r"""K equally likely Gaussians with learned means and identity covariance.

    .. math::
        \log p(z) & = \log \sum_{k=1}^{K} \mathcal{N}(z; \mu_k, I) - \log K
            & \text{(class unknown)} \\
        \log p(z \mid y) & = \log \mathcal{N}(z; \mu_y, I)
            & \text{(class known)}

    The means start as N(0, I). As released (model/flow/distributions.py:55) and in FlowGMM, the
    likelihood of a labeled point is the conditional one, without the prior 1/K.

    Args:
        components: K, the number of classes.
        features: D.
        seed: seed of the starting means.

    Example:
        >>> mixture = GaussianMixture(components=2, features=3)
        >>> z = torch.zeros(4, 3)
        >>> mixture.class_log_prob(z).shape
        torch.Size([4, 2])
        >>> mixture.log_prob(z, labels=torch.tensor([0, 1, -1, -1])).shape
        torch.Size([4])
    """

    def __init__(self, components: int, features: int, seed: int = 0) -> None:
        super().__init__()
        if components < 1 or features < 1:
            raise UserError(
                "a mixture needs at least 1 component and 1 feature, "
                f"got {components} and {features}"
            )
        generator = torch.Generator().manual_seed(seed)
        self.means = nn.Parameter(torch.randn(components, features, generator=generator))

    def class_log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log-density under each Gaussian.

        .. math:: \log \mathcal{N}(z; \mu_k, I)
            = z^\top \mu_k - \tfrac12 |\mu_k|^2 - \tfrac12 |z|^2 - \tfrac{D}{2} \log 2\pi

        The squared distance is expanded, so memory grows as N K, not as N K D: at 513 pixels a
        side and 21 classes that is 5.6 MB where differences would take 1.4 GB.

        Args:
            z: (N, D), of the means' dtype.

        Returns:
            (N, K), in nats.
        """
        dot_minus_norm, rest = self._expand(z)
        return dot_minus_norm + rest[:, None]

    def log_prob(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(z), or log p(z | y) where the class is known.

        Args:
            z: (N, D), of the means' dtype.
            labels: (N,), any integer dtype: a class 0..K-1, or UNLABELED (-1) for the marginal.
                None: no point has a label.

        Returns:
            (N,), in nats.

        Raises:
            UserError: a label is neither a class nor UNLABELED. Only checked on the CPU, where
                the check costs nothing. On CUDA the error comes later, and its message is less
                clear.
        """
        dot_minus_norm, rest = self._expand(z)
        marginal = dot_minus_norm.logsumexp(1) - math.log(len(self.means))
        if labels is None:
            return marginal + rest
        self._check(labels)
        unlabeled = labels == UNLABELED
        column = labels.long().masked_fill(unlabeled, 0)
        conditional = dot_minus_norm.gather(1, column[:, None]).squeeze(1)
        return torch.where(unlabeled, marginal, conditional) + rest

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None
    ) -> Tensor:
        """Draw points from the mixture, or from the Gaussians of given classes.

        Args:
            count: number of points, N.
            generator: source of all randomness, on any device.
            labels: (N,), the class of each point, or UNLABELED (-1) for a random one; None: all
                are random.

        Returns:
            (N, D), of the means' dtype and device.

        Raises:
            UserError: a label is neither a class nor UNLABELED.
        """
        source = generator.device
        component = torch.randint(len(self.means), (count,), generator=generator, device=source)
        component = component.to(self.means.device)
        if labels is not None:
            self._check(labels)
            component = torch.where(labels == UNLABELED, component, labels.long())
        shape = (count, self.means.shape[1])
        noise = torch.randn(shape, generator=generator, device=source, dtype=self.means.dtype)
        return self.means[component] + noise.to(self.means.device)

    def _expand(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Split log N(z; mu_k, I) into what depends on k, (N, K), and what does not, (N,)."""
        dot_minus_norm = torch.addmm(-0.5 * self.means.square().sum(1), z, self.means.t())
        rest = -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
        return dot_minus_norm, rest

    def _check(self, labels: Tensor) -> None:
        if labels.device.type != "cpu":
            return
        wrong = (labels != UNLABELED) & ((labels < 0) | (labels >= len(self.means)))
        if wrong.any():
            raise UserError(
                f"density label {labels[wrong][0].item()} is not a class 0..{len(self.means) - 1}; "
                f"mark points of unknown class with UNLABELED ({UNLABELED})"
            )
