"""What a set of runs says, in sentences: the verdict of a report, and what stored runs said."""

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
        return f"`{method}` reaches {mean:.1f} % mIoU; no other method was run beside it."
    gap = paired_difference(ledger, method, baseline, score)
    if np.isnan(gap["difference"]):
        return f"`{method}` and `{baseline}` have no seed in common, so they cannot be compared."
    more = "more" if gap["difference"] >= 0 else "less"
    sentence = (
        f"`{method}` reaches {mean:.1f} % mIoU, {abs(gap['difference']):.1f} points {more} than "
        f"`{baseline}`"
    )
    if np.isnan(gap["low"]):
        return f"{sentence}, with one seed: {verdict(gap).split(': ')[-1]}."
    return f"{sentence}: {verdict(gap)}, {gap['seeds']} seeds."


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
