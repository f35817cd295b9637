"""What others published, as data: complete, and drawn beside our own."""

import math

import pytest

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.experiments.published import (
    UNPROVED,
    paper_score,
    published_scores,
    released_curve,
)
from ddfp_lib.plots import runs as figures


def test_scores_are_percent_and_stand_once():
    scores = published_scores()
    assert not scores.duplicated(["benchmark", "split", "method", "network", "source"]).any()
    known = scores["miou"].dropna()
    assert known.between(40, 95).all()
    assert (scores[scores["miou"].isna()]["note"] != "").all()


def test_the_papers_score_of_a_cell():
    assert paper_score("voc", "732", "ddfp") == paper_score("voc", "732", "ddfp_released") == 81.2
    assert math.isnan(paper_score("voc", "732", "supervised"))  # others', not the paper's
    assert math.isnan(paper_score("cityscapes", "186", "ddfp"))
    assert math.isnan(paper_score("digits", "85", "ddfp"))


def test_a_number_that_nobody_can_read_up_is_unproved():
    scores = published_scores()
    (cell,) = scores[scores["status"] == UNPROVED].itertuples()
    assert (cell.benchmark, cell.split, cell.miou) == ("cityscapes", "1488", 80.82)
    assert set(scores["status"]) == {"", UNPROVED}
    assert math.isnan(paper_score("cityscapes", "1488", "ddfp"))


@pytest.mark.parametrize(("split", "best", "last"), [("732", 81.21, 80.91), ("1464", 81.98, 81.42)])
def test_released_curves_end_at_the_published_numbers(split, best, last):
    config = load_config(find_benchmark("voc"), "ddfp", split=split)
    curve = released_curve(config)
    assert len(curve) == 80
    assert curve[0][0] == config.training.steps / 80
    assert curve[-1] == (config.training.steps, last)
    assert max(miou for _, miou in curve) == best
    assert abs(best - paper_score("voc", split, "ddfp")) < 0.05


def test_other_runs_have_no_released_curve(tiny_config):
    assert released_curve(tiny_config("ddfp")) == []
    assert released_curve(load_config(find_benchmark("voc"), "ddfp", split="92")) == []


def test_a_run_is_drawn_beside_the_released_curve():
    config = load_config(find_benchmark("voc"), "ddfp", split="732")
    keys = ("teacher_miou", "pseudo_coverage", "pseudo_precision")
    run = [{"step": step} | dict.fromkeys(keys, step / 1000) for step in (24600, 49200)]
    picture = figures.curves({"ddfp": [run]}, released=released_curve(config))
    first, *others = picture.axes
    (line,) = [line for line in first.lines if line.get_label() == "release's log, one seed"]
    assert line.get_xdata()[-1] == 49200
    assert line.get_ydata()[-1] == 80.91
    assert all("release" not in str(line.get_label()) for axes in others for line in axes.lines)
    alone = figures.curves({"ddfp": [run]})
    assert len(alone.axes[0].lines) == len(first.lines) - 1
