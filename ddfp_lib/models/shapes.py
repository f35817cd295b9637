"""Compute only the shapes of the maps of a network, on PyTorch's ``meta`` device.

There PyTorch finds the shapes of BatchNorm and of bilinear resizing by hundreds of small steps in
Python, half of the time of such a pass. :data:`ANSWERS` has them at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _normalized(x: Tensor, weight: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    """Return what BatchNorm returns for ``x`` (B, C, H, W).

    A map of its shape and dtype, and the mean and the inverse deviation of each channel, (C,)
    float32 whatever the dtype of ``x`` is.
    """
    statistics = torch.empty(x.shape[1], device=x.device)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _normalized_backward(_: Tensor, x: Tensor, weight: Tensor, *__: Any) -> tuple[Tensor, ...]:
    """Return the gradients of ``x`` (B, C, H, W), of the weight (C,) and of the bias (C,)."""
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _resized(x: Tensor, size: tuple[int, int], *_: Any) -> Tensor:
    """Return maps (B, C, *size) of the dtype of ``x``, (B, C, H, W)."""
    return x.new_empty(*x.shape[:2], *size)


ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _normalized,
    aten.native_batch_norm_backward.default: _normalized_backward,
    aten.upsample_bilinear2d.default: _resized,
}
"""The operations that are answered, and what they return."""


class ShapesAlone(TorchDispatchMode):
    """Let tensors without memory pass through networks quickly inside the ``with`` block."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return ANSWERS.get(func, func)(*args, **(kwargs or {}))
