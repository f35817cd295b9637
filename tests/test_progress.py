"""When a run will end: by how fast it is now."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddfp_lib.experiments.progress import Pace, in_words, seconds_left


def test_an_estimate_follows_the_current_speed():
    """Ten minutes at 10 steps a second, then one step a second: the old speed is forgotten."""
    pace, done = Pace(window=60.0), 0
    for second in range(600):
        pace.observe(second, done := done + 10)
    assert pace.seconds_for(600) == pytest.approx(60.0)
    for second in range(600, 670):
        pace.observe(second, done := done + 1)
    assert pace.seconds_for(600) == pytest.approx(600.0, rel=0.02)


@pytest.mark.parametrize("every", [1, 15, 40])
def test_a_slowdown_before_the_end_shows_within_two_minutes(every):
    """Two minutes left, then the machine has a fifth of its speed: ten minutes, and said so."""
    pace, speed, done, total = Pace(), 10.0, 0.0, 7200.0
    for second in range(1, 601):
        done += speed
        if second % every == 0:
            pace.observe(second, int(done))
    assert pace.seconds_for(total - int(done)) == pytest.approx(120.0, rel=0.1)
    for second in range(601, 721):
        done += speed / 5
        if second % every == 0:
            pace.observe(second, int(done))
    assert pace.seconds_for(total - int(done)) == pytest.approx((total - done) / 2, rel=0.25)


def test_the_estimate_of_something_that_hangs_grows():
    pace = Pace(window=60.0)
    for second, done in ((0, 0), (30, 100), (60, 200), (90, 300)):
        pace.observe(second, done)
    expected = [pace.seconds_for(100)]
    for second in range(120, 900, 30):
        pace.observe(second, 300)
        expected.append(pace.seconds_for(100))
    assert expected == sorted(expected)
    assert expected[-1] > 10 * expected[0]


def test_nothing_is_said_before_a_step_and_after_a_fall_back():
    pace = Pace()
    assert pace.seconds_for(5) is None
    pace.observe(0.0, 50)
    assert pace.seconds_for(5) is None
    pace.observe(10.0, 60)
    assert pace.seconds_for(5) == pytest.approx(5.0)
    pace.observe(20.0, 40)  # resumed from its checkpoint
    assert pace.seconds_for(5) is None


@given(speed=st.floats(0.01, 100), steps=st.integers(1, 10_000), every=st.integers(1, 50))
def test_a_steady_run_ends_when_it_is_said_to(speed, steps, every):
    lines = [{"step": n, "seconds": n / speed} for n in range(0, steps + 1, every)]
    left = seconds_left(lines, steps)
    if len(lines) < 2:
        assert left is None
    else:
        assert left == pytest.approx((steps - lines[-1]["step"]) / speed, abs=1e-6, rel=1e-6)


def test_silence_counts_as_far_as_it_is_longer_than_usual():
    lines = [{"step": 25 * n, "seconds": 10.0 * n} for n in range(5)]
    assert seconds_left(lines, 200) == seconds_left(lines, 200, silent=9.0) == pytest.approx(40.0)
    # 40 s more than usual: the last 50 steps took 20 s and these 40 s
    assert seconds_left(lines, 200, silent=50.0) == pytest.approx(120.0)
    assert seconds_left([], 200) is None


def test_durations_in_words():
    said = [in_words(seconds) for seconds in (0.4, 59, 61, 3541, 3600, 7500, 90_000)]
    assert said == ["0 s", "59 s", "1 min", "59 min", "1 h 00 min", "2 h 05 min", "25 h 00 min"]
