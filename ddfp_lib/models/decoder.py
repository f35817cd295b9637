"""The DeepLabv3+ decoder in parts: steps move its F, and the flow models its v."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddfp_lib.models.maps import resize
from ddfp_lib.models.norms import DualBatchNorm2d, PooledBatchNorm2d


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: context at several scales in parallel.

    Args:
        inputs: channels of the high-level features.
        width: channels of each branch and of the output.
        dilations: dilations of the 3x3 branches.
        head_kernel: side of the last convolution, which joins the branches: 1 (the paper's) or 3
            (model/model/decoder.py:158-168 of the DDFP release).
        pooling_norm: the image pooling branch has a BatchNorm (the release) instead of a bias
            (ours). It has one value per image and channel, so the statistics of small batches are
            poor; see :class:`~ddfp_lib.models.norms.PooledBatchNorm2d`.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        dilations: Sequence[int],
        head_kernel: int = 1,
        pooling_norm: bool = False,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [_conv_norm_relu(inputs, width, 1)]
            + [_conv_norm_relu(inputs, width, 3, dilation) for dilation in dilations]
        )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, width, 1, bias=not pooling_norm),
            *([PooledBatchNorm2d(width)] if pooling_norm else []),
            nn.ReLU(inplace=True),
        )
        self.project = _conv_norm_relu(width * (len(dilations) + 2), width, head_kernel)

    def forward(self, high: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, width, h, w)."""
        branches = [branch(high) for branch in self.branches]
        branches.append(self.pooled(high).expand(-1, -1, *high.shape[2:]))
        return self.project(torch.cat(branches, dim=1))


class Fusion(nn.Module):
    """First half of the decoder: ASPP and the projected low-level features, at stride 4.

    Its output F is what a perturbation is added to.

    Args:
        low_channels, high_channels: channels of the encoder's two outputs.
        low_width: channels of the projected low-level features.
        width: channels of the ASPP output; F has ``channels = low_width + width`` of them.
        dilations: dilations of ASPP.
        enlarge: F has this many times the size of the low-level features.
        head_kernel, pooling_norm: arguments of :class:`ASPP`.
        channel_dropout: probability that a channel of the ASPP output is zeroed in training.
        align_corners: how maps are resized, see :func:`~ddfp_lib.models.maps.resize`.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        low_width: int,
        width: int,
        dilations: Sequence[int],
        enlarge: int = 1,
        *,
        head_kernel: int = 1,
        pooling_norm: bool = False,
        channel_dropout: float = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.enlarge, self.align_corners = enlarge, align_corners
        self.channel_dropout = channel_dropout
        self.low = _conv_norm_relu(low_channels, low_width, 1)
        self.aspp = ASPP(high_channels, width, dilations, head_kernel, pooling_norm)
        self.channels = low_width + width

    def compile(self, **options: Any) -> None:
        """Compile all but dropout: it draws from generators, which graphs cannot hold."""
        self.low.compile(**options)
        self.aspp.compile(**options)

    def forward(
        self, low: Tensor, high: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Map (B, low_channels, h, w) and (B, high_channels, h', w') to F (B, channels, e h, e w).

        e is ``enlarge``. The generator draws the dropout masks; without it, and in evaluation,
        there is no dropout.
        """
        low = self.low(low)
        if self.enlarge != 1:
            size = [self.enlarge * side for side in low.shape[2:]]
            low = resize(low, size, self.align_corners)
        context = self.aspp(high)
        if self.training:
            context = dropout(context, self.channel_dropout, generator, channels=True)
        return torch.cat([low, resize(context, low.shape[2:], self.align_corners)], dim=1)


class Embedding(nn.Module):
    """Second half of the decoder, from F to the features v whose density is learned.

    Two times 3x3 convolution, BatchNorm with two sets of statistics, ReLU, dropout.

    Args:
        inputs: channels of F.
        width: channels D of v.
        dropout: probability that a value is zeroed in training, after each ReLU.
        channels: dropout zeroes whole channels of an image (the release), not single elements.
    """

    def __init__(self, inputs: int, width: int, dropout: float, channels: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm1 = DualBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = DualBatchNorm2d(width)
        self.dropout, self.drops_channels = dropout, channels

    def compile(self, **options: Any) -> None:
        """Compile all but dropout, as :class:`Fusion`."""
        self._layer = torch.compile(self._layer, **options)

    def forward(
        self,
        features: Tensor,
        *,
        auxiliary: bool = False,
        eval_mode: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Map F (B, inputs, h, w) to v (B, D, h, w).

        Args:
            features: F, (B, inputs, h, w) float.
            auxiliary: use the statistics kept for perturbed features.
            eval_mode: normalize by running statistics and leave them alone.
            generator: draws the dropout masks, on the device of ``features``; without it, and in
                evaluation, there is no dropout.
        """
        for first in (True, False):
            features = self._layer(features, first, auxiliary, eval_mode)
            if self.training and not eval_mode:
                features = dropout(features, self.dropout, generator, self.drops_channels)
        return features

    def _layer(self, x: Tensor, first: bool, auxiliary: bool, eval_mode: bool) -> Tensor:
        """Convolution, BatchNorm and ReLU, of the first or the second layer."""
        conv, norm = (self.conv1, self.norm1) if first else (self.conv2, self.norm2)
        return norm(conv(x), auxiliary=auxiliary, eval_mode=eval_mode).relu()


def dropout(
    x: Tensor, probability: float, generator: torch.Generator | None, channels: bool
) -> Tensor:
    """Zero elements or channels of ``x`` and scale the others by 1 / (1 - probability).

    Args:
        x: (B, C, h, w) float.
        probability: probability that a value is zeroed, from 0 to below 1; with 0 nothing is drawn.
        generator: draws the mask, on the device of ``x``; ``None``: no dropout.
        channels: zero whole channels of an image, not single elements.
    """
    if generator is None or probability == 0:
        return x
    # one byte a pixel is kept for the backward pass, and uniform is fast to draw
    drawn = torch.empty_like(x[:, :, :1, :1] if channels else x, dtype=torch.float32)
    kept = drawn.uniform_(generator=generator) < 1 - probability
    return x * kept / (1 - probability)
