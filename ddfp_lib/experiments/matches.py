"""Find stored results whose configuration no longer exists.

A benchmark, a preset or a fix can change after a run was recorded. Its row stays, since it was
measured; but its configuration hash is then no longer that of the command next to it.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ddfp_lib.config import find_benchmark, load_config, splits_of
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.study import Study, studies

Key = tuple[str, str, str, int]
"""Benchmark, split, method (or variant), seed."""


def unmatched_lines(ledger: pd.DataFrame, path: Path) -> Iterator[str]:
    """Yield a line for each file with rows whose configuration no longer exists.

    Args:
        ledger: the rows of ``results.csv``, see :func:`ddfp_lib.experiments.ledger.read_ledger`.
        path: the path of that file; the tables of studies are in the folder ``studies`` next to it.
    """
    yield from _lines(path, ledger, unmatched(ledger))
    for study in studies():
        runs = study.stored()
        if runs is not None:
            stale = _stale(runs, dict(_of_study(study)))
            yield from _lines(study.folder / f"{study.name}.csv", runs, stale)


def unmatched(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``results.csv`` whose configuration no longer exists.

    Args:
        ledger: see :func:`unmatched_lines`.
    """
    return _stale(ledger, dict(_of_benchmarks(ledger)))


def _of_benchmarks(ledger: pd.DataFrame) -> Iterator[tuple[Key, str]]:
    """Yield the hash of the present configuration of each row, if there still is one."""
    for row in ledger.itertuples():
        try:
            path = find_benchmark(row.benchmark)
            published = row.split in splits_of(path)
            overrides = [] if published else [f"data.labeled={row.split}"]
            split = row.split if published else None
            config = load_config(path, row.method, row.seed, overrides, split=split)
        except UserError:  # the benchmark or the preset is gone
            continue
        yield (row.benchmark, row.split, row.method, row.seed), config.config_hash


def _of_study(study: Study) -> Iterator[tuple[Key, str]]:
    for config in study.configs():
        key = (config.benchmark, config.data.split, config.method.name, config.seed)
        yield key, config.config_hash


def _stale(rows: pd.DataFrame, today: dict[Key, str]) -> pd.DataFrame:
    """Return the rows whose hash is not that of the present configuration."""
    keys = zip(*(rows[name] for name in ("benchmark", "split", "method", "seed")), strict=True)
    return rows[[today.get(key) != found for key, found in zip(keys, rows["config"], strict=True)]]


def _lines(path: Path, rows: pd.DataFrame, stale: pd.DataFrame) -> Iterator[str]:
    """Yield a line if a file has rows whose configuration no longer exists."""
    if len(stale):
        methods = "; ".join(stale["method"].unique())
        yield (
            f"{path}: {len(stale)} of {len(rows)} rows have a configuration that no longer exists, "
            f"because a key, a preset or a fix came after them: {methods}"
        )
