"""The encoder: any timm backbone, as a low-level and a high-level feature map."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfp_lib.errors import UserError, one_line
from ddfp_lib.models.weights import load_weights

PLAIN = ("vision_transformer", "eva")
"""timm's modules of backbones that keep one resolution from end to end: DINOv2, DINOv3."""


class Encoder(nn.Module):
    """Low-level and high-level features of an image by a backbone from timm.

    A convolutional backbone gives its features at stride 4 and its last ones; strides beyond
    ``output_stride`` are replaced by dilation, as DeepLab does.

    A plain transformer has one stride, its patch p. Low-level features are those after a quarter,
    a half and three quarters of its blocks, side by side; high-level ones those after the last.
    All are normalised by the backbone's last LayerNorm. The decoder enlarges the low-level ones
    four times, to stride p / 4: 3.5 for DINOv2, about what a convolutional backbone has. Images
    whose sides are no multiple of p are enlarged to the next one, bilinearly; as the logits are
    brought to the size of the image in the end, pixels stay where they were. (UniMatch V2 crops
    to multiples of 14 in training, and resizes in evaluation. This decoder is ours, theirs is
    DPT.)

    Args:
        name: timm's name of the backbone. The paper's is ``resnet101`` with
            ``options={"stem_type": "deep", "stem_width": 64}`` ("v1c": three 3x3 convolutions of
            64, 64 and 128 channels in the stem instead of one 7x7).
        output_stride: image pixels per high-level feature, 8, 16 or 32; of no meaning for plain
            transformers.
        pretrained: fetch timm's pretrained weights.
        weights: file of the starting weights, see :func:`~ddfp_lib.models.weights.load_weights`.
        weights_sha256: digest that this file must have; ``None`` for any.
        options: further arguments of ``timm.create_model``.

    Attributes:
        low_channels, high_channels: channels of the two outputs.
        enlarge: how many times the decoder enlarges the low-level features: 1, or 4 where they
            are a transformer's.

    Raises:
        UserError: timm has no such backbone, the backbone cannot have this output stride, or the
            file does not fit it.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        # Here and not above: timm takes seconds to import, and only networks need it.
        import timm
        from timm.models import is_model_in_modules

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UserError(
                f"network.encoder: timm has no backbone {name!r}; "
                + (f"did you mean {', '.join(near)}?" if near else "see timm.list_models()")
            )
        options = dict(options or {})
        plain = is_model_in_modules(name, PLAIN)
        try:
            if plain:
                self._open_plain(timm.create_model, name, pretrained, options)
            else:
                self._open_pyramid(timm.create_model, name, pretrained, options, output_stride)
        except Exception as error:  # a wrong option fails wherever timm first makes use of it
            reason = one_line(error) or type(error).__name__
            raise UserError(
                f"network.encoder: {name!r} cannot be built with output_stride {output_stride} "
                f"and options {options} ({reason}); "
                f"try strides 32 or 16, fewer options{', pretrained: false' if pretrained else ''} "
                "or another backbone"
            ) from error
        if weights is not None:
            load_weights(self.backbone, Path(weights), weights_sha256, name, options)

    def _open_pyramid(
        self,
        create: Callable[..., nn.Module],
        name: str,
        pretrained: bool,
        options: dict[str, Any],
        output_stride: int,
    ) -> None:
        self.backbone = create(
            name, features_only=True, output_stride=output_stride, pretrained=pretrained, **options
        )
        info = self.backbone.feature_info
        self._low = info.reduction().index(4) if 4 in info.reduction() else 0
        self._patch = None
        self.low_channels: int = info.channels()[self._low]
        self.high_channels: int = info.channels()[-1]
        self.enlarge = 1

    def _open_plain(
        self, create: Callable[..., nn.Module], name: str, pretrained: bool, options: dict[str, Any]
    ) -> None:
        self.backbone = create(
            name, num_classes=0, dynamic_img_size=True, pretrained=pretrained, **options
        )
        depth, width = len(self.backbone.blocks), self.backbone.embed_dim
        if depth < 4:
            raise ValueError(f"{depth} blocks, needs 4")
        self._blocks = [quarter * depth // 4 - 1 for quarter in (1, 2, 3, 4)]
        self._patch: tuple[int, int] | None = self.backbone.patch_embed.patch_size
        self.low_channels, self.high_channels, self.enlarge = 3 * width, width, 4

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W) float.

        Returns:
            low: (B, low_channels, H/4, W/4) float; of a plain transformer (B, low_channels, H/p,
                W/p), rounded up.
            high: (B, high_channels, H/output_stride, W/output_stride) float, or as ``low``.
        """
        if self._patch is None:
            features = self.backbone(images)
            return features[self._low], features[-1]
        *low, high = self.backbone.forward_intermediates(
            enlarged_to_multiple(images, self._patch),
            indices=self._blocks,
            norm=True,
            intermediates_only=True,
        )
        return torch.cat(low, dim=1), high


def enlarged_to_multiple(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Enlarge images (B, C, H, W) bilinearly until each side is a multiple of the patch's."""
    size = [-(-side // each) * each for side, each in zip(images.shape[2:], patch, strict=True)]
    if size == list(images.shape[2:]):
        return images
    return nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
