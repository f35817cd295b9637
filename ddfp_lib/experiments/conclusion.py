"""Sentences about a set of runs: the verdict of a report, and the results of stored runs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ddfp_lib.experiments.statistics import paired_difference, signed, verdict


def conclusion(
    ledger: pd.DataFrame, method: str, baselines: Sequence[str], score: str = "test_miou"
) -> str:
    """Return one sentence: does a method beat its baselines on these runs, and by how much?

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        method: name of the method.
        baselines: names of the methods that it is compared with, seed by seed. The mean is over
            the seeds of the first comparison.
        score: column of the ledger, mIoU in percent.
    """
    scores = ledger[ledger["method"] == method].set_index("seed")[score]
    others = [name for name in baselines if name != method]
    if not others:
        return f"`{method}` reaches {scores.mean():.1f} % mIoU; no other method was run."
    gaps = {name: paired_difference(ledger, method, name, score) for name in others}
    apart = [f"`{name}`" for name, gap in gaps.items() if np.isnan(gap["difference"])]
    if len(apart) == len(others):
        names, both = f"`{method}` and {' or '.join(apart)}", "they cannot be compared"
        return f"{names} have no seed in common, so {both}."
    first = next(name for name, gap in gaps.items() if not np.isnan(gap["difference"]))
    common = scores.index.isin(ledger.loc[ledger["method"] == first, "seed"])
    parts = [
        f"has no seed in common with `{name}`"
        if np.isnan(gap["difference"])
        else _compared(name, gap)
        for name, gap in gaps.items()
    ]
    return f"`{method}` reaches {scores[common].mean():.1f} % mIoU, {'; and '.join(parts)}."


def _compared(baseline: str, gap: dict[str, float]) -> str:
    """Say a paired difference, such as: 1.7 points more than `noise`: not significant, 3 seeds."""
    points = f"{abs(gap['difference']):.1f}"
    more = f"{points} points {'more' if gap['difference'] > 0 else 'less'} than"
    words = f"{'as much as' if points == '0.0' else more} `{baseline}`"
    if np.isnan(gap["low"]):
        return f"{words}, with one seed: {verdict(gap).split(': ')[-1]}"
    return f"{words}: {verdict(gap)}, {gap['seeds']} seeds"


def comparisons(
    ledger: pd.DataFrame,
    methods: Sequence[str],
    baselines: Sequence[str],
    score: str = "test_miou",
) -> list[str]:
    """Return a line of Markdown for each pair of a method and a baseline, with its interval.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        methods: what is compared, in this order; those without a run are left out.
        baselines: what it is compared with. An earlier baseline is not compared with a later one.
        score: column of the ledger, mIoU in percent.
    """
    found = set(ledger["method"])
    lines = []
    for number, baseline in enumerate(baselines):
        for method in methods:
            if not {method, baseline} <= found or method in baselines[: number + 1]:
                continue
            gap = paired_difference(ledger, method, baseline, score)
            what = f"- `{method}` minus `{baseline}`: "
            if gap["seeds"] == 0:
                lines.append(f"{what}no seed in common.")
                continue
            seeds = "" if np.isnan(gap["low"]) else f", {gap['seeds']} seeds"
            lines.append(f"{what}{gap['difference']:+z.1f} points, {verdict(gap)}{seeds}.")
    if len(lines) > 1:
        lines.append(f"\n{len(lines)} comparisons; the intervals are not corrected for that.")
    return lines


def expectation(
    stored: pd.DataFrame, ledger: pd.DataFrame, method: str, baselines: Sequence[str]
) -> str:
    """Return what stored runs of the same benchmark reached, in words; "" where there are none.

    Args:
        stored: the rows of ``reproduce/results.csv``.
        ledger: the rows of the report, of one split.
        method: whose differences the verdict states.
        baselines: what the verdict compares it with.
    """
    kept, known = _alike(stored, ledger), expected(stored, ledger)
    if known.empty:
        return ""
    gaps = {name: paired_difference(kept, method, name) for name in baselines if name != method}
    gaps = {name: gap for name, gap in gaps.items() if gap["seeds"]}
    seeds = max([int(gap["seeds"]) for gap in gaps.values()] or [int(known["stored runs"].max())])
    differences = "; ".join(f"{signed(gap)} against `{name}`" for name, gap in gaps.items())
    spread = "; ".join(
        f"`{name}` {row['lowest']:.1f} to {row['highest']:.1f}" for name, row in known.iterrows()
    )
    compared = f"{differences}. Scores of these runs: " if differences else ""
    return (
        f"In {seeds} stored {'seed' if seeds == 1 else 'seeds'}: {compared}{spread}. "
        "Another machine rounds differently, so single seeds can differ by a point or two."
    )


def _alike(stored: pd.DataFrame, ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the stored rows of the benchmark, split and number of steps of a report."""
    same = ["benchmark", "split", "steps"]
    keys = ledger[same].drop_duplicates().astype(str).agg("|".join, axis=1)
    return stored[stored[same].astype(str).agg("|".join, axis=1).isin(set(keys))]


def expected(stored: pd.DataFrame, ledger: pd.DataFrame, score: str = "test_miou") -> pd.DataFrame:
    """Return what stored runs of the same benchmark, split and number of steps reached.

    Args:
        stored: the rows of ``reproduce/results.csv``.
        ledger: the rows of the report, of one split.
        score: the column, mIoU in percent.

    Returns:
        A row for each method that is in both: ``here`` (mean), ``stored`` (mean), ``lowest`` and
        ``highest`` stored run, and ``stored runs``. Empty where nothing was stored.
    """
    kept = _alike(stored, ledger)
    here = ledger.groupby("method", sort=False)[score].mean()
    rows = {
        method: {
            "here": mean,
            "stored": found.mean(),
            "lowest": found.min(),
            "highest": found.max(),
            "stored runs": len(found),
        }
        for method, mean in here.items()
        if len(found := kept.loc[kept["method"] == method, score].dropna())
    }
    return pd.DataFrame.from_dict(rows, orient="index")
