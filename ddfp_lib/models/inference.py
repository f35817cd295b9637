"""A faster copy of the network for prediction: convolution, BatchNorm and ReLU in one pass.

In evaluation a BatchNorm multiplies and adds constants, which can be put into the weights of the
convolution before it. On a CPU each layer that goes over a large map in memory costs as much as
many multiplications, so :func:`answering` makes a copy of the network in which one call of oneDNN
computes convolution, BatchNorm and ReLU. Logits differ by rounding.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ddfp_lib.models.fast import FastConv2dSame, runs_on_onednn
from ddfp_lib.models.maps import resize
from ddfp_lib.models.network import SegmentationNetwork, evaluating

RELUS = (nn.ReLU, nn.ReLU6)

LARGE = 2**14
"""Pixels of an image from which on the copy is used. Digit scenes have fewer, and keep the bits of
the network itself."""


@contextmanager
def answering(network: SegmentationNetwork) -> Iterator[Callable[[Tensor], Tensor]]:
    """Put a network in evaluation mode, and yield what answers for it.

    Args:
        network: on any device, in any precision; on a CPU in float32 it is copied, for images of
            :data:`LARGE` pixels and more. Its weights must not change meanwhile.

    Yields:
        Maps images (B, 3, H, W), float in [0, 1], to logits (B, K, H, W), as the network does.
    """
    fused: list[SegmentationNetwork] = []

    def answer(images: Tensor) -> Tensor:
        if images[0, 0].numel() < LARGE or network.precision != torch.float32:
            return network(images)
        if not fused:
            fused.append(fuse(network, images[:1, :, :96, :96]))  # enough to see the layers
        (chosen,) = fused
        logits = chosen.classify(chosen.embed(chosen.encode(images)))
        # one class after the other: enlarging and softmax then take many pixels at a time
        return resize(logits.contiguous(), images.shape[2:], chosen.align_corners)

    with evaluating(network):
        yield answer


@torch.inference_mode()
def fuse(network: SegmentationNetwork, images: Tensor) -> SegmentationNetwork:
    """Return a copy of a network, for inference on a CPU, in which layers are joined.

    A BatchNorm is joined to the convolution whose output it gets, and a ReLU or ReLU6 to the
    BatchNorm, as one pass of ``images`` shows. It does not show that nothing else uses what lies
    between them. But if something does, then the logits of the copy are wrong.

    Args:
        network: in evaluation mode.
        images: (B, 3, H, W), float in [0, 1]; they show the layers' order, and check the copy.

    Returns:
        The copy, or the network itself: if it is compiled, on another device, without oneDNN, or if
        the logits differ by more than rounding.

    Source: ours. ``torch.compile`` joins the same layers; it takes a C++ compiler, and minutes.
    """
    compiled = any(module._compiled_call_impl is not None for module in network.modules())
    if compiled or not runs_on_onednn(next(network.parameters())):
        return network
    chains, before = _chains(network, images)
    joined = copy.deepcopy(network)
    for names in chains:
        _join(joined, *names)
    if not (joined(images) - before).abs().max() <= 1e-4 * before.abs().max():
        return network
    return joined


def _chains(network: nn.Module, images: Tensor) -> tuple[list[tuple[str, str, str | None]], Tensor]:
    """Follow images through a network.

    Returns:
        Names of each convolution, of the BatchNorm behind it, and of the ReLU behind that, if there
        is one; and the logits.
    """
    # tensors are kept, so that their ids are; and their versions, which show changes in place
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}
    behind: dict[nn.Module, nn.Module] = {}
    calls: dict[nn.Module, int] = {}

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        before, _, version = made.get(id(inputs[0]), (None, None, None))
        if before is not None and inputs[0]._version == version:
            behind.setdefault(before, module)

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(output)] = (module, output, output._version)

    name_of = {module: name for name, module in network.named_modules()}
    hooks = []
    for module in name_of:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, *RELUS)):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with torch.inference_mode(False), torch.no_grad():  # inference tensors have no versions
            logits = network(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    chains = []
    for conv, norm in behind.items():
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if calls[conv] > 1 or calls[norm] > 1 or norm.running_mean is None:
            continue
        act = getattr(norm, "act", behind.get(norm))  # timm's BatchNorm brings its activation
        once = isinstance(act, RELUS) and calls.get(act) == 1
        chains.append((name_of[conv], name_of[norm], name_of[act] if once else None))
    return chains, logits


def _join(network: nn.Module, conv: str, norm: str, act: str | None) -> None:
    """Put one layer in the place of three, and nothing in the place of the other two."""
    layers = [network.get_submodule(name) if name else None for name in (conv, norm, act)]
    own = getattr(layers[1], "act", nn.Identity())
    network.set_submodule(conv, JoinedConv2d(*layers))
    if act is not None:
        network.set_submodule(act, nn.Identity())
    network.set_submodule(norm, nn.Identity() if own is layers[2] else own)


class JoinedConv2d(nn.Module):
    """Convolution, BatchNorm and ReLU by one call of oneDNN, for inference alone.

    Args:
        conv: with zeros as padding, or timm's padding as in TensorFlow.
        norm: the BatchNorm of its output, in evaluation mode.
        act: ``ReLU``, ``ReLU6`` or None.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, act: nn.Module | None) -> None:
        super().__init__()
        self.weight, self.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        self.kernel, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        self.same = isinstance(conv, FastConv2dSame)
        self.act, self.limits = "none", []
        if isinstance(act, nn.ReLU6):
            self.act, self.limits = "hardtanh", [0.0, 6.0]
        elif act is not None:
            self.act = "relu"
        # with a row or column of zeros above or to the left, see forward
        self._larger: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, h, w), of the size that the convolution gives."""
        padding, more = list(self.padding), (0, 0)
        if self.same:
            sides = zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
            reach = [
                max(0, (-(-side // step) - 1) * step + gap * (kernel - 1) + 1 - side)
                for side, kernel, step, gap in sides
            ]
            # A pixel more below and to the right: as many above and to the left, and a kernel with
            # a row or column of zeros there. No padded copy of the map is made.
            padding, more = [-(-each // 2) for each in reach], tuple(each % 2 for each in reach)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._weight(*more), self.bias, padding, self.stride, self.dilation, self.groups,
            self.act, self.limits, "",
        )  # fmt: skip

    def _weight(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) not in self._larger:
            weight = nn.functional.pad(self.weight.detach(), (columns, 0, rows, 0))
            self._larger[rows, columns] = weight.contiguous(memory_format=torch.channels_last)
        return self._larger[rows, columns]
