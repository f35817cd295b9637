"""Layers that compute the same as PyTorch's layers, in less time on a CPU.

PyTorch's convolutions are fast on a CPU where oneDNN has a good kernel for them. It has none for
some layers of a segmentation network, and :func:`use_fast_layers` makes these layers take another
way. Parameters, their names and the results stay the same, except for rounding. On other devices,
in other precisions, under autocast and while a network is compiled or exported, the layers are
PyTorch's own.

=========================  ==============================================================  ======
layer                      what is slow in PyTorch 2.15, and what is done instead          where
=========================  ==============================================================  ======
1x1 convolution            one thread and fewer than 16 images: image by image through     both
                           an im2col kernel; here one matrix product over all pixels
depthwise, dilated         gradient of the input: the reference kernel; here a             back
                           convolution with the mirrored kernel
depthwise, dilated or      gradient of the weights: the reference kernel; here dilation    back
wider than 3               goes into the batch and at most 3 columns are taken at a time
dilated, groups 1, most    gradient of the weights, padding and all; here one matrix       back
taps in the padding        product for each tap, over the pixels that it reaches
padded as in TensorFlow    keeps a padded copy of its input; here the input is enough      both
ReLU6 in place             keeps a copy of its input; here its output is enough            both
=========================  ==============================================================  ======

A run's bits depend on its number of threads and on its processor, as they do in PyTorch, and on
nothing else.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfp_lib.models.gradients import (
    COLUMNS,
    depthwise_weight_gradient,
    plain_gradient,
    taps_of,
    tapwise_weight_gradient,
)

FEW_IMAGES = 16
"""From so many images on PyTorch takes oneDNN for 1x1 convolutions on one thread, too."""

MANY_PRODUCTS = 2**21
"""Multiplications (of one tap) below which the time of a layer is that of its calls.

Digit scenes stay below, so their runs have the bits that PyTorch's own layers give."""


def use_fast_layers(network: nn.Module) -> nn.Module:
    """Let the layers of a network compute faster on a CPU; see the table above.

    Only ``torch.nn.Conv2d``, ``torch.nn.ReLU6`` and timm's ``Conv2dSame`` are changed, and no
    classes derived from them. Parameters, buffers, hooks and their names stay, so checkpoints fit
    either way.

    Args:
        network: changed in place, before or after its weights are there.

    Returns:
        The same network.

    Source: ours.
    """
    # Here and not above: timm takes seconds to import, and only networks need it.
    from timm.layers import Conv2dSame

    fast = {nn.Conv2d: FastConv2d, nn.ReLU6: FastReLU6, Conv2dSame: FastConv2dSame}
    for module in network.modules():
        if type(module) in fast:
            module.__class__ = fast[type(module)]
    return network


class FastConv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, with other kernels where oneDNN's are slow."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        single = self.kernel_size == (1, 1)
        if self.groups == 1 and (
            (self.dilation == (1, 1) and not single)
            or x.numel() * self.out_channels < MANY_PRODUCTS
        ):  # most layers of a ResNet, and small ones: the checks below would take longer
            return super()._conv_forward(x, weight, bias)
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not _takes(x, weight):
            return super()._conv_forward(x, weight, bias)
        if single:
            if self._is_product(x):
                rows = x.permute(0, 2, 3, 1)
                return nn.functional.linear(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)
        elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            settings = self.stride, self.padding, self.dilation, self.groups
            if _is_slow_depthwise(weight, *settings) or _is_mostly_padding(x, weight, *settings):
                return _Convolution.apply(x, weight, bias, (0, 0, 0, 0), *settings)
        return super()._conv_forward(x, weight, bias)

    def _is_product(self, x: Tensor) -> bool:
        """Say whether PyTorch would leave this large 1x1 convolution to its im2col kernel."""
        return (
            self.stride == (1, 1)
            and self.padding == (0, 0)
            and self.groups == 1
            and len(x) < FEW_IMAGES
            and torch.get_num_threads() == 1
            and x.is_contiguous(memory_format=torch.channels_last)
        )


