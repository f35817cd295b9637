"""The estimator is a density, learns known ones, and keeps to itself."""

import copy
import doctest
import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

import ddfp_lib.method.density
import ddfp_lib.method.rows
from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.errors import UserError
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.rows import draw_counted

SMALL = DensityConfig(hidden=16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count, features, seed=0):
    return torch.randn(count, features, generator=seeded(seed))


def estimator(features=5, classes=3, config=SMALL, *, bend=0.3, **kwargs):
    """A small estimator whose flow is far from the identity."""
    made = DensityEstimator(features, classes, config, total_steps=50, **kwargs)
    for index, parameter in enumerate(made.flow.parameters()):
        nn.init.normal_(parameter, std=bend, generator=seeded(index))
    return made


class KnownDensity:
    """Three equally likely Gaussians in the plane, of one correlated covariance."""

    means = torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.0, 2.5]])
    factor = torch.tensor([[0.6, 0.0], [0.4, 0.5]])

    def sample(self, count, generator):
        labels = torch.randint(3, (count,), generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return self.means[labels] + noise @ self.factor.T, labels

    def class_log_prob(self, v):
        return MultivariateNormal(self.means, scale_tril=self.factor).log_prob(v[:, None])

    def log_prob(self, v):
        return self.class_log_prob(v).logsumexp(1) - math.log(3)


@pytest.fixture(scope="module")
def known():
    return KnownDensity()


@pytest.fixture(scope="module")
def fitted(known):
    """An estimator trained on labeled samples of the known density, without added noise."""
    config = DensityConfig(hidden=32, lr=0.03, noise=0.0)
    made = DensityEstimator(2, 3, config, total_steps=600, seed=1)
    generator = seeded(1)
    for _ in range(600):
        made.fit_step(*known.sample(500, generator), generator=generator)
    return made


def plane(steps=200, reach=8.0):
    """The centers and the area of the cells of a square grid."""
    axis = (torch.arange(steps) + 0.5) * (2 * reach / steps) - reach
    return torch.cartesian_prod(axis, axis), (2 * reach / steps) ** 2


# -- a density ------------------------------------------------------------------------------------


def test_the_density_of_the_plane_integrates_to_one_for_each_class_and_for_all(fitted):
    grid, area = plane()
    total = fitted.class_log_prob(grid).double().exp().sum(0) * area
    torch.testing.assert_close(total, torch.ones(3).double(), rtol=0, atol=1e-3)
    total = fitted.log_prob(grid).double().exp().sum() * area
    torch.testing.assert_close(total, torch.tensor(1.0).double(), rtol=0, atol=1e-3)


def test_a_known_density_is_learned_to_two_hundredths_of_a_nat(fitted, known):
    v, labels = known.sample(20000, seeded(2))
    conditional = known.class_log_prob(v).gather(1, labels[:, None]).squeeze(1)
    assert abs((conditional - fitted.log_prob(v, labels)).mean()) < 0.02
    assert abs((known.log_prob(v) - fitted.log_prob(v)).mean()) < 0.02


def test_the_most_likely_class_is_the_class(fitted, known):
    v, labels = known.sample(5000, seeded(3))
    bayes = (known.class_log_prob(v).argmax(1) == labels).float().mean()
    assert (fitted.class_log_prob(v).argmax(1) == labels).float().mean() > bayes - 0.01


def test_samples_are_as_likely_as_the_entropy_says(fitted):
    grid, area = plane()
    log_prob = fitted.log_prob(grid).double()
    entropy = -(log_prob.exp() * log_prob).sum() * area
    likelihood = fitted.log_prob(fitted.sample(20000, seeded(4))).double()
    error = 5 * likelihood.std() / 20000**0.5
    assert abs(-likelihood.mean() - entropy) < error


def test_the_marginal_is_the_mean_of_the_class_densities():
    made = estimator().double()
    v = points(20, 5)
    expected = made.class_log_prob(v).logsumexp(1) - math.log(3)
    torch.testing.assert_close(made.log_prob(v), expected)


def test_known_classes_use_theirs_and_unknown_ones_the_marginal():
    made = estimator().double()
    v, labels = points(20, 5), torch.arange(20) % 4 - 1
    log_prob, given = made.log_prob(v, labels), labels != UNLABELED
    per_class = made.class_log_prob(v)[given].gather(1, labels[given, None]).squeeze(1)
    torch.testing.assert_close(log_prob[given], per_class)
    torch.testing.assert_close(log_prob[~given], made.log_prob(v)[~given])


def test_bits_are_nats_over_log_two_and_dimensions():
    made = estimator(features=8)
    torch.testing.assert_close(
        made.bits_per_dim(torch.tensor([8 * math.log(2), 0.0])), torch.tensor([-1.0, 0.0])
    )


# -- gradients ------------------------------------------------------------------------------------


@pytest.fixture
def chunked(monkeypatch):
    """Chunks of 7 rows: the last one of 20 rows is shorter."""
    monkeypatch.setattr(ddfp_lib.method.rows, "CPU_CHUNK_ROWS", 7)


@pytest.mark.parametrize("labels", [None, torch.arange(20) % 4 - 1])
def test_gradient_in_v_is_that_of_flow_and_mixture(chunked, labels):
    made = estimator().double()
    weights = points(20, 1, seed=1)[:, 0].double()
    v = points(20, 5).double().requires_grad_()
    z, log_det = made.flow(v)
    plain = made.mixture.log_prob(z, labels) + log_det
    (expected,) = torch.autograd.grad((weights * plain).sum(), v)
    lean = made.log_prob(v, labels)
    (gradient,) = torch.autograd.grad((weights * lean).sum(), v)
    torch.testing.assert_close(lean, plain)
    torch.testing.assert_close(gradient, expected)


def test_score_is_the_slope_of_the_log_density(chunked):
    made = estimator().double()
    v, step = points(20, 5).double(), 1e-6
    score = made.score(v)
    for column in range(5):
        shift = torch.zeros(5).double()
        shift[column] = step
        slope = (made.log_prob(v + shift) - made.log_prob(v - shift)) / (2 * step)
        torch.testing.assert_close(score[:, column], slope, rtol=1e-5, atol=1e-7)


def test_score_reaches_through_the_network_that_made_v():
    made, embed = estimator().double(), nn.Linear(4, 5).double()
    features = points(20, 4).double().requires_grad_()
    (through,) = torch.autograd.grad(made.log_prob(embed(features)).sum(), features)
    torch.testing.assert_close(through, made.score(embed(features)) @ embed.weight)


def test_a_query_leaves_no_gradient_on_the_parameters():
    made = estimator()
    v = points(20, 5).requires_grad_()
    made.log_prob(v).sum().backward()
    assert all(parameter.grad is None for parameter in made.parameters())
    assert not made.log_prob(v.detach()).requires_grad
    assert not made.class_log_prob(v).requires_grad
    assert not made.score(v).requires_grad


def test_score_works_where_gradients_are_switched_off():
    made, v = estimator(), points(20, 5)
    with torch.no_grad():
        assert torch.equal(made.score(v), made.score(v.clone()))


# -- precision and memory -------------------------------------------------------------------------


def test_autocast_changes_no_bit():
    plain, mixed = estimator(), estimator()
    v, labels = points(30, 5), torch.arange(30) % 4 - 1
    expected = [plain.log_prob(v, labels), plain.class_log_prob(v), plain.score(v)]
    expected += [plain.sample(9, seeded()), plain.fit_step(v, labels, generator=seeded()).nll]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = [mixed.log_prob(v, labels), mixed.class_log_prob(v), mixed.score(v)]
        got += [mixed.sample(9, seeded()), mixed.fit_step(v, labels, generator=seeded()).nll]
    for value, reference in zip(got, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)
    same_state(plain, mixed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_input_is_computed_in_the_parameters_dtype(dtype):
    made = estimator()
    v = points(10, 5).to(dtype).requires_grad_()
    log_prob = made.log_prob(v)
    (gradient,) = torch.autograd.grad(log_prob.sum(), v)
    assert log_prob.dtype == made.score(v).dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(log_prob, made.log_prob(v.float()))
    assert made.fit_step(v, generator=seeded()).nll.dtype == torch.float32


class LargestTensor(TorchDispatchMode):
    """Keeps the element count of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_no_operation_returns_more_than_rows_times_width():
    rows, features, classes, hidden = 64, 16, 12, 20
    made = estimator(features, classes, replace(SMALL, hidden=hidden))
    v, labels = points(rows, features), torch.arange(rows) % (classes + 1) - 1
    with LargestTensor() as largest:
        made.fit_step(v, labels, generator=seeded())
        made.score(v)
        made.class_log_prob(v)
        made.log_prob(v, labels)
    assert largest.elements == rows * hidden


# -- training -------------------------------------------------------------------------------------


def test_a_step_reports_the_loss_it_descends(chunked):
    made = estimator(config=replace(SMALL, noise=0.0))
    v, labels = points(20, 5), torch.arange(20) % 4 - 1
    expected = -made.log_prob(v, labels).mean()
    step = made.fit_step(v, labels, generator=seeded())
    torch.testing.assert_close(step.nll, expected)
    torch.testing.assert_close(step.bits_per_dim, expected / (5 * math.log(2)))
    assert -made.log_prob(v, labels).mean() < expected


def test_every_parameter_moves_in_a_step():
    made = estimator()
    before = {name: value.clone() for name, value in made.named_parameters()}
    made.fit_step(points(50, 5), generator=seeded())
    for name, value in made.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_chunks_do_not_change_the_step(monkeypatch):
    whole, chunked = estimator().double(), estimator().double()
    whole_step = whole.fit_step(points(20, 5), generator=seeded())
    monkeypatch.setattr(ddfp_lib.method.rows, "CPU_CHUNK_ROWS", 7)
    chunked_step = chunked.fit_step(points(20, 5), generator=seeded())
    torch.testing.assert_close(chunked_step.nll, whole_step.nll)
    torch.testing.assert_close(chunked_step.grad_norm, whole_step.grad_norm)


def test_a_step_uses_a_random_part_of_many_rows():
    made = estimator(config=replace(SMALL, samples=40, noise=0.0))
    seen = []
    made.flow.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    v, labels = points(100, 5), torch.arange(100) % 3
    for seed in (0, 1):
        made.fit_step(v, labels, generator=seeded(seed))
    for rows in seen:
        chosen = (rows[:, None] == v).all(2).nonzero()[:, 1]
        assert len(chosen.unique()) == 40
    assert not torch.equal(*seen)


def test_labels_stay_with_their_rows_when_rows_are_chosen():
    config = replace(SMALL, samples=40, noise=0.0, blocks=0)
    made = DensityEstimator(5, 3, config, total_steps=50)
    labels = torch.arange(100) % 3
    v = made.mixture.means.detach()[labels]
    best = 5 / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(
        made.fit_step(v, labels, generator=seeded()).nll, torch.tensor(best), rtol=0, atol=1e-5
    )


def test_noise_has_the_asked_deviation():
    made = estimator(config=replace(SMALL, noise=0.25))
    seen = []
    made.flow.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    made.fit_step(torch.zeros(2000, 5), generator=seeded())
    assert abs(seen[0].std() / 0.25 - 1) < 0.02


def test_labels_can_be_switched_off():
    v, labels = points(30, 5), torch.arange(30) % 3
    deaf = estimator(config=replace(SMALL, labels="none"))
    alone = estimator()
    deaf.fit_step(v, labels, generator=seeded())
    alone.fit_step(v, generator=seeded())
    same_state(deaf, alone)


def test_the_gradient_is_clipped_before_the_step():
    made = estimator(config=replace(SMALL, clip=1e-3))
    clipped = []

    def record(optimizer, *_):
        grads = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
        clipped.append(torch.stack(grads).norm())

    made.optimizer.register_step_pre_hook(record)
    step = made.fit_step(points(30, 5), generator=seeded())
    assert step.grad_norm > 1e-2
    torch.testing.assert_close(clipped[0], torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_the_learning_rate_falls_geometrically_and_then_stays():
    made = DensityEstimator(5, 3, replace(SMALL, lr=0.1, lr_decay=0.01), total_steps=4)
    rates = []
    made.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    for _ in range(6):
        made.fit_step(points(30, 5), generator=seeded())
    assert rates == pytest.approx([0.1 * 0.01 ** (t / 4) for t in (0, 1, 2, 3, 4, 4)])


def test_no_rows_make_no_step():
    made, untouched = estimator(), estimator()
    step = made.fit_step(points(0, 5), torch.zeros(0, dtype=torch.int64), generator=seeded())
    assert step.nll.isnan() and step.bits_per_dim.isnan() and step.grad_norm.isnan()
    same_state(made, untouched)
    assert made.score(points(0, 5)).shape == (0, 5)
    assert made.log_prob(points(0, 5)).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e20])
def test_features_that_are_not_finite_stop_the_step_before_it_moves(bad):
    made, untouched = estimator(), estimator()
    for each in (made, untouched):
        each.fit_step(points(30, 5), generator=seeded())
    v = points(30, 5)
    v[3, 2] = bad
    with pytest.raises(FloatingPointError, match=r"density step 1: loss (nan|inf)"):
        made.fit_step(v, generator=seeded())
    same_state(made, untouched)
    made.fit_step(points(30, 5), generator=seeded(1))
    untouched.fit_step(points(30, 5), generator=seeded(1))
    same_state(made, untouched)


# -- rows of which only the device knows the number ----------------------------------------------


def test_rows_that_do_not_count_change_nothing(chunked):
    config = replace(SMALL, noise=0.0)
    made, other = estimator(config=config).double(), estimator(config=config).double()
    v, labels = points(30, 5).double(), torch.arange(30) % 4 - 1
    counted = torch.rand(30, generator=seeded()) < 0.6
    with_all = made.fit_step(v, labels, generator=seeded(), counted=counted)
    with_some = other.fit_step(v[counted], labels[counted], generator=seeded())
    torch.testing.assert_close(vars(with_all), vars(with_some))
    torch.testing.assert_close(made.state_dict(), other.state_dict())


def test_rows_that_count_are_drawn_equally_often():
    counted = torch.zeros(20, dtype=torch.bool)
    counted[5:15] = True
    times = torch.zeros(20)
    for seed in range(400):
        chosen, drawn = draw_counted(counted, 4, seeded(seed))
        assert drawn.all() and len(chosen.unique()) == 4
        times[chosen] += 1
    assert times[~counted].sum() == 0
    assert (times[counted] / 160 - 1).abs().max() < 0.3  # 160 +- 10 times each
    chosen, drawn = draw_counted(counted, 12, seeded())
    assert drawn.tolist() == [True] * 10 + [False] * 2
    assert set(chosen[drawn].tolist()) == set(range(5, 15))


@pytest.mark.parametrize("case", ["no row counts", "not finite"])
def test_a_step_that_cannot_be_taken_changes_nothing_without_a_wait(case):
    made = estimator()
    made.fit_step(points(30, 5), generator=seeded())
    before = {name: value.clone() for name, value in made.named_parameters()}
    moments = copy.deepcopy(made.optimizer.state_dict()["state"])
    v, counted = points(30, 5), torch.full((30,), case == "not finite")
    v[3, 2] = math.nan if case == "not finite" else 1.0
    step = made.fit_step(v, generator=seeded(), counted=counted)
    assert (step.nll == 0) == (case == "no row counts")
    assert (step.nll + step.grad_norm).isfinite() == (case == "no row counts")
    assert all(value.equal(before[name]) for name, value in made.named_parameters())
    torch.testing.assert_close(made.optimizer.state_dict()["state"], moments, rtol=0, atol=0)


def test_the_network_that_made_the_features_is_left_alone():
    made, network = estimator(), nn.Linear(4, 5)
    inputs = points(30, 4).requires_grad_()
    features = network(inputs)
    made.fit_step(features, generator=seeded())
    assert inputs.grad is None and network.weight.grad is None
    features.sum().backward()  # its graph is still whole
    before = network.weight.grad.clone()
    made.fit_step(network(inputs), generator=seeded())
    assert torch.equal(network.weight.grad, before)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_a_step_works_where_gradients_are_switched_off():
    made, other = estimator(), estimator()
    with torch.no_grad():
        made.fit_step(points(30, 5), generator=seeded())
    other.fit_step(points(30, 5), generator=seeded())
    same_state(made, other)


# -- state and randomness -------------------------------------------------------------------------


def flat(state):
    """All tensors and numbers of a nested state, in order."""
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in flat(value)]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in flat(value)]
    return [state]


def same_state(left, right):
    left, right = flat(left.state_dict()), flat(right.state_dict())
    assert len(left) == len(right)
    for mine, other in zip(left, right, strict=True):
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


def train(made, steps):
    for step in steps:
        made.fit_step(points(60, 5, seed=step), generator=seeded(step))


def test_a_training_that_is_saved_and_resumed_gives_the_same_bits():
    whole, first = estimator(), estimator()
    train(whole, range(8))
    train(first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = estimator(seed=7, bend=0.1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    same_state(resumed, first)
    train(resumed, range(4, 8))
    same_state(resumed, whole)
    assert resumed.steps == 8


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: estimator(features=6), "'features': 6"),
        (lambda: estimator(classes=4), "'classes': 4"),
        (lambda: estimator(config=replace(SMALL, hidden=8)), "'hidden': 8"),
        (lambda: estimator(config=replace(SMALL, blocks=1)), "'blocks': 1"),
    ],
)
def test_a_state_of_other_sizes_is_refused_untouched(other, named):
    made, untouched = estimator(), estimator()
    with pytest.raises(UserError, match=named):
        made.load_state_dict(other().state_dict())
    same_state(made, untouched)


def test_two_runs_of_one_seed_are_the_same_bits_and_use_no_global_randomness():
    before = torch.get_rng_state()
    runs = [DensityEstimator(5, 3, SMALL, total_steps=9, seed=seed) for seed in (3, 3, 4)]
    for run in runs:
        train(run, range(3))
    first, again, other = runs
    same_state(first, again)
    assert torch.equal(first.sample(4, seeded()), again.sample(4, seeded()))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.mixture.means, other.mixture.means)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 1), (5,)])
def test_features_of_another_shape_are_refused(shape):
    made = estimator()
    for use in (made.log_prob, made.class_log_prob, made.score):
        with pytest.raises(UserError, match=r"shape \(N, 5\), got \("):
            use(torch.zeros(shape))
    with pytest.raises(UserError, match=r"shape \(N, 5\), got \("):
        made.fit_step(torch.zeros(shape), generator=seeded())


def test_a_mask_value_is_no_density_label():
    with pytest.raises(UserError, match=rf"label {IGNORE_INDEX} is not a class"):
        estimator().fit_step(points(3, 5), torch.tensor([0, 1, IGNORE_INDEX]), generator=seeded())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 3), "2 features"), ((4, 0), "1 component"), ((4, 3), "1 step")],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        DensityEstimator(*arguments, total_steps=0 if message == "1 step" else 1)


def test_examples_in_the_docstrings():
    result = doctest.testmod(ddfp_lib.method.density)
    assert result.attempted and not result.failed
