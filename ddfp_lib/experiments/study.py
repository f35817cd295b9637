"""Studies: comparisons of variants of a method. Each study is one YAML file and one command.

A study asks one question. Its file, ``reproduce/studies/<name>.yaml``, names a benchmark, seeds and
*variants*, each a preset and the settings that make it differ. ``ddfp study <name>`` trains them,
``--record`` keeps the results next to the file, and ``ddfp report`` writes
``reproduce/STUDY.md`` from all that is kept.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import dacite
import pandas as pd

from ddfp_lib.config import Config, find_benchmark, load_config, read_yaml
from ddfp_lib.errors import UserError, one_line
from ddfp_lib.experiments.ledger import read_ledger
from ddfp_lib.experiments.matrix import Cell
from ddfp_lib.files import repository, write_text
from ddfp_lib.runs.checkpoints import Checkpoints
from ddfp_lib.runs.folder import Run

SCORES = {
    "test_miou": "test mIoU (%)",
    "teacher_miou_last": "validation mIoU (%)",
}
"""Scores that a study may compare, and their labels in figures."""


EVERY = 1000
"""Number of checkpoints to keep where all of them are needed."""


@dataclass(frozen=True)
class Variant:
    """A preset, and what is set differently.

    Attributes:
        preset: name of a method.
        set: ``key=value`` overrides.
        seeds: more seeds than the study's, for comparisons that are close.
    """

    preset: str
    set: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        name: name of its file, without the suffix.
        number: its place in ``STUDY.md``.
        question: in one sentence.
        benchmark: name of a benchmark, or path of a ``.yaml``.
        seeds: one run of each variant per seed.
        variants: the variants, by the name that figures and tables give them.
        baseline: the variant that the others are compared with.
        score: compared: ``test_miou``, or ``teacher_miou_last``, on validation images, where the
            study chooses a setting: then test images stay unseen until the choice is made.
        settings: overrides of all variants; ``{seed}`` means the seed of a run, so that
            ``data.split_seed={seed}`` draws other labeled images for each seed.
        splits: names of the benchmark's splits; none for what it names itself.
        mechanism: variants in whose networks densities are measured through training; their
            checkpoints are kept.
        measured_before: the fix that came after the kept results, one of
            :data:`ddfp_lib.reports.studies.FIXES`; empty: none did.
        groups: names for groups of classes. The mean test IoU of each group is compared like a
            score, and so is the first group minus the second.
        answer: to the question, in one line, for the table at the top of ``STUDY.md``.
        reading: what we conclude from the numbers. In both, ``{{A | B}}`` means the paired
            difference of two variants with its interval; its other forms are explained at
            :func:`ddfp_lib.reports.studies.filled`.
    """

    name: str
    number: int
    question: str
    benchmark: str
    seeds: list[int]
    variants: dict[str, Variant]
    baseline: str
    score: Literal["test_miou", "teacher_miou_last"] = "test_miou"
    settings: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    mechanism: list[str] = field(default_factory=list)
    measured_before: Literal["", "padding"] = ""
    groups: dict[str, list[str]] = field(default_factory=dict)
    answer: str = ""
    reading: str = ""

    def __post_init__(self) -> None:
        """Refuse a study that names a variant it does not have."""
        named = [("baseline", self.baseline), *(("mechanism", name) for name in self.mechanism)]
        for key, name in named:
            if name not in self.variants:
                there = ", ".join(map(repr, self.variants))
                raise UserError(
                    f"{key}: {name!r} is not a variant of this study; choose one of {there}"
                )

    def cells(self, out: Path, root: Path | str | None = None) -> list[Cell]:
        """Return the runs, seed by seed, in folders that studies of one benchmark share.

        A variant that another study of the same settings has under the same name is not trained
        twice; so it keeps its checkpoints where any study of this benchmark measures inside its
        networks.

        Args:
            out: folder of all studies; runs are in ``out/<benchmark>/runs``, those of a study with
                settings in a folder next to it, such as ``runs-eps-1``.
            root: folder of the data set; digit scenes need none.

        Raises:
            UserError: a preset, key or value is not right, or a folder holds another run.
        """
        measured = {*self.mechanism}.union(
            *(other.mechanism for other in studies() if other.benchmark == self.benchmark)
        )
        cells, shared = [], _slug("runs", *self.settings)
        for split, config in self._configs():
            config = config.at(None if root is None else Path(root))
            name = config.method.name
            folder = _slug(split or "", name, str(config.seed))
            kept = EVERY if name in measured else Checkpoints.KEEP
            path = Path(out) / Path(self.benchmark).stem / shared / folder
            cells.append(Cell(config, path, keep=kept))
        for cell in cells:
            cell.finished()
        return cells

    def configs(self) -> list[Config]:
        """Return the configuration of each run, split by split and seed by seed.

        Raises:
            UserError: a preset, key or value is not right.
        """
        return [config for _, config in self._configs()]

    def _configs(self) -> Iterator[tuple[str | None, Config]]:
        benchmark = find_benchmark(self.benchmark)
        more = [seed for variant in self.variants.values() for seed in variant.seeds]
        for split in self.splits or [None]:
            for seed in dict.fromkeys([*self.seeds, *more]):
                for name, variant in self.variants.items():
                    if seed not in (*self.seeds, *variant.seeds):
                        continue
                    overrides = [
                        setting.replace("{seed}", str(seed))
                        for setting in (*self.settings, *variant.set, f"method.name={name}")
                    ]
                    yield (
                        split,
                        load_config(benchmark, variant.preset, seed, overrides, split=split),
                    )

    @property
    def folder(self) -> Path:
        """Where the repository keeps studies."""
        return repository() / "reproduce" / "studies"

    def stored(self) -> pd.DataFrame | None:
        """Return the ledger that was kept, or ``None`` if the study has not been run yet."""
        path = self.folder / f"{self.name}.csv"
        return read_ledger(path) if path.is_file() else None

    def stored_classes(self) -> pd.DataFrame | None:
        """Return the IoU of each class (:func:`class_table`); ``None`` where it was not kept."""
        path = self.folder / f"{self.name}-classes.csv"
        return pd.read_csv(path, dtype={"split": str}) if path.is_file() else None

    def stored_mechanism(self) -> pd.DataFrame | None:
        """Return what :mod:`ddfp_lib.evaluation.mechanism` measured; ``None`` where nothing was."""
        path = self.folder / f"{self.name}-mechanism.csv"
        return pd.read_csv(path) if path.is_file() else None


