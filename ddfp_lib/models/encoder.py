"""The encoder: any convolutional timm backbone, cut at stride 4 and at its end."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ddfp_lib.errors import UserError


class Encoder(nn.Module):
    """Low-level and high-level features of an image by a backbone from timm.

    Strides beyond ``output_stride`` are replaced by dilation, as DeepLab does.

    Args:
        name: timm's name of the backbone. The paper's is ``resnet101`` with
            ``options={"stem_type": "deep", "stem_width": 64}`` ("v1c": three 3x3 convolutions in
            the stem instead of one 7x7).
        output_stride: image pixels per high-level feature, 8, 16 or 32.
        pretrained: fetch timm's pretrained weights.
        options: further arguments of ``timm.create_model``.

    Attributes:
        low_channels, high_channels: channels of the two outputs.

    Raises:
        UserError: timm has no such backbone, or the backbone cannot have this output stride.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Here and not above: timm takes seconds to import, and only networks need it.
        import timm

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UserError(
                f"network.encoder: timm has no backbone {name!r}; "
                + (f"did you mean {', '.join(near)}?" if near else "see timm.list_models()")
            )
        try:
            self.backbone = timm.create_model(
                name,
                features_only=True,
                output_stride=output_stride,
                pretrained=pretrained,
                **(options or {}),
            )
            info = self.backbone.feature_info
            self._low = info.reduction().index(4) if 4 in info.reduction() else 0
            self.low_channels: int = info.channels()[self._low]
            self.high_channels: int = info.channels()[-1]
        except Exception as error:  # a wrong option fails wherever timm first makes use of it
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"network.encoder: {name!r} cannot be built with output_stride {output_stride} "
                f"and options {dict(options or {})} ({reason}); "
                f"try strides 32 or 16, fewer options{', pretrained: false' if pretrained else ''} "
                "or another backbone"
            ) from error

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W) float.

        Returns:
            low: (B, low_channels, H/4, W/4) float.
            high: (B, high_channels, H/output_stride, W/output_stride) float.
        """
        features = self.backbone(images)
        return features[self._low], features[-1]
