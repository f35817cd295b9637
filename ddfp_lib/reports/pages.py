"""Pages made from stored results: README.md's tables, RESULTS.md, STUDY.md and figures."""

import re
from pathlib import Path

import pandas as pd

from ddfp_lib.experiments.contributed import contributed, contributed_rows
from ddfp_lib.experiments.ledger import read_ledger
from ddfp_lib.experiments.published import PAPER, published_scores
from ddfp_lib.experiments.statistics import excludes_zero, paired_difference, signed, verdict
from ddfp_lib.experiments.study import SCORES, Study, find_study, studies
from ddfp_lib.files import repository, write_atomically, write_text
from ddfp_lib.plots.runs import scores as draw_scores
from ddfp_lib.plots.study import boundary, is_sweep, lengths
from ddfp_lib.reports.blocks import replace_block
from ddfp_lib.reports.modules import files_table
from ddfp_lib.reports.results import paper_table, results_page
from ddfp_lib.reports.studies import by_figure, command, measured, page

SECOND_PASS = "a second pass without a step"

CLAIMS = (0, 3, 4)
"""The comparisons of :func:`_compared` that the first screen of the README shows."""


def _compared(noise: str, vat: str, ddfp: str) -> tuple[tuple[str, str, str, str], ...]:
    """Return the comparisons of the README, by the names of a study's variants."""
    return (
        (
            "training with pseudo-labels (`consistency`)",
            "labels alone",
            "consistency",
            "supervised",
        ),
        (SECOND_PASS, "`consistency`", "second pass alone", "consistency"),
        ("`ddfp`: steps down the density", "`consistency`", ddfp, "consistency"),
        ("`ddfp`", SECOND_PASS, ddfp, "second pass alone"),
        ("`ddfp`", "random steps (`noise`)", ddfp, noise),
        ("`ddfp`", "adversarial steps (`vat`)", ddfp, vat),
    )


FOUND = {
    "perturbations": _compared("noise, eps 10", "vat, eps 3", "ddfp, eps 3"),
    "photographs": _compared("noise, eps 3", "vat, eps 1", "ddfp, eps 1"),
}
"""What the README reports: studies, and of each the comparisons: both sides in words, and the two
variants."""

BENCHMARKS = {"perturbations": "digit scenes", "photographs": "photographs"}
"""What the first screen of the README calls the benchmarks of these studies."""


def write_pages() -> list[Path]:
    """Renew all pages and figures of the repository from what is kept in its ``reproduce``.

    Returns:
        The files written.
    """
    root = repository()
    ledger, scores = read_ledger(root / "reproduce" / "results.csv"), published_scores()
    readme, architecture = root / "README.md", root / "docs" / "architecture.md"
    pages = {
        readme: readme_page(readme.read_text(encoding="utf-8"), ledger, scores),
        root / "reproduce" / "RESULTS.md": results_page(
            ledger, scores, contributed_rows(contributed())
        ),
        root / "reproduce" / "STUDY.md": page(),
        architecture: architecture_page(architecture.read_text(encoding="utf-8")),
    }
    for path, text in pages.items():
        write_text(path, text)
    return [*pages, *write_figures()]


