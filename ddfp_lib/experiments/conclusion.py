"""What a set of runs says, in sentences: the verdict of a report, and what stored runs said."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ddfp_lib.experiments.statistics import paired_difference, verdict


def conclusion(ledger: pd.DataFrame, method: str, baseline: str, score: str = "test_miou") -> str:
    """Return one sentence: does a method beat a baseline on these runs, and by how much?

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        method: name of the method.
        baseline: name of the method that it is compared with, seed by seed.
        score: column of the ledger, mIoU in percent.
    """
    mean = ledger.loc[ledger["method"] == method, score].mean()
    if method == baseline:
        return f"`{method}` reaches {mean:.1f} % mIoU; no other method was run."
    gap = paired_difference(ledger, method, baseline, score)
    if np.isnan(gap["difference"]):
        return f"`{method}` and `{baseline}` have no seed in common, so they cannot be compared."
    common = set.intersection(
        *({*ledger.loc[ledger["method"] == name, "seed"]} for name in (method, baseline))
    )
    mean = ledger.loc[(ledger["method"] == method) & ledger["seed"].isin(common), score].mean()
    points = f"{abs(gap['difference']):.1f}"
    more = f"{points} points {'more' if gap['difference'] > 0 else 'less'} than"
    sentence = (
        f"`{method}` reaches {mean:.1f} % mIoU, {'as much as' if points == '0.0' else more} "
        f"`{baseline}`"
    )
    if np.isnan(gap["low"]):
        return f"{sentence}, with one seed: {verdict(gap).split(': ')[-1]}."
    return f"{sentence}: {verdict(gap)}, {gap['seeds']} seeds."


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


def expectation(stored: pd.DataFrame, ledger: pd.DataFrame) -> str:
    """Return what stored runs of the same benchmark reached, in words; "" where there are none.

    Args:
        stored: the rows of ``reproduce/results.csv``.
        ledger: the rows of the report, of one split.
    """
    known = expected(stored, ledger)
    if known.empty:
        return ""
    spread = "; ".join(
        f"`{method}` {row['lowest']:.1f} to {row['highest']:.1f}"
        for method, row in known.iterrows()
    )
    return (
        f"Expected, from {int(known['stored runs'].max())} stored seeds of this benchmark: "
        f"{spread}. "
        "Another machine rounds differently, so single seeds can differ by a point or two."
    )


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
    same = ["benchmark", "split", "steps"]
    keys = ledger[same].drop_duplicates().astype(str).agg("|".join, axis=1)
    kept = stored[stored[same].astype(str).agg("|".join, axis=1).isin(set(keys))]
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