def _slug(*words: str) -> str:
    """Join words to the name of a folder."""
    return re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")


def studies() -> list[Study]:
    """Return all studies, in the order of ``STUDY.md``."""
    folder = repository() / "reproduce" / "studies"
    return sorted(map(read_study, folder.glob("*.yaml")), key=lambda study: study.number)


RENAMED = {"rivals": "perturbations"}
"""Former names of studies, which commands and notebooks may still use."""


def find_study(name: str) -> Study:
    """Return the study of this name or of a former name, or that of a ``.yaml`` file.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name.endswith((".yaml", ".yml")):
        return read_study(Path(name))
    known = {study.name: study for study in studies()}
    name = RENAMED.get(name, name)
    if name not in known:
        raise UserError(f"study: {name!r} is unknown; choose one of {', '.join(known)}")
    return known[name]


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        UserError: the file, a key or a value in it is not right.
    """
    values = {"name": Path(path).stem, **read_yaml(path)}
    if "rival" in values:  # the key's name until 2026
        values.setdefault("baseline", values.pop("rival"))
    try:
        return dacite.from_dict(Study, values, dacite.Config(strict=True))
    except dacite.DaciteError as error:
        raise UserError(f"{path}: {one_line(error)}; fix the key") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def class_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Tabulate the test IoU of each class, of finished runs.

    Returns:
        Columns ``split``, ``method``, ``seed``, ``class`` (its name) and ``iou`` (percent; NaN for
        a class that is in no test mask and no prediction).
    """
    rows = [
        (result.split, result.method, result.seed, name, iou)
        for run in runs
        if (result := run.result()) is not None
        for name, iou in zip(run.classes, result.test_iou, strict=True)
    ]
    return pd.DataFrame(rows, columns=["split", "method", "seed", "class", "iou"])


def group_scores(study: Study, classes: pd.DataFrame) -> pd.DataFrame:
    """Average the IoU of each class over the classes of each group.

    Args:
        study: with groups.
        classes: see :func:`class_table`.

    Returns:
        A row for each run: ``split``, ``method``, ``seed``, and each group's mean IoU in percent.

    Raises:
        UserError: a group names a class that the runs do not have.
    """
    wide = classes.pivot(index=["split", "method", "seed"], columns="class", values="iou")
    for group, members in study.groups.items():
        if absent := sorted({*members} - {*wide.columns}):
            raise UserError(
                f"{study.name}: groups.{group} names {absent[0]!r}, which the runs do not have; "
                f"choose from {', '.join(wide.columns)}"
            )
    means = {group: wide[members].mean(axis=1) for group, members in study.groups.items()}
    scores = pd.DataFrame(means).reset_index()
    return scores.sort_values("method", key=lambda names: names.map(list(study.variants).index))


def record(study: Study, results: Path) -> list[Path]:
    """Keep a study's tables in the repository, next to its file.

    Args:
        study: a study that was run.
        results: folder that holds its ``<name>.csv`` and, with a mechanism or groups of classes,
            these tables too.

    Returns:
        The files written.
    """
    names = [f"{study.name}.csv"]
    names += [f"{study.name}-mechanism.csv"] * bool(study.mechanism)
    names += [f"{study.name}-classes.csv"] * bool(study.groups)
    written = []
    for name in names:
        source = Path(results) / name
        if not source.is_file():
            raise UserError(f"{source}: is not there; a finished 'ddfp study' writes it")
        write_text(study.folder / name, source.read_text(encoding="utf-8"))
        written.append(study.folder / name)
    return written
