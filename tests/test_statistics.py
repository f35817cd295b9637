"""Statistics against SciPy and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ddfp_lib.experiments import statistics

SCORES = {"consistency": [50.0, 52.0, 51.0], "ddfp": [51.5, 52.5, 53.0]}


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [
        {"method": method, "seed": seed, "test_miou": score}
        for method, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]
    return pd.DataFrame(rows)


def test_score_table_has_mean_spread_and_seeds(frame):
    table = statistics.score_table(frame)
    assert list(table.columns) == ["mean", "std", "seed 0", "seed 1", "seed 2"]
    assert list(table.index) == ["consistency", "ddfp"]
    assert table.loc["ddfp", "mean"] == pytest.approx(np.mean(SCORES["ddfp"]))
    assert table.loc["ddfp", "std"] == pytest.approx(np.std(SCORES["ddfp"], ddof=1))


def test_means_are_over_the_seeds_that_all_methods_have(frame):
    """Seeds differ in difficulty: one more seed of one method must not move its mean."""
    more = pd.DataFrame([{"method": "ddfp", "seed": 3, "test_miou": 10.0}])
    table = statistics.score_table(pd.concat([frame, more]))
    assert table.loc["ddfp", "mean"] == pytest.approx(np.mean(SCORES["ddfp"]))
    assert table.loc["ddfp", "seed 3"] == 10.0
    assert statistics.common_seeds(pd.concat([frame, more])) == [0, 1, 2]
    apart = pd.concat([frame[frame["method"] == "ddfp"], more.assign(method="vat")])
    assert statistics.common_seeds(apart) == [0, 1, 2, 3]


def test_differences_over_common_seeds_and_over_all(frame):
    rows = [("ddfp", 3, 10.0), ("consistency", 3, 20.0), ("vat", 0, 50.0), ("vat", 1, 50.0)]
    more = pd.DataFrame(rows, columns=["method", "seed", "test_miou"])
    found = statistics.differences(pd.concat([frame, more]), "ddfp", "consistency")
    assert [gap["seeds"] for gap in found] == [2, 4]
    assert found[0]["difference"] == pytest.approx(np.mean([1.5, 0.5]))
    assert found[1]["difference"] == pytest.approx(np.mean([1.5, 0.5, 2.0, -10.0]))
    assert len(statistics.differences(frame, "ddfp", "consistency")) == 1


def test_measurements_of_seeds_that_a_method_lacks_are_left_out():
    rows = [("ddfp", seed, float(seed)) for seed in (0, 1, 2)] + [("vat", 1, 5.0)]
    kept = statistics.of_common_seeds(pd.DataFrame(rows, columns=["method", "seed", "value"]))
    assert kept["value"].tolist() == [1.0, 5.0]


def test_paired_difference_is_the_paired_t_interval(frame):
    gap = statistics.paired_difference(frame, "ddfp", "consistency")
    interval = stats.ttest_rel(SCORES["ddfp"], SCORES["consistency"]).confidence_interval(0.95)
    assert gap["difference"] == pytest.approx(np.mean([1.5, 0.5, 2.0]))
    assert (gap["low"], gap["high"]) == pytest.approx((interval.low, interval.high))
    assert gap["seeds"] == 3


def test_a_difference_near_nothing_has_no_minus_and_one_seed_no_interval():
    assert (
        statistics.signed({"difference": -0.01, "low": -2.6, "high": -0.04})
        == "+0.0 (-2.6 to -0.04)"
    )
    alone = {"difference": 1.0, "low": float("nan"), "high": float("nan")}
    assert statistics.signed(alone) == "+1.0"


def test_paired_difference_uses_common_seeds_alone(frame):
    frame = frame[~((frame["method"] == "ddfp") & (frame["seed"] == 2))]
    gap = statistics.paired_difference(frame, "ddfp", "consistency")
    assert (gap["difference"], gap["seeds"]) == (pytest.approx(1.0), 2)


def test_one_seed_has_no_interval_and_no_verdict(frame):
    gap = statistics.paired_difference(frame[frame["seed"] == 0], "ddfp", "consistency")
    assert gap["seeds"] == 1
    assert np.isnan(gap["low"])
    assert statistics.verdict(gap) == "one seed: significance cannot be tested"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 2, "significantly better (95 % CI +0.1 to +2.0)"),
        (-2, -0.1, "significantly worse (95 % CI -2.0 to -0.1)"),
        (-1, 1, "not significant (95 % CI -1.0 to +1.0)"),
        (0, 1, "not significant (95 % CI +0.0 to +1.0)"),
        (0.04, 1, "significantly better (95 % CI +0.04 to +1.0)"),
        (-0.012, 1.9, "not significant (95 % CI -0.01 to +1.9)"),
    ],
)
def test_verdict_follows_the_interval(low, high, words):
    assert statistics.verdict({"low": low, "high": high}) == words


def test_methods_without_a_common_seed_are_not_compared():
    ledger = pd.DataFrame({"method": ["a", "b"], "seed": [0, 1], "test_miou": [60.0, 50.0]})
    gap = statistics.paired_difference(ledger, "a", "b")
    assert statistics.verdict(gap) == "no seed in common"
    assert statistics.signed(gap) == "-"
