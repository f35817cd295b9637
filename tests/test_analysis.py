"""Statistics against SciPy and by hand; and that the step measured goes down the density."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ddfp_lib import analysis
from ddfp_lib.data import open_dataset
from ddfp_lib.runs import Run
from ddfp_lib.training.loop import train
from ddfp_lib.training.objective import Learner

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
    table = analysis.score_table(frame)
    assert list(table.columns) == ["mean", "std", "seed 0", "seed 1", "seed 2"]
    assert list(table.index) == ["consistency", "ddfp"]
    assert table.loc["ddfp", "mean"] == pytest.approx(np.mean(SCORES["ddfp"]))
    assert table.loc["ddfp", "std"] == pytest.approx(np.std(SCORES["ddfp"], ddof=1))


def test_paired_difference_is_the_paired_t_interval(frame):
    gap = analysis.paired_difference(frame, "ddfp", "consistency")
    interval = stats.ttest_rel(SCORES["ddfp"], SCORES["consistency"]).confidence_interval(0.95)
    assert gap["difference"] == pytest.approx(np.mean([1.5, 0.5, 2.0]))
    assert (gap["low"], gap["high"]) == pytest.approx((interval.low, interval.high))
    assert gap["seeds"] == 3


def test_a_difference_near_nothing_has_no_minus_and_one_seed_no_interval():
    assert (
        analysis.signed({"difference": -0.01, "low": -2.6, "high": -0.04}) == "+0.0 (-2.6 to +0.0)"
    )
    alone = {"difference": 1.0, "low": float("nan"), "high": float("nan")}
    assert analysis.signed(alone) == "+1.0"


def test_paired_difference_uses_common_seeds_alone(frame):
    frame = frame[~((frame["method"] == "ddfp") & (frame["seed"] == 2))]
    gap = analysis.paired_difference(frame, "ddfp", "consistency")
    assert (gap["difference"], gap["seeds"]) == (pytest.approx(1.0), 2)


def test_one_seed_has_no_interval_and_no_verdict(frame):
    gap = analysis.paired_difference(frame[frame["seed"] == 0], "ddfp", "consistency")
    assert gap["seeds"] == 1
    assert np.isnan(gap["low"])
    assert "no statement" in analysis.verdict(gap)


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 2, "better"), (-2, -0.1, "worse"), (-1, 1, "not told apart")]
)
def test_verdict_follows_the_interval(low, high, word):
    assert word in analysis.verdict({"low": low, "high": high})


def test_measured_descent_lowers_the_density(tiny_config, tmp_path):
    config = tiny_config(
        "ddfp", training={"steps": 60, "evaluate_every": 60, "checkpoint_every": 60}
    )
    cpu = torch.device("cpu")
    train(config, tmp_path, device=cpu)
    learner = Run.open(tmp_path).learner(cpu)
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = analysis.measure_descent(learner, dataset, eps=0.2)
    count = len(measured.before)
    assert count > 50
    change = {name: after - measured.before for name, after in measured.after.items()}
    # Not all: neighbours move too, and a 3x3 convolution lets each pixel see them.
    assert (change["density descent"] < 0).float().mean() > 0.85
    assert change["density descent"].mean() < change["random"].mean()
    assert all(len(after) == count for after in measured.after.values())
    assert all(0 <= part <= 1 for part in [*measured.kept.values(), *measured.right.values()])
    assert measured.judged == {}


@pytest.mark.parametrize("place", ["features", "embedding"])
def test_a_judge_is_asked_about_embeddings_at_rest_and_after_each_step(tiny_config, place):
    config = tiny_config("ddfp", training={"confidence": 0.0}, method={"perturb_at": place})
    learner = Learner(config, 4, torch.device("cpu"))
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = analysis.measure_descent(
        learner, dataset, eps=1.0, judge=lambda v: v.square().sum(dim=1)
    )
    assert set(measured.judged) == {analysis.AT_REST, *measured.after}
    assert all(len(values) == len(measured.before) for values in measured.judged.values())
    assert not torch.equal(measured.judged["random"], measured.judged[analysis.AT_REST])


def test_descent_of_no_confident_feature_is_empty(tiny_config):
    config = tiny_config("ddfp", training={"confidence": 1.0})
    learner = Learner(config, 4, torch.device("cpu"))
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = analysis.measure_descent(learner, dataset, eps=1.0)
    assert len(measured.before) == 0
