"""BatchNorm with a second set of statistics, and BatchNorm over several processes."""

import torch
from torch import Tensor, nn

from ddfp_lib.errors import UserError
from ddfp_lib.ranks import differentiable_total, world_size


class DualBatchNorm2d(nn.Module):
    """Two BatchNorms over the same channels; each call says which one, and whether it learns.

    Perturbed features have another distribution than clean ones. One average over both would blur
    the statistics that are used at test time, so perturbed features have their own statistics and
    affine weights (model/model/decoder.py:7-36 of the release; Xie et al., Adversarial Examples
    Improve Image Recognition, CVPR 2020). An argument of the call selects the set, not a mode of
    the module.

    Args:
        channels: number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.BatchNorm2d(channels)
        self.auxiliary = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, *, auxiliary: bool = False, eval_mode: bool = False) -> Tensor:
        """Normalize ``x``.

        Args:
            x: (B, C, H, W) float.
            auxiliary: use the second set (perturbed features).
            eval_mode: normalize by the running statistics and leave them as they are, also in
                training: for queries that must not change the network.

        Returns:
            (B, C, H, W) float.
        """
        norm = self.auxiliary if auxiliary else self.main
        return normalised_by_running(norm, x) if eval_mode else norm(x)


class PooledBatchNorm2d(nn.Module):
    """BatchNorm of globally pooled features: (B, C, 1, 1), one value per image and channel.

    The variance of one value is not defined. A training batch of one image, over all ranks, is
    normalized by the running statistics and leaves them alone, so that one image per step works.

    Args:
        channels: number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, (B, C, 1, 1) float."""
        if self.training and len(x) * world_size() == 1:
            return normalised_by_running(self.norm, x)
        return self.norm(x)


def normalised_by_running(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    r"""Normalize a batch by the running statistics of a BatchNorm, and leave these as they are.

    .. math:: y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta

    Args:
        norm: the BatchNorm over C channels: its running mean and variance, weight, bias and
            epsilon are used; whether it is in training mode does not matter.
        x: (B, C, H, W) float, of a dtype that ``torch.nn.functional.batch_norm`` takes with these
            statistics.

    Returns:
        (B, C, H, W), of the dtype of ``x``.
    """
    return nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm on CPUs that computes its training statistics over the batches of all ranks.

    ``torch.nn.SyncBatchNorm`` does this on GPUs and nowhere else. Every rank's batch has the same
    shape. Two passes, mean and then variance, as exact as BatchNorm in one process.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, (B, C, H, W) float."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = world_size() * values.numel() / values.shape[1]
        mean = differentiable_total(values.sum((0, 2, 3))) / count
        centered = values - mean[:, None, None]
        variance = differentiable_total(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_statistics(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm of a network take its training statistics over all ranks.

    Parameters, buffers and their names stay as they are, so that checkpoints fit any number of
    processes. With one process nothing is changed.

    Args:
        network: changed in place.
        device: device that it is on: ``torch.nn.SyncBatchNorm`` on GPUs, :class:`SharedBatchNorm2d`
            on CPUs.

    Raises:
        UserError: on a CPU, the network has BatchNorms of another kind.
    """
    if world_size() == 1:
        return network
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's own misses timm's norms

        return convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared.to(device).train(child.training))
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                raise UserError(
                    f"network.encoder: its {type(child).__name__} cannot share statistics between "
                    "CPU processes; use one process, GPUs, or another backbone"
                )
    return network
