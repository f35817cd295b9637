"""timm's backbones work at their strides and on images of any size, or are refused in a line."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import list_modules
from torch import nn

from ddfp_lib.cli.backbones import backbones
from ddfp_lib.config import NetworkConfig
from ddfp_lib.errors import UserError
from ddfp_lib.models.encoder import Encoder, StrideError
from ddfp_lib.models.families import SMALL, attempts, examine, module_of, summarise
from ddfp_lib.models.network import SegmentationNetwork

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
SIZES = [(64, 64), (75, 101)]
QUICK = [
    "byobnet",
    "convnext",  # rounds down without enlarging
    "densenet",  # takes no output stride, not even its own
    "dla",  # fails on odd sizes without enlarging
    "efficientnet",
    "efficientvit_msra",  # strides 16, 32, 64
    "ghostnet",
    "hrnet",
    "mambaout",  # channels last
    "maxxvit",  # windows of 5
    "mlp_mixer",  # refused: images of one size
    "nfnet",
    "resnet",
    "vision_transformer",
]


def check(module):
    """Every attempt on this module's backbone is right, or one line."""
    name, outcomes = SMALL[module], []
    for stride, outcome in attempts(name):
        outcomes.append((stride, outcome))
        if isinstance(outcome, UserError):
            assert str(outcome).startswith(f"network.encoder: {name!r} ")
            assert "\n" not in str(outcome)
            continue
        assert outcome.strides[1] == stride or outcome.plain
        outcome.eval()
        for size in SIZES:
            sides = [-(-side // m) * m for side, m in zip(size, outcome.multiple, strict=True)]
            with torch.no_grad():
                low, high = outcome(torch.rand(2, 3, *size))
            channels = (outcome.low_channels, outcome.high_channels)
            for features, each, width in zip((low, high), outcome.strides, channels, strict=True):
                assert features.shape == (2, width, *(-(-side // each) for side in sides))
                assert features.isfinite().all()
    row = summarise(name, outcomes).cells(module)
    assert f"| {' | '.join(row)} |" in PAGE.read_text(encoding="utf-8"), (
        "run: ddfp backbones --out docs/backbones.md"
    )


@pytest.mark.parametrize("module", QUICK)
def test_some_module_families(module):
    check(module)


@pytest.mark.soak
@pytest.mark.fault(
    "a backbone",
    "modules of timm: feature maps of the right size for images of unusual sizes, or an error "
    "message of one line",
)
@pytest.mark.parametrize("module", [module for module in SMALL if module not in QUICK])
def test_all_other_module_families(module):
    check(module)


def test_every_module_of_timm_has_a_small_backbone():
    assert list(SMALL) == list_modules()
    assert all(module_of(name) == module for module, name in SMALL.items())


# Strides -----------------------------------------------------------------------------------------


def test_a_backbone_with_strides_of_its_own_names_them():
    with pytest.raises(StrideError, match=r"no output_stride 16, its own is 32; set network\.out"):
        Encoder("ghostnet_050", 16)
    assert Encoder("ghostnet_050", 32).strides == (4, 32)


def test_strides_without_dilation_are_refused():
    """MobileOne takes output_stride=8, and its convolutions see half and a quarter as far."""
    timm.create_model("mobileone_s0", features_only=True, output_stride=8)
    with pytest.raises(StrideError, match="no dilated convolutions at output_stride 8"):
        Encoder("mobileone_s0", 8)


@pytest.mark.parametrize(
    ("name", "stride"), [("halonet26t", 16), ("lambda_resnet26t", 16), ("sehalonet33ts", 8)]
)
def test_attention_of_a_fixed_number_of_cells_is_refused_at_finer_strides(name, stride):
    """timm gives the maps, and the last stage sees half and a quarter as far in them."""
    model = timm.create_model(name, features_only=True, output_stride=stride)
    assert model.feature_info.reduction()[-1] == stride
    words = rf"attention over a fixed number of cells and no dilation at output_stride {stride}"
    with pytest.raises(StrideError, match=words):
        Encoder(name, stride)


def test_coarse_low_level_features_are_enlarged_to_stride_4():
    encoder = Encoder("efficientvit_m0", 64)
    assert encoder.strides == (16, 64)
    config = NetworkConfig("efficientvit_m0", output_stride=64, low_width=4, aspp_width=4)
    network = SegmentationNetwork(config, 3).eval()
    with torch.no_grad():
        assert network.encode(torch.rand(1, 3, 64, 96)).shape[2:] == (16, 24)


def test_channels_last_maps_are_turned():
    encoder = Encoder("test_mambaout", 32).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        _, high = encoder(images)
        assert torch.equal(high.movedim(1, -1), encoder.backbone(images)[-1])


# Image sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["densenet121", "dla46_c"])
def test_features_see_the_right_pixels(name):
    """Seen pixels go down the image in step with the rows of cells, though none is a whole one."""
    encoder = Encoder(name, 32).eval()
    images = torch.rand(1, 3, 75, 101, requires_grad=True)
    low, _ = encoder(images)
    assert low.shape[2:] == (24, 32)
    for row in (6, 12, 18):
        (seen,) = torch.autograd.grad(low[0, :, row].square().sum(), images, retain_graph=True)
        strength = seen.abs().sum((0, 1, 3))
        centre = (strength * torch.arange(75)).sum() / strength.sum()
        assert abs(centre - ((row + 0.5) * 75 / 24 - 0.5)) < 2, row


def test_the_multiple_is_no_larger_than_needed():
    assert Encoder("test_resnet", 16).multiple == (1, 1)
    assert Encoder("test_convnext", 16).multiple == (16, 16)
    assert Encoder("hrnet_w18_small", 32).multiple == (32, 32)
    assert Encoder("test_maxvit", 32).multiple == (160, 160)


def test_a_backbone_for_one_size_is_refused():
    with pytest.raises(UserError, match=r"takes images of 224x224 pixels only.*ddfp backbones"):
        Encoder("gmlp_ti16_224", 32)


def test_maps_that_do_not_match_the_pixels_are_refused():
    """Convolutions without padding lose the image's rim."""
    with pytest.raises(UserError, match="gives no maps that match the pixels"):
        Encoder("inception_v4", 32)


def test_measuring_leaves_the_backbone_as_it_was():
    torch.manual_seed(0)
    encoder = Encoder("test_resnet", 16)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", features_only=True, output_stride=16)
    assert torch.rand(1) == drawn
    for key, value in plain.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[key], value), key
    assert all(module.training for module in encoder.modules())


# Plain transformers ------------------------------------------------------------------------------


def test_the_last_norm_is_found_where_it_is():
    """Backbones that average their tokens for the classifier call it fc_norm."""
    options = {"global_pool": "avg", "depth": 4}
    encoder = Encoder("test_vit", options=options).eval()
    assert isinstance(encoder.backbone.norm, nn.Identity)
    with torch.no_grad():
        for parameter in encoder.backbone.fc_norm.parameters():
            parameter.normal_()
        low, high = encoder(torch.rand(1, 3, 32, 48))
    for features in (*low.chunk(3, dim=1), high):
        norm = encoder.backbone.fc_norm
        found = (features.movedim(1, -1) - norm.bias) / norm.weight
        torch.testing.assert_close(found.mean(-1), torch.zeros(found.shape[:-1]), atol=1e-4, rtol=0)


# The command -------------------------------------------------------------------------------------


def test_the_command_renews_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- generated by `ddfp backbones`: begin backbones -->\nold\n"
        "<!-- end backbones -->\nafter\n"
    )
    backbones(["test_resnet", "gmlp_ti16_224"], page)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| resnet | test_resnet | 4 | 8, 16, 32 | any | 0.5 0.5 0.5; 0.5 0.5 0.5 |  |" in text
    assert "| mlp_mixer | gmlp_ti16_224 |  | refused |" in text
    assert "test_resnet" in capsys.readouterr().out


def test_the_command_names_what_timm_does_not_have():
    with pytest.raises(UserError, match=r"resnet10l.*resnet101"):
        backbones(["resnet10l"])
    assert examine("test_resnet").output_strides == (8, 16, 32)
