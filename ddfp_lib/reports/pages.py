"""The pages that are made of kept results: README.md's tables, RESULTS.md, STUDY.md, figures."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ddfp_lib.experiments.contributed import contributed, contributed_rows
from ddfp_lib.experiments.ledger import read_ledger
from ddfp_lib.experiments.published import published_scores
from ddfp_lib.experiments.study import SCORES, Study, find_study, studies
from ddfp_lib.files import repository, write_atomically, write_text
from ddfp_lib.plots.runs import scores as draw_scores
from ddfp_lib.plots.study import boundary
from ddfp_lib.reports.blocks import replace_block
from ddfp_lib.reports.results import paper_table, results_page
from ddfp_lib.reports.studies import by_figure, measured, page, section

HEADLINE = "rivals"
"""The study that the README tells of."""


def write_pages() -> list[Path]:
    """Renew all pages and figures of the repository from what is kept in its ``reproduce``.

    Returns:
        The files written.
    """
    root = repository()
    ledger, scores = read_ledger(root / "reproduce" / "results.csv"), published_scores()
    readme = root / "README.md"
    pages = {
        readme: readme_page(readme.read_text(encoding="utf-8"), ledger, scores),
        root / "reproduce" / "RESULTS.md": results_page(
            ledger, scores, contributed_rows(contributed())
        ),
        root / "reproduce" / "STUDY.md": page(),
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
    text = replace_block(text, HEADLINE, headline(find_study(HEADLINE)))
    return replace_block(text, "voc", paper_table(ledger, scores[scores["benchmark"] == "voc"]))


def headline(study: Study) -> str:
    """Return figure, table, answer, cost and command of the study that the README tells of."""
    command = f"Command: `ddfp study {study.name} --record`"
    runs = study.stored()
    if runs is None:
        return f"Not run yet. {command}"
    picture = f"![{study.question}](reproduce/studies/{study.name}.png)"
    told = section(replace(study, reading=""), runs)  # the README has words of its own
    return "\n\n".join([picture, told, f"{measured(runs)} {command}"])


def write_figures() -> list[Path]:
    """Draw every study that was run, beside its table."""
    written = []
    for study in studies():
        runs, inside = study.stored(), study.stored_mechanism()
        pictures = {}
        if runs is not None:
            for name, some in by_figure(study, runs).items():
                pictures[name] = draw_scores(some, study.rival, study.score, SCORES[study.score])
        if inside is not None:
            pictures[f"{study.name}-mechanism"] = boundary(inside)
        for name, picture in pictures.items():
            path, content = study.folder / f"{name}.png", picture.png()
            write_atomically(path, lambda partial, content=content: partial.write_bytes(content))
            written.append(path)
    return written
