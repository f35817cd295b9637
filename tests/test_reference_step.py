"""The step that one reads first is the step that training takes, bit for bit."""

import ast
import copy
import inspect

import pytest
import torch

from ddfp_lib.training.reference_step import reference_step
from ddfp_lib.training.step import training_step
from tests.test_training import WHOLE, make_batches, make_learner


@pytest.mark.parametrize("method", ["ddfp", "noise", "consistency"])
def test_it_gives_the_bits_of_training_step(tiny_config, method):
    """Two learners that start alike take three steps each; all that they hold stays equal."""
    config = tiny_config(method, training=WHOLE, network={"dropout": 0.1})
    general = make_learner(config)
    reference = copy.deepcopy(general)
    for step, batch in enumerate(make_batches(config, 3)):
        before = copy.deepcopy(reference.student.state_dict())
        losses = training_step(general, batch, step)
        loss = reference_step(reference, batch, step)
        assert torch.equal(loss, losses["loss"])
        assert losses["coverage"] > 0  # else nothing of the method was exercised
        assert_equal(reference.state_dict(), general.state_dict())
        assert any(
            not torch.equal(old, new)
            for old, new in zip(
                before.values(), reference.student.state_dict().values(), strict=True
            )
        )


def test_it_can_be_read_at_one_look():
    """At most 40 lines of code, its docstring, comments and blank lines aside."""
    source = inspect.getsource(reference_step)
    function = ast.parse(source).body[0]
    body = source.splitlines()[function.body[0].end_lineno :]
    code = [line for line in body if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 40


def assert_equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs
