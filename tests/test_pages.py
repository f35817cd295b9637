"""The committed pages are those that the kept results make."""

import re

import pandas as pd
import pytest
from scipy import stats

from ddfp_lib.errors import UserError
from ddfp_lib.experiments.contributed import contributed, contributed_rows
from ddfp_lib.experiments.ledger import read_ledger
from ddfp_lib.experiments.published import published_scores
from ddfp_lib.experiments.statistics import difference_table
from ddfp_lib.experiments.study import Study, find_study, studies
from ddfp_lib.files import repository
from ddfp_lib.reports import pages
from ddfp_lib.reports.blocks import BEGIN, END, replace_block
from ddfp_lib.reports.pages import headline, readme_page
from ddfp_lib.reports.results import results_page
from ddfp_lib.reports.studies import by_figure, filled, page


def test_replace_block_changes_the_block_alone():
    text = f"above\n{BEGIN.format(name='x', by='me')}\nold\n{END.format(name='x')}\nbelow\n"
    new = replace_block(text, "x", "new", by="me")
    assert "old" not in new
    assert new.startswith("above\n")
    assert new.endswith("\nbelow\n")
    assert replace_block(new, "x", "new", by="me") == new
    for name, by in (("y", "me"), ("x", "another")):
        with pytest.raises(UserError, match=f"no block '{name}'"):
            replace_block(text, name, "new", by=by)


def test_results_are_in_step_with_ledger_and_paper():
    ledger = read_ledger(repository() / "reproduce" / "results.csv")
    scores = published_scores()
    kept = (repository() / "reproduce" / "RESULTS.md").read_text(encoding="utf-8")
    assert kept == results_page(ledger, scores, contributed_rows(contributed()))
    for cell in scores[scores["source"] == "DDFP"].itertuples():
        assert f"| {cell.benchmark} | {cell.split} |" in kept


def test_studies_are_in_step_with_their_tables():
    kept = (repository() / "reproduce" / "STUDY.md").read_text(encoding="utf-8")
    assert kept == page()
    for study in studies():
        if study.stored() is not None:
            for name in by_figure(study, study.stored()):
                assert (study.folder / f"{name}.png").is_file()


def test_each_split_has_a_figure():
    runs = pd.DataFrame({"split": ["1/8", "1/8", "1/16"], "seed": [0, 1, 0]})
    figures = by_figure(find_study("camvid"), runs)
    assert {name: len(some) for name, some in figures.items()} == {
        "camvid-1-8": 2,
        "camvid-1-16": 1,
    }
    assert list(by_figure(find_study("camvid"), runs[:2])) == ["camvid"]


def test_the_readme_is_in_step_with_both():
    kept = (repository() / "README.md").read_text(encoding="utf-8")
    ledger = read_ledger(repository() / "reproduce" / "results.csv")
    assert kept == readme_page(kept, ledger, published_scores())


