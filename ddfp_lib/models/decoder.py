"""The DeepLabv3+ decoder, cut where the perturbation goes in and where the density is taken."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddfp_lib.models.norms import DualBatchNorm2d


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: context at several scales in parallel.

    The image-pooling branch has a bias and no BatchNorm: its input is one value per image and
    channel, on which batch statistics fail for a batch of one image.

    Args:
        inputs: channels of the high-level features.
        width: channels of each branch and of the output.
        dilations: of the 3x3 branches.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018.
    """

    def __init__(self, inputs: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [_conv_norm_relu(inputs, width, 1)]
            + [_conv_norm_relu(inputs, width, 3, dilation) for dilation in dilations]
        )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1), nn.ReLU(inplace=True)
        )
        self.project = _conv_norm_relu(width * (len(dilations) + 2), width, 1)

    def forward(self, high: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, width, h, w)."""
        branches = [branch(high) for branch in self.branches]
        branches.append(self.pooled(high).expand(-1, -1, *high.shape[2:]))
        return self.project(torch.cat(branches, dim=1))


class Fusion(nn.Module):
    """First half of the decoder: ASPP beside the projected low-level features, at stride 4.

    Its output F is what a perturbation is added to.

    Args:
        low_channels, high_channels: of the encoder's outputs.
        low_width: channels of the projected low-level features.
        width: channels of the ASPP output; F has ``channels = low_width + width`` of them.
        dilations: of ASPP.
        enlarge: F has this many times the size of the low-level features.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        low_width: int,
        width: int,
        dilations: Sequence[int],
        enlarge: int = 1,
    ) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.low = _conv_norm_relu(low_channels, low_width, 1)
        self.aspp = ASPP(high_channels, width, dilations)
        self.channels = low_width + width

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Map (B, low_channels, h, w) and (B, high_channels, h', w') to F (B, channels, e h, e w).

        e is ``enlarge``.
        """
        low = self.low(low)
        if self.enlarge != 1:
            low = nn.functional.interpolate(
                low, scale_factor=self.enlarge, mode="bilinear", align_corners=False
            )
        context = nn.functional.interpolate(
            self.aspp(high), size=low.shape[2:], mode="bilinear", align_corners=False
        )
        return torch.cat([low, context], dim=1)


class Embedding(nn.Module):
    """Second half of the decoder, from F to the features v whose density is learned.

    Two times 3x3 convolution, two-statistics BatchNorm, ReLU, dropout.

    Args:
        inputs: channels of F.
        width: channels D of v.
        dropout: probability that an element of v is zeroed in training.
    """

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm1 = DualBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = DualBatchNorm2d(width)
        self.dropout = dropout

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
            eval_mode: normalise by running statistics and leave them alone.
            generator: draws the dropout masks, on the device of ``features``; without it, and in
                evaluation, there is no dropout.
        """
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            features = norm(conv(features), auxiliary=auxiliary, eval_mode=eval_mode).relu()
            if generator is not None and self.training and not eval_mode and self.dropout > 0:
                # one byte a pixel is kept for the backward pass, and uniform is fast to draw
                drawn = torch.empty_like(features, dtype=torch.float32)
                kept = drawn.uniform_(generator=generator) < 1 - self.dropout
                features = features * kept / (1 - self.dropout)
        return features
