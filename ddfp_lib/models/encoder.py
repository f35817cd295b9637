"""The encoder: a timm backbone that gives a low-level and a high-level feature map."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddfp_lib.errors import UserError, one_line
from ddfp_lib.models.stochastic import draws
from ddfp_lib.models.weights import load_weights

PLAIN = ("vision_transformer", "eva", "deit")
"""timm's modules whose backbones keep one resolution from end to end, such as DINOv2 and DINOv3.

A backbone of another module that has one stride everywhere is recognized by its strides."""

RESIZABLE = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
"""timm's modules that take images of any size if they are asked to."""

FIXED_WINDOWS = ("byoanet",)
"""timm's modules whose last stages attend to a fixed number of cells (HaloNet, Lambda networks).

timm gives them finer maps if it is asked to, but nothing widens their attention in return."""

_MULTIPLES: dict[str, tuple[int, int]] = {}
"""What image sides must be multiples of, by what it depends on. It is measured by a pass through
the backbone, and a process may build the same backbone many times."""

OURS = {
    "output_stride": "set network.output_stride instead",
    "features_only": "the encoder sets it",
    "pretrained": "set network.pretrained instead",
}
"""Arguments of ``timm.create_model`` that are not the user's, with the fix."""

WINDOWS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Image sides are tried as multiples of the output stride times each of these, in this order.

They cover what timm's backbones need: pairs of cells (MobileViT), windows of 7 (GCViT, MaxViT)."""


class _Mismatch(NamedTuple):
    """What is wrong with a backbone's maps, and whether a whole number of cells became fewer."""

    reason: str
    too_few: bool


class StrideError(UserError):
    """A backbone cannot have the requested output stride.

    Attributes:
        own: the output stride that it has without dilation.
    """

    def __init__(self, message: str, own: int) -> None:
        super().__init__(message)
        self.own = own