@pytest.mark.parametrize("name", pages.FOUND)
def test_the_headline_has_the_study_s_own_differences(name):
    """Each comparison of the README, computed here from scores, and how to measure it again."""
    study = find_study(name)
    assert {variant for row in pages.FOUND[name] for variant in row[2:]} <= {*study.variants}
    if study.stored() is None:
        return
    text = headline(study)
    data = "" if study.benchmark == "digits" else " --data DIR"
    assert f"`ddfp study {study.name}{data} --record`" in text
    runs = study.stored().pivot(index="seed", columns="method", values=study.score)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(pages.FOUND[name])
    for line, (what, other, variant, baseline) in zip(lines, pages.FOUND[name], strict=True):
        gaps = (runs[variant] - runs[baseline]).dropna()
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5
        assert line.startswith(f"| {what} | {other} | **{gaps.mean():+z.1f}**, ")
        significant = abs(gaps.mean()) > half
        assert ("not significant" in line) == (not significant)
        strict = stats.t.ppf(1 - 0.025 / len(lines), len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5
        assert (f"{what} minus {other}" in text) == (abs(gaps.mean()) > strict)


def test_the_first_screen_has_the_numbers_of_the_tables_below_it():
    """Each of its cells, difference and interval, stands in the table of that benchmark too."""
    rows = [line.split(" | ") for line in pages.first_screen().splitlines()[2:]]
    assert len(rows) == 3
    for number, row in zip(pages.CLAIMS, rows, strict=True):
        for name, cell in zip(pages.FOUND, row[1:], strict=True):
            line = headline(find_study(name)).splitlines()[2 + number]
            difference, interval = re.match(r"\*\*(.+?)\*\*, .*\(95 % CI (.+?), \d", cell).groups()
            assert f"**{difference}**" in line
            assert f"(95 % CI {interval})" in line


def test_the_readme_is_short():
    """Words of its text and its tables, without code, addresses and generated blocks."""
    text = (repository() / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"<!-- generated.*?: begin.*?<!-- end.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)", "", text, flags=re.DOTALL)
    words = re.findall(r"\w[\w'-]*", text)
    assert 700 <= len(words) <= 900


def test_the_paper_is_one_sentence_until_a_cell_is_run():
    ledger = read_ledger(repository() / "reproduce" / "results.csv")
    scores = published_scores()
    scores = scores[scores["benchmark"] == "voc"]
    without = ledger[ledger["benchmark"] != "voc"]
    text = pages.paper_cells(without, scores)
    assert "81.2 (732 labeled images)" in text
    assert "|" not in text
    run = ledger.iloc[:1].assign(benchmark="voc", split="732", method="ddfp", test_miou=80.0)
    assert "| voc | 732 | 81.2 | **80.0**" in pages.paper_cells(pd.concat([without, run]), scores)


def test_what_to_expect_is_the_stored_reproduction():
    ledger = read_ledger(repository() / "reproduce" / "results.csv")
    assert "`ddfp` minus `consistency` was" in pages.expectation(ledger)
    assert "not stored yet" in pages.expectation(ledger[ledger["seed"] < 0])


def test_a_headline_without_runs_says_so(monkeypatch):
    monkeypatch.setattr(Study, "stored", lambda study: None)
    assert headline(find_study("perturbations")).startswith("Not run yet. Command: `ddfp study")


def differences_of(study):
    """Every paired difference that a study's ledger holds, and the ends of its interval, signed."""
    runs = study.stored()
    gaps = [
        difference_table(some, baseline, study.score)
        for _, some in runs.groupby("split")
        for baseline in some["method"].unique()
    ]
    values = pd.concat(gaps)[["difference", "low", "high"]].to_numpy().ravel()
    return {f"{value:+z.1f}" for value in values}


def misquoted(text, known):
    return [
        number for number in re.findall(r"(?<![\w.])[+-]\d+\.\d\b", text) if number not in known
    ]


@pytest.mark.parametrize(
    "study", [s for s in studies() if s.stored() is not None], ids=lambda s: s.name
)
def test_differences_in_words_are_those_of_the_tables(study):
    """A text names variants; a number that somebody typed is compared with the table."""
    known = differences_of(study)
    for text in (study.answer, study.reading):
        assert text
        assert misquoted(text, known) == []
        stored = study.stored_mechanism(), study.stored_classes()
        assert "{{" not in filled(study, study.stored(), text, *stored)


def test_study_md_begins_with_its_answers():
    text = page()
    for study in studies():
        line = next(line for line in text.splitlines() if line.startswith(f"| {study.number} | ["))
        anchor = line.split("](#")[1].split(")")[0]
        heading = f"## {study.number}. {study.question}"
        assert heading in text
        assert anchor == re.sub(r"[^\w\- ]", "", heading[3:].lower()).replace(" ", "-")


def strays(text):
    """Return numbered lines that continue no list: a wrapped sentence may begin with "2. "."""
    found, last = [], 0
    for line in text.splitlines():
        numbered = re.match(r"(?:# )? *(\d+)\. \S", line)
        if numbered:
            found += [line] * (int(numbered[1]) not in (1, last + 1))
            last = int(numbered[1])
    return found


def test_no_wrapped_sentence_begins_like_an_item_of_a_list():
    root = repository()
    pages_there = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("reproduce/*.md")]
    for path in [
        *pages_there,
        *root.glob("bench/*.md"),
        *root.glob("notebooks/*.md"),
        *root.glob("notebooks/0*.py"),
    ]:
        assert strays(path.read_text(encoding="utf-8")) == [], path
    assert strays("1. one\n2. two\n\n3. three") == []
    assert strays("# Two show a\n# 2. In these") == ["# 2. In these"]


def joined(text):
    """Return lines of code blocks that hold several commands: a wrapped block cannot be copied."""
    found, code = [], False
    for line in text.splitlines():
        code ^= line.lstrip().startswith("```")
        if code and len(re.findall(r"\bddfp (?:data|train|study|reproduce)\b", line)) > 1:
            found.append(line)
    return found


def test_a_line_of_a_code_block_is_one_command():
    root = repository()
    for path in [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("reproduce/*.md")]:
        assert joined(path.read_text(encoding="utf-8")) == [], path
    two = "ddfp data verify voc ddfp train voc"
    assert joined(f"```\nddfp train voc\n```\n{two}") == []
    assert joined(f"   ```\n   {two}\n   ```") == [f"   {two}"]


def test_a_wrong_difference_is_found():
    known = differences_of(find_study("eps"))
    assert misquoted("by +77.7, and -77.7 to +0.3", known - {"+0.3"}) == ["+77.7", "-77.7", "+0.3"]
