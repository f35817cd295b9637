"""The tables of runs: ``results.csv`` of one matrix, and ``reproduce/results.csv``."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ddfp_lib.errors import UserError
from ddfp_lib.experiments.published import paper_score
from ddfp_lib.files import write_text
from ddfp_lib.runs.folder import RunResult

LEDGER = (
    "benchmark",
    "split",
    "method",
    "seed",
    "miou_last",
    "miou_best",
    "teacher_miou_last",
    "teacher_miou_best",
    "test_miou",
    "steps",
    "seconds",
    "commit",
    "config",
    "protocol",
    "gpu",
    "gpus",
    "micro_batches",
    "peak_memory",
    "data",
    "paper",
    "difference",
)
"""Columns of ``results.csv``: those of :class:`~ddfp_lib.runs.folder.RunResult`, the paper's mIoU
of the cell, and ``test_miou`` minus that; mIoU in percent. ``micro_batches`` is ``2 then 1`` where
a run went on with another number, and empty in rows from before there was the column."""


def ledger(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return the ledger of runs, one row each, columns :data:`LEDGER`."""
    rows = []
    for result in results:
        row = {name: getattr(result, name, None) for name in LEDGER}
        paper = paper_score(result.benchmark, result.split, result.method)
        row |= {"config": result.config_hash, "paper": paper}
        row |= {"micro_batches": " then ".join(map(str, result.micro_batches)) or None}
        row |= {"difference": result.test_miou - paper}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(LEDGER))
    scores = [name for name in LEDGER if "miou" in name or name == "difference"]
    return frame.round(dict.fromkeys(scores, 2) | {"seconds": 1, "peak_memory": 2})


def write_ledger(results: Sequence[RunResult], path: Path) -> None:
    """Write ``results.csv`` from the runs' own results, so that each row is there once."""
    write_text(path, ledger(results).to_csv(index=False, lineterminator="\n"))


KEY = ["benchmark", "split", "method", "seed"]
"""Columns that identify a run; a later run with the same values replaces the earlier one."""


def read_ledger(path: Path) -> pd.DataFrame:
    """Read a ``results.csv``.

    Raises:
        UserError: it is missing, or its columns are not those of a ledger.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: does not exist; a finished 'ddfp reproduce' writes it")
    names = dict.fromkeys(
        ("split", "commit", "config", "protocol", "gpu", "data", "micro_batches"), str
    )
    frame = pd.read_csv(path, dtype=names)
    missing = [name for name in LEDGER[: LEDGER.index("protocol")] if name not in frame]
    if missing:
        raise UserError(f"{path}: has no column {', '.join(missing)}; give a results.csv of runs")
    return frame.reindex(
        columns=LEDGER
    )  # rows from before there were the last ones leave them empty


def record(new: Path, kept: Path) -> pd.DataFrame:
    """Merge the runs of a matrix into the kept ledger; they replace earlier runs of the same name.

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
