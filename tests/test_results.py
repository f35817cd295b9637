"""The kept ledger, and the tables made of it."""

import pandas as pd
import pytest

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.ledger import LEDGER, read_ledger, record
from ddfp_lib.experiments.published import published_scores
from ddfp_lib.reports.results import (
    NOT_RUN,
    markdown_table,
    paper_table,
    published_table,
    results_page,
)


def rows(scores: dict[str, list[float]], split: str = "60", benchmark: str = "digits"):
    table = [
        dict.fromkeys(LEDGER, 1.0)
        | {"benchmark": benchmark, "split": split, "method": method, "seed": seed}
        | {"test_miou": score, "commit": "abc", "config": "00ff00ff", "data": "1234abcd"}
        | {
            "protocol": "whole",
            "gpu": "Some GPU",
            "gpus": 4,
            "micro_batches": "2",
            "peak_memory": 10.5,
        }
        for method, values in scores.items()
        for seed, score in enumerate(values)
    ]
    return pd.DataFrame(table, columns=list(LEDGER))


@pytest.fixture
def files(tmp_path):
    new, kept = tmp_path / "new.csv", tmp_path / "kept.csv"
    rows({"ddfp": [50.0, 51.0]}).to_csv(new, index=False)
    return new, kept


def test_record_replaces_runs_of_the_same_name(files):
    new, kept = files
    record(new, kept)
    rows({"ddfp": [60.0], "vat": [40.0]}).to_csv(new, index=False)
    merged = record(new, kept)
    assert merged.set_index(["method", "seed"])["test_miou"].to_dict() == {
        ("ddfp", 0): 60.0,
        ("ddfp", 1): 51.0,
        ("vat", 0): 40.0,
    }
    assert read_ledger(kept)["split"].tolist() == ["60"] * 3


def test_record_into_an_empty_place(files):
    new, kept = files
    assert len(record(new, kept)) == 2
    assert kept.is_file()


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("method,seed\nddfp,0\n")
    with pytest.raises(UserError, match=r"results\.csv: has no column benchmark"):
        read_ledger(path)


def test_markdown_table_shows_mean_spread_seeds_and_difference():
    text = markdown_table(rows({"consistency": [50.0, 52.0], "ddfp": [51.0, 54.0]}))
    ddfp = next(line for line in text.splitlines() if "`ddfp`" in line)
    assert "**52.5** ± 2.1" in ddfp
    assert "| 51.0 | 54.0 |" in ddfp
    assert "| +1.5, not significant (95 % CI -4.9 to +7.9) |" in ddfp
    widths = {line.count("|") for line in text.splitlines()}
    assert len(widths) == 1


def test_rows_from_before_there_were_later_columns_stay_valid(files):
    new, kept = files
    old = [name for name in LEDGER if LEDGER.index(name) < LEDGER.index("protocol")]
    rows({"ddfp": [40.0]}, split="30")[old].to_csv(kept, index=False)
    merged = record(new, kept)
    assert list(merged.columns) == list(LEDGER)
    assert read_ledger(kept).set_index("split")["gpu"].isna().to_dict() == {"30": True, "60": False}


def published(miou):
    return pd.DataFrame(
        {
            "benchmark": ["voc", "voc", "cityscapes", "voc"],
            "split": ["732", "1464", "186", "732"],
            "method": ["ddfp", "ddfp", "ddfp", "Another"],
            "miou": [miou, 82.0, float("nan"), 77.7],
            "network": "R",
            "source": ["DDFP", "DDFP", "DDFP", "Another"],
            "status": ["", "unproved", "", ""],
            "note": ["", "", "could not be read", ""],
        }
    )


def test_every_cell_of_the_paper_has_its_row_run_or_not():
    ledger = rows({"ddfp": [81.0, 82.0], "supervised": [70.0]}, "732", "voc")
    first, second, third = paper_table(ledger, published(81.2)).splitlines()[2:]
    assert first.startswith("| voc | 732 | 81.2 | **81.5** ± 0.7 (2 seeds) | +0.3 | not run yet |")
    assert "**70.0** (1 seed)" in first
    assert first.count(NOT_RUN) == 2
    assert second.count(NOT_RUN) == 4
    assert second.startswith("| voc | 1464 | 82.0 (unproved) |")
    assert third.startswith("| cityscapes | 186 | unknown | not run yet |  |")
    assert len({line.count("|") for line in (first, second, third)}) == 1


