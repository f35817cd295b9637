"""The flow is an exactly invertible map that knows its own volume change."""

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ddfp_lib.method.flow
from ddfp_lib.errors import UserError
from ddfp_lib.method.flow import ATAN_SLOPE, ONEDNN_WIDTH, Flow


@st.composite
def flows_and_points(draw):
    """Any small flow in float64, far from the identity, and points for it."""
    features = draw(st.integers(2, 9))
    seed = draw(st.integers(0, 2**40))
    flow = Flow(
        features,
        blocks=draw(st.integers(0, 3)),
        hidden=draw(st.integers(1, 16)),
        clamp=draw(st.floats(0.1, 3.0)),
        seed=seed,
        init_std=0.5,
    )
    points = torch.randn(6, features, generator=torch.Generator().manual_seed(seed))
    return flow.double(), 2 * points.double()


@given(flows_and_points())
def test_inverse_undoes_the_flow(case):
    flow, x = case
    z, _ = flow(x)
    # three blocks of this spread stretch by up to e^18 and more, and rounding with it
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(flow.inverse(z), x, **close)
    torch.testing.assert_close(flow(flow.inverse(x))[0], x, **close)


@given(flows_and_points())
def test_log_det_is_that_of_the_jacobian(case):
    flow, x = case
    _, log_det = flow(x)
    for row, expected in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, expected)


def freia_twin(flow, features, hidden, clamp):
    """The same flow built by FrEIA, with this one's weights."""
    import FrEIA.framework  # seconds, in one process of the tests and not in each
    import FrEIA.modules

    def subnet(inputs, outputs):
        return nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    twin = FrEIA.framework.SequenceINN(features)
    for block in flow.blocks:
        twin.append(FrEIA.modules.GLOWCouplingBlock, subnet_constructor=subnet, clamp=clamp)
        twin.append(FrEIA.modules.PermuteRandom)
        coupling, permutation = twin.module_list[-2:]
        coupling.subnet1.load_state_dict(block.from_left.state_dict())
        coupling.subnet2.load_state_dict(block.from_right.state_dict())
        permutation.perm.copy_(block.permutation)
        permutation.perm_inv.copy_(block.permutation.argsort())
    return twin


@pytest.mark.parametrize(("features", "init_std"), [(2, 0.5), (3, 0.5), (5, 0.2), (256, 0.05)])
def test_copied_weights_give_the_numbers_of_freia(features, init_std):
    flow = Flow(features, blocks=2, hidden=32, clamp=1.5, init_std=init_std)
    twin = freia_twin(flow, features, hidden=32, clamp=1.5)
    x = torch.randn(40, features, generator=torch.Generator().manual_seed(1))
    z, log_det = flow(x)
    expected_z, expected_log_det = twin(x)
    torch.testing.assert_close(z, expected_z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.inverse(x), twin(x, rev=True)[0], rtol=1e-5, atol=1e-5)


def test_no_blocks_make_the_identity():
    x = torch.randn(5, 3)
    z, log_det = Flow(3, blocks=0)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))


def test_float32_at_full_size_is_inverted_within_rounding():
    flow = Flow(256)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert (flow.inverse(flow(x)[0]) - x).abs().max() < 1e-5


def test_every_parameter_and_every_input_gets_a_gradient():
    flow = Flow(5, hidden=8, init_std=0.5)
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z, log_det = flow(x)
    (z.square().sum() + log_det.sum()).backward()
    assert (x.grad != 0).all()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


@pytest.mark.parametrize("features", [2, 5])
def test_gradients_are_those_of_finite_differences(features):
    """Of what a block gives, latents and log-det, in its input and its weights: odd halves too."""
    block = Flow(features, blocks=1, hidden=3, init_std=0.7, seed=3).double().blocks[0]
    x = torch.randn(4, features, generator=torch.Generator().manual_seed(0)).double()
    names, weights = zip(*block.named_parameters(), strict=True)

    def of_weights(x, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(of_weights, (x.requires_grad_(), *weights))


@pytest.mark.parametrize(
    ("hidden", "capability"), [(16, "AVX512"), (ONEDNN_WIDTH, "AVX512"), (ONEDNN_WIDTH, "AVX2")]
)
def test_float32_gradients_are_those_of_float64(hidden, capability, monkeypatch):
    """With MKL and, in wide layers of a processor with AVX-512, with oneDNN."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        flow = Flow(6, hidden=hidden, init_std=0.1).to(dtype)
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
        z, log_det = flow(x.requires_grad_())
        gradients.append(
            torch.autograd.grad(z.square().sum() + log_det.sum(), [x, *flow.parameters()])
        )
    for single, double in zip(*gradients, strict=True):
        scale = double.abs().max().item()
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5 * scale)


def test_clamp_bounds_the_log_det_of_any_input():
    flow = Flow(6, blocks=2, hidden=8, clamp=0.7, init_std=1.0)
    x = 1e6 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    bound = 2 * 6 * 0.7 * ATAN_SLOPE * torch.pi / 2
    assert bound * 0.4 < flow(x)[1].abs().max() <= bound


def test_weights_start_at_the_asked_deviation():
    for std in (0.05, 0.2):
        weights = nn.utils.parameters_to_vector(Flow(64, init_std=std).parameters())
        assert abs(weights.std() / std - 1) < 0.01
        assert abs(weights.mean() / std) < 0.01


def test_the_seed_decides_everything_and_the_global_generator_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    flow = Flow(16, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    twin, other = Flow(16, seed=3), Flow(16, seed=4)
    for name, value in flow.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
        assert not torch.equal(value, other.state_dict()[name]), name


def test_the_permutations_travel_with_the_state():
    flow, other = Flow(16, seed=0), Flow(16, seed=1)
    other.load_state_dict(flow.state_dict())
    x = torch.randn(4, 16)
    assert torch.equal(other(x)[0], flow(x)[0])


@pytest.mark.parametrize("arguments", [{"features": 1}, {"features": 4, "blocks": -1}])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(UserError, match=f"got {list(arguments.values())[-1]}"):
        Flow(**arguments)


def test_examples_in_the_docstrings():
    result = doctest.testmod(ddfp_lib.method.flow)
    assert result.attempted and not result.failed
