"""Layers of a backbone that draw random numbers in training, such as timm's DropPath.

They draw from PyTorch's global generators. A run would then not be a function of its seed, and a
resumed run would differ from an uninterrupted one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
"""PyTorch's layers that draw."""


def draws(backbone: nn.Module) -> bool:
    """Say whether a layer of a backbone draws random numbers in training."""
    from timm import layers

    def probability(module: nn.Module) -> float:
        if isinstance(module, DROPOUT):
            return module.p
        if isinstance(module, layers.DropPath | layers.DropBlock2d):
            return module.drop_prob or 0.0
        return module.prob if isinstance(module, layers.PatchDropout) else 0.0

    return any(probability(module) > 0 for module in backbone.modules())


@contextmanager
def global_draws(generator: torch.Generator) -> Iterator[None]:
    """Let the global generators draw what ``generator`` says, and restore them afterwards.

    Args:
        generator: one number is drawn from it. The host waits for a GPU to draw it.
    """
    device = generator.device
    seed = torch.randint(2**62, (), generator=generator, device=device).item()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
