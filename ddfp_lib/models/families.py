"""One small backbone of every module family of timm, and how this project can use it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ddfp_lib.config import normalisation
from ddfp_lib.config.schema import IMAGENET_MEAN, IMAGENET_STD
from ddfp_lib.errors import UserError
from ddfp_lib.models.encoder import Encoder, StrideError, check_name

STRIDES = (32, 16, 8)
"""The usual output strides."""

COLUMNS = ("module", "backbone", "low", "output stride", "image sides", "mean, std", "note")
"""Of a table of backbones."""

SMALL = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m_enc",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m_enc",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_conv_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_maxvit",
    "metaformer": "poolformer_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevitv2_050",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m_enc",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_48w_2s",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42b",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p16_224",
}
"""Name of the module in ``timm.models``, and a small model of it."""


@dataclass(frozen=True)
class Finding:
    """What of a backbone works here.

    Attributes:
        name: timm's name of the backbone.
        output_strides: the output strides that work, smallest first; none if it is refused.
        low: image pixels per low-level feature, after the decoder enlarged them.
        multiple: image sides are enlarged to multiples of this, 1: they are not. The largest, if it
            depends on the output stride.
        plain: whether it is a plain transformer, which has the stride of its patches.
        reason: why it is refused, or why an output stride is; empty if all work.
    """

    name: str
    output_strides: tuple[int, ...]
    low: float | None
    multiple: int | None
    plain: bool
    reason: str

    def cells(self, module: str) -> tuple[str, ...]:
        """Return this as a row of a table with :data:`COLUMNS`."""
        mean, std = normalisation(self.name, {})
        usual = (mean, std) == (IMAGENET_MEAN, IMAGENET_STD)
        numbers = "; ".join(" ".join(f"{v:.3g}" for v in triple) for triple in (mean, std))
        if not self.output_strides:
            return (module, self.name, "", "refused", "", "", self.reason)
        note = "one stride throughout" if self.plain else self.reason
        return (
            module,
            self.name,
            f"{self.low:g}",
            ", ".join(map(str, self.output_strides)),
            "any" if self.multiple == 1 else f"multiples of {self.multiple}",
            "ImageNet" if usual else numbers,
            note,
        )


def module_of(name: str) -> str:
    """Return timm's module of a backbone.

    Raises:
        UserError: timm has no such backbone.
    """
    from timm.models import model_entrypoint

    check_name(name)
    return model_entrypoint(name).__module__.rpartition(".")[2]


def attempts(name: str) -> Iterator[tuple[int, Encoder | UserError]]:
    """Build a backbone at the output strides 32, 16 and 8, and at its own if that is another.

    An error that no output stride changes, and a plain transformer, end the attempts.

    Args:
        name: timm's name of the backbone; its weights are not fetched.

    Yields:
        The output stride, and the encoder or the error. Built one after another.
    """
    own = None
    for stride in STRIDES:
        try:
            encoder = Encoder(name, stride)
        except StrideError as error:
            own = error.own
            yield stride, error
        except UserError as error:
            yield stride, error
            return
        else:
            yield stride, encoder
            if encoder.plain:
                return
    if own is not None and own not in STRIDES:
        try:
            yield own, Encoder(name, own)
        except UserError as error:
            yield own, error


def summarise(name: str, tried: Iterable[tuple[int, Encoder | UserError]]) -> Finding:
    """Return what :func:`attempts` found."""
    encoders, errors = [], []
    for _, outcome in tried:
        (encoders if isinstance(outcome, Encoder) else errors).append(outcome)
    reason = str(errors[-1]).removeprefix(f"network.encoder: {name!r} ") if errors else ""
    if reason.startswith("has no output_stride"):
        reason = "no dilation"
    if not encoders:
        refusals = [error for error in errors if not isinstance(error, StrideError)]
        reason = str((refusals or errors)[-1]).removeprefix(f"network.encoder: {name!r} ")
        return Finding(name, (), None, None, False, reason.partition(";")[0])
    return Finding(
        name,
        tuple(sorted(encoder.strides[1] for encoder in encoders)),
        encoders[0].strides[0] / encoders[0].enlarge,
        max(encoder.multiple[0] for encoder in encoders),
        encoders[0].plain,
        reason.partition(";")[0],
    )


def examine(name: str) -> Finding:
    """Return what of a backbone works here.

    Raises:
        UserError: timm has no such backbone.
    """
    return summarise(name, attempts(name))
