"""What a matrix will cost: bytes and operations by counting, hours by what was measured."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddfp_lib.config import find_benchmark, load_config, presets
from ddfp_lib.experiments.cost import counted_hours, estimate
from ddfp_lib.experiments.ledger import LEDGER
from ddfp_lib.experiments.operations import (
    BANDWIDTH,
    CARDS,
    COMPUTE,
    KERNEL,
    Card,
    Kernel,
    operations,
)
from ddfp_lib.models.maps import resize
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.models.shapes import ShapesAlone
from ddfp_lib.training.memory import GIB, fitting_parts, training_memory

EMPTY = pd.DataFrame(columns=list(LEDGER))


def voc(method, *overrides):
    return load_config(find_benchmark("voc"), method, overrides=overrides)


def test_counted_bytes_are_those_of_a_real_pass(tiny_config):
    config = tiny_config("supervised")
    network = SegmentationNetwork(config.network, 4)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    labels = torch.zeros(4, 32, 32, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(
            resize(network(torch.rand(4, 3, 32, 32)), (32, 32)), labels
        )
    weights = {p.untyped_storage().data_ptr(): p for p in network.parameters()}
    real = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    real += 4 * sum(p.numel() * 4 for p in weights.values())
    # images as uint8's floats and as one batch; gradients of logits, twice; labels
    real += 4 * (2 * 4 * 3 * 32 * 32 + 2 * 4 * 4 * 32 * 32) + 8 * 4 * 32 * 32
    assert loss.isfinite()
    assert training_memory(config) == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_that_are_answered_are_those_of_pytorch(dtype):
    """Forward and backward, through BatchNorm and bilinear resizing, on tensors without memory."""

    def described():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            norm = nn.BatchNorm2d(5, device="meta", dtype=dtype)
            x = torch.empty(2, 5, 6, 7, device="meta", dtype=dtype, requires_grad=True)
            y = resize(norm(x), (12, 13))
            y.sum().backward()
        tensors = [y, *kept, *(each.grad for each in (x, norm.weight, norm.bias))]
        return [(each.shape, each.dtype, each.stride()) for each in tensors]

    theirs = described()
    with ShapesAlone():
        assert described() == theirs


def test_half_precision_needs_little_more_than_half_the_memory():
    """About 22 GiB for VOC, as PyTorch's fake tensors count the forward pass of a step."""
    half, whole = (voc("ddfp", f"training.precision={name}") for name in ("bfloat16", "float32"))
    assert training_memory(half) / GIB == pytest.approx(21.5, rel=0.05)
    assert training_memory(whole) / GIB == pytest.approx(35, rel=0.05)
    assert fitting_parts(half, processes=1, memory=39 * GIB) == 1  # a card of 40 GB
    assert fitting_parts(whole, processes=1, memory=39 * GIB) == 2


def test_memory_follows_images_methods_and_gpus(tiny_config):
    supervised, consistency, ddfp = (
        training_memory(tiny_config(name)) for name in ("supervised", "consistency", "ddfp")
    )
    assert supervised < consistency < ddfp
    larger = tiny_config("ddfp", training={"batch_labeled": 8, "batch_unlabeled": 8})
    assert ddfp < training_memory(larger) < 2 * ddfp
    assert training_memory(larger, parts=2) == ddfp


def test_parts_are_as_few_as_the_memory_allows(tiny_config):
    config = tiny_config("ddfp", training={"batch_labeled": 16, "batch_unlabeled": 16})
    needs = {parts: training_memory(config, 2 * parts) for parts in (1, 2, 4, 8)}
    for parts, need in needs.items():
        assert fitting_parts(config, processes=2, memory=int(need / 0.8) + 1) == parts
    assert fitting_parts(config, processes=2, memory=10 * max(needs.values())) == 1
    assert fitting_parts(config, processes=2, memory=1) == 8  # an image at a time: tried, at least
    odd = tiny_config("ddfp", training={"batch_labeled": 6, "batch_unlabeled": 9})
    assert fitting_parts(odd, processes=1, memory=1) == 3


def test_operations_are_those_that_pytorch_counts(tiny_config):
    """Of a supervised step on real tensors, by PyTorch's own counter."""
    config = tiny_config("supervised")
    network = SegmentationNetwork(config.network, 4)
    with FlopCounterMode(display=False) as counter:
        logits = resize(network(torch.rand(4, 3, 32, 32)), (32, 32))
        nn.functional.cross_entropy(logits, torch.zeros(4, 32, 32, dtype=torch.int64)).backward()
    assert operations(config).flops("supervised") == counter.get_total_flops() > 0


