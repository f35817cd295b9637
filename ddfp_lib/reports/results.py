"""Tables of stored (``reproduce/results.csv``), contributed and published results."""

import pandas as pd

from ddfp_lib.config import find_benchmark, read_benchmark, splits_of
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.matches import unmatched
from ddfp_lib.experiments.published import PAPER, UNPROVED
from ddfp_lib.experiments.statistics import (
    difference_table,
    excludes_zero,
    paired_difference,
    score_table,
    verdict,
)
from ddfp_lib.experiments.study import studies


def markdown_table(runs: pd.DataFrame, baseline: str = "consistency") -> str:
    """Return the table of one benchmark and split, in Markdown.

    One row a method: mean and standard deviation of the test mIoU, each seed, the paired
    difference to ``baseline`` with its verdict, validation mIoU last and best, seconds.

    Args:
        runs: rows of the ledger.
        baseline: method that the others are compared with.
    """
    scores = score_table(runs)
    seeds = [name for name in scores if name.startswith("seed")]
    header = ["method", "test mIoU", *seeds, f"minus `{baseline}` (points)"]
    header += ["val, last", "val, best", "seconds"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    means = runs.groupby("method")[["teacher_miou_last", "teacher_miou_best", "seconds"]].mean()
    for method, row in scores.iterrows():
        difference = ""
        if method != baseline:
            gap = paired_difference(runs, method, baseline)
            difference = f"{gap['difference']:+z.1f}, "
            difference += verdict(gap) if gap["seeds"] > 1 else "one seed"
        cells = [
            f"`{method}`",
            f"**{row['mean']:.1f}**" + (f" ± {row['std']:.1f}" if len(seeds) > 1 else ""),
        ]
        cells += [f"{row[seed]:.1f}" for seed in seeds]
        cells += [difference]
        cells += [f"{means.loc[method, name]:.1f}" for name in means.columns[:2]]
        cells += [f"{means.loc[method, 'seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def significance(runs: pd.DataFrame, baseline: str, score: str = "test_miou") -> str:
    """Say how many comparisons a table has, how many are significant, and what was not corrected.

    Args:
        runs: rows of the ledger, of one benchmark and split.
        baseline: method that the others are compared with.
        score: column that is compared, mIoU in percent.
    """
    gaps = difference_table(runs, baseline, score)
    if gaps["seeds"].max() < 2:
        return f"With one seed, no difference from `{baseline}` can be tested for significance."
    significant = sum(map(excludes_zero, gaps.to_dict("records")))
    if len(gaps) == 1:
        verdict = "is significant" if significant else "is not significant"
        return f"There is 1 comparison with `{baseline}`: it {verdict}."
    many = {0: "none", len(gaps): "all"}.get(significant, significant)
    return (
        f"There are {len(gaps)} comparisons with `{baseline}`, and {many} of them "
        f"{'is' if significant < 2 else 'are'} significant. The intervals are not corrected for "
        "the number of comparisons."
    )


NOT_RUN = "not run yet"

CONTRIBUTED = (
    "This section is for runs that other people made on their own machines. These runs are stored "
    "in `contributed/`. For each of these runs, `ddfp record --check` checks whether the "
    "configuration, the log and the scores of the run agree with each other. We did not repeat "
    "these runs, and no other table of this page has them."
)


def paper_table(ledger: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Return the paper's tables in Markdown: a row per cell, with our results where there are any.

    A number that is unproved is shown as such, and nothing is subtracted from it.

    Args:
        ledger: the kept results.
        scores: see :func:`ddfp_lib.experiments.published.published_scores`.
    """
    lines = [
        "| benchmark | labeled | paper | `ddfp` here | difference | `ddfp_released` here | "
        "`consistency` here | `supervised` here | protocol | command |",
        "|---" * 10 + "|",
    ]
    for cell in scores[scores["source"] == PAPER].itertuples():
        runs = ledger[(ledger["benchmark"] == cell.benchmark) & (ledger["split"] == cell.split)]
        ours = {name: found["test_miou"] for name, found in runs.groupby("method")}
        paper = "unknown" if pd.isna(cell.miou) else _published(cell.miou)
        proved = paper != "unknown" and cell.status != UNPROVED
        paper += f" ({UNPROVED})" if cell.status == UNPROVED else ""
        difference = f"{ours['ddfp'].mean() - cell.miou:+z.1f}" if proved and "ddfp" in ours else ""
        methods = ("ddfp_released", "consistency", "supervised")
        row = [
            cell.benchmark,
            cell.split,
            paper,
            _spread(ours.get("ddfp")),
            difference,
            *(_spread(ours.get(name)) for name in methods),
            ", ".join(runs["protocol"].dropna().unique()),
            f"`ddfp reproduce {cell.benchmark} --splits {cell.split} --data DIR`",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _published(score: float) -> str:
    """Write a score with as many decimals as its source has, one or two."""
    return f"{score:.1f}" if round(score, 1) == score else f"{score:.2f}"


def _spread(scores: pd.Series | None) -> str:
    if scores is None:
        return NOT_RUN
    seeds = f"{len(scores)} seed{'s' if len(scores) > 1 else ''}"
    spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
    return f"**{scores.mean():.1f}**{spread} ({seeds})"


def published_table(scores: pd.DataFrame, benchmark: str) -> str:
    """Return published results of a benchmark in Markdown: a row per method, a column per split.

    Args:
        scores: see :func:`ddfp_lib.experiments.published.published_scores`.
        benchmark: one of theirs.
    """
    found = scores[scores["benchmark"] == benchmark]
    splits = list(found["split"].unique())
    lines = ["| method | network | source | " + " | ".join(splits) + " | notes |"]
    lines.append("|---" * (len(splits) + 4) + "|")
    for names, rows in found.groupby(["method", "network", "source"], sort=False):
        values = rows.set_index("split")["miou"]
        cells = [
            "" if pd.isna(values.get(split)) else _published(values[split]) for split in splits
        ]
        for at, status in zip(map(splits.index, rows["split"]), rows["status"], strict=True):
            cells[at] += f" ({status})" if status else ""
        parts = (part for note in rows["note"] if note for part in note.split("; "))
        notes = "; ".join(dict.fromkeys(parts))
        lines.append("| " + " | ".join([*names, *cells, notes]) + " |")
    return "\n".join(lines)


def contributed_table(rows: pd.DataFrame) -> str:
    """Return contributed runs in Markdown, a row each, under the names of their contributors.

    Args:
        rows: see :func:`ddfp_lib.experiments.contributed.contributed_rows`.
    """
    header = ["contributor", "benchmark", "labeled", "method", "seed", "test mIoU", "val, last"]
    header += ["steps", "hours", "card", "commit", "configuration", "changed settings"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows.itertuples():
        card = "a CPU" if pd.isna(row.gpu) else f"{row.gpus:.0f} x {row.gpu}"
        cells = [row.contributor, row.benchmark, row.split, f"`{row.method}`", str(row.seed)]
        cells += [f"{row.test_miou:.1f}", f"{row.teacher_miou_last:.1f}", f"{row.steps:,}"]
        cells += [f"{row.seconds / 3600:.1f}", card, f"`{row.commit}`", f"`{row.config}`"]
        cells += [row.settings or "none"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _alone(ledger: pd.DataFrame) -> str:
    """Say which benchmarks were measured in studies alone, and in which."""
    stored = [study for study in studies() if study.stored() is not None]
    where: dict[str, list[str]] = {}
    for study in stored:
        if study.benchmark not in set(ledger["benchmark"]):
            where.setdefault(study.benchmark, []).append(str(study.number))
    named = [
        f"`{name}` ({'studies' if len(numbers) > 1 else 'study'} {', '.join(numbers)})"
        for name, numbers in where.items()
    ]
    return f". Only STUDY.md has results of {', '.join(named)}" if named else ""


def results_page(
    ledger: pd.DataFrame, scores: pd.DataFrame, contributed: pd.DataFrame | None = None
) -> str:
    """Return ``reproduce/RESULTS.md``: every benchmark that has runs, then the paper's cells.

    Args:
        ledger: the kept results.
        scores: see :func:`ddfp_lib.experiments.published.published_scores`.
        contributed: see :func:`ddfp_lib.experiments.contributed.contributed_rows`; ``None`` or
            empty where nobody has contributed a run yet.
    """
    parts = [
        "# Results",
        "`ddfp report` generates this page from [`results.csv`](results.csv) and "
        "[`paper.csv`](paper.csv). Nobody edits it by hand. Scores are mIoU in %, and each image "
        "is segmented at one scale. With the evaluation protocol *whole*, the network segments "
        "an image in one piece. *Test mIoU* is the score of the teacher after the last step, on "
        "test images. No setting was chosen on test images. *Val, last* is the score of the "
        "teacher after the last step, on validation images. *Val, best* is the highest score of "
        "the teacher on validation images during a run, so it is optimistic. Differences are "
        "paired by seed. The 95 % confidence intervals (CI) are computed with Student's t "
        "distribution. A difference is significant if its interval does not contain 0. Tables "
        "may come from different machines and dates, so compare only scores of the same table. "
        "The results of the studies are in [`studies/`](studies), and [STUDY.md](STUDY.md) "
        f"reports them{_alone(ledger)}.",
    ]
    stale = unmatched(ledger)
    for (benchmark, split), runs in ledger.groupby(["benchmark", "split"], sort=False):
        option = "--splits" if split in _splits(benchmark) else "--labeled"
        command = f"ddfp reproduce {benchmark} {option} {split}"
        command += f" --methods {','.join(runs['method'].unique())}"
        command += f" --seeds {','.join(map(str, sorted(runs['seed'].unique())))}"
        command += data_option(benchmark)
        baseline = "consistency" if "consistency" in set(runs["method"]) else runs["method"].iloc[0]
        parts += [
            f"## {benchmark}, {split} labeled",
            markdown_table(runs, baseline),
            *([significance(runs, baseline)] if runs["method"].nunique() > 1 else []),
            f"Command: `{command}`. {_measured(runs)}"
            f"{_earlier(stale[stale.index.isin(runs.index)])}",
        ]
    parts += [
        "## The paper's tables, cell by cell",
        "*Paper*: the paper's score of DDFP, at the epoch that is best on validation images. "
        "*Unknown*: the paper has a number for this cell, but we do not know this number. None "
        "of the public tables that we could read contains it. *Unproved*: we know a number for "
        "this cell, but we found it in no public table (see the column *notes* of the tables "
        "below). *Here*: our score of the teacher after the last step (mean and standard "
        "deviation over seeds). *Difference*: our mean score of `ddfp` minus the paper's score.",
        paper_table(ledger, scores),
    ]
    for benchmark in scores["benchmark"].unique():
        parts += [f"### Published scores on {benchmark}", published_table(scores, benchmark)]
    parts += ["## Contributed runs", CONTRIBUTED]
    if contributed is not None and len(contributed):
        parts.append(contributed_table(contributed))
    else:
        parts.append("Nobody has contributed a run yet.")
    return "\n\n".join(parts) + "\n"


def _earlier(stale: pd.DataFrame) -> str:
    """Say which rows of a table the command no longer gives, or ""."""
    if stale.empty:
        return ""
    methods = ", ".join(f"`{name}`" for name in stale["method"].unique())
    commits = ", ".join(f"`{name}`" for name in stale["commit"].unique())
    return (
        f" The results of {methods} were measured with an earlier configuration (commit {commits})."
        " A setting, a preset or the code has changed since then, so the command may give "
        "different numbers now."
    )


def _measured(runs: pd.DataFrame) -> str:
    """Say where runs were measured, and by which protocol, as far as their rows show it."""
    on_gpu = runs.dropna(subset="gpu")
    devices = [
        f"{count:.0f} x {gpu} (at most {found['peak_memory'].max():.1f} GiB each)"
        for (gpu, count), found in on_gpu.groupby(["gpu", "gpus"])
    ]
    if len(on_gpu) < len(runs):
        devices.append("a CPU")
    text = f"These results were measured on {', '.join(devices)}."
    taken = runs["micro_batches"].dropna().unique()
    if set(taken) - {"1"}:
        text += f" Micro-batches: {', '.join(taken)}."
    if runs["protocol"].notna().any():
        text += f" Evaluation protocol: *{', '.join(runs['protocol'].dropna().unique())}*."
    return text


def data_option(benchmark: str) -> str:
    """Return `` --data DIR`` for the command of a benchmark whose data set lies in a folder, or "".

    Args:
        benchmark: name of a benchmark; one that is not in this repository is taken to need it.
    """
    try:
        dataset = read_benchmark(find_benchmark(benchmark)).get("data", {}).get("dataset")
    except UserError:  # a contributor's own benchmark
        dataset = None
    return "" if dataset == "digits" else " --data DIR"


def _splits(benchmark: str) -> list[str]:
    try:
        return splits_of(find_benchmark(benchmark))
    except UserError:  # a contributor's own benchmark, which is not in this repository
        return []
