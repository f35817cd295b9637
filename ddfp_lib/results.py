"""The kept results: ``reproduce/results.csv``, and the tables that are generated from it."""

from pathlib import Path

import pandas as pd

from ddfp_lib.analysis import paired_difference, score_table, signed
from ddfp_lib.config import find_benchmark, splits_of
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.literature import PAPER
from ddfp_lib.matrix import LEDGER

KEY = ["benchmark", "split", "method", "seed"]
"""What names a run in the ledger; a later run of the same name replaces the earlier one."""


def read_ledger(path: Path) -> pd.DataFrame:
    """Read a ``results.csv``.

    Raises:
        UserError: it is missing, or its columns are not those of a ledger.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: is not there; a finished 'ddfp reproduce' writes it")
    names = dict.fromkeys(("split", "commit", "config", "protocol", "gpu", "data"), str)
    frame = pd.read_csv(path, dtype=names)
    missing = [name for name in LEDGER[: LEDGER.index("protocol")] if name not in frame]
    if missing:
        raise UserError(f"{path}: has no column {', '.join(missing)}; it is no ledger of runs")
    return frame.reindex(
        columns=LEDGER
    )  # rows from before there were the last ones leave them empty


def record(new: Path, kept: Path) -> pd.DataFrame:
    """Take the runs of a matrix into the kept ledger, in place of earlier ones of the same name.

    Args:
        new: ``results.csv`` of a matrix.
        kept: ``reproduce/results.csv``.

    Returns:
        The kept ledger as it is now.
    """
    frames = [read_ledger(path) for path in (kept, new) if path != kept or kept.is_file()]
    merged = pd.concat(frames).drop_duplicates(KEY, keep="last")
    merged = merged.sort_values(["benchmark", "split"], kind="stable")
    write_text(kept, merged.to_csv(index=False, lineterminator="\n"))
    return merged


def markdown_table(runs: pd.DataFrame, rival: str = "consistency") -> str:
    """Return the table of one benchmark and split, in Markdown.

    One row a method: mean and standard deviation of the test mIoU, each seed, the paired
    difference to ``rival`` with its 95 % interval, validation mIoU last and best, seconds.

    Args:
        runs: rows of the ledger.
        rival: method that the others are compared with.
    """
    scores = score_table(runs)
    seeds = [name for name in scores if name.startswith("seed")]
    header = ["method", "test mIoU", *seeds, f"minus `{rival}` (95 % interval)"]
    header += ["val, last", "val, best", "seconds"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    means = runs.groupby("method")[["teacher_miou_last", "teacher_miou_best", "seconds"]].mean()
    for method, row in scores.iterrows():
        difference = ""
        if method != rival:
            gap = paired_difference(runs, method, rival)
            difference = signed(gap) + (" (one seed)" if gap["seeds"] < 2 else "")
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


NOT_RUN = "not run yet"


def paper_table(ledger: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Return the paper's tables in Markdown: a row a cell, run or not, beside what came out here.

    Args:
        ledger: the kept results.
        scores: see :func:`ddfp_lib.literature.published_scores`.
    """
    lines = [
        "| benchmark | labeled | paper | `ddfp` here | difference | `ddfp_released` here | "
        "`consistency` here | `supervised` here | protocol | command |",
        "|---" * 10 + "|",
    ]
    for cell in scores[scores["source"] == PAPER].itertuples():
        runs = ledger[(ledger["benchmark"] == cell.benchmark) & (ledger["split"] == cell.split)]
        ours = {name: found["test_miou"] for name, found in runs.groupby("method")}
        known = not pd.isna(cell.miou)
        difference = f"{ours['ddfp'].mean() - cell.miou:+z.1f}" if known and "ddfp" in ours else ""
        methods = ("ddfp_released", "consistency", "supervised")
        row = [
            cell.benchmark,
            cell.split,
            f"{cell.miou:.1f}" if known else "unknown",
            _spread(ours.get("ddfp")),
            difference,
            *(_spread(ours.get(name)) for name in methods),
            ", ".join(runs["protocol"].dropna().unique()),
            f"`ddfp reproduce {cell.benchmark} --splits {cell.split} --data DIR`",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _spread(scores: pd.Series | None) -> str:
    if scores is None:
        return NOT_RUN
    seeds = f"{len(scores)} seed{'s' if len(scores) > 1 else ''}"
    spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
    return f"**{scores.mean():.1f}**{spread} ({seeds})"


def published_table(scores: pd.DataFrame, benchmark: str) -> str:
    """Return what others published for a benchmark, in Markdown: a row a method, a column a split.

    Args:
        scores: see :func:`ddfp_lib.literature.published_scores`.
        benchmark: one of theirs.
    """
    found = scores[scores["benchmark"] == benchmark]
    splits = list(found["split"].unique())
    lines = ["| method | network | told by | " + " | ".join(splits) + " | notes |"]
    lines.append("|---" * (len(splits) + 4) + "|")
    for names, rows in found.groupby(["method", "network", "source"], sort=False):
        values = rows.set_index("split")["miou"]
        cells = ["" if pd.isna(values.get(split)) else f"{values[split]:.1f}" for split in splits]
        notes = "; ".join(dict.fromkeys(note for note in rows["note"] if note))
        lines.append("| " + " | ".join([*names, *cells, notes]) + " |")
    return "\n".join(lines)


def results_page(ledger: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Return ``reproduce/RESULTS.md``: the paper's cells, then every benchmark that has runs.

    Args:
        ledger: the kept results.
        scores: see :func:`ddfp_lib.literature.published_scores`.
    """
    parts = [
        "# Results",
        "Generated by `ddfp report` from [`results.csv`](results.csv) and "
        "[`paper.csv`](paper.csv), not by hand. mIoU in %, single scale. *Test*: the teacher after "
        "the last step, nothing chosen. *Val, best*: the best of all validations of a run, chosen "
        "by validation itself. Differences are paired by seed; intervals are Student's t.",
        "## The paper's tables, cell by cell",
        "*Paper*: DDFP's number, its best epoch by the validation images; *unknown*: the paper has "
        "the cell, and it could not be read. *Here*: mean and standard deviation over seeds of the "
        "teacher after the last step. *Difference*: that minus the paper.",
        paper_table(ledger, scores),
    ]
    for benchmark in scores["benchmark"].unique():
        parts += [f"### Published for {benchmark}", published_table(scores, benchmark)]
    for (benchmark, split), runs in ledger.groupby(["benchmark", "split"], sort=False):
        option = "--splits" if split in _splits(benchmark) else "--labeled"
        command = f"ddfp reproduce {benchmark} {option} {split}"
        command += f" --methods {','.join(runs['method'].unique())}"
        command += f" --seeds {','.join(map(str, sorted(runs['seed'].unique())))}"
        command += "" if benchmark == "digits" else " --data DIR"
        rival = "consistency" if "consistency" in set(runs["method"]) else runs["method"].iloc[0]
        parts += [
            f"## {benchmark}, {split} labeled",
            markdown_table(runs, rival),
            f"Command: `{command}`. {_measured(runs)}",
        ]
    return "\n\n".join(parts) + "\n"


def _measured(runs: pd.DataFrame) -> str:
    """Say where runs were measured, and by which protocol, as far as their rows tell."""
    told = []
    if runs["protocol"].notna().any():
        told.append(f"protocol {', '.join(runs['protocol'].dropna().unique())}")
    on_gpu = runs.dropna(subset="gpu")
    for (gpu, count), found in on_gpu.groupby(["gpu", "gpus"]):
        told.append(f"{count:.0f} x {gpu}, at most {found['peak_memory'].max():.1f} GiB each")
    if len(on_gpu) < len(runs):
        told.append("on a CPU")
    return f"Measured: {'; '.join(told)}."


def _splits(benchmark: str) -> list[str]:
    try:
        return splits_of(find_benchmark(benchmark))
    except UserError:  # somebody's own benchmark, that lies elsewhere
        return []
