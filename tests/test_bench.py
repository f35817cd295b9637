"""What the benches claim exactly: memory that grows linearly, and that the GPU's bench runs."""

import pytest
import torch

from bench.gpu import METHODS, TOY, table
from bench.growth import count, fit, gradient, step


@pytest.mark.parametrize("work", [fit, gradient])
def test_the_density_grows_linearly_in_rows_and_has_no_rows_by_classes_by_features(work):
    rows, features, classes, hidden = 1024, 32, 30, 64
    once, twice = (count(work(n, features, classes)) for n in (rows, 2 * rows))
    assert twice.written < 2.05 * once.written
    assert twice.written > 1.5 * once.written  # the parameters' part does not grow
    assert once.largest <= rows * max(hidden, features, classes)
    many = count(work(rows, features, 2 * classes))
    assert many.written - once.written < 20 * rows * classes


def test_a_step_has_no_term_in_squared_pixels():
    learned = step(side=32, images=2)
    learned()  # the optimizer makes its state
    small, large = count(learned), count(step(side=64, images=2))
    pixels = 64 * 64 * 4
    assert large.written < 4.3 * small.written
    assert large.largest <= 64 * pixels  # widest maps: channels of features at full size


def test_the_bench_for_gpus_runs():
    lines = table(TOY, torch.device("cpu"), [], repeats=1).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*METHODS, "released step"]
