"""A perturbation moves what it was asked to move, by eps, each in its own direction."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ddfp_lib.method.perturb
from ddfp_lib.errors import UserError
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.perturb import (
    AdversarialVAT,
    ChannelDropout,
    DensityDescent,
    FeatureModels,
    UniformNoise,
    make_perturbation,
    scale_to_length,
)

MOVERS = ["density", "noise", "vat", "dropout"]
RANDOM = ["noise", "vat", "dropout"]
SHAPES = [(5, 6), (3, 6, 4), (2, 6, 3, 4), (1, 1, 2, 2)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_query(channels, scale=1.0):
    """A standard normal density and a linear classifier, of features with any further axes."""
    weight = 0.5 * torch.randn(4, channels, generator=seeded(1), requires_grad=True)
    return FeatureModels(
        log_density=lambda v: -0.5 * scale * v.square().sum(1),
        logits=lambda v: torch.einsum("kc,bc...->bk...", weight.to(v.dtype), v),
    )


def features_and_mask(shape, seed=0, dtype=torch.float32):
    features = torch.randn(shape, generator=seeded(seed)).to(dtype)
    moved = torch.rand((shape[0], *shape[2:]), generator=seeded(seed + 1)) < 0.5
    return features, moved


def in_channel(mask):
    return mask.unsqueeze(1)


@given(
    st.sampled_from(MOVERS),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.integers(1, 7),
    st.floats(1e-2, 10),
    st.integers(0, 2**40),
)
def test_shift_has_length_eps_where_asked_and_zero_elsewhere(name, sizes, channels, eps, seed):
    features, moved = features_and_mask((sizes[0], channels, *sizes[1:]), seed)
    shift = make_perturbation(name, eps)(features, moved, normal_query(channels), seeded(seed))
    assert shift.shape == features.shape
    torch.testing.assert_close(shift.norm(dim=1), eps * moved.float())
    assert not shift[~in_channel(moved).expand_as(shift)].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["none", *MOVERS])
def test_nothing_confident_moves_nothing(name, shape):
    features, moved = features_and_mask(shape)
    models = normal_query(shape[1])
    shift = make_perturbation(name, 1.0)(features, torch.zeros_like(moved), models, seeded())
    assert torch.equal(shift, torch.zeros(shape))


@pytest.mark.parametrize("name", ["none", *MOVERS])
def test_eps_zero_moves_nothing(name):
    features, moved = features_and_mask((2, 6, 3, 4))
    shift = make_perturbation(name, 0.0)(features, moved, normal_query(6), seeded())
    assert torch.equal(shift, torch.zeros_like(features))


def test_identity_moves_nothing():
    features, moved = features_and_mask((2, 6, 3, 4))
    shift = make_perturbation("none", 1.0)(features, moved, normal_query(6), seeded())
    assert torch.equal(shift, torch.zeros_like(features))


@pytest.mark.parametrize("name", ["none", *MOVERS])
def test_asking_leaves_no_trace(name):
    """No graph on the shift, no gradient on anything, the features as they were."""
    given_features, moved = features_and_mask((2, 6, 3, 4))
    features = given_features.clone().requires_grad_()
    weight = torch.randn(4, 6, generator=seeded(1), requires_grad=True)
    models = FeatureModels(
        lambda v: -(torch.einsum("kc,bc...->bk...", weight, v)).square().sum(1),
        lambda v: torch.einsum("kc,bc...->bk...", weight, v),
    )
    shift = make_perturbation(name, 1.0)(features * 1.0, moved, models, seeded())
    assert not shift.requires_grad
    assert shift.grad_fn is None
    assert features.grad is None
    assert weight.grad is None
    assert torch.equal(features, given_features)


@pytest.mark.parametrize("name", MOVERS)
def test_the_seed_decides_the_shift(name):
    features, moved = features_and_mask((2, 6, 3, 4))
    perturb, models = make_perturbation(name, 1.0), normal_query(6)
    state = torch.get_rng_state()
    first = perturb(features, moved, models, seeded(3))
    torch.rand(1)  # the global generator has no part in it
    assert torch.equal(perturb(features, moved, models, seeded(3)), first)
    assert torch.equal(perturb(features, moved, models, seeded(4)), first) == (name not in RANDOM)
    torch.set_rng_state(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MOVERS)
def test_features_of_any_precision(name, dtype):
    features, moved = features_and_mask((2, 6, 3, 4), dtype=dtype)
    shift = make_perturbation(name, 2.0)(features, moved, normal_query(6), seeded())
    assert shift.dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        shift.double().norm(dim=1), 2.0 * moved.double(), rtol=rounding, atol=0
    )


@pytest.mark.parametrize("eps", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", MOVERS)
def test_what_is_no_length_is_refused(name, eps):
    with pytest.raises(UserError, match=r"^eps: "):
        make_perturbation(name, eps)


def test_other_impossible_arguments_are_refused():
    with pytest.raises(UserError, match="steps"):
        DensityDescent(1.0, steps=0)
    for p in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(UserError, match="p: "):
            ChannelDropout(1.0, p=p)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'densty' is unknown.*none, density, noise, vat, dropout"):
        make_perturbation("densty", 1.0)


# Density descent ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 8])
def fitted(request):
    """An estimator that has learned four clusters of standard deviation 0.5, and fresh features."""
    width, rng = request.param, seeded()
    centres = 3 * torch.randn(4, width, generator=rng)

    def draw(count):
        labels = torch.randint(4, (count,), generator=rng)
        return centres[labels] + 0.5 * torch.randn(count, width, generator=rng), labels

    config = DensityConfig(hidden=32, lr=1e-2, betas=(0.9, 0.99))
    estimator = DensityEstimator(width, 4, config, total_steps=200)
    for _ in range(200):
        estimator.fit_step(*draw(256), generator=rng)
    return estimator, draw(1000)[0]


def test_a_step_down_lowers_the_learned_density(fitted):
    """Below where it was for (all but) every feature, and further than a random step of its length.

    The second holds nearly always in eight dimensions and less often in two, where one random
    direction in a few is close to the best one.
    """
    estimator, features = fitted
    moved, models = torch.ones(len(features)).bool(), FeatureModels(estimator.log_prob, None)
    before = estimator.log_prob(features)
    down = estimator.log_prob(features + DensityDescent(0.25)(features, moved, models, seeded()))
    astray = estimator.log_prob(features + UniformNoise(0.25)(features, moved, models, seeded()))
    assert (down < before).float().mean() >= 0.99
    assert (before - down).mean() > 3 * (before - astray).mean().abs()
    assert (down < astray).float().mean() >= (0.9 if features.shape[1] == 2 else 0.99)


def test_direction_is_against_the_score(fitted):
    estimator, features = fitted
    moved, models = torch.ones(len(features)).bool(), FeatureModels(estimator.log_prob, None)
    shift = DensityDescent(0.25)(features, moved, models, seeded())
    torch.testing.assert_close(shift, -0.25 * nn.functional.normalize(estimator.score(features)))


def test_several_steps_are_small_steps_one_after_another(fitted):
    """So the path may bend: never longer than eps, and lower than the straight step on average."""
    estimator, features = fitted
    moved, models = torch.ones(len(features)).bool(), FeatureModels(estimator.log_prob, None)
    shift = torch.zeros_like(features)
    for _ in range(3):
        shift = shift + DensityDescent(0.5)(features + shift, moved, models, seeded())
    bent = DensityDescent(1.5, steps=3)(features, moved, models, seeded())
    torch.testing.assert_close(bent, shift)
    assert (bent.norm(dim=1) <= 1.5 * (1 + 1e-6)).all()
    assert (bent.norm(dim=1) < 1.49).any()
    straight = DensityDescent(1.5)(features, moved, models, seeded())
    assert (
        estimator.log_prob(features + bent).mean() < estimator.log_prob(features + straight).mean()
    )


@pytest.fixture
def convolutional():
    """A density that looks at each feature through a 3x3 convolution, and one confident pixel."""
    embed = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    nn.init.normal_(embed.weight, generator=seeded())
    models = FeatureModels(lambda f: -0.5 * embed(f).square().sum(1), None)
    features, moved = torch.randn(2, 3, 6, 7, generator=seeded(1)), torch.zeros(2, 6, 7).bool()
    moved[1, 2, 3] = True
    return features, moved, models


def test_unconfident_neighbours_stay_put(convolutional):
    features, moved, models = convolutional
    shift = DensityDescent(2.0)(features, moved, models, seeded())
    torch.testing.assert_close(shift.norm(dim=1), 2.0 * moved.float())


def test_leak_moves_exactly_the_pixels_that_the_gradient_reaches(convolutional):
    features, moved, models = convolutional
    shift = DensityDescent(2.0, leak=True)(features, moved, models, seeded())
    ring = torch.zeros_like(moved)
    ring[1, 1:4, 2:5] = True
    torch.testing.assert_close(shift.norm(dim=1), 2.0 * ring.float())
    own = DensityDescent(2.0)(features, moved, models, seeded())
    where = in_channel(moved).expand_as(shift)
    assert torch.equal(shift[where], own[where])


def test_what_only_unconfident_pixels_say_is_not_heard():
    """Density of one pixel that depends on its neighbor: the neighbor's surprise has no part."""
    features = torch.randn(1, 2, 2, generator=seeded())
    moved = torch.tensor([[True, False]])
    models = FeatureModels(
        lambda f: -f.square().sum(1) - 100 * f.prod(2, keepdim=True).sum(1), None
    )
    shift = DensityDescent(1.0)(features, moved, models, seeded())
    at = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-models.log_density(at)[:, 0].sum(), at)
    torch.testing.assert_close(shift[:, :, 0], nn.functional.normalize(gradient)[:, :, 0])


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e36])
def test_length_of_the_gradient_means_nothing(scale):
    features, moved = features_and_mask((2, 6, 3, 4))
    usual = DensityDescent(1.0)(features, moved, normal_query(6), seeded())
    scaled = DensityDescent(1.0)(features, moved, normal_query(6, scale), seeded())
    torch.testing.assert_close(scaled, usual)


