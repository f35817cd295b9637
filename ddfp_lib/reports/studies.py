"""``reproduce/STUDY.md``: every study's question, figure, table, answer, cost and command.

Written by :mod:`ddfp_lib.reports.pages`.
"""

import math
import re

import pandas as pd

from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.descent import UNPERTURBED
from ddfp_lib.evaluation.mechanism import (
    ALL,
    CHANGE,
    DENSITY,
    DIVERGENCE,
    FLIPPED,
    RANK,
    RELATIVE,
    RIGHT,
    learned_densities,
)
from ddfp_lib.experiments.statistics import (
    common_seeds,
    differences,
    of_common_seeds,
    paired_difference,
    score_table,
    signed,
)
from ddfp_lib.experiments.study import SCORES, Study, group_scores, studies
from ddfp_lib.plots.study import PANELS, in_words
from ddfp_lib.plots.words import boundary as boundary_in_words
from ddfp_lib.reports.results import data_option, significance

EFFECTS = {
    CHANGE: f"median {CHANGE} (nats)",
    RANK: "density percentile",
    RIGHT: "true class (%)",
    FLIPPED: "flipped class (%)",
    DIVERGENCE: "KL of the prediction (nats)",
    RELATIVE: "length / norm of F (%)",
}
"""Columns of the table of steps."""


FIXES = {"padding": ("8c74a5a", "the flow was also trained on the padding of labeled images")}
"""Commits that changed a method after results were kept, and what was wrong, by name."""

PADDED = {"digits": "2 %", "camvid": "0.2 %"}
"""Which part of the rows of a batch was padding of labeled images, by benchmark: 2,313 rows without
the fix and 2,262 with it (mean of 100 batches of digits), 13,796 and 13,770 (20 of camvid)."""


def section(
    study: Study,
    runs: pd.DataFrame,
    mechanism: pd.DataFrame | None = None,
    classes: pd.DataFrame | None = None,
) -> str:
    """Return what a study found, in Markdown: a table a split, and what may be said of it.

    Args:
        study: the question.
        runs: its ledger, the variants' names as methods.
        mechanism: what :func:`ddfp_lib.experiments.mechanism.measure_run` found, of all its runs.
        classes: what :func:`ddfp_lib.experiments.study.class_table` returns of its runs.
    """
    parts = []
    for split, some in runs.groupby("split", sort=False):
        if runs["split"].nunique() > 1:
            parts.append(f"### {split} labeled")
        parts += [_table(study, some), _answer(study, some)]
        if study.groups and classes is not None:
            parts.append(_groups(study, group_scores(study, classes[classes["split"] == split])))
    if mechanism is not None:
        parts += inside(mechanism)
    if study.reading:
        reading = filled(study, runs, study.reading, mechanism, classes)
        parts += reading.split("\n")  # folded YAML: one line per paragraph
    return "\n\n".join(parts)


QUOTED = re.compile(r"\{\{([^{}]+)\}\}")
Table = pd.DataFrame | None
"""A table that a study may have stored."""


def filled(
    study: Study, runs: pd.DataFrame, text: str, mechanism: Table = None, classes: Table = None
) -> str:
    """Return a text with numbers in place of its ``{{A | B}}``.

    Each becomes the paired difference A minus B with its 95 % interval, ``+1.7 (+0.7 to +2.8)``,
    without an interval for fewer than three seeds. ``{{A | B | 1/8}}`` is for one split,
    ``{{A | B | 98.3 %}}`` has another interval, ``{{A | B | validation}}`` has validation scores.
    ``{{density of M | A | B}}`` compares two quantities of the density that variant M learned, at
    the end of its training. ``{{group G | A | B}}`` compares the mean IoU of a group of classes.

    Args:
        study: the study that has the variants A and B.
        runs: its ledger.
        text: text of the study's file.
        mechanism: of :data:`ddfp_lib.evaluation.mechanism.COLUMNS`, for ``density of``.
        classes: IoU of each class, see :func:`section`, for ``group``.

    Raises:
        UserError: A or B is not a variant or a quantity, or has no runs.
    """
    learned = {} if mechanism is None else learned_densities(mechanism)

    def number(found: re.Match[str]) -> str:
        parts = [part.strip() for part in found[1].split("|")]
        some, score = runs, study.score
        if parts[0].startswith("density of "):
            some, score = learned.get(parts.pop(0).removeprefix("density of "), NOTHING), "value"
        elif parts[0].removeprefix("group ") in study.groups and classes is not None:
            some, score = group_scores(study, classes), parts.pop(0).removeprefix("group ")
        method, baseline, *options = parts
        if "validation" in options:
            options.remove("validation")
            score = "teacher_miou_last"
        split = [part for part in options if not part.endswith("%")]
        levels = [float(part.rstrip("% ")) / 100 for part in options if part.endswith("%")]
        some = some[some["split"] == split[0]] if split else some
        gap = paired_difference(some, method, baseline, score, *levels)
        if gap["seeds"] == 0:
            raise UserError(
                f"{study.name}: {found[0]} has no runs; name two variants of the study, "
                "or two quantities of a density that was measured"
            )
        return _difference(gap)

    return QUOTED.sub(number, text)


