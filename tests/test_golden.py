"""Our modules give the numbers of the paper's release, with the same weights: tests/golden."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.perturb import DensityDescent, FeatureModels
from ddfp_lib.models.decoder import Embedding, Fusion
from ddfp_lib.models.maps import resize_nearest, to_rows

GOLDEN = Path(__file__).parent / "golden"
TENSORS = json.loads((GOLDEN / "released_tensors.json").read_text())
EXPECTED = dict(np.load(GOLDEN / "released_decoder.npz"))
TOLERANCE = 1e-4
"""Of the largest value: the sums of our modules are in another order, in float32."""


def wave(number, shape, scale=1.0, shift=0.0):
    index = np.arange(np.prod(shape), dtype=np.float64)
    values = shift + scale * np.cos(0.7390851 * index * (1 + 0.01 * number) + number)
    return torch.from_numpy(values.reshape(shape)).float()


RELEASED = {name: wave(k, shape, s, c) for k, name, shape, s, c in TENSORS["decoder"]}
LOW, HIGH = wave(101, (2, 256, 33, 33)), wave(102, (2, 16, 9, 9))


def assert_near(ours, key):
    expected = torch.from_numpy(EXPECTED[key])
    assert ours.shape == expected.shape
    error = (ours.detach() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"{key}: {error:.1e} of the largest value"


def thinned(maps):
    return maps[:, :: maps.shape[1] // 8, ::4, ::4]


def norm(name, bias=0.0):
    """A BatchNorm of the release. A bias of the convolution before it moves its mean and no more.

    Our convolutions before BatchNorms have no bias, so it is taken off the mean.
    """
    keys = ("weight", "bias", "running_mean", "running_var")
    values = {key: RELEASED[f"{name}.{key}"].clone() for key in keys}
    values["running_mean"] -= bias
    return values


def load(module, tensors):
    """Load tensors into a module, all of them but the counters of BatchNorms."""
    state = module.state_dict()
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    module.load_state_dict({**counters, **tensors})


def prefixed(prefix, tensors):
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def released_decoder():
    """Fusion, embedding and classifier with the release's weights; its dropout is off."""
    fusion = Fusion(
        256, 16, 48, 256, (2, 4, 6), head_kernel=3, pooling_norm=True, align_corners=True
    )
    head = RELEASED["head.0.weight"]  # its first channels are those of the pooling branch
    tensors = {"low.0.weight": RELEASED["low_conv.0.weight"]}
    tensors |= prefixed("low.1", norm("low_conv.1", RELEASED["low_conv.0.bias"]))
    for ours, theirs in enumerate(("conv2", "conv3", "conv4", "conv5")):
        tensors[f"aspp.branches.{ours}.0.weight"] = RELEASED[f"aspp.{theirs}.0.weight"]
        tensors |= prefixed(f"aspp.branches.{ours}.1", norm(f"aspp.{theirs}.1"))
    tensors["aspp.pooled.1.weight"] = RELEASED["aspp.conv1.1.weight"]
    tensors |= prefixed("aspp.pooled.2.norm", norm("aspp.conv1.2"))
    tensors["aspp.project.0.weight"] = torch.cat([head[:, 256:], head[:, :256]], dim=1)
    tensors |= prefixed("aspp.project.1", norm("head.1"))
    load(fusion, tensors)

    embedding, tensors = Embedding(304, 256, dropout=0.0), {}
    for ours, (conv, batch_norm) in enumerate((("0", "1"), ("4", "5")), start=1):
        bias = RELEASED[f"classifier.{conv}.bias"]
        tensors[f"conv{ours}.weight"] = RELEASED[f"classifier.{conv}.weight"]
        for part, name in (("main", batch_norm), ("auxiliary", f"{batch_norm}.aux_bn")):
            tensors |= prefixed(f"norm{ours}.{part}", norm(f"classifier.{name}", bias))
    load(embedding, tensors)

    classifier = torch.nn.Conv2d(256, 5, 1)
    load(classifier, {key: RELEASED[f"final.{key}"] for key in ("weight", "bias")})
    return fusion, embedding, classifier


@pytest.mark.parametrize(
    ("status", "auxiliary"),
    [
        ("eval", (False, False)),
        ("train_clean", (False, False)),
        ("train_warm_up", (False, True)),
        ("train_adv", (True, True)),
    ],
)
def test_the_decoder(status, auxiliary):
    """F, v, logits, and the running statistics afterwards."""
    fusion, embedding, classifier = released_decoder()
    for part in (fusion, embedding):
        part.train(status != "eval")
    features = fusion(LOW, HIGH)
    if auxiliary[0] == auxiliary[1]:
        v = embedding(features, auxiliary=auxiliary[0])
    else:
        halves = zip(features.chunk(2), auxiliary, strict=True)
        v = torch.cat([embedding(half, auxiliary=which) for half, which in halves])
    assert_near(thinned(features), f"{status}.F")
    assert_near(thinned(v), f"{status}.v")
    assert_near(classifier(v)[:, :, ::4, ::4], f"{status}.logits")

    first_bias = RELEASED["classifier.0.bias"]
    for name, ours, bias in (
        ("aspp.conv1.2", fusion.aspp.pooled[2].norm, 0.0),
        ("head.1", fusion.aspp.project[1], 0.0),
        ("classifier.1", embedding.norm1.main, first_bias),
        ("classifier.1.aux_bn", embedding.norm1.auxiliary, first_bias),
    ):
        assert_near((ours.running_mean + bias)[:16], f"{status}.{name}.running_mean")
        assert_near(ours.running_var[:16], f"{status}.{name}.running_var")


