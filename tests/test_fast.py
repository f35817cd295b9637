"""Fast layers compute what PyTorch's own do, and step back wherever they are not meant to work."""

import copy
import io
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.models import fast
from ddfp_lib.models.fast import FastConv2d, FastConv2dSame, FastReLU6, use_fast_layers
from ddfp_lib.models.network import SegmentationNetwork

CPU = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_kernels = pytest.mark.skipif(
    not (CPU and torch.backends.mkldnn.is_available()), reason="this CPU keeps PyTorch's kernels"
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last)


def depthwise(channels: int, kernel: int | tuple[int, int], **options: object) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, groups=channels, **options)


CASES = {
    "1x1": (nn.Conv2d(6, 10, 1), (3, 6, 7, 5)),
    "1x1 without bias": (nn.Conv2d(6, 10, 1, bias=False), (3, 6, 7, 5)),
    "1x1 of one pixel": (nn.Conv2d(6, 10, 1), (3, 6, 1, 1)),
    "depthwise 5x5": (depthwise(6, 5, padding=2), (3, 6, 9, 7)),
    "depthwise 7x7, no padding": (depthwise(6, 7, bias=False), (3, 6, 9, 8)),
    "depthwise 5x5, stride 2": (depthwise(6, 5, padding=2, stride=2), (3, 6, 9, 8)),
    "depthwise 3x3, dilation 2": (depthwise(6, 3, padding=2, dilation=2), (3, 6, 9, 8)),
    "depthwise 5x5, dilation 2": (depthwise(6, 5, padding=4, dilation=2), (3, 6, 10, 10)),
    "depthwise 5x5, dilation 3, uneven": (depthwise(6, 5, padding=5, dilation=3), (2, 6, 11, 10)),
    "depthwise 3x5, little padding": (
        depthwise(6, (3, 5), padding=(0, 1), dilation=2),
        (2, 6, 9, 12),
    ),
    "depthwise, more padding than reach": (depthwise(6, 3, padding=6, dilation=2), (2, 6, 5, 5)),
    "ASPP, most of it padding": (nn.Conv2d(6, 8, 3, padding=6, dilation=6), (3, 6, 7, 9)),
    "ASPP, the center alone": (nn.Conv2d(6, 8, 3, padding=18, dilation=18), (3, 6, 7, 9)),
    "ASPP 5x5, no equal sides": (
        nn.Conv2d(6, 8, (5, 3), padding=(3, 5), dilation=(3, 4)),
        (3, 6, 10, 6),
    ),
}


@needs_kernels
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_float64(case, one_thread, monkeypatch):
    monkeypatch.setattr(fast, "MANY_PRODUCTS", 0)
    plain, shape = CASES[case]
    quick = use_fast_layers(copy.deepcopy(plain))
    assert type(quick) is FastConv2d
    exact = copy.deepcopy(plain).double()
    x = images(*shape).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    with mock.patch.object(nn.Conv2d, "_conv_forward", side_effect=AssertionError("plain")):
        y = quick(x)
    y64 = exact(x64)
    weights = images(*y.shape, seed=1)
    (y * weights).sum().backward()
    (y64 * weights.double()).sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    for found, true in (
        (y, y64),
        (x.grad, x64.grad),
        *((p.grad, q.grad) for p, q in zip(quick.parameters(), exact.parameters(), strict=True)),
    ):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=2e-5)


SAME = {
    "stem": (Conv2dSame(3, 8, 3, stride=2, bias=False), (2, 3, 10, 9)),
    "depthwise 3x3": (Conv2dSame(6, 6, 3, stride=2, groups=6), (2, 6, 8, 8)),
    "depthwise 5x5": (Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False), (2, 6, 11, 8)),
    "depthwise 3x3, dilated": (Conv2dSame(6, 6, 3, dilation=2, groups=6), (2, 6, 8, 9)),
    "nothing to pad": (Conv2dSame(6, 6, 2, stride=2), (2, 6, 8, 8)),
    "dilated": (Conv2dSame(6, 6, 3, dilation=3), (2, 6, 5, 6)),
}


@pytest.mark.parametrize("case", SAME)
def test_tensorflows_padding_is_timms_without_its_copy(case):
    plain, shape = SAME[case]
    quick, exact = use_fast_layers(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    assert type(quick) is FastConv2dSame
    x = images(*shape).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = quick(x)
    y64 = exact(x64)
    assert torch.equal(y, plain(x))
    if CPU:
        assert all(t.numel() <= max(x.numel(), plain.weight.numel()) for t in kept)
    y.square().sum().backward()
    y64.square().sum().backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-5, atol=2e-5)
    for p, q in zip(quick.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-5, atol=2e-5)
    with torch.no_grad():
        assert torch.equal(quick(x), y)


