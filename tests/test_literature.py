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
from ddfp_lib.files import repository
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


@pytest.mark.parametrize(
    ("benchmark", "method", "source", "scores", "note"),
    [
        ("voc", "ddfp", "DDFP", (75.0, 78.0, 79.5, 81.2, 82.0), "SemiOVS (README at 7207466b)"),
        (
            "voc",
            "CorrMatch",
            "CorrMatch",
            (76.2, 78.3, 79.4, 80.6, 81.4),
            "crops of 321 pixels for 92",
        ),
        ("voc", "supervised", "UniMatch", (45.1, 55.3, 64.8, 69.7, 73.5), "crops of 321 pixels"),
        ("voc_blender", "ddfp", "DDFP", (None,) * 4, "found in no public table"),
        ("voc_blender", "U2PL", "U2PL", (77.21, 79.01, 79.30, 80.50), ""),
        ("voc_blender", "supervised", "U2PL", (67.87, 71.55, 75.80, 77.13), "labeled only"),
        ("voc_blender", "AllSpark", "AllSpark", (78.32, 79.98, 80.42, 81.14), ""),
        ("cityscapes", "ddfp", "DDFP", (None, None, None, 80.82), "no public table"),
        ("cityscapes", "U2PL", "U2PL", (74.9, 76.5, 78.5, 79.1), "with AEL"),
        ("cityscapes", "U2PL (CutMix)", "U2PL", (70.30, 74.37, 76.47, 79.05), "same lists"),
        ("cityscapes", "AugSeg", "AugSeg", (75.22, 77.82, 79.56, 80.43), ""),
    ],
)
def test_rows_that_were_compared_with_their_sources(benchmark, method, source, scores, note):
    table = published_scores()
    rows = table[(table["benchmark"] == benchmark) & (table["method"] == method)]
    rows = rows[rows["source"] == source]
    assert [None if math.isnan(miou) else miou for miou in rows["miou"]] == list(scores)
    assert all(note in said for said in rows["note"])


def test_the_one_run_by_others_is_told_apart():
    """On another data set: in the text, and in no table."""
    text = " ".join((repository() / "reproduce" / "README.md").read_text(encoding="utf-8").split())
    for row in (
        "DDFP has 48.70, 59.53, 58.11 and 58.07.",
        "UniMatch has 52.72, 59.35, 59.42 and 54.74.",
        "Training on labels alone has 48.76, 53.64, 56.95 and 56.81.",
    ):
        assert row in text
    assert not published_scores()["miou"].isin([48.70, 59.53, 58.11, 58.07]).any()


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
