"""The report of a run: what it concludes from known numbers, and what its page leaves out."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup  # nbconvert brings it

from ddfp_lib.evaluation.descent import UNPERTURBED, Descent
from ddfp_lib.experiments import page
from ddfp_lib.experiments.conclusion import comparisons, conclusion, expectation, expected
from ddfp_lib.experiments.ledger import read_ledger
from ddfp_lib.experiments.page import to_html
from ddfp_lib.files import repository
from ddfp_lib.plots import runs as figures
from ddfp_lib.plots import study as study_figures
from ddfp_lib.plots.planes import Panel, Window, maps
from ddfp_lib.plots.style import METHOD_COLOURS, method_colour
from ddfp_lib.plots.training import panels
from ddfp_lib.reports.pages import expectation as readme_expectation


def runs_of(scores: dict[str, list[float]], **columns) -> pd.DataFrame:
    """A ledger: for each method the test mIoU of seeds 0, 1, ...; NaN: this seed was not run."""
    rows = [
        {"method": method, "seed": seed, "test_miou": score, "seconds": 20.0, "steps": 1000}
        for method, values in scores.items()
        for seed, score in enumerate(values)
        if not np.isnan(score)
    ]
    return pd.DataFrame(rows).assign(**columns)


@pytest.mark.parametrize(
    ("ours", "baseline", "said"),
    [
        # by hand: mean 5/3, standard deviation 0.577, t 4.303, half width 1.434
        (
            [60.0, 61.0, 62.0],
            [58.0, 59.0, 61.0],
            "`ddfp` reaches 61.0 % mIoU, 1.7 points more than `consistency`: significantly better "
            "(95 % CI +0.2 to +3.1), 3 seeds.",
        ),
        (
            [58.0, 59.0, 61.0],
            [60.0, 61.0, 62.0],
            "`ddfp` reaches 59.3 % mIoU, 1.7 points less than `consistency`: significantly worse "
            "(95 % CI -3.1 to -0.2), 3 seeds.",
        ),
        (
            # differences -0.1 and 0.1, t 12.706, half width 1.27
            [60.0, 61.0],
            [60.1, 60.9],
            "`ddfp` reaches 60.5 % mIoU, as much as `consistency`: not significant "
            "(95 % CI -1.3 to +1.3), 2 seeds.",
        ),
        (
            [60.0],
            [58.0],
            "`ddfp` reaches 60.0 % mIoU, 2.0 points more than `consistency`, with one seed: "
            "significance cannot be tested.",
        ),
        (
            # the seed that only one has changes neither the mean nor the difference
            [60.0, 61.0, 90.0],
            [60.1, 60.9, np.nan],
            "`ddfp` reaches 60.5 % mIoU, as much as `consistency`: not significant "
            "(95 % CI -1.3 to +1.3), 2 seeds.",
        ),
        (
            [60.0, np.nan],
            [np.nan, 58.0],
            "`ddfp` and `consistency` have no seed in common, so they cannot be compared.",
        ),
    ],
)
def test_the_verdict_says_the_paired_difference(ours, baseline, said):
    ledger = runs_of({"consistency": baseline, "ddfp": ours})
    assert conclusion(ledger, "ddfp", ["consistency"]) == said


def test_the_verdict_says_the_difference_to_random_steps_too():
    ledger = runs_of(
        {
            "consistency": [58.0, 59.0, 61.0],
            "noise": [61.0, 61.5, 63.0],
            "ddfp": [60.0, 61.0, 62.0],
        }
    )
    # by hand: differences -1, -0.5, -1: mean -5/6, standard deviation 0.289, half width 0.717
    assert conclusion(ledger, "ddfp", ["consistency", "noise"]) == (
        "`ddfp` reaches 61.0 % mIoU, 1.7 points more than `consistency`: significantly better "
        "(95 % CI +0.2 to +3.1), 3 seeds; and 0.8 points less than `noise`: significantly worse "
        "(95 % CI -1.6 to -0.1), 3 seeds."
    )
    assert conclusion(ledger[ledger["seed"] == 0], "ddfp", ["consistency", "noise"]) == (
        "`ddfp` reaches 60.0 % mIoU, 2.0 points more than `consistency`, with one seed: "
        "significance cannot be tested; and 1.0 points less than `noise`, with one seed: "
        "significance cannot be tested."
    )
    apart = ledger[(ledger["method"] != "noise") | (ledger["seed"] > 5)]
    assert conclusion(apart, "ddfp", ["consistency", "noise"]).endswith(
        "3 seeds; and has no seed in common with `noise`."
    )


def test_one_method_alone_has_a_verdict():
    ledger = runs_of({"ddfp": [60.0, 61.0]})
    said = conclusion(ledger, "ddfp", ["ddfp"])
    assert said == "`ddfp` reaches 60.5 % mIoU; no other method was run."


def test_every_pair_is_compared_once_and_the_count_is_given():
    ledger = runs_of(
        {"supervised": [50.0, 51.0], "consistency": [58.0, np.nan], "ddfp": [60.0, 62.0]}
    )
    methods = ["supervised", "consistency", "ddfp", "vat"]
    assert comparisons(ledger, methods, ["consistency", "supervised"]) == [
        "- `supervised` minus `consistency`: -8.0 points, one seed: significance cannot be tested.",
        "- `ddfp` minus `consistency`: +2.0 points, one seed: significance cannot be tested.",
        # by hand: differences 10 and 11, t 12.706, half width 6.353
        "- `ddfp` minus `supervised`: +10.5 points, significantly better (95 % CI +4.1 to +16.9), "
        "2 seeds.",
        "\n3 comparisons; the intervals are not corrected for that.",
    ]
    apart = runs_of({"consistency": [58.0, np.nan], "ddfp": [np.nan, 62.0]})
    lines = comparisons(apart, ["consistency", "ddfp"], ["consistency"])
    assert lines == ["- `ddfp` minus `consistency`: no seed in common."]
    assert comparisons(runs_of({"ddfp": [60.0]}), ["ddfp"], ["ddfp"]) == []


def test_what_is_expected_comes_from_stored_runs_of_the_same_kind():
    here = runs_of({"ddfp": [60.0, 62.0], "vat": [61.0]}, benchmark="digits", split="85")
    same = runs_of({"ddfp": [59.0, 63.0, 64.0]}, benchmark="digits", split="85")
    others = [
        runs_of({"ddfp": [10.0]}, benchmark="camvid", split="85"),
        runs_of({"ddfp": [20.0]}, benchmark="digits", split="all"),
        runs_of({"ddfp": [30.0]}, benchmark="digits", split="85").assign(steps=40),
    ]
    stored = pd.concat([same, *others], ignore_index=True)
    found = expected(stored, here)
    assert found.index.tolist() == ["ddfp"]
    assert found.loc["ddfp"].tolist() == [61.0, 62.0, 59.0, 64.0, 3]
    against = ["consistency", "noise"]
    assert expectation(stored, here, "ddfp", against).startswith(
        "In 3 stored seeds: `ddfp` 59.0 to 64.0. "
    )
    assert expectation(others[0], here, "ddfp", against) == ""
    # the comparisons of the verdict, where they are stored: by hand 1, 2 and 3, half width 2.484
    more = runs_of({"consistency": [58.0, 61.0, 61.0]}, benchmark="digits", split="85")
    assert expectation(pd.concat([stored, more]), here, "ddfp", against).startswith(
        "In 3 stored seeds: +2.0 (-0.5 to +4.5) against `consistency`. Scores of these runs: "
        "`ddfp` 59.0 to 64.0. "
    )


def test_what_is_expected_of_digit_scenes_is_the_number_of_the_readme():
    """The main job: its verdict stands beside what the stored runs of all four methods gave."""
    stored = read_ledger(repository() / "reproduce" / "results.csv")
    here = stored[(stored["benchmark"] == "digits") & (stored["split"].astype(str) == "85")]
    said = expectation(stored, here, "ddfp", ["consistency", "noise"])
    number = re.search(r"In (\d+) stored seeds: (\S+ \(\S+ to \S+\)) against `consistency`", said)
    assert f"was {number[2]} points of mIoU with {number[1]} seeds" in readme_expectation(stored)
    assert "against `noise`. Scores of these runs: `supervised` " in said


def test_figures_of_results_say_their_numbers():
    """What a figure shows stands in its alternative text, here against numbers by hand."""
    ledger = runs_of({"consistency": [58.0, 59.0, 61.0], "noise, eps 3": [60.0, 61.0, 62.0]})
    alt = figures.scores(ledger, "consistency").alt
    assert "3 seeds" in alt and "59.3 for consistency; 61.0 for noise, eps 3." in alt
    assert "with its 95 % interval: +1.7 (+0.2 to +3.1) for noise, eps 3." in alt
    assert "interval" not in figures.scores(ledger[ledger["seed"] == 0], "consistency").alt
    assert figures.seconds(ledger).alt.endswith(
        "20 s, 20 ms a step for consistency; 20 s, 20 ms a step for noise, eps 3."
    )

    keys = ("teacher_miou", "pseudo_coverage", "pseudo_precision")
    log = [{"step": step} | dict.fromkeys(keys, step / 10) for step in (1, 5, 9)]
    alt = figures.curves({"ddfp": [log, log]}, {"consistency begins": 3}, [(9, 81.2)]).alt
    assert "Teacher's validation mIoU (%): 0.1 to 0.9 for ddfp." in alt
    assert "0.10 to 0.90 for ddfp" in alt
    assert "consistency begins at step 3" in alt and "ends at 81.2 %" in alt

    truth = torch.tensor([[0, 1], [1, 255]], dtype=torch.uint8)
    image, palette = torch.zeros(3, 2, 2, dtype=torch.uint8), [(0, 0, 0), (9, 9, 9)]
    found = {"supervised": [torch.zeros_like(truth)], "ddfp": [truth]}
    alt = figures.segmentations([image], [truth], found, ["background", "cat"], palette).alt
    assert "each of 1 image." in alt and "33.3 for supervised; 100.0 for ddfp." in alt

    iou = {"ddfp": np.array([[90.0, 40.0], [92.0, 50.0]])}
    alt = figures.class_iou(iou, ["background", "cat"]).alt
    assert alt.endswith("45.0 (cat) to 91.0 (background) for ddfp.")


def test_the_names_of_the_phases_lie_beside_their_lines_at_the_top():
    keys = ("teacher_miou", "pseudo_coverage", "pseudo_precision")
    log = [{"step": step} | dict.fromkeys(keys, step / 10) for step in (1, 500, 1000)]
    for second in (12, 200):  # close to the first line, and far from it
        marks = {"consistency begins": 6, "perturbation begins": second}
        picture = figures.curves({"ddfp": [log]}, marks)
        picture.canvas.draw()
        first, *others = picture.axes
        assert [len(axes.texts) for axes in others] == [0, 0]
        boxes = [text.get_window_extent() for text in first.texts]
        assert [text.get_text() for text in first.texts] == list(marks)
        assert boxes[0].x1 < boxes[1].x0
        top = first.get_window_extent().y1
        for box in boxes:
            assert top - 3 < box.y1 <= top + 1
            for step in marks.values():
                at = first.transData.transform((step, 0))[0]
                assert not box.x0 <= at <= box.x1


def test_what_a_method_costs_stands_beside_the_axes():
    ledger = runs_of({"consistency": [58.0, 59.0], "ddfp": [60.0, 61.0]})
    ledger.loc[0, "seconds"] = 500.0  # one slow run does not push its name away
    picture = figures.seconds(ledger)
    picture.canvas.draw()
    (axes,) = picture.axes
    starts = {round(text.get_window_extent().x0) for text in axes.texts}
    assert len(axes.texts) == 2 and len(starts) == 1
    assert min(starts) > axes.get_window_extent().x1


def test_the_legend_of_lengths_lies_below_the_panels():
    scores = {f"{name}, eps {eps}": [60.0, 61.0] for name in ("ddfp", "vat") for eps in (1, 3, 10)}
    ledger = runs_of({"consistency": [58.0, 59.0], **scores})
    picture = study_figures.lengths(ledger, "consistency", "test_miou", "test mIoU (%)")
    picture.canvas.draw()
    (legend,) = picture.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["one seed", "mean", "consistency, mean"]
    for axes in picture.axes:
        assert axes.get_legend() is None
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0


def test_the_text_of_the_descent_has_medians():
    before = torch.tensor([-3.0, -2.0, -1.0])
    after = {"density": before - 4, "random": before - 0.5}
    kept = {"density": 0.5, "random": 1.0}
    measured = Descent(before, after, kept, kept | {UNPERTURBED: 1.0}, {}, kept, 0.1)
    alt = figures.descent(measured).alt
    assert "3 confident features" in alt and "unperturbed median is -2.0 nats" in alt
    assert "its median is -4.0 for density; -0.5 for random." in alt
    assert "keep their class, in percent: 50.0 for density; 100.0 for random." in alt


def test_the_texts_of_a_study_have_its_means():
    rows = [
        {"method": "ddfp", "seed": seed, "step": step, "features": "all", "quantity": name}
        | {"value": 10.0 * number + step + seed}
        for number, name in enumerate(study_figures.PANELS)
        for seed in (0, 1, 2)
        for step in (1, 2)
    ]
    alt = study_figures.boundary(pd.DataFrame(rows)).alt
    assert "The means at step 1 and at step 2 are: 2.0 and 3.0 for ddfp." in alt
    assert "Error percentile: 13.0 for ddfp." in alt

    scores = {"noise, eps 1": [60.0, 62.0], "noise, eps 3": [63.0, 63.5], "consistency": [59.0, 58]}
    alt = study_figures.lengths(runs_of(scores), "consistency", "test_miou", "test mIoU (%)").alt
    assert "58.5, the score of consistency." in alt and alt.endswith("63.2 at eps 3 for noise.")


def test_every_kind_of_picture_keeps_its_text():
    picture = panels({"image": [torch.zeros(3, 2, 2)]}).described("One black image.")
    _, metadata = picture._repr_png_()
    assert metadata == {"width": 900, "alt": "One black image."}


def test_small_pictures_name_their_classes_and_show_that_a_scale_goes_on():
    mask = torch.tensor([[0, 2], [2, 255]])
    quantity = torch.arange(100.0).reshape(10, 10)
    palette, names = [[0, 0, 0], [9, 9, 9], [200, 0, 0]], ["ground", "cat", "dog"]
    picture = panels({"mask": [mask], "log p": [quantity]}, palette, classes=names)
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ground", "dog"]  # those that occur
    (image,) = picture.axes[1].images
    assert image.colorbar.extend == "both"
    assert not panels({"mask": [mask]}, palette).legends


def test_the_note_of_a_map_lies_above_it():
    """Below, it would cover points and the boundary."""
    window = Window(-1.0, 1.0, -1.0, 1.0)
    picture = maps([Panel("moons", torch.zeros(1, 2), note="at the boundary: 0.5")], window)
    axes = picture.axes[0]
    (note,) = [text for text in axes.texts if text.get_text() == "at the boundary: 0.5"]
    assert note.get_transform() == axes.transAxes and note.get_position()[1] > 1


def test_every_method_has_a_color_of_its_own():
    assert len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS)
    assert method_colour("second pass alone, tied teacher") != method_colour("supervised")


ALT = 'A curve that rises & ends > 1, called "best".'


@pytest.fixture
def executed(tmp_path):
    """A small executed notebook with everything that the page leaves out or changes."""

    def code(source, outputs, *tags):
        return nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)})

    def shown(mime, content, **metadata):
        return nbformat.v4.new_output("display_data", {mime: content}, metadata=metadata)

    stream = nbformat.v4.new_output
    cells = [
        nbformat.v4.new_markdown_cell("# One & all\n\nA first sentence."),
        code('out = "/home/somebody/runs"', [], "injected-parameters"),
        code("train()", [stream("stream", text="12 %  about 3 min left")], "progress"),
        code("import x", [stream("stream", name="stderr", text="FutureWarning: soon")]),
        code("draw()", [shown("image/png", "iVBORw0KGgo=", **{"image/png": {"alt": ALT}})]),
        code("table", [shown("text/html", "<table><tr><td>61.0</td></tr></table>")]),
    ]
    path = tmp_path / "report.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_the_page_has_results_and_no_code_progress_or_warning(executed):
    text = to_html(executed)
    assert "<title>One &amp; all</title>" in text and 'lang="en"' in text
    for left_out in ("/home/somebody", "train()", "about 3 min left", "FutureWarning", "draw()"):
        assert left_out not in text
    (figure,) = BeautifulSoup(text, "html.parser").find_all("figure")
    assert figure.img["alt"] == ALT
    assert '<div class="scroll"><table>' in text
    assert not re.findall(r"""(?:src|href)=["']https?:""", text)
    assert "<script" not in text


def test_a_figure_can_be_saved_without_scripts(executed):
    (figure,) = BeautifulSoup(to_html(executed), "html.parser").find_all("figure")
    assert figure.a["download"] == "figure-1.png"
    assert figure.a["href"] == figure.img["src"] == "data:image/png;base64,iVBORw0KGgo="
    assert figure.a.text == "Save this figure"


def test_links_that_save_a_figure_do_not_make_a_page_too_large(monkeypatch):
    small, large = (f'<img alt="a" src="data:image/png;base64,{"A" * n}">' for n in (100, 900))
    body = f"<p>{large}</p><p>{small}</p>"
    monkeypatch.setattr(page, "MOST_BYTES", len(body) + 500)
    figures = BeautifulSoup(page._with_figures(body), "html.parser").find_all("figure")
    assert [figure.a and figure.a["download"] for figure in figures] == [None, "figure-2.png"]