STEPS_BACK = {
    "little to compute": (nn.Conv2d(4, 6, 1), images(2, 4, 5, 5)),
    "float64": (nn.Conv2d(4, 6, 1).double(), images(2, 4, 5, 5).double()),
    "16 images": (nn.Conv2d(4, 6, 1), images(16, 4, 5, 5)),
    "stride": (nn.Conv2d(4, 6, 1, stride=2), images(2, 4, 5, 5)),
    "groups": (nn.Conv2d(4, 6, 1, groups=2), images(2, 4, 5, 5)),
    "padding": (nn.Conv2d(4, 6, 1, padding=1), images(2, 4, 5, 5)),
    "channels first": (nn.Conv2d(4, 6, 1), torch.randn(2, 4, 5, 5)),
    "other padding": (depthwise(4, 5, padding=2, padding_mode="reflect"), images(2, 4, 7, 7)),
    "padding by name": (depthwise(4, 5, padding="same"), images(2, 4, 7, 7)),
    "3x3": (nn.Conv2d(4, 6, 3), images(2, 4, 5, 5)),
    "depthwise 3x3": (depthwise(4, 3), images(2, 4, 5, 5)),
    "depthwise, strided and dilated": (depthwise(4, 3, stride=2, dilation=2), images(2, 4, 9, 9)),
    "two outputs a channel": (nn.Conv2d(4, 8, 5, groups=4), images(2, 4, 7, 7)),
    "dilated, few in the padding": (nn.Conv2d(4, 6, 3, dilation=2), images(2, 4, 9, 9)),
    "no image": (nn.Conv2d(4, 6, 1), images(2, 4, 5, 5)[:0]),
    "one image without a batch": (depthwise(4, 5), torch.randn(4, 7, 7)),
}


@pytest.mark.parametrize("case", STEPS_BACK)
def test_elsewhere_the_layer_is_pytorchs(case, one_thread, monkeypatch):
    monkeypatch.setattr(fast, "MANY_PRODUCTS", 2**21 if case == "little to compute" else 0)
    plain, x = STEPS_BACK[case]
    quick = use_fast_layers(copy.deepcopy(plain))
    with mock.patch.object(
        nn.Conv2d, "_conv_forward", autospec=True, side_effect=nn.Conv2d._conv_forward
    ) as own:
        y = quick(x.requires_grad_())
    assert own.call_count == 1
    assert torch.equal(y, plain(x))


def test_several_threads_and_autocast_keep_pytorchs_kernels(one_thread, monkeypatch):
    monkeypatch.setattr(fast, "MANY_PRODUCTS", 0)
    quick, x = use_fast_layers(nn.Conv2d(4, 6, 1)), images(2, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert quick(x).dtype == torch.bfloat16
    assert quick._is_product(x)
    torch.set_num_threads(2)
    assert not quick._is_product(x)


@pytest.mark.parametrize("inplace", [False, True])
def test_relu6_gives_the_same_bits_and_in_place_keeps_no_copy(inplace):
    plain = nn.ReLU6(inplace)
    quick = use_fast_layers(copy.deepcopy(plain))
    assert type(quick) is FastReLU6
    values = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 6.0001, float("inf"), float("nan")])
    x, x_plain = (values.clone().requires_grad_() for _ in range(2))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        y = quick(1 * x)
    if inplace:
        assert y.data_ptr() in kept
    y_plain = plain(1 * x_plain)
    assert torch.equal(y, y_plain) or torch.equal(y[:-1], y_plain[:-1])
    y[:-1].sum().backward()
    y_plain[:-1].sum().backward()
    assert torch.equal(x.grad, x_plain.grad)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False),
        nn.ReLU6(inplace=True),
        depthwise(8, 5, padding=4, dilation=2),
        nn.ReLU6(),
        nn.Conv2d(8, 4, 3, padding=12, dilation=12),
    ).to(memory_format=torch.channels_last)


def test_keys_copies_pickles_and_hooks_stay():
    plain = small_network()
    quick = use_fast_layers(copy.deepcopy(plain))
    assert list(quick.state_dict()) == list(plain.state_dict())
    quick.load_state_dict(plain.state_dict())
    assert type(copy.deepcopy(quick)[0]) is FastConv2d
    stored = io.BytesIO()
    torch.save(quick, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    seen = []
    again[2].register_forward_hook(lambda *_: seen.append(1))
    x = images(2, 3, 9, 9)
    assert torch.equal(again(x), quick(x))
    assert seen == [1]


def test_an_exported_network_holds_plain_layers_alone(one_thread, monkeypatch):
    monkeypatch.setattr(fast, "MANY_PRODUCTS", 0)
    quick, x = use_fast_layers(small_network()).eval(), images(2, 3, 9, 9)
    graph = torch.export.export(quick, (x,))
    names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert {"aten.conv2d.default"} <= names
    assert not any("linear" in name for name in names)
    torch.testing.assert_close(graph.module()(x), quick(x), rtol=1e-5, atol=1e-5)


def test_frozen_weights_get_no_gradient_and_their_input_does(one_thread, monkeypatch):
    monkeypatch.setattr(fast, "MANY_PRODUCTS", 0)
    quick = use_fast_layers(small_network()).requires_grad_(False)
    x = images(2, 3, 9, 9).requires_grad_()
    quick(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in quick.parameters())


def test_two_runs_give_the_same_bits(one_thread):
    grads = []
    for _ in range(2):
        quick = use_fast_layers(small_network())
        quick(images(2, 3, 9, 9)).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in quick.parameters()]))
    assert torch.equal(*grads)


def test_digit_scenes_keep_pytorchs_bits(one_thread):
    """The embedded benchmark's network is small: every layer is PyTorch's own."""
    config = load_config(find_benchmark("digits"), "ddfp")
    network = SegmentationNetwork(config.network, 6, seed=0).to(memory_format=torch.channels_last)
    seen = images(8, 3, 40, 40).abs()
    fast_logits = network(seen)
    fast_logits.square().sum().backward()
    grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    for module in network.modules():
        if type(module) is FastConv2d:
            module.__class__ = nn.Conv2d
    logits = network(seen)
    logits.square().sum().backward()
    assert torch.equal(logits, fast_logits)
    plain = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(torch.equal(p, q) for p, q in zip(plain, grads, strict=True))
