"""The network is three calls, and which statistics a call uses is an argument of the call."""

import pytest
import timm
import torch
from torch import nn

from ddfp_lib.config import NetworkConfig
from ddfp_lib.errors import UserError
from ddfp_lib.models.decoder import ASPP, Embedding
from ddfp_lib.models.encoder import enlarged_to_multiple
from ddfp_lib.models.maps import resize
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.models.norms import DualBatchNorm2d

CLASSES = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_network(seed=0, classes=CLASSES, **options):
    tiny = {"low_width": 4, "aspp_width": 8, "dilations": (1, 2), "embedding": 8, "dropout": 0.3}
    config = NetworkConfig(**({"encoder": "test_resnet"} | tiny | options))
    return SegmentationNetwork(config, classes, seed)


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 48, generator=seeded())


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    """Names of what is no longer as in ``before``."""
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


# The three calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_seams_compose_to_the_network(images, training):
    network, twin = make_network().train(training), make_network().train(training)
    logits = twin.classify(twin.embed(twin.encode(images)))
    assert torch.equal(network(images), resize(logits, (32, 48)))


def test_images_are_normalised_as_the_backbone_was_trained(network, images):
    network.eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = network.fusion(*network.encoder((images - mean) / std))
    torch.testing.assert_close(network.encode(images), expected)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_shapes(images, stride):
    network = make_network(output_stride=stride).eval()
    low, high = network.encoder(images)
    assert low.shape == (2, network.encoder.low_channels, 8, 12)
    assert high.shape == (2, network.encoder.high_channels, -(-32 // stride), -(-48 // stride))
    features = network.encode(images)
    assert features.shape == (2, 4 + 8, 8, 12)
    embeddings = network.embed(features)
    assert embeddings.shape == (2, 8, 8, 12)
    assert network.classify(embeddings).shape == (2, CLASSES, 8, 12)
    assert network(images).shape == (2, CLASSES, 32, 48)


@pytest.mark.parametrize(
    ("encoder", "options", "low"),
    [
        ("test_resnet", {"out_indices": (1, 4)}, 32),
        ("test_resnet", {"stem_type": "deep", "stem_width": 8}, 32),
        ("test_efficientnet", {}, 24),
        ("test_convnext", {}, 24),  # its first features have stride 4 already
        ("resnet50", {}, 256),
        ("convnext_tiny", {"depths": (1, 1, 1, 1)}, 96),
    ],
)
def test_low_level_features_have_stride_4_in_any_backbone(images, encoder, options, low):
    network = make_network(encoder=encoder, encoder_options=options)
    assert network.encoder.low_channels == low
    assert network.encode(images).shape == (2, 12, 8, 12)


@pytest.mark.parametrize("size", [(17, 17), (33, 47), (31, 64), (65, 18)], ids=str)
def test_one_image_of_any_size_trains(size):
    """The pooled branch sees one value a channel: batch statistics of one value do not exist."""
    network = make_network()
    logits = network(torch.rand(1, 3, *size, generator=seeded()))
    assert logits.shape == (1, CLASSES, *size)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        if "auxiliary" not in name:
            assert parameter.grad.isfinite().all(), name
            # timm's residual branches start with weight 0, so theirs is 0 at first
            assert parameter.grad.any() or "backbone.layer" in name, name


def test_pooled_branch_sees_the_whole_image():
    aspp = ASPP(3, 4, (1,)).eval()
    for parameter in aspp.parameters():
        nn.init.ones_(parameter)  # everything positive: no ReLU hides anything
    features = torch.rand(1, 3, 9, 9, generator=seeded(), requires_grad=True)
    (reach,) = torch.autograd.grad(aspp(features)[0, :, 0, 0].sum(), features)
    assert reach[0].any(0).all()
    with torch.no_grad():
        for parameter in aspp.pooled.parameters():
            parameter.zero_()
    (reach,) = torch.autograd.grad(aspp(features)[0, :, 0, 0].sum(), features)
    assert not reach[0, :, 3:].any()


# Plain transformers ------------------------------------------------------------------------------

DINOV2 = {
    "encoder": "vit_small_patch14_dinov2",
    "encoder_options": {"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 28},
}
DINOV3 = {
    "encoder": "vit_small_patch16_dinov3",
    "encoder_options": {"depth": 5, "embed_dim": 32, "num_heads": 2},
}


@pytest.mark.parametrize("vit", [DINOV2, DINOV3, {"encoder": "test_vit"}], ids=str)
@pytest.mark.parametrize("size", [(28, 42), (32, 48), (17, 90), (5, 5)], ids=str)
def test_transformers_take_images_of_any_size(vit, size):
    network = make_network(**vit)
    patch = network.encoder.backbone.patch_embed.patch_size[0]
    cells = tuple(-(-side // patch) for side in size)
    images = torch.rand(2, 3, *size, generator=seeded())
    low, high = network.encoder(images)
    assert low.shape == (2, network.encoder.low_channels, *cells)
    assert high.shape == (2, network.encoder.high_channels, *cells)
    features = network.encode(images)
    assert features.shape == (2, 4 + 8, 4 * cells[0], 4 * cells[1])
    assert network(images).shape == (2, CLASSES, *size)


def test_transformer_features_are_of_four_depths():
    encoder = make_network(**DINOV2).encoder.eval()
    images = torch.rand(1, 3, 28, 28, generator=seeded())
    low, high = encoder(images)
    tokens = encoder.backbone.forward_features(images)[:, 1:]
    assert torch.equal(high.flatten(2).mT, tokens)
    assert low.shape[1] == 3 * high.shape[1]
    with torch.no_grad():
        for parameter in encoder.backbone.blocks[3].parameters():
            parameter.add_(0.1)
    after_low, after_high = encoder(images)
    assert torch.equal(low, after_low)
    assert not torch.equal(high, after_high)


def test_pixels_stay_where_they_were():
    """An image whose sides are no multiple of the patch is scaled, neither cropped nor shifted."""
    ramp = torch.linspace(0, 1, 30).expand(1, 3, 30, 30)
    enlarged = enlarged_to_multiple(ramp, (14, 14))
    assert enlarged.shape == (1, 3, 42, 42)
    torch.testing.assert_close(resize(enlarged, (30, 30)), ramp, atol=0.01, rtol=0)
    assert enlarged_to_multiple(ramp, (15, 10)) is ramp


@pytest.mark.parametrize("vit", [DINOV2, DINOV3], ids=lambda options: options["encoder"])
def test_every_weight_of_a_transformer_gets_a_gradient(vit):
    network = make_network(**vit)
    network(torch.rand(2, 3, 33, 40, generator=seeded())).square().mean().backward()
    for name, parameter in network.named_parameters():
        if "auxiliary" not in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# Starting weights --------------------------------------------------------------------------------


def test_the_seed_decides_the_weights():
    first = make_network(seed=1).state_dict()
    torch.rand(1)
    assert all(v.equal(first[name]) for name, v in make_network(seed=1).state_dict().items())
    other = make_network(seed=2)
    assert all(not p.equal(first[name]) for name, p in other.named_parameters() if p.dim() == 4)


def test_construction_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    make_network(seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_construction_seeds_no_gpu(monkeypatch):
    seeded_with = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_with.append)
    make_network(seed=1)
    assert seeded_with == []
    torch.manual_seed(torch.initial_seed())
    assert seeded_with, "torch.manual_seed no longer seeds GPUs: this test looks at nothing"


# What cannot be built ----------------------------------------------------------------------------


def test_unknown_backbone_names_near_ones():
    with pytest.raises(UserError, match=r"network\.encoder.*'resnet10l'.*resnet101"):
        make_network(encoder="resnet10l")
    with pytest.raises(UserError, match=r"network\.encoder.*timm\.list_models"):
        make_network(encoder="?")


@pytest.mark.parametrize("stride", [0, 4, 7, 64, -16])
def test_impossible_output_stride(stride):
    with pytest.raises(UserError, match=f"output_stride {stride}"):
        make_network(output_stride=stride)


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("test_resnet", {"no_such_option": 1}),
        ("test_resnet", {"act_layer": "no_such_layer"}),
        ("test_resnet", {"block": "no_such_block"}),
        ("test_resnet", {"out_indices": [99]}),
        ("test_resnet", {"out_indices": []}),
        ("test_resnet", {"output_stride": 8}),  # is an option of its own
        ("ghostnet_050", {"output_stride": 8}),
        ("test_resnet", {"features_only": False}),
        ("test_resnet", {"checkpoint_path": "no_such_file"}),
        ("test_vit", {"depth": 3}),  # has no four depths to take features from
    ],
    ids=str,
)
def test_impossible_options(encoder, options):
    with pytest.raises(UserError, match=f"network.encoder: '{encoder}' cannot be built") as caught:
        make_network(encoder=encoder, encoder_options=options)
    assert " ();" not in str(caught.value)  # a reason is given


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_images_have_three_channels(encoder, channels):
    with pytest.raises(UserError, match=f"in_chans is {channels}, but images have 3 channels"):
        make_network(encoder=encoder, encoder_options={"in_chans": channels})
    make_network(encoder=encoder, encoder_options={"in_chans": 3})


# Normalization -----------------------------------------------------------------------------------


def normalisation_of(**options):
    network = make_network(**options)
    return network.mean.flatten().tolist(), network.std.flatten().tolist()


def test_images_are_normalised_as_the_weights_want_it(tmp_path):
    usual = [pytest.approx((0.485, 0.456, 0.406)), pytest.approx((0.229, 0.224, 0.225))]
    assert [*normalisation_of()] == usual
    half = ([0.5] * 3, [0.5] * 3)  # what timm says of test_resnet
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    assert normalisation_of(weights=str(path)) == half
    mean = (0.25, 0.5, 0.75)
    assert normalisation_of(weights=str(path), mean=mean) == ([*mean], half[1])
    assert normalisation_of(mean=mean, std=mean) == ([*mean], [*mean])


# Two sets of statistics --------------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary", [False, True])
def test_each_set_of_statistics_learns_from_its_own_calls(auxiliary):
    norm, oracle = DualBatchNorm2d(3), nn.BatchNorm2d(3)
    x = 2 + 3 * torch.randn(4, 3, 5, 6, generator=seeded())
    before = snapshot(norm)
    assert torch.equal(norm(x, auxiliary=auxiliary), oracle(x))
    used = "auxiliary" if auxiliary else "main"
    buffers = {f"{used}.{name}" for name, _ in oracle.named_buffers()}
    assert changed(norm, before) == buffers
    assert norm.get_submodule(used).running_mean.equal(oracle.running_mean)

    norm.eval()
    oracle.eval()
    assert torch.equal(norm(x, auxiliary=auxiliary), oracle(x))
    assert not torch.allclose(norm(x, auxiliary=not auxiliary), oracle(x))


@pytest.mark.parametrize("auxiliary", [False, True])
def test_each_set_has_its_own_affine_weights(auxiliary):
    norm = DualBatchNorm2d(3)
    norm(torch.randn(4, 3, 5, 6, generator=seeded()), auxiliary=auxiliary).square().sum().backward()
    used, idle = (norm.auxiliary, norm.main) if auxiliary else (norm.main, norm.auxiliary)
    assert used.bias.grad is not None
    assert idle.bias.grad is None


@pytest.mark.parametrize("auxiliary", [False, True])
def test_frozen_is_evaluation_and_leaves_no_trace(auxiliary):
    norm = DualBatchNorm2d(3)
    x = 2 + 3 * torch.randn(4, 3, 5, 6, generator=seeded())
    norm(x, auxiliary=auxiliary)
    before = snapshot(norm)
    frozen = norm(x, auxiliary=auxiliary, eval_mode=True)
    assert norm.training
    assert not changed(norm, before)
    assert torch.equal(frozen, norm.eval()(x, auxiliary=auxiliary))


# Dropout -----------------------------------------------------------------------------------------


@pytest.fixture
def features():
    return torch.randn(2, 12, 8, 12, generator=seeded())


def test_dropout_needs_a_generator(network, features):
    """And it alone decides."""
    state = torch.get_rng_state()
    plain = network.embed(features)
    dropped = network.embed(features, generator=seeded(1))
    assert torch.equal(network.embed(features, generator=seeded(1)), dropped)
    assert not torch.equal(network.embed(features, generator=seeded(2)), dropped)
    assert torch.equal(network.embed(features), plain)
    assert (dropped == 0).sum() > (plain == 0).sum()
    assert torch.equal(torch.get_rng_state(), state)


def test_no_dropout_in_evaluation_nor_frozen(network, features):
    network.embed(features)  # statistics that are not those of the start
    before = snapshot(network)
    frozen = network.embed(features, eval_mode=True, generator=seeded())
    assert network.training
    network.eval()
    assert torch.equal(frozen, network.embed(features))
    assert torch.equal(frozen, network.embed(features, generator=seeded()))
    assert not changed(network, before)


def test_dropout_keeps_the_mean():
    """Elements are zeroed with the given probability, and the others scaled to make up for it."""
    embedding = Embedding(3, 4, dropout=0.25)
    nn.init.zeros_(embedding.norm2.main.weight)
    nn.init.ones_(embedding.norm2.main.bias)  # without dropout every element would be 1
    v = embedding(torch.randn(8, 3, 25, 25, generator=seeded()), generator=seeded(1))
    share = (v == 0).float().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / v.numel()) ** 0.5
    torch.testing.assert_close(v[v != 0], torch.full_like(v[v != 0], 1 / 0.75))


@pytest.mark.parametrize("auxiliary", [False, True])
def test_embed_hands_its_arguments_on(network, features, auxiliary):
    before = snapshot(network)
    network.embed(features, auxiliary=auxiliary)
    used = "auxiliary" if auxiliary else "main"
    moved = changed(network, before)
    assert len(moved) == 2 * 3  # two norms, each with mean, variance and counter
    assert all(f".{used}." in name for name in moved)


# Evaluation mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode(network, training):
    network.train(training)
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert all(module.training is training for module in network.modules())
    with pytest.raises(RuntimeError, match="inside"), evaluating(network):
        raise RuntimeError("inside")
    assert network.training is training


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (37, 51), (64, 33)], ids=str)
def test_evaluation_takes_images_of_any_size(network, size):
    network.eval()
    logits = network(torch.rand(1, 3, *size, generator=seeded()))
    assert logits.shape == (1, CLASSES, *size)
    assert logits.isfinite().all()