def readme_page(text: str, ledger: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Return the README with its generated tables renewed.

    Args:
        text: the README.
        ledger: the kept results, see :func:`ddfp_lib.experiments.ledger.read_ledger`.
        scores: see :func:`ddfp_lib.experiments.published.published_scores`.
    """
    text = replace_block(text, "found", first_screen())
    for study in FOUND:
        text = replace_block(text, study, headline(find_study(study)))
    text = replace_block(text, "expect", expectation(ledger))
    return replace_block(text, "voc", paper_cells(ledger, scores[scores["benchmark"] == "voc"]))


def architecture_page(text: str) -> str:
    """Return ``docs/architecture.md`` with its table of files renewed.

    Args:
        text: the page; the order of its first table is that of the rooms.
    """
    rooms = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    return replace_block(text, "files", files_table(rooms))


def first_screen() -> str:
    """Return the three comparisons that answer whether the density matters, on each benchmark.

    Returns:
        Markdown: a table, one column for each of :data:`FOUND` that has kept results.
    """
    kept = {name: find_study(name).stored() for name in FOUND}
    found = {name: runs for name, runs in kept.items() if runs is not None}
    lines = [
        "| mIoU, difference in points | " + " | ".join(BENCHMARKS[name] for name in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for number in CLAIMS:
        cells = []
        for name, runs in found.items():
            what, other, *pair = FOUND[name][number]
            gap = paired_difference(runs, *pair, find_study(name).score)
            cells.append(
                f"**{gap['difference']:+z.1f}**, {verdict(gap)[:-1]}, {gap['seeds']} seeds)"
            )
        lines.append(f"| {what[0].upper()}{what[1:]} minus {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def headline(study: Study) -> str:
    """Return the comparisons of the README as a table, their cost, and the command.

    Args:
        study: one of :data:`FOUND`; its kept results are read.

    Returns:
        Markdown; one sentence if the study has no results yet.

    Raises:
        KeyError: the study has results but is not in :data:`FOUND`.
    """
    runs = study.stored()
    if runs is None:
        return f"Not run yet. {command(study)}"
    lines = ["| what | compared with | mIoU (points), 95 % CI |", "|---|---|---|"]
    found = FOUND[study.name]
    gaps = [paired_difference(runs, *row[2:], study.score) for row in found]
    counts = sorted({gap["seeds"] for gap in gaps})
    for (what, other, *_), gap in zip(found, gaps, strict=True):
        of = f", {gap['seeds']} seeds" if len(counts) > 1 else ""
        lines.append(f"| {what} | {other} | **{gap['difference']:+z.1f}**, {verdict(gap)}{of} |")
    strict = 1 - 0.05 / len(found)  # Bonferroni's correction
    left = [
        f"{what} minus {other}"
        for what, other, *pair in found
        if excludes_zero(paired_difference(runs, *pair, study.score, strict))
    ]
    note = (
        f"Scores are on test images, with {' or '.join(map(str, counts))} seeds. "
        f"The intervals are not corrected for the {len(found)} comparisons. "
        "After Bonferroni's correction, "
        + (
            f"{_significant(len(left))}: {'; '.join(left)}."
            if left
            else "no difference is significant."
        )
    )
    return "\n".join(lines) + f"\n\n{note} {measured(runs)} {command(study)}"


def _significant(count: int) -> str:
    """Say how many differences are significant: at least one."""
    if count == 1:
        return "one difference is significant"
    return f"{count} differences are significant"


def expectation(ledger: pd.DataFrame) -> str:
    """Say what ``make reproduce`` found here, and how far another run may be from that."""
    runs = ledger[(ledger["benchmark"] == "digits") & ledger["split"].astype(str).isin(["85"])]
    gap = paired_difference(runs, "ddfp", "consistency")
    if gap["seeds"] < 2:
        return "What it finds: not stored yet."
    return (
        f"In our runs of `make reproduce`, `ddfp` minus `consistency` was {signed(gap)} points of "
        f"mIoU with {gap['seeds']} seeds (95 % CI in parentheses). Another machine gives different "
        "numbers. With so few seeds, even the sign of this difference can change. "
        f"[Study 2](reproduce/STUDY.md) has this difference for {study_seeds()} seeds."
    )


def study_seeds() -> str:
    """Return the number of seeds of the README's study of digits, as a word or a number."""
    count = len(find_study("perturbations").seeds)
    return {3: "three", 4: "four", 5: "five", 10: "ten"}.get(count, str(count))


def paper_cells(ledger: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Return the paper's table of a benchmark, or one sentence where no cell was run here."""
    benchmarks = set(scores["benchmark"])
    if ledger["benchmark"].isin(benchmarks).any():
        return paper_table(ledger, scores)
    paper = scores[scores["source"] == PAPER]
    known = ", ".join(
        f"{cell.miou:.1f} ({cell.split} labeled images)"
        for cell in paper.itertuples()
        if not pd.isna(cell.miou)
    )
    return (
        f"The paper reports these mIoUs of DDFP on VOC: {known}. We know these numbers from "
        "another project, which quotes them. `ddfp reproduce voc --data DIR` trains on all five "
        "splits (lists of labeled images). Add `--splits 732` to train on one split. If you have "
        "one GPU, see [One GPU](reproduce/README.md#one-gpu)."
    )


def write_figures() -> list[Path]:
    """Draw every study that was run, next to its table."""
    written = []
    for study in studies():
        runs, inside = study.stored(), study.stored_mechanism()
        pictures = {}
        if runs is not None:
            for name, some in by_figure(study, runs).items():
                draw = lengths if is_sweep(some) else draw_scores
                pictures[name] = draw(some, study.baseline, study.score, SCORES[study.score])
        if inside is not None:
            pictures[f"{study.name}-mechanism"] = boundary(inside)
        for name, picture in pictures.items():
            path, content = study.folder / f"{name}.png", picture.png()
            write_atomically(path, lambda partial, content=content: partial.write_bytes(content))
            written.append(path)
    return written