def test_operations_follow_images_methods_and_numbers(tiny_config):
    counted = {name: operations(tiny_config(name)) for name in ("supervised", "noise", "ddfp")}
    assert list(counted["supervised"].stages) == ["supervised"]
    assert list(counted["ddfp"].stages) == ["supervised", "consistency", "perturbed"]
    ddfp, noise = counted["ddfp"], counted["noise"]
    assert noise.flops("supervised") < noise.flops("consistency") < noise.flops("perturbed")
    assert ddfp.flops("perturbed") > noise.flops("perturbed")
    twice = operations(tiny_config("noise", training={"batch_labeled": 8, "batch_unlabeled": 8}))
    assert twice.flops("perturbed") == 2 * noise.flops("perturbed")
    half = operations(tiny_config("ddfp", training={"precision": "bfloat16"}))
    assert half.flops("perturbed") == ddfp.flops("perturbed")
    assert half.flops("perturbed", half=True) == noise.flops("perturbed") + (
        ddfp.flops("perturbed") - noise.flops("perturbed") - half.flops("perturbed", half=False)
    )
    assert 0 < half.flops("perturbed", half=False) < half.flops("perturbed", half=True)


def test_more_views_and_more_rows_cost_more(tiny_config):
    """UniMatch has two strong views and a weak one, the release rows of the flow by share."""

    def flops(name, half=None):
        counted = operations(tiny_config(name, training={"precision": "bfloat16"}))
        return counted.flops([*counted.stages][-1], half)

    assert flops("unimatch") > 1.5 * flops("noise")
    assert flops("unimatch_v2") > 1.3 * flops("consistency")
    assert flops("ddfp_released", half=False) > 1.2 * flops("ddfp", half=False)  # of the flow


@pytest.mark.soak
def test_every_method_of_the_project_can_be_counted(tiny_config):
    for name in presets():
        stages = operations(tiny_config(name)).stages
        assert all(kernel.bytes > 0 for kernels in stages.values() for kernel in kernels)


def test_a_kernel_takes_the_longest_of_its_three_times():
    card = Card("x", half=100.0, single=10.0, bandwidth=1000.0, memory=24.0)
    assert Kernel(0, 1, half=False).seconds(card) == KERNEL
    assert Kernel(10**12, 1, half=False).seconds(card) == pytest.approx(0.1 / COMPUTE)
    assert Kernel(10**12, 1, half=True).seconds(card) == pytest.approx(0.01 / COMPUTE)
    assert Kernel(1, 10**12, half=True).seconds(card) == pytest.approx(1.0 / BANDWIDTH)


def test_hours_are_the_stages_and_the_validations(tiny_config):
    config = tiny_config("ddfp")  # 6 steps: 30 % supervised, to 50 % consistency; 2 validations
    counted, card = operations(config), CARDS[0]
    seconds = 5 * 2.5 * counted.validation_seconds(card)
    for stage, steps in (("supervised", 1.8), ("consistency", 1.2), ("perturbed", 3.0)):
        seconds += steps * counted.step_seconds(stage, card)
    hours = counted_hours(config)
    assert list(hours) == ["A100", "H100", "4090", "3090"]
    assert hours["A100"] == pytest.approx(seconds / 3600)
    assert counted_hours(config, gpus=4)["A100"] == pytest.approx(hours["A100"] / 4)
    cost = estimate(config, EMPTY)
    assert cost.hours == hours
    assert "not measured" in cost.basis


def test_voc_is_as_counted_by_hand():
    """29 TFLOP of networks and 0.8 of the flow: counted on the release's step by other means."""
    counted = operations(voc("ddfp"))
    assert counted.flops("perturbed", half=True) == pytest.approx(29.0e12, rel=0.1)
    assert counted.flops("perturbed", half=False) == pytest.approx(0.78e12, rel=0.1)


def test_measured_runs_come_first():
    row = {"benchmark": "voc", "method": "ddfp", "steps": 100, "seconds": 50.0}
    ledger = pd.DataFrame(
        [row | {"gpu": "Some GPU", "gpus": 2}, row | {"seconds": 1.0, "gpu": "x", "gpus": 4}]
    )
    cost = estimate(voc("ddfp"), ledger, gpus=2)
    assert cost.hours == {"measured": pytest.approx(49200 * 0.5 / 3600)}
    assert "Some GPU" in cost.basis