# The decoder of the release, by options ----------------------------------------------------------

RELEASED = {
    "head_kernel": 3,
    "pooling_norm": True,
    "dropout_of": "channels",
    "align_corners": True,
}


@pytest.mark.parametrize("option", RELEASED, ids=str)
def test_each_option_of_the_decoder_works_alone(option, images):
    """In training and evaluation, and it changes the result."""
    images = images.repeat(1, 1, 2, 2)
    plain, changed = make_network(), make_network(**{option: RELEASED[option]})
    for network in (plain, changed):
        network.classifier.load_state_dict(make_network().classifier.state_dict())
    ours, other = (
        network.classify(
            network.embed(network.encode(images, generator=seeded()), generator=seeded(1)),
            images.shape[2:],
        )
        for network in (plain, changed)
    )
    assert ours.shape == other.shape
    assert not torch.allclose(ours, other)
    assert changed.eval()(images[:1]).isfinite().all()


def test_one_image_a_step_trains_the_released_decoder(images):
    """The pooled features of one image have no variance: running statistics stand in for it."""
    network = make_network(**RELEASED)
    norm = network.fusion.aspp.pooled[2].norm
    before = snapshot(norm)
    loss = network(images[:1]).square().mean()
    loss.backward()
    assert loss.isfinite()
    assert not changed(norm, before)
    assert network.fusion.aspp.project[0].weight.grad.abs().sum() > 0
    network(images)
    assert "running_mean" in changed(norm, before)


