"""Kept results of configurations that no longer exist are found, and no others."""

from pathlib import Path

import pandas as pd
import pytest

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.experiments import matches
from ddfp_lib.experiments.matches import unmatched_lines

PATH = Path("results.csv")


@pytest.fixture(autouse=True)
def no_studies(monkeypatch):
    monkeypatch.setattr(matches, "studies", list)


def row(method, seed, config, benchmark="digits", split="85"):
    names = ("benchmark", "split", "method", "seed", "config")
    return dict(zip(names, (benchmark, split, method, seed, config), strict=True))


def test_rows_of_today_are_not_listed_and_others_are():
    today = load_config(find_benchmark("digits"), "noise", 1, ["data.labeled=85"]).config_hash
    whole = pd.DataFrame([row("noise", 1, today)])
    assert list(unmatched_lines(whole, PATH)) == []
    mixed = pd.DataFrame([row("noise", 1, today), row("noise", 2, today), row("ddfp", 0, "0" * 8)])
    (line,) = unmatched_lines(mixed, PATH)
    assert line.startswith("results.csv: 2 of 3 rows")
    assert line.endswith("noise; ddfp")


def test_rows_of_a_benchmark_or_method_that_is_gone_are_listed():
    rows = pd.DataFrame([row("noise", 0, "0" * 8, benchmark="mnist"), row("gone", 0, "0" * 8)])
    (line,) = unmatched_lines(rows, PATH)
    assert line.startswith("results.csv: 2 of 2 rows")


def test_published_splits_are_found_by_name():
    today = load_config(find_benchmark("voc"), "ddfp", 0, split="732").config_hash
    assert list(unmatched_lines(pd.DataFrame([row("ddfp", 0, today, "voc", "732")]), PATH)) == []
