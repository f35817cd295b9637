"""The network that answers in evaluation is the network, but for rounding."""

import copy

import pytest
import torch
from torch import nn

from ddfp_lib.config.schema import NetworkConfig
from ddfp_lib.models.inference import LARGE, JoinedConv2d, answering, fuse
from ddfp_lib.models.network import SegmentationNetwork, evaluating

ON_ONEDNN = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
)
pytestmark = pytest.mark.skipif(not ON_ONEDNN, reason="oneDNN has no kernels for this processor")


def network_of(encoder, **settings):
    """A small decoder on a backbone; BatchNorms have statistics as after some training."""
    widths = {"low_width": 8, "aspp_width": 8, "dilations": (1, 2), "embedding": 8}
    network = SegmentationNetwork(NetworkConfig(encoder=encoder, **widths, **settings), 5)
    rng = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.add_(0.1 * torch.randn(values.shape, generator=rng))
            module.running_var.mul_(0.5 + torch.rand(values.shape, generator=rng))
    return network.to(memory_format=torch.channels_last)


def images_of(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def joined(network):
    return [module for module in network.modules() if isinstance(module, JoinedConv2d)]


# padding as in TensorFlow; ReLU in Sequential and in timm's BatchNorm; no BatchNorm to join
@pytest.mark.parametrize(
    ("encoder", "settings", "least"),
    [
        ("tf_efficientnet_lite0", {}, 55),
        ("test_resnet", {"pooling_norm": True, "head_kernel": 3}, 10),
        ("test_efficientnet", {"align_corners": True}, 10),
        ("test_vit", {}, 5),
    ],
)
def test_logits_are_those_of_the_network(encoder, settings, least):
    network = network_of(encoder, **settings)
    with evaluating(network), torch.inference_mode():
        fused = fuse(network, images_of(1, 3, 64, 64))
        assert len(joined(fused)) >= least
        for size in ((64, 64), (37, 50), (64, 51), (97, 64)):
            images = images_of(2, 3, *size)
            expected = network(images)
            torch.testing.assert_close(
                fused(images), expected, rtol=0, atol=2e-5 * expected.abs().max().item()
            )


def test_the_network_stays_as_it_is_and_small_images_are_its_own():
    network = network_of("test_resnet").train()
    before = copy.deepcopy(network.state_dict())
    large, small = images_of(1, 3, 128, LARGE // 128), images_of(2, 3, 64, 64)
    with torch.inference_mode(), answering(network) as answer:
        assert not network.training
        expected = network(large)
        torch.testing.assert_close(answer(large), expected, rtol=0, atol=1e-4)
        assert torch.equal(answer(small), network(small))
        assert not joined(network)
    assert network.training
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


class Forked(nn.Module):
    """The convolution's output goes into the BatchNorm, and past it."""

    def __init__(self, past, twice):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.norm.running_mean.fill_(0.3)
        self.past, self.twice = past, twice

    def forward(self, x):
        x = self.conv(x)
        y = self.act(self.norm(x))
        if self.twice:
            y = self.act(y - 0.1)
        return x + y if self.past else y


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_what_cannot_be_joined_is_left_alone(past, twice):
    """Values that are used twice are found by the logits, layers by their calls."""
    network = Forked(past, twice).eval()
    images = images_of(1, 3, 20, 20)
    with torch.inference_mode():
        fused = fuse(network, images)
        torch.testing.assert_close(fused(images), network(images))
        assert (fused is network) == past
        assert len(joined(fused)) == (not past)


def test_compiled_parts_are_left_alone():
    network = network_of("test_resnet").eval()
    network.encoder.compile()  # nothing is compiled before its first call
    assert fuse(network, images_of(1, 3, 64, 64)) is network


def test_other_precisions_are_the_network_itself():
    network = SegmentationNetwork(
        NetworkConfig(encoder="test_resnet", low_width=8, aspp_width=8, dilations=(1,)),
        3,
        precision="bfloat16",
    )
    images = images_of(1, 3, 128, 128)
    with torch.inference_mode(), answering(network) as answer:
        assert torch.equal(answer(images), network(images))
