"""The kept ledger, the pages made of it, and that the committed pages are in step with it."""

import pandas as pd
import pytest

from ddfp_lib.errors import UserError
from ddfp_lib.files import repository
from ddfp_lib.matrix import LEDGER
from ddfp_lib.results import (
    BEGIN,
    END,
    headline,
    markdown_table,
    read_ledger,
    record,
    replace_block,
    results_page,
)


def rows(scores: dict[str, list[float]], split: str = "60", benchmark: str = "digits"):
    table = [
        dict.fromkeys(LEDGER, 1.0)
        | {"benchmark": benchmark, "split": split, "method": method, "seed": seed}
        | {"test_miou": score, "commit": "abc", "config": "00ff00ff"}
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
    assert "+1.5 (-4.9 to +7.9)" in ddfp
    widths = {line.count("|") for line in text.splitlines()}
    assert len(widths) == 1


def test_replace_block_changes_the_block_alone():
    text = f"above\n{BEGIN.format(name='x')}\nold\n{END.format(name='x')}\nbelow\n"
    new = replace_block(text, "x", "new")
    assert "old" not in new
    assert new.startswith("above\n")
    assert new.endswith("\nbelow\n")
    assert replace_block(new, "x", "new") == new
    with pytest.raises(UserError, match="no block 'y'"):
        replace_block(text, "y", "new")


def test_committed_pages_are_in_step_with_the_ledger():
    root = repository()
    kept = read_ledger(root / "reproduce" / "results.csv")
    assert (root / "reproduce" / "RESULTS.md").read_text(encoding="utf-8") == results_page(kept)
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert replace_block(readme, "digits", headline(kept)) == readme
