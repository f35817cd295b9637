"""Contributed runs: stored in ``reproduce/contributed/<name>``, checked, and listed separately.

A contributed run is its folder without checkpoints: configuration, environment, log and result.
``ddfp record OUT --contributor NAME`` copies the finished runs of a reproduction there, and
``ddfp record --check`` checks all that is kept.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ddfp_lib.config import (
    Config,
    find_benchmark,
    load_config,
    read_config,
    splits_of,
    to_dict,
    to_yaml,
)
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.ledger import ledger
from ddfp_lib.files import repository, write_text
from ddfp_lib.runs.folder import RunResult, finished_result
from ddfp_lib.runs.metrics import read_metrics

FILES = ("config.yaml", "environment.json", "metrics.jsonl", "result.json")
"""What is kept of a run."""

OURS = ("miou_last", "miou_best", "teacher_miou_last", "teacher_miou_best")
"""Values of a result that follow from the log alone."""


@dataclass(frozen=True)
class Contributed:
    """One contributed run.

    Attributes:
        contributor: a name without spaces, for example that of an account.
        folder: folder that holds :data:`FILES`.
        result: result of the run.
        changed: settings that differ from the benchmark and the method of the same names here, as
            ``key=value``; ``None`` where this repository has no such benchmark, split or method.
    """

    contributor: str
    folder: Path
    result: RunResult
    changed: list[str] | None


def home() -> Path:
    """Return the folder of all contributed runs; it may not exist yet."""
    return repository() / "reproduce" / "contributed"


def check_run(folder: Path) -> tuple[RunResult, list[str] | None]:
    """Check that a run folder agrees with itself.

    Configuration and result have to name the same run, and log and result the same scores; the
    commit has to be one that others can look up, and the card a named one.

    Args:
        folder: folder of a run; checkpoints are not needed.

    Returns:
        The result, and the changed settings; see :class:`Contributed`.

    Raises:
        UserError: the first thing that is wrong, with the file that holds it.
    """
    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing; copy it from the run folder")
    config = read_config(folder / "config.yaml")
    result = finished_result(folder, config)  # compares the hashes
    path = folder / "result.json"

    def wrong(words: str) -> UserError:
        return UserError(f"{path}: {words}; train this run again, or leave it out")

    named = {
        "benchmark": config.benchmark,
        "split": config.data.split,
        "method": config.method.name,
        "seed": config.seed,
        "steps": config.training.steps,
        "protocol": config.data.protocol,
    }
    for key, value in named.items():
        if getattr(result, key) != value:
            raise wrong(f"{key} is {getattr(result, key)!r}, but {value!r} in config.yaml")
    if not re.fullmatch(r"[0-9a-f]{8,40}", result.commit):
        raise wrong(f"commit {result.commit!r} is not one of unchanged, committed files")
    environment = _environment(folder / "environment.json")
    for key in ("commit", "gpu"):
        if environment.get(key) != getattr(result, key):
            raise wrong(f"{key} is {getattr(result, key)!r}, but another in environment.json")
    if (result.gpu is None) != (result.gpus == 0):
        raise wrong(f"{result.gpus} GPUs have the name {result.gpu!r}")
    _check_scores(folder, config, result, len(environment["classes"]), wrong)
    return result, changed_settings(config)


def _environment(path: Path) -> dict:
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
        len(environment["classes"])
        return environment
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; copy it from the run folder again") from error


def _check_scores(
    folder: Path,
    config: Config,
    result: RunResult,
    classes: int,
    wrong: Callable[[str], UserError],
) -> None:
    """Compare the scores of a result with its log, and with one another."""
    log = folder / "metrics.jsonl"
    lines = read_metrics(log)
    steps = [line["step"] for line in lines]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    if not lines or steps != sorted(steps) or steps[-1] != config.training.steps:
        raise UserError(
            f"{log}: does not go from the first step to step {config.training.steps}; copy the "
            "whole file"
        )
    if seconds != sorted(seconds) or seconds[-1] > result.seconds + 1:
        raise wrong(f"took {result.seconds} s, but metrics.jsonl says otherwise")
    scores = [line for line in lines if "teacher_miou" in line]
    if not scores:
        raise UserError(f"{log}: has no validation; copy the whole file")
    for name in OURS:
        values = [line[name.rsplit("_", 1)[0]] for line in scores]
        expected = values[-1] if name.endswith("last") else max(values)
        if not math.isclose(getattr(result, name), expected, abs_tol=1e-6):
            raise wrong(f"{name} is {getattr(result, name)}, but {expected} by metrics.jsonl")
    if len(result.test_iou) != classes:
        raise wrong(f"{len(result.test_iou)} test IoUs for {classes} classes")
    known = [value for value in result.test_iou if not math.isnan(value)]
    mean = sum(known) / len(known) if known else math.nan
    if not math.isclose(mean, result.test_miou, abs_tol=0.01):
        raise wrong(f"test_miou is {result.test_miou}, but its classes have a mean of {mean:.2f}")
    if not all(0 <= value <= 100 for value in [*known, result.miou_best, result.test_miou]):
        raise wrong("a score is not between 0 and 100 percent")


def changed_settings(config: Config) -> list[str] | None:
    """Return how a configuration differs from the benchmark and method of the same names here."""
    try:
        benchmark = find_benchmark(config.benchmark)
        split = config.data.split if config.data.split in splits_of(benchmark) else None
        here = load_config(benchmark, config.method.name, config.seed, split=split)
    except UserError:
        return None
    if here.config_hash == config.config_hash:
        return []
    ignored = {"data.root", "data.workers", "network.weights", "network.weights_sha256"}
    theirs, mine = _flat(to_dict(config)), _flat(to_dict(here))
    return [
        f"{key}={theirs.get(key)}"
        for key in theirs | mine
        if theirs.get(key) != mine.get(key) and key not in ignored
    ]


def _flat(values: dict, section: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{section}{key}.")
        else:
            flat[section + key] = value
    return flat


def run_folders(out: Path) -> list[Path]:
    """Return the run folders in a folder: itself, or those below it that have a configuration.

    Raises:
        UserError: there is none.
    """
    out = Path(out)
    found = [out] if (out / "config.yaml").is_file() else []
    found += sorted(path.parent for path in out.rglob("config.yaml") if path.parent != out)
    if not found:
        raise UserError(f"{out}: has no run folder; give the --out of a reproduction or of a run")
    return found


def contribute(out: Path, contributor: str) -> list[Path]:
    """Copy the finished runs of a reproduction to where contributed runs are kept.

    All runs are checked before one is copied. Folders of the contributor's machine are left out.

    Args:
        out: folder of a reproduction, or of one run.
        contributor: a name without spaces, for example that of an account.

    Returns:
        The folders written.

    Raises:
        UserError: the name is not such a name, a run is wrong, or none is finished.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", contributor):
        raise UserError(f"--contributor {contributor}: is not a plain name; give one such as ada")
    finished = [path for path in run_folders(out) if (path / "result.json").is_file()]
    if not finished:
        raise UserError(f"{out}: no run is finished; see `ddfp reproduce ... --status`")
    checked = [(path, check_run(path)[0]) for path in finished]
    written = []
    for source, result in checked:
        words = f"{result.benchmark}-{result.split}-{result.method}-{result.seed}"
        target = home() / contributor / re.sub(r"[^\w.]+", "-", words)
        for name in FILES[1:]:
            write_text(target / name, (source / name).read_text(encoding="utf-8"))
        config = read_config(source / "config.yaml")
        weights = config.network.weights and Path(config.network.weights).name
        data, network = replace(config.data, root=None), replace(config.network, weights=weights)
        write_text(target / "config.yaml", to_yaml(replace(config, data=data, network=network)))
        written.append(target)
    return written


def contributed() -> list[Contributed]:
    """Return all contributed runs, each checked, by contributor and name.

    Raises:
        UserError: a run is wrong; see :func:`check_run`.
    """
    if not home().is_dir():
        return []
    runs = []
    for path in sorted(home().glob("*/*/config.yaml")):
        result, changed = check_run(path.parent)
        runs.append(Contributed(path.parts[-3], path.parent, result, changed))
    return runs


def contributed_rows(runs: Sequence[Contributed]) -> pd.DataFrame:
    """Return the ledger of contributed runs, with columns ``contributor`` and ``settings``.

    ``settings`` is empty where a run has those of this repository.
    """
    rows = ledger([run.result for run in runs])
    rows.insert(0, "contributor", [run.contributor for run in runs])
    unknown = "of a benchmark or method that is not here"
    rows["settings"] = [unknown if run.changed is None else ", ".join(run.changed) for run in runs]
    return rows
