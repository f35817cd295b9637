"""BatchNorm with a second set of statistics, for features that were perturbed."""

import torch.nn.functional as F
from torch import Tensor, nn


class DualBatchNorm2d(nn.Module):
    """Two BatchNorms over the same channels; each call says which one, and whether it learns.

    Perturbed features are distributed differently from clean ones. Normalising both with one
    average would blur the statistics that are used at test time, so perturbed features get
    statistics and affine weights of their own (model/decoder.py:7-36 of the release; Xie et al.,
    Adversarial Examples Improve Image Recognition, CVPR 2020). Which set is used is an argument of
    the call, not a mode of the module.

    Args:
        channels: number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.BatchNorm2d(channels)
        self.auxiliary = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, *, auxiliary: bool = False, frozen: bool = False) -> Tensor:
        """Normalise ``x``.

        Args:
            x: (B, C, H, W) float.
            auxiliary: use the second set (perturbed features).
            frozen: normalise by the running statistics and leave them as they are, also in
                training: for a look at the network that must not change it.

        Returns:
            (B, C, H, W) float.
        """
        norm = self.auxiliary if auxiliary else self.main
        if not frozen:
            return norm(x)
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