def test_a_feature_without_direction_stays():
    direction = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    length = scale_to_length(direction, torch.tensor([True, True]), 10.0)
    assert torch.equal(length, torch.tensor([[0.0, 0.0], [6.0, 8.0]]))


# Baselines --------------------------------------------------------------------------------------


def test_noise_points_everywhere_alike():
    count, width = 4000, 5
    features, moved = torch.randn(count, width, generator=seeded()), torch.ones(count).bool()
    shift = UniformNoise(1.0)(features, moved, normal_query(width), seeded(1))
    # Uniform on the sphere: mean 0 and covariance I / width, within five standard errors.
    assert shift.mean(0).abs().max() < 5 / math.sqrt(count * width)
    error = shift.T @ shift / count - torch.eye(width) / width
    assert error.abs().max() < 5 * math.sqrt(2) / width / math.sqrt(count)


def divergence(models, features, shift):
    before, after = (models.logits(f).log_softmax(1) for f in (features, features + shift))
    return nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(1)


def test_vat_changes_the_prediction_more_than_noise():
    features, moved = torch.randn(500, 8, generator=seeded()), torch.ones(500).bool()
    models = normal_query(8)
    for eps in (0.01, 0.1, 1.0):
        adversarial = AdversarialVAT(eps)(features, moved, models, seeded(1))
        noise = UniformNoise(eps)(features, moved, models, seeded(1))
        worse = divergence(models, features, adversarial) > divergence(models, features, noise)
        assert worse.float().mean() > 0.9