class FastConv2dSame(nn.Conv2d):
    """timm's ``Conv2dSame``, which does not keep the padded copy of its input for the gradient.

    The output has 1 / stride of the input's pixels, rounded up. Where that asks for an odd number
    of padding pixels, the last one is below and to the right, as in TensorFlow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, ceil(H / stride), ceil(W / stride))."""
        border: list[int] = []
        for axis in (1, 0):  # torch's pad begins with the last axis
            side, stride = x.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing = max(0, (-(-side // stride) - 1) * stride + reach - side)
            border += [missing // 2, missing - missing // 2]
        settings = self.stride, (0, 0), self.dilation, self.groups
        if _takes(x, self.weight) and torch.is_grad_enabled():
            return _Convolution.apply(x, self.weight, self.bias, tuple(border), *settings)
        padded = nn.functional.pad(x, border)
        return nn.functional.conv2d(padded, self.weight, self.bias, *settings)


class FastReLU6(nn.ReLU6):
    """``torch.nn.ReLU6``, which in place does not copy its input for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Clamp ``x``, of any shape, to 0..6."""
        if self.inplace and x.requires_grad and torch.is_grad_enabled() and not _is_traced():
            return _ReLU6.apply(x)
        return super().forward(x)


def _is_traced() -> bool:
    """Say whether a compiler or an exporter watches, which has kernels of its own."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Say whether these kernels are meant for such an input at all."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and runs_on_onednn(x)
    )


def runs_on_onednn(x: Tensor) -> bool:
    """Say whether PyTorch computes float32 convolutions of such a tensor by oneDNN here."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not _is_traced()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def _is_slow_depthwise(
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> bool:
    """Say whether oneDNN computes a depthwise convolution's gradients by a reference kernel."""
    if groups == 1 or weight.shape[:2] != (groups, 1) or dilation[0] != dilation[1]:
        return False
    dilated = dilation[0] > 1
    return stride == (1, 1) if dilated else weight.shape[3] > COLUMNS


def _is_mostly_padding(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> bool:
    """Say whether a convolution's taps are mostly outside of the image, as ASPP's may."""
    if groups > 1 or stride != (1, 1) or dilation == (1, 1):
        return False
    pixels = taps = 1  # of the output, of the kernel
    for side, kernel, pad, step in zip(
        x.shape[2:], weight.shape[2:], padding, dilation, strict=True
    ):
        pixels *= side + 2 * pad - step * (kernel - 1)
        taps *= kernel
    spans = taps_of(x, weight, padding, dilation)
    reached = sum(len(rows) * len(columns) for rows, columns in spans)
    work = len(x) * pixels * weight.shape[0] * weight.shape[1]
    return work >= MANY_PRODUCTS and reached < taps * pixels / 2


class _ReLU6(torch.autograd.Function):
    """min(max(x, 0), 6), in place. Its output says where the gradient passes, as its input does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_(0, 6)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, y, 0, 6)


class _Convolution(torch.autograd.Function):
    """A convolution with the gradients of the table above.

    Arguments as of ``conv2d``; ``border`` is zeros around the input, as ``torch.nn.functional.pad``
    takes them, in addition to ``padding``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        border: tuple[int, int, int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.border, ctx.settings = border, (stride, padding, dilation, groups)
        padded = nn.functional.pad(x, border) if any(border) else x
        return nn.functional.conv2d(padded, weight, bias, *ctx.settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        border, (stride, padding, dilation, groups) = ctx.border, ctx.settings
        slow = _is_slow_depthwise(weight, *ctx.settings)
        mostly_padding = not any(border) and _is_mostly_padding(x, weight, *ctx.settings)
        grad = grad.contiguous(memory_format=torch.channels_last)
        padded = nn.functional.pad(x, border) if any(border) else x
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            sides = zip(dilation, weight.shape[2:], padding, strict=True)
            reach = [step * (kernel - 1) - pad for step, kernel, pad in sides]
            if slow and stride == (1, 1) and min(reach) >= 0:
                mirrored = weight.flip(2, 3)
                grad_x = nn.functional.conv2d(grad, mirrored, None, 1, reach, dilation, groups)
            else:
                grad_x = plain_gradient(grad, padded, weight, *ctx.settings, (True, False))
            if any(border):
                left, right, top, bottom = border
                height, width = grad_x.shape[2:]
                grad_x = grad_x[:, :, top : height - bottom, left : width - right]
        if ctx.needs_input_grad[1]:
            if slow:
                begin = padding[0] + border[2], padding[1] + border[0]
                grad_weight = depthwise_weight_gradient(grad, x, weight, stride, begin, dilation[0])
            elif mostly_padding:
                grad_weight = tapwise_weight_gradient(grad, x, weight, padding, dilation)
            else:
                grad_weight = plain_gradient(grad, padded, weight, *ctx.settings, (False, True))
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