NOTHING = pd.DataFrame(columns=["method", "seed", "value"])


def _difference(gap: dict[str, float]) -> str:
    """Write a paired difference; two seeds have no interval worth printing."""
    return signed(gap if gap["seeds"] > 2 else {**gap, "low": math.nan})


def _table(study: Study, runs: pd.DataFrame) -> str:
    scores = score_table(runs, study.score)
    seconds = runs.groupby("method")["seconds"].mean()
    seeds = [name for name in scores if name.startswith("seed")]
    common = common_seeds(runs, study.score)
    header = ["variant", SCORES[study.score], *seeds, f"minus `{study.baseline}`", "seconds"]
    if len(common) < runs["seed"].nunique():
        header[1] += f", mean of {len(common)} seeds"
    lines = [_row(header), "|---" * len(header) + "|"]
    for name, row in scores.iterrows():
        spread = "" if pd.isna(row["std"]) else f" ± {row['std']:.1f}"
        cells = [f"`{name}`", f"**{row['mean']:.1f}**{spread}"]
        cells += ["-" if pd.isna(row[seed]) else f"{row[seed]:.1f}" for seed in seeds]
        cells.append("" if name == study.baseline else _minus(runs, name, study, study.score))
        lines.append(_row([*cells, f"{seconds[name]:.0f}"]))
    return "\n".join(lines)


def _minus(runs: pd.DataFrame, method: str, study: Study, score: str) -> str:
    """Write the difference to the baseline over common seeds, and over all if there are more."""
    first, *more = differences(runs, method, study.baseline, score)
    return _difference(first) + "".join(
        f"; with {gap['seeds']} seeds {_difference(gap)}" for gap in more
    )


def _groups(study: Study, scores: pd.DataFrame) -> str:
    """Tabulate the mean IoU of groups of classes, and of the first group minus the second."""
    names = list(study.groups)
    header = [f"mean test IoU (%), then the difference from `{study.baseline}`"]
    header += [f"{name} ({', '.join(study.groups[name])})" for name in names]
    if len(names) > 1:
        between = f"{names[0]} minus {names[1]}"
        scores = scores.assign(**{between: scores[names[0]] - scores[names[1]]})
        header.append(between)
        names = [*names, between]
    lines = [_row(header), "|---" * len(header) + "|"]
    common = scores["seed"].isin(common_seeds(scores, names[0]))
    means = scores[common].groupby("method")[names].mean()
    for method in scores["method"].unique():
        cells = [f"`{method}`"]
        for name in names:
            mean = means.loc[method, name]
            gap = f", {_minus(scores, method, study, name)}" if method != study.baseline else ""
            cells.append(f"{mean:.1f}{gap}")
        lines.append(_row(cells))
    return "\n".join(lines)


def _answer(study: Study, runs: pd.DataFrame) -> str:
    """Say which variants are best on validation images, or how many comparisons there are."""
    if study.score == "teacher_miou_last":
        means = runs.groupby("method", sort=False)[study.score].mean()
        by_preset: dict[str, list[str]] = {}
        for name in means.index:
            by_preset.setdefault(study.variants[name].preset, []).append(name)
        several = [means[names].round(1) for names in by_preset.values() if len(names) > 1]
        best = {name: top for some in several for name, top in some[some == some.max()].items()}
        chosen = ", ".join(f"`{name}` ({top:.1f})" for name, top in best.items())
        text = "Some presets have several variants. For each of these presets, this list names the"
        return f"{text} variants with the highest mean validation mIoU (%): {chosen}."
    return significance(runs, study.baseline, study.score)


def inside(mechanism: pd.DataFrame) -> list[str]:
    """Tabulate what networks hold at the end of training: means over seeds that all have.

    Args:
        mechanism: columns :data:`ddfp_lib.evaluation.mechanism.COLUMNS`.

    Returns:
        Tables in Markdown: one of all variants, one of steps for each that has a density, and one
        of these densities where they were measured.
    """
    last = mechanism[mechanism["step"] == mechanism["step"].max()]
    whole, learned = last[last["features"] == ALL], last[last["features"] == DENSITY]
    steps = last[~last["features"].isin([ALL, DENSITY])]
    networks = _means(of_common_seeds(whole), "method").rename(index="`{}`".format)
    tables = [_markdown("variant, at the end of training (all in %)", networks)]
    for method, some in steps.groupby("method", sort=False):
        effects = _means(some, "features")
        effects = effects[[name for name in EFFECTS if name in effects]].rename(columns=EFFECTS)
        effects = effects.rename(index={UNPERTURBED: "unperturbed"})
        tables.append(
            _markdown(f"confident features of `{method}`, before and after a step", effects)
        )
    if len(learned):
        quality = _means(learned, "method").rename(index="`{}`".format)
        tables.append(_markdown("learned density, validation (log-likelihoods in nats)", quality))
    return tables