def test_dropout_drops_or_scales_whole_channels():
    features, moved = torch.randn(3, 400, 4, 5, generator=seeded()), torch.ones(3, 4, 5).bool()
    p = 0.3
    after = features + ChannelDropout(None, p)(features, moved, normal_query(400), seeded(1))
    dropped = (after.abs() < 1e-6).flatten(2).all(dim=2)
    kept = torch.isclose(after, features / (1 - p), atol=1e-6).flatten(2).all(dim=2)
    assert (dropped ^ kept).all()
    share = dropped.float().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / dropped.numel())
    assert not torch.equal(dropped[0], dropped[1])


def test_dropout_of_a_half_adds_or_takes_away_the_feature():
    features, moved = features_and_mask((2, 6, 3, 4))
    shift = ChannelDropout(None)(features, moved, normal_query(6), seeded())
    asked = in_channel(moved).expand_as(shift)
    assert torch.equal(shift[asked].abs(), features[asked].abs())
    assert not shift[~asked].any()


def test_dropout_with_eps_keeps_its_own_direction():
    features, moved = features_and_mask((2, 6, 3, 4))
    own = ChannelDropout(None)(features, moved, normal_query(6), seeded())
    brought = ChannelDropout(0.5)(features, moved, normal_query(6), seeded())
    torch.testing.assert_close(brought, 0.5 * nn.functional.normalize(own))


@pytest.mark.parametrize("name", MOVERS)
def test_after_dropout_the_step_is_taken_from_the_dropped_feature(name):
    """What one generator draws for both parts, they draw one after the other."""
    features, moved = features_and_mask((2, 6, 3, 4))
    rng, models = seeded(), normal_query(6)
    dropped = ChannelDropout(p=0.3)(features, moved, models, rng)
    step = make_perturbation(name, 0.7)(features + dropped, moved, models, rng)
    both = make_perturbation(name, 0.7, drop=0.3)(features, moved, models, seeded())
    assert torch.equal(both, dropped + step)
    assert not both[~in_channel(moved).expand_as(both)].any()
    lengths = (both - dropped).norm(dim=1)[moved]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.7))


def test_examples_of_the_documentation():
    outcome = doctest.testmod(ddfp_lib.method.perturb)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@given(st.floats(1e-3, 1e2), st.floats(0.1, 4), st.integers(1, 3))
def test_max_fall_shortens_steps_and_turns_none(max_fall, eps, steps):
    features, moved = features_and_mask((3, 6, 4))
    models = normal_query(6)
    bounded = DensityDescent(eps, max_fall=max_fall)(features, moved, models, seeded())
    whole = DensityDescent(eps)(features, moved, models, seeded())
    # the gradient of -log p of a standard normal is the feature itself
    fall = (bounded * features).sum(1)[moved]
    slope = features.norm(dim=1)[moved]
    torch.testing.assert_close(fall, (eps * slope).clamp(max=max_fall))
    cosine = nn.functional.cosine_similarity(bounded, whole)[moved]
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    several = DensityDescent(eps, steps, max_fall=max_fall)(features, moved, models, seeded())
    assert (several.norm(dim=1) <= whole.norm(dim=1) + 1e-5).all()


def test_max_fall_must_leave_a_step():
    with pytest.raises(UserError, match="max_fall: 0"):
        DensityDescent(1.0, max_fall=0)
