"""Configurations: frozen dataclasses, read from strict YAML.

A run is described by two files and a seed:

- a *benchmark* (``reproduce/configs/...``) holds the numbers that belong to data and network:
  sizes, batch, schedule, learning rates, thresholds, the step length eps. Three keys of it are
  about the file and not of the run: ``extends`` names a file whose values it changes, ``quick``
  lists overrides for a look in minutes, and ``splits`` lists by name the overrides that make one
  column of a published table;
- a *preset* (``ddfp_lib/presets/<method>.yaml``, or a file of one's own) holds the choices that
  make one method differ from another, on top of ``base.yaml``; see
  :mod:`~ddfp_lib.config.methods`.
"""

import dataclasses
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
from ddfp_lib.errors import UserError, one_line
from ddfp_lib.files import repository, sha256


def from_dict(values: Mapping[str, Any], source: str = "configuration") -> Config:
    """Build a configuration from nested dicts.

    Args:
        values: the keys of :class:`Config`, nested.
        source: where they come from, for the error messages.

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
        method: name of a preset, or path of a ``.yaml`` file with a method of one's own.
        seed: of the run.
        overrides: ``"training.steps=100"`` and the like: a dotted key and a YAML value.
        quick: apply the overrides that the benchmark lists under ``quick`` too, before the others:
            a look in minutes instead of a measurement.
        split: apply the overrides that the benchmark lists under this name first; ``None`` takes
            the labeled images that it names itself.

    Raises:
        UserError: a file, key or value is not right.
    """
    values = read_benchmark(benchmark)
    values |= {"method": to_dict(load_method(method)), "seed": seed}
    hasty, cells = values.pop("quick", []), _cells(values)
    if quick and not hasty:
        raise UserError(f"{benchmark}: has no 'quick' settings; leave --quick out")
    if split is not None and split not in cells:
        there = f"choose one of {', '.join(cells)}" if cells else "use --labeled"
        raise UserError(f"split {split!r}: {benchmark} has no such split; {there}")
    chosen = [] if split is None else cells[split]
    for override in [*chosen, *(hasty if quick else []), *overrides]:
        _override(values, override)
    told = {override.partition("=")[0]: f"--set {one_line(override)}" for override in overrides}
    return _tied_to_weights(build(Config, values, str(benchmark), told))


def splits_of(benchmark: Path) -> list[str]:
    """Return the names of a benchmark's published splits, none where it has none.

    Raises:
        UserError: the file is not right.
    """
    return list(_cells(read_benchmark(benchmark)))


def _cells(values: dict[str, Any]) -> dict[str, list[str]]:
    splits = values.pop("splits", {})
    if not isinstance(splits, dict):
        raise UserError(f"splits: {splits!r} is no list of names with settings; write 92: [...]")
    # YAML reads 92 as a number
    return {str(name): settings for name, settings in splits.items()}


def read_benchmark(path: Path) -> dict[str, Any]:
    """Read a benchmark's YAML, laid over the file that it ``extends``.

    That file, and starting weights, are looked for from the folder of this one.

    Raises:
        UserError: one of the files is missing or no plain mapping.
    """
    values, folder = read_yaml(path), Path(path).parent
    base = values.pop("extends", None)
    if base is not None:
        values = _laid_over(read_yaml(folder / base), values)
    network = values.get("network")
    if isinstance(network, dict) and isinstance(network.get("weights"), str):
        network["weights"] = str((folder / network["weights"]).resolve())
    return values


def _laid_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with what ``values`` says: sections are joined, other values replaced."""
    joined = dict(base)
    for key, value in values.items():
        # these two are values: their keys are names, of splits and of a backbone's options
        section = isinstance(value, dict) and key not in ("splits", "encoder_options")
        joined[key] = _laid_over(base.get(key, {}), value) if section else value
    return joined


def _tied_to_weights(config: Config) -> Config:
    """Write the digest of the file with the starting weights into a configuration without one."""
    network = config.network
    if network.weights is None or network.weights_sha256 or not Path(network.weights).is_file():
        return config  # a file that is missing is told of by the network that wants it
    network = dataclasses.replace(network, weights_sha256=sha256(Path(network.weights)))
    return dataclasses.replace(config, network=network)


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
        UserError: the file or a key or value in it is not right.
    """
    return from_dict(read_yaml(path), str(path))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    told = f"--set {one_line(override)}"
    if not equals:
        raise UserError(f"{told}: has no '='; write KEY=VALUE, as training.steps=100")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"{told}: {parent!r} holds a value and no keys below it")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{told}: the value is not plain YAML") from error