def _means(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Average over seeds: a row for each value of ``by``, a column a quantity, as they come."""
    table = rows.pivot_table(index=by, columns="quantity", values="value")
    return table.reindex(index=rows[by].unique(), columns=rows["quantity"].unique())


def _markdown(corner: str, table: pd.DataFrame) -> str:
    lines = [_row([corner, *table.columns]), "|---" * (1 + table.shape[1]) + "|"]
    for name, row in table.iterrows():
        cells = (_number(x, 3 if "KL" in column else 1) for column, x in row.items())
        lines.append(_row([name, *cells]))
    return "\n".join(lines)


def _number(x: float, digits: int) -> str:
    return "-" if pd.isna(x) else f"{x:z.{digits}f}"  # never -0.0


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def by_figure(study: Study, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs that each figure of a study shows, a split each, by the figure's name."""
    splits = dict(list(runs.groupby("split", sort=False)))
    if len(splits) == 1:
        return {study.name: runs}
    return {f"{study.name}-{split.replace('/', '-')}": some for split, some in splits.items()}


def measured(runs: pd.DataFrame) -> str:
    """Say what the runs cost, and which commits they are from."""
    hours = runs["seconds"].sum() / 3600
    commits = [f"`{name}`" for name in runs["commit"].unique()]
    code = f"with the code of commit{'s' * (len(commits) > 1)} {', '.join(commits)}"
    return f"Cost: {len(runs)} runs, {hours:.1f} core hours, {code}."


def outdated(study: Study) -> str:
    """Say what was fixed after a study was measured; empty where nothing was."""
    if not study.measured_before:
        return ""
    commit, wrong = FIXES[study.measured_before]
    rows = f"{PADDED[study.benchmark]} of the features of a {study.benchmark} batch"
    return f"Runs with a flow have an error that commit {commit} fixed later: {wrong} ({rows})."


def _seeds(runs: pd.DataFrame) -> str:
    """Say how many seeds the methods have: ``3``, or ``3 to 5``."""
    counts = runs.groupby(["split", "method"])["seed"].nunique()
    least, most = counts.min(), counts.max()
    return str(most) if least == most else f"{least} to {most}"


def command(study: Study) -> str:
    """Return the command that measures a study and keeps its results."""
    return f"Command: `ddfp study {study.name}{data_option(study.benchmark)} --record`"


def _summary() -> str:
    """Tabulate the questions, their answers in one line, seeds, and a link to each section."""
    lines = [_row(["", "question", "answer", "seeds"]), "|---" * 4 + "|"]
    for study in studies():
        runs = study.stored()
        anchor = re.sub(r"[^\w\- ]", "", f"{study.number}. {study.question}".lower())
        question = f"[{study.question}](#{anchor.replace(' ', '-')})"
        answer, seeds = "Not run yet.", ""
        if runs is not None:
            found = study.stored_mechanism(), study.stored_classes()
            answer, seeds = filled(study, runs, study.answer, *found), _seeds(runs)
        lines.append(_row([str(study.number), question, answer, seeds]))
    return "\n".join(lines)


def page() -> str:
    """Return ``STUDY.md``; a study that has not been run yet says so."""
    parts = [
        "# Studies",
        "This page lists our own questions and our measurements. The [glossary]"
        "(../docs/glossary.md) defines the methods; `supervised` trains on labels alone. [Lesson 6]"
        "(../notebooks/06_does_the_density_matter.ipynb) explains how to read the numbers.",
        _summary(),
        "`ddfp report` generates this page from [`studies/`](studies). Scores are the mIoU of the "
        "teacher after the last training step, in %. Means are over the seeds that all methods of "
        "a table have in common; `±` is the standard deviation between seeds. Differences between "
        "two methods are in points of mIoU, and paired by seed. If there are at least three "
        "seeds, the 95 % interval (Student's t) is in parentheses. A difference is significant if "
        "its interval does not contain 0. Intervals are corrected for the number of comparisons "
        "only if the text says this. *Seconds* is the mean time of a run on one core, while the "
        "machine did other work too. Tables come from different machines: compare only scores of "
        "one table. `SEED` in a setting is the seed of the run.",
    ]
    for study in studies():
        parts.append(f"## {study.number}. {study.question}")
        runs = study.stored()
        if runs is None:
            parts.append("Not run yet.")
        else:
            mechanism = study.stored_mechanism()
            for name, some in by_figure(study, runs).items():
                alt = in_words(some, study.baseline, study.score, SCORES[study.score])
                parts.append(f"![{alt}](studies/{name}.png)")
            if mechanism is not None:
                alt = boundary_in_words(mechanism, PANELS)
                parts.append(f"![{alt}](studies/{study.name}-mechanism.png)")
            parts.append(section(study, runs, mechanism, study.stored_classes()))
            if study.settings:
                words = ", ".join(f"`{one}`" for one in study.settings).replace("{seed}", "SEED")
                text = "Each variant has these settings, if it does not set other values itself"
                parts.append(f"{text}: {words}.")
            parts.append(f"{measured(runs)} {outdated(study)}".strip())
        parts.append(command(study))
    return "\n\n".join(parts) + "\n"
