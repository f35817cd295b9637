"""Reading configurations from YAML files.

Two files and a seed describe a run:

- a *benchmark* (``reproduce/configs/...``) holds the numbers of data and network: sizes, batch,
  schedule, learning rates, thresholds, the step length eps. Three of its keys do not describe the
  run: ``extends`` names a file whose values it changes, ``quick`` lists overrides for a run of
  minutes, and ``splits`` lists by name the overrides of each column of a published table;
- a *preset* (``ddfp_lib/presets/<method>.yaml``, or a file of your own) holds the choices that
  make one method differ from another, on top of ``base.yaml``; see
  :mod:`~ddfp_lib.config.methods`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ddfp_lib.config.building import build
from ddfp_lib.config.methods import load_method
from ddfp_lib.config.plain import read_yaml
from ddfp_lib.config.schema import (
    Config,
    to_dict,
)
from ddfp_lib.config.weights import PACKAGE, tied_to_weights
from ddfp_lib.errors import UserError, one_line
from ddfp_lib.files import repository


def from_dict(values: Mapping[str, Any], source: str = "configuration") -> Config:
    """Build a configuration from nested dicts.

    Args:
        values: the keys of :class:`Config`, nested.
        source: file or option that they come from, for error messages.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or range.
    """
    return build(Config, values, source)


def load_config(
    benchmark: Path,
    method: str,
    seed: int = 0,
    overrides: Sequence[str] = (),
    *,
    quick: bool = False,
    split: str | None = None,
) -> Config:
    """Read a benchmark, put a method and a seed into it, and apply overrides.

    Args:
        benchmark: path of the benchmark's YAML.
        method: name of a preset, or path of a ``.yaml`` file with a method of your own.
        seed: seed of the run.
        overrides: ``"training.steps=100"`` and the like: a dotted key and a YAML value.
        quick: also apply the overrides that the benchmark lists under ``quick``, before
            ``overrides``: a run of minutes that measures nothing.
        split: first apply the overrides that the benchmark lists under this name. ``None``: use
            the labeled images that the benchmark itself names.

    Raises:
        UserError: a file, key or value is wrong.
    """
    values = read_benchmark(benchmark)
    values |= {"method": to_dict(load_method(method)), "seed": seed}
    quick_settings, cells = values.pop("quick", []), _cells(values)
    if quick and not quick_settings:
        raise UserError(f"{benchmark}: has no 'quick' settings; leave --quick out")
    if split is not None and split not in cells:
        there = f"choose one of {', '.join(cells)}" if cells else "use --labeled"
        raise UserError(f"split {split!r}: {benchmark} has no such split; {there}")
    chosen = [] if split is None else cells[split]
    for override in [*chosen, *(quick_settings if quick else []), *overrides]:
        _override(values, override)
    given = {override.partition("=")[0]: f"--set {one_line(override)}" for override in overrides}
    return tied_to_weights(build(Config, values, str(benchmark), given))


def splits_of(benchmark: Path) -> list[str]:
    """Return the names of a benchmark's published splits; an empty list if it has none.

    Raises:
        UserError: the file is wrong.
    """
    return list(_cells(read_benchmark(benchmark)))


def _cells(values: dict[str, Any]) -> dict[str, list[str]]:
    splits = values.pop("splits", {})
    if not isinstance(splits, dict):
        raise UserError(
            f"splits: {splits!r} is not a mapping from names to settings; write 92: [...]"
        )
    # YAML reads 92 as a number
    return {str(name): settings for name, settings in splits.items()}


def read_benchmark(path: Path) -> dict[str, Any]:
    """Read a benchmark's YAML, on top of the file that it ``extends``.

    Relative paths of that file and of starting weights start from the folder of this file.

    Raises:
        UserError: one of the files is missing or is not a plain mapping.
    """
    values, folder = read_yaml(path), Path(path).parent
    base = values.pop("extends", None)
    if base is not None:
        values = _merged(read_yaml(folder / base), values)
    network = values.get("network")
    weights = network.get("weights") if isinstance(network, dict) else None
    if isinstance(weights, str) and not weights.startswith(PACKAGE):
        network["weights"] = str((folder / weights).resolve())
    return values


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated by ``values``: sections are merged, other values replaced."""
    joined = dict(base)
    for key, value in values.items():
        # the keys of these two are names, of splits and of a backbone's options
        section = isinstance(value, dict) and key not in ("splits", "encoder_options")
        joined[key] = _merged(base.get(key, {}), value) if section else value
    return joined


def find_benchmark(name: str) -> Path:
    """Return the YAML of a benchmark: a path, or a name below ``reproduce/configs``.

    Raises:
        UserError: there is no such file; the message lists the names.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = repository() / "reproduce" / "configs"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
        raise UserError(f"benchmark: {name!r} is unknown; choose one of {', '.join(known)}")
    return path


def read_config(path: Path) -> Config:
    """Read a complete configuration, as a run folder holds it.

    Raises:
        UserError: the file, or a key or value in it, is wrong.
    """
    return tied_to_weights(from_dict(read_yaml(path), str(path)))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    setting = f"--set {one_line(override)}"
    if not equals:
        raise UserError(f"{setting}: has no '='; write KEY=VALUE, for example training.steps=100")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"{setting}: {parent!r} has a value and no keys below it")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{setting}: the value is not plain YAML") from error
