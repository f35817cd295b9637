"""What a matrix will cost, told before: bytes by counting, hours by what was measured."""

import pandas as pd
import pytest
import torch
from torch import nn

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.experiments.cost import estimate
from ddfp_lib.experiments.ledger import LEDGER
from ddfp_lib.models.maps import resize
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.training.memory import fitting_parts, training_memory

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
    assert loss.isfinite()
    assert training_memory(config) == pytest.approx(real, rel=0.02)


def test_memory_follows_images_methods_and_gpus(tiny_config):
    supervised, consistency, ddfp = (
        training_memory(tiny_config(name)) for name in ("supervised", "consistency", "ddfp")
    )
    assert supervised < consistency < ddfp
    larger = tiny_config("ddfp", training={"batch_labeled": 8, "batch_unlabeled": 8})
    assert ddfp < training_memory(larger) < 2 * ddfp
    assert training_memory(larger, parts=2) == ddfp


def test_parts_are_as_few_as_the_memory_allows():
    config = voc("ddfp")
    needs = {parts: training_memory(config, 2 * parts) for parts in (1, 2, 4, 8)}
    for parts, need in needs.items():
        assert fitting_parts(config, processes=2, memory=int(need / 0.8) + 1) == parts
    assert fitting_parts(config, processes=2, memory=10 * max(needs.values())) == 1
    assert fitting_parts(config, processes=2, memory=1) == 8  # an image at a time: tried, at least
    odd = voc("ddfp", "training.batch_labeled=6", "training.batch_unlabeled=9")
    assert fitting_parts(odd, processes=1, memory=1) == 3


def test_hours_without_a_measurement_are_the_releases():
    seconds = 49200 / 80 * (0.32 + 0.75 + 78 * 0.83)
    hours = estimate(voc("ddfp"), EMPTY, gpus=4).hours
    assert hours == pytest.approx(seconds / 3600)
    assert estimate(voc("supervised"), EMPTY, gpus=4).hours == pytest.approx(49200 * 0.32 / 3600)
    assert estimate(voc("ddfp"), EMPTY, gpus=8).hours == pytest.approx(hours / 2)
    halved = voc("ddfp", "training.batch_labeled=8", "training.batch_unlabeled=8")
    assert estimate(halved, EMPTY, gpus=4).hours == pytest.approx(hours / 2)


def test_nothing_is_invented_for_other_networks():
    cost = estimate(voc("ddfp", "network.encoder=resnet50"), EMPTY)
    assert cost.hours is None
    assert cost.basis == "nothing like it was measured yet"


def test_measured_runs_come_first():
    row = {"benchmark": "voc", "method": "ddfp", "steps": 100, "seconds": 50.0}
    ledger = pd.DataFrame(
        [row | {"gpu": "Some GPU", "gpus": 2}, row | {"seconds": 1.0, "gpu": "x", "gpus": 4}]
    )
    cost = estimate(voc("ddfp"), ledger, gpus=2)
    assert cost.hours == pytest.approx(49200 * 0.5 / 3600)
    assert "Some GPU" in cost.basis
    assert "release" in estimate(voc("noise"), ledger, gpus=2).basis
