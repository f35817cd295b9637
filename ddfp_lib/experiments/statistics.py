"""Statistics of runs: means, and paired differences with their confidence intervals."""

from collections.abc import Mapping

import numpy as np
import pandas as pd


def score_table(ledger: pd.DataFrame, score: str = "test_miou") -> pd.DataFrame:
    """Return one row per method: mean, standard deviation and each seed.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        score: the column to tabulate, mIoU in percent.

    Returns:
        Columns ``mean`` and ``std`` (of single runs, n - 1), both over :func:`common_seeds`, then
        ``seed 0``, ...; methods in the ledger's order.
    """
    seeds = ledger.pivot(index="method", columns="seed", values=score)
    seeds = seeds.reindex(ledger["method"].unique())
    table = seeds.rename(columns=lambda seed: f"seed {seed}")
    common = seeds[common_seeds(ledger, score)]
    table.insert(0, "mean", common.mean(axis=1))
    table.insert(1, "std", common.std(axis=1))
    return table.rename_axis(columns=None)


def common_seeds(ledger: pd.DataFrame, score: str = "test_miou") -> list[int]:
    """Return the seeds that every method has, or all seeds if there is none.

    Seeds differ in their scenes or labeled images. Means are comparable only over the same seeds.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        score: the column that must have a value, mIoU in percent.
    """
    seeds = ledger.pivot(index="method", columns="seed", values=score)
    common = list(seeds.columns[seeds.notna().all()])
    return common or list(seeds.columns)


def of_common_seeds(mechanism: pd.DataFrame) -> pd.DataFrame:
    """Keep the measurements of the seeds that every method has: see :func:`common_seeds`.

    Args:
        mechanism: columns :data:`ddfp_lib.evaluation.mechanism.COLUMNS`.
    """
    runs = mechanism[["method", "seed"]].drop_duplicates().assign(there=1.0)
    return mechanism[mechanism["seed"].isin(common_seeds(runs, "there"))]


def paired_difference(
    ledger: pd.DataFrame,
    method: str,
    baseline: str,
    score: str = "test_miou",
    confidence: float = 0.95,
) -> dict[str, float]:
    """Compare two methods seed by seed.

    With the same seed, both methods see the same scenes, split and data order, so that differences
    vary less than scores. The confidence interval is Student's t over the differences.

    Returns:
        ``difference`` (mean of method minus baseline), ``low`` and ``high`` of its interval, NaN
        with fewer than two common seeds, and their number ``seeds``.
    """
    wide = ledger.pivot(index="seed", columns="method", values=score)
    if method not in wide or baseline not in wide:
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "seeds": 0}
    gaps = (wide[method] - wide[baseline]).dropna()
    low, high = mean_interval(gaps.to_numpy(), confidence)
    return {"difference": gaps.mean(), "low": low, "high": high, "seeds": len(gaps)}


def differences(
    ledger: pd.DataFrame, method: str, baseline: str, score: str = "test_miou"
) -> list[dict[str, float]]:
    """Return the :func:`paired_difference` over common seeds, and over all if there are more.

    The first one belongs to the means of :func:`score_table`.

    Args:
        ledger: see :func:`ddfp_lib.experiments.ledger.ledger`.
        method: compared with the baseline.
        baseline: subtracted from the method.
        score: the column that is compared, mIoU in percent.
    """
    common = ledger[ledger["seed"].isin(common_seeds(ledger, score))]
    found = [paired_difference(some, method, baseline, score) for some in (common, ledger)]
    return found if found[0]["seeds"] < found[1]["seeds"] else found[:1]


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a mean, by Student's t.

    Args:
        values: (N,) float, one of each seed.
        confidence: level of the interval, between 0 and 1.

    Returns:
        Its lower and upper end; NaN of fewer than two values.
    """
    from scipy import stats  # a second to import, which most figures do without

    if len(values) < 2:
        return np.nan, np.nan
    mean, error = values.mean(), stats.sem(values)
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(confidence, len(values) - 1, mean, error)
    return float(low), float(high)


def difference_table(ledger: pd.DataFrame, baseline: str, score: str = "test_miou") -> pd.DataFrame:
    """Return :func:`paired_difference` of every other method to ``baseline``, one row each."""
    others = [name for name in ledger["method"].unique() if name != baseline]
    rows = {name: paired_difference(ledger, name, baseline, score) for name in others}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def signed(difference: Mapping[str, float]) -> str:
    """Write a :func:`paired_difference` in points, such as ``+1.7 (+0.7 to +2.8)``.

    Args:
        difference: ``difference``, ``low`` and ``high``, in points of mIoU.

    Returns:
        The difference and its interval, rounded to 0.1; its ends as :func:`bound` writes them. If
        the interval is NaN, which means one seed, the difference alone; ``-`` without a seed in
        common.
    """
    if np.isnan(difference["difference"]):
        return "-"
    gap = f"{difference['difference']:+z.1f}"
    if np.isnan(difference["low"]):
        return gap
    return f"{gap} ({bound(difference['low'])} to {bound(difference['high'])})"


def bound(value: float) -> str:
    """Write an end of an interval: one decimal, or two where one would hide on which side 0 lies.

    ``+0.0`` may be an interval that contains 0 or one that does not; ``-0.01`` says it.

    Args:
        value: end of the interval, in points; 0 itself has one decimal.
    """
    return f"{value:+z.2f}" if 1e-9 < abs(value) < 0.05 else f"{value:+z.1f}"


def excludes_zero(difference: Mapping[str, float]) -> bool:
    """Return whether the interval of a :func:`paired_difference` does not contain 0.

    Args:
        difference: ``low`` and ``high``, in points; NaN means no interval, and False.
    """
    return bool(difference["low"] > 0 or difference["high"] < 0)


def verdict(difference: Mapping[str, float]) -> str:
    """Return in words whether the 95 % interval of a :func:`paired_difference` excludes zero.

    A difference is significant if ``low > 0`` (better) or ``high < 0`` (worse). Intervals are not
    corrected for the number of comparisons; a text that has several of them says how many.

    Args:
        difference: ``low`` and ``high``, in points, and ``seeds``, the number of common seeds.

    Returns:
        ``significantly better (95 % CI +0.7 to +2.8)``, ``significantly worse (...)``, ``not
        significant (...)`` (these seeds do not show a difference), ``one seed: significance cannot
        be tested``, or ``no seed in common``.
    """
    if difference.get("seeds") == 0:
        return "no seed in common"
    if np.isnan(difference["low"]):
        return "one seed: significance cannot be tested"
    low, high = difference["low"], difference["high"]
    words = "not significant"
    if excludes_zero(difference):
        words = f"significantly {'better' if low > 0 else 'worse'}"
    return f"{words} (95 % CI {bound(low)} to {bound(high)})"