def test_channel_dropout_zeroes_whole_channels_in_three_places(images):
    network = make_network(dropout_of="channels", dropout=0.5)
    plain, dropped = network.encode(images), network.encode(images, generator=seeded(3))
    low, context = 4, 8
    assert torch.equal(plain[:, :low], dropped[:, :low])
    zeroed = (dropped[:, low:] == 0).all(dim=(2, 3))
    assert 0 < zeroed.sum() < 2 * context
    kept = ~zeroed[:, :, None, None].expand(2, context, *plain.shape[2:])
    torch.testing.assert_close(dropped[:, low:][kept], 2 * plain[:, low:][kept])

    masks = []
    torch.manual_seed(0)
    for width in ("norm1", "norm2"):
        getattr(network.embedding, width).register_forward_hook(
            lambda module, inputs, output: masks.append(output.relu())
        )
    v = network.embed(plain, generator=seeded(4))
    zeroed = (v == 0).all(dim=(2, 3))
    assert zeroed.any()
    alive = ~zeroed[:, :, None, None].expand_as(v)
    torch.testing.assert_close(v[alive], 2 * masks[-1][alive])
    network.eval()
    assert torch.equal(network.encode(images, generator=seeded()), network.encode(images))


def test_aligned_corners_keep_the_corners():
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    enlarged = resize(ramp, (17, 17), align_corners=True)
    assert torch.equal(enlarged[0, 0, 0], torch.arange(17.0) / 4)
    assert torch.equal(enlarged[:, :, ::4, ::4], ramp)