def test_what_others_published_stands_by_split():
    lines = published_table(published(81.2), "voc").splitlines()
    assert lines[0] == "| method | network | source | 732 | 1464 | notes |"
    assert lines[2:] == [
        "| ddfp | R | DDFP | 81.2 | 82.0 (unproved) |  |",
        "| Another | R | Another | 77.7 |  |  |",
    ]


def test_a_run_stands_beside_the_paper_in_its_page():
    page = results_page(rows({"ddfp": [81.0]}, "732", "voc"), published(81.2))
    assert "| voc | 732 | 81.2 | **81.0** (1 seed) | -0.2 |" in page
    assert "`ddfp reproduce voc --splits 732 --methods ddfp --seeds 0 --data DIR`" in page
    assert (
        "These results were measured on 4 x Some GPU (at most 10.5 GiB each). Micro-batches: 2. "
        "Evaluation protocol: *whole*." in page
    )


def test_a_table_says_which_differences_are_significant():
    """By hand: +2 in each seed; 3, 4 and 5 with t 4.303 and a half width of 2.48; -1, 0 and 1."""
    scores = {"consistency": [50.0, 52.0, 54.0], "ddfp": [52.0, 54.0, 56.0]}
    scores |= {"noise": [47.0, 48.0, 49.0], "vat": [49.0, 52.0, 55.0]}
    page = results_page(rows(scores), published(81.2))
    assert "| +2.0, significantly better (95 % CI +2.0 to +2.0) |" in page
    assert "| -4.0, significantly worse (95 % CI -6.5 to -1.5) |" in page
    assert "+0.0, not significant (95 % CI -2.5 to +2.5) |" in page
    assert (
        "There are 3 comparisons with `consistency`, and 2 of them are significant. The intervals "
        "are not corrected for the number of comparisons." in page
    )


def test_one_seed_has_no_verdict_and_one_method_no_comparison():
    page = results_page(rows({"consistency": [50.0], "ddfp": [51.0]}), published(81.2))
    assert "| +1.0, one seed |" in page
    assert "With one seed, no difference from `consistency` can be tested for significance." in page
    assert "significance" not in results_page(rows({"ddfp": [51.0, 52.0]}), published(81.2))


def test_nothing_is_subtracted_from_an_unproved_number():
    row = paper_table(rows({"ddfp": [81.0]}, "1464", "voc"), published(81.2)).splitlines()[3]
    assert row.startswith("| voc | 1464 | 82.0 (unproved) | **81.0** (1 seed) |  |")


def test_a_published_score_keeps_its_decimals():
    scores = published(81.25)
    assert "| 81.25 | 82.0 (unproved) |" in published_table(scores, "voc")


def test_the_page_names_benchmarks_that_only_studies_measured():
    """Photographs have rows in studies alone, and no longer once the ledger has them."""
    assert "results of `camvid` (study 7), `voc_animals` (studies 8, 9, 12)" in results_page(
        rows({"ddfp": [50.0]}), published_scores()
    )
    measured = rows({"ddfp": [50.0]}, "104", "voc_animals")
    assert "`voc_animals` (studies" not in results_page(measured, published_scores())


def test_the_page_says_which_rows_are_of_an_earlier_configuration():
    """One method's rows have the hash of today, the other's have another one."""
    table = rows({"consistency": [50.0], "ddfp": [51.0]}, "85")
    today = load_config(find_benchmark("digits"), "consistency", 0, ["data.labeled=85"])
    table.loc[table["method"] == "consistency", "config"] = today.config_hash
    page = results_page(table, published_scores())
    assert (
        " The results of `ddfp` were measured with an earlier configuration (commit `abc`). A "
        "setting, a preset or the code has changed since then, so the command may give different "
        "numbers now.\n" in page
    )
    present = table[table["method"] == "consistency"]
    assert "earlier configuration" not in results_page(present, published_scores())