def released_flow():
    """The flow and mixture of the release, as a density estimator."""
    estimator = DensityEstimator(256, 5, DensityConfig(), total_steps=1)
    tensors = {"mixture.means": wave(103, (5, 256))}
    for k, name, shape, scale in TENSORS["flow"]:
        _, _, module, subnet, layer, kind = name.split(".")
        block, ours = int(module) // 2, {"subnet1": "from_left", "subnet2": "from_right"}[subnet]
        tensors[f"flow.blocks.{block}.{ours}.{layer}.{kind}"] = wave(k, shape, scale)
    for block, permutation in enumerate(TENSORS["permutations"]):
        tensors[f"flow.blocks.{block}.permutation"] = torch.tensor(permutation)
    tensors["_extra_state"] = estimator.get_extra_state()
    estimator.load_state_dict(tensors)
    return estimator


def test_the_flow_and_its_likelihood():
    estimator, rows = released_flow(), wave(105, (6, 256))
    with torch.no_grad():
        z, log_det = estimator.flow(rows)
    assert_near(z, "flow.z")
    assert_near(log_det, "flow.log_det")
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    assert_near(-estimator.log_prob(rows).mean(), "flow.loss_unlabeled")
    assert_near(-estimator.log_prob(rows, labels).mean(), "flow.loss_labeled")


FEATURES = wave(104, (2, 304, 33, 33))
"""F of the attack."""


def attack(log_density, embedding):
    """Our shift for eps 4, and which pixels are confident.

    Args:
        log_density: of rows v.
        embedding: computes v of F, in the precision of its weights.
    """
    labels = torch.full((2, 129, 129), IGNORE_INDEX)
    labels[0, 20:60, 30:100] = 2
    labels[1, 70:, 80:] = 4
    embedding.train()

    def of_features(at):
        v = embedding(at, auxiliary=True)
        return log_density(to_rows(v)).view(len(v), *v.shape[2:])

    models = FeatureModels(of_features, lambda at: at)
    confident = resize_nearest(labels, (33, 33)) != IGNORE_INDEX
    features = FEATURES.to(embedding.conv1.weight.dtype)
    descent = DensityDescent(4.0, leak=True)
    return descent(features, confident, models, torch.Generator()), confident


def embedding_with_biases():
    """The embedding with the biases of the release's convolutions, which BatchNorm takes off."""
    _, embedding, _ = released_decoder()
    for conv, ours in (("0", 1), ("4", 2)):
        bias = RELEASED[f"classifier.{conv}.bias"]
        getattr(embedding, f"conv{ours}").bias = torch.nn.Parameter(bias.clone())
        batch_norm = getattr(embedding, f"norm{ours}")
        for part in (batch_norm.main, batch_norm.auxiliary):
            part.running_mean += bias
    return embedding


def log_density_as_released(estimator):
    """log p of rows v by |z - mu|^2 itself; ours expands the square, which needs less memory."""
    means = estimator.mixture.means

    def log_density(rows):
        z, log_det = estimator.flow(rows)
        squares = (z[:, None] - means).square().sum(2)
        logs = -0.5 * (means.shape[1] * math.log(2 * math.pi) + squares)
        return logs.logsumexp(1) - math.log(len(means)) + log_det

    return log_density


AVX512 = "660bba4d"
"""How the SHA-256 of the first convolution begins with oneDNN's kernels for AVX-512."""


def test_the_attack():
    """The release's own numbers in float32, and that unconfident neighbors of pixels move too.

    Gradients pass ReLUs, and rounding decides at those that are nearly 0. So the sums here are in
    the release's order. Convolutions of processors without AVX-512 have another: with theirs, the
    shift of a few pixels is off by 0.6 to 2 % of the largest value.
    """
    embedding = embedding_with_biases()
    shift, confident = attack(log_density_as_released(released_flow()), embedding)
    moved = shift.norm(dim=1) > 0
    assert torch.equal(moved, torch.from_numpy(EXPECTED["attack.moved"]))
    assert moved.sum() > confident.sum()
    assert_near(shift.norm(dim=1).max(), "attack.length_max")
    with torch.no_grad():
        bits = hashlib.sha256(embedding.conv1(FEATURES).numpy().tobytes()).hexdigest()
    if not bits.startswith(AVX512):
        pytest.skip("convolutions round otherwise on this processor")
    assert_near(thinned(shift), "attack.shift")


def test_the_attack_in_double_precision():
    """Our own sums, where rounding decides nothing."""
    _, embedding, _ = released_decoder()
    shift, _ = attack(released_flow().double().log_prob, embedding.double())
    assert torch.equal(shift.norm(dim=1) > 0, torch.from_numpy(EXPECTED["attack.moved"]))
    expected = torch.from_numpy(EXPECTED["attack.shift_float64"])
    assert (thinned(shift) - expected).abs().max() < 1e-9 * expected.abs().max()


def test_the_attack_with_our_sums_in_single_precision():
    """Off by two roundings, the release's and ours: how large one is, its float64 shows."""
    _, embedding, _ = released_decoder()
    shift, _ = attack(released_flow().log_prob, embedding)
    assert torch.equal(shift.norm(dim=1) > 0, torch.from_numpy(EXPECTED["attack.moved"]))
    exact = torch.from_numpy(EXPECTED["attack.shift_float64"])
    expected = torch.from_numpy(EXPECTED["attack.shift"])
    rounding = (expected - exact).abs() / exact.abs().max()
    error = (thinned(shift) - expected).abs() / expected.abs().max()
    assert error.mean() < 2 * rounding.mean()
    assert error.max() < 2 * rounding.max()
    cosine = torch.cosine_similarity(thinned(shift), expected, dim=1)
    assert cosine[expected.abs().sum(1) > 0].min() > 0.999
    assert_near(shift.norm(dim=1).max(), "attack.length_max")