class Encoder(nn.Module):
    """Low-level and high-level features of an image, from a timm backbone.

    A convolutional backbone gives its features at stride 4 and its last features. Strides beyond
    ``output_stride`` are replaced by dilation, as in DeepLab. Some backbones (Swin, DenseNet, PVT)
    have strides of their own and no dilation: they are used at their own output stride, and any
    other value is an error.

    A plain transformer has one stride, its patch size p, whatever ``output_stride`` is. The
    low-level features are those after a quarter, a half and three quarters of its blocks, side by
    side; the high-level features are those after the last block. All are normalized by the
    backbone's last LayerNorm.

    The decoder enlarges low-level features of a plain transformer four times, to stride p / 4: 3.5
    for DINOv2, about what a convolutional backbone has. It enlarges those of other backbones to
    stride 4. (UniMatch V2 crops to multiples of 14 in training and resizes in evaluation. This
    decoder is ours, theirs is DPT.)

    Images whose sides do not suit the backbone are enlarged bilinearly to the next multiple of
    ``multiple``. The logits are resized to the image in the end, so predictions fall on the right
    pixels. The multiple is measured once, on small images of zeros: 1 if an image of 75 x 101
    pixels gives maps of ceil(75 / stride) x ceil(101 / stride) cells, else the first multiple of
    the output stride (times 1, 2, 3, ...) at which the maps have the right size.

    Args:
        name: timm's name of the backbone. The paper's is ``resnet101`` with
            ``options={"stem_type": "deep", "stem_width": 64}`` ("v1c": three 3x3 convolutions of
            64, 64 and 128 channels in the stem instead of one 7x7).
        output_stride: image pixels per high-level feature: 8, 16, 32, or the backbone's own.
            Plain transformers ignore it.
        pretrained: fetch timm's pretrained weights.
        weights: starting weights, see :func:`~ddfp_lib.models.weights.load_weights`.
        weights_sha256: digest that this file must have; ``None`` for any.
        options: further arguments of ``timm.create_model``.

    Attributes:
        low_channels, high_channels: channels of the two outputs.
        plain: whether it is a plain transformer.
        strides: image pixels per low-level and per high-level feature.
        multiple: (height, width); the sides of an image are enlarged to multiples of these.
        enlarge: how many times the decoder enlarges the low-level features.
        draws: whether it draws random numbers in training, as stochastic depth does.

    Raises:
        StrideError: the backbone cannot have this output stride.
        UserError: timm has no such backbone, it takes images of one size only, its maps do not
            match the pixels, or the weights do not fit it.
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
        # timm takes seconds to import, and only networks need it.
        from timm.models import is_model_in_modules

        check_name(name)
        options = dict(options or {})
        _check_options(name, options)
        self._norm: nn.Module | None = None
        self._channels_last = False
        try:
            if is_model_in_modules(name, PLAIN):
                self._open_plain(name, pretrained, options)
            else:
                self._open_pyramid(name, pretrained, options, output_stride)
        except UserError:
            raise
        except Exception as error:  # a wrong option fails wherever timm first uses it
            reason = one_line(error) or type(error).__name__
            raise UserError(
                f"network.encoder: {name!r} cannot be built with options {options} ({reason}); "
                f"use fewer options{', pretrained: false' if pretrained else ''} "
                "or another backbone"
            ) from error
        case = repr((name, output_stride, sorted(options.items())))
        if case not in _MULTIPLES:
            _MULTIPLES[case] = self._measured_multiple(name)
        self.multiple = _MULTIPLES[case]
        self.draws = draws(self.backbone)
        if weights is not None:
            load_weights(self.backbone, weights, weights_sha256, name, options)

    def _open_pyramid(
        self, name: str, pretrained: bool, options: dict[str, Any], output_stride: int
    ) -> None:
        import timm
        from timm.models import is_model_in_modules

        arguments = {"features_only": True, "pretrained": pretrained, **options}
        if is_model_in_modules(name, RESIZABLE):
            arguments.setdefault("dynamic_img_size", True)
        try:
            self.backbone = timm.create_model(name, output_stride=output_stride, **arguments)
        except (TypeError, AssertionError):  # it has no choice of strides
            self.backbone = timm.create_model(name, **arguments)
        strides = self.backbone.feature_info.reduction()
        if len(strides) > 1 and len(set(strides)) == 1 and hasattr(self.backbone, "model"):
            return self._open_plain(name, pretrained, options)
        if strides[-1] != output_stride:
            raise StrideError(
                f"network.encoder: {name!r} has no output_stride {output_stride}, its own is "
                f"{strides[-1]}; set network.output_stride={strides[-1]}, or choose a backbone "
                "with dilation, such as resnet50",
                strides[-1],
            )
        lacks = ""
        if output_stride < 32 and is_model_in_modules(name, FIXED_WINDOWS):
            lacks = "attention over a fixed number of cells and no dilation"
        elif strides.count(output_stride) > 2 and not _is_dilated(self.backbone):
            lacks = "strides but no dilated convolutions"
        if lacks:
            raise StrideError(
                f"network.encoder: {name!r} has {lacks} at output_stride {output_stride}, so "
                "pretrained weights would not fit; set network.output_stride=32, or choose a "
                "backbone with dilation, such as resnet50",
                32,
            )
        self._low = strides.index(4) if 4 in strides else 0
        self.plain = False
        self._blocks: list[int] = []
        self._channels_last = str(getattr(self.backbone, "output_fmt", "")).endswith("NHWC")
        self.strides = (strides[self._low], strides[-1])
        self.low_channels: int = self.backbone.feature_info.channels()[self._low]
        self.high_channels: int = self.backbone.feature_info.channels()[-1]
        # out_indices are the user's choice of strides
        self.enlarge = 1 if "out_indices" in options else max(1, self.strides[0] // 4)

    def _open_plain(self, name: str, pretrained: bool, options: dict[str, Any]) -> None:
        import timm

        arguments = {"num_classes": 0, "pretrained": pretrained, **options}
        try:
            self.backbone = timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:  # it takes any size without being asked, or none but its own
            self.backbone = timm.create_model(name, **arguments)
        stages = self.backbone.feature_info
        depth, width, patch = len(stages), stages[-1]["num_chs"], stages[-1]["reduction"]
        if depth < 4:
            raise ValueError(f"{depth} blocks, needs 4")
        self.plain = True
        self._blocks = [quarter * depth // 4 - 1 for quarter in (1, 2, 3, 4)]
        # timm applies `norm` to what it returns, but backbones that pool their tokens for a
        # classifier (global_pool="avg") have their last LayerNorm in `fc_norm`
        norm = getattr(self.backbone, "norm", None)
        if norm is None or isinstance(norm, nn.Identity):
            self._norm = getattr(self.backbone, "fc_norm", None)
        self.strides = (patch, patch)
        self.low_channels, self.high_channels = 3 * width, width
        self.enlarge = 4

    def _measured_multiple(self, name: str) -> tuple[int, int]:
        """Return what image sides must be multiples of, see the class."""
        wrong = self._mismatch(75, 101)
        if wrong is None:
            return 1, 1
        for factor in WINDOWS:
            side = factor * self.strides[1]
            wrong = self._mismatch(side, 3 * side)
            if wrong is None:
                return side, side
            if wrong.too_few:  # convolutions without padding: no size helps
                break
        height, width = self.backbone.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
        if not wrong.too_few and self._mismatch(height, width) is None:
            raise UserError(
                f"network.encoder: {name!r} takes images of {height}x{width} pixels only, but "
                "this project needs other sizes too; choose another backbone, see ddfp backbones"
            )
        raise UserError(
            f"network.encoder: {name!r} gives no maps that match the pixels ({wrong.reason}); "
            "choose another backbone, see ddfp backbones"
        )

    @torch.no_grad()
    def _mismatch(self, height: int, width: int) -> _Mismatch | None:
        """Return what is wrong with the maps of an image of this size, ``None`` if nothing is."""
        device = next(self.backbone.parameters()).device
        self.backbone.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                maps = self._maps(torch.zeros(1, 3, height, width, device=device))
        except Exception as error:  # backbones fail on sizes in their own ways
            return _Mismatch(one_line(error) or type(error).__name__, False)
        finally:
            self.backbone.train()
        channels = (self.low_channels, self.high_channels)
        for features, stride, wide in zip(maps, self.strides, channels, strict=True):
            given = tuple(features.shape[1:])
            right = (wide, -(-height // stride), -(-width // stride))
            if given != right:
                sizes = ("x".join(map(str, size)) for size in (given, right))
                return _Mismatch(
                    f"{height}x{width} pixels give {' features, not '.join(sizes)}",
                    height % stride == width % stride == 0 and given < right,
                )
        return None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalized images.

        Args:
            images: (B, 3, H, W) float.

        Returns:
            low, (B, low_channels, H'/strides[0], W'/strides[0]) float, and high, (B, high_channels,
            H'/strides[1], W'/strides[1]) float, rounded up. H' and W' are H and W, rounded up to
            ``multiple``.
        """
        return self._maps(enlarged_to_multiple(images, self.multiple))

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not self.plain:
            features = self.backbone(images)
            low, high = features[self._low], features[-1]
            return (low.movedim(-1, 1), high.movedim(-1, 1)) if self._channels_last else (low, high)
        maps = self.backbone.forward_intermediates(
            images, indices=self._blocks, norm=True, intermediates_only=True
        )
        if self._norm is not None:
            maps = [self._norm(features.movedim(1, -1)).movedim(-1, 1) for features in maps]
        *low, high = maps
        return torch.cat(low, dim=1), high


def check_name(name: str) -> None:
    """Check that timm has this backbone.

    Raises:
        UserError: it has not; the message lists similar names.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"network.encoder: timm has no backbone {name!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "see timm.list_models()")
        )


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    for key, fix in OURS.items():
        if key in options:
            raise UserError(
                f"network.encoder: {name!r} cannot be built with the option {key}; {fix}"
            )
    if options.get("in_chans", 3) != 3:
        raise UserError(
            f"network.encoder_options: in_chans is {options['in_chans']}, but images have 3 "
            "channels here (gray images are read as RGB); remove in_chans"
        )


def _is_dilated(backbone: nn.Module) -> bool:
    """Return whether a convolution wider than 1x1 has a dilation above 1."""
    return any(
        max(module.dilation) > 1
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    )


def enlarged_to_multiple(images: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Enlarge images (B, C, H, W) bilinearly until (H, W) are multiples of ``multiple``."""
    size = [-(-side // each) * each for side, each in zip(images.shape[2:], multiple, strict=True)]
    if size == list(images.shape[2:]):
        return images
    return nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
