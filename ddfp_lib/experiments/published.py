"""Published results: scores (``reproduce/paper.csv``) and curves (``reproduce/released``)."""

import pandas as pd

from ddfp_lib.config import Config
from ddfp_lib.files import repository

PAPER = "DDFP"
"""The paper that is reproduced, as the column ``source`` names it."""

UNPROVED = "unproved"
"""``status`` of a number that is quoted, but is in no table that could be read."""


def published_scores() -> pd.DataFrame:
    """Return ``reproduce/paper.csv``: published mIoU in percent, with its source.

    Columns ``benchmark``, ``split``, ``method`` (a preset's name where it is comparable to ours),
    ``miou`` (NaN: the paper has this cell, but it could not be read), ``network``, ``source``,
    ``status`` (empty or :data:`UNPROVED`), ``note``.
    """
    path = repository() / "reproduce" / "paper.csv"
    return pd.read_csv(path, dtype={"split": str}, keep_default_na=False, na_values={"miou": ""})


def paper_score(benchmark: str, split: str, method: str) -> float:
    """Return the paper's mIoU of a cell in percent, NaN where it has none or an unproved one.

    ``ddfp_released`` is compared with the same numbers as ``ddfp``: the paper has one method.
    """
    scores = published_scores()
    named = {"ddfp_released": "ddfp"}.get(method, method)
    cell = scores[
        (scores["source"] == PAPER)
        & (scores["benchmark"] == benchmark)
        & (scores["split"] == split)
        & (scores["method"] == named)
        & (scores["status"] != UNPROVED)
    ]
    return float(cell["miou"].iloc[0]) if len(cell) else float("nan")


def released_curve(config: Config) -> list[tuple[float, float]]:
    """Return the release's logged validation mIoU of this benchmark and split.

    Returns:
        (step, mIoU in percent) after each of its 80 epochs, at the steps of a run of ``config``;
        empty where there is no log. ``reproduce/released/README.md`` says how far to trust it.
    """
    name = f"{config.benchmark}-{config.data.split.replace('/', '-')}-miou.csv"
    path = repository() / "reproduce" / "released" / name
    if not path.is_file():
        return []
    epochs = pd.read_csv(path)
    steps = (epochs["epoch"] + 1) / len(epochs) * config.training.steps
    return list(zip(steps, epochs["first_line_miou"], strict=True))
