"""Methods: presets and your own files, which change values of ``base.yaml``."""

from pathlib import Path
from typing import Any

from ddfp_lib.config.building import build
from ddfp_lib.config.plain import read_yaml
from ddfp_lib.config.schema import MethodConfig, to_dict
from ddfp_lib.errors import UserError

PRESETS = Path(__file__).parents[1] / "presets"

BASE = PRESETS / "base.yaml"
"""Every key of a method with its default value, its meaning, and whose behavior it is."""


def presets() -> list[str]:
    """Return the names of all presets, as ``--methods`` takes them."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml") if path != BASE)


def load_method(name: str) -> MethodConfig:
    """Read a method: a preset, or a file of your own, on top of the base file.

    Args:
        name: name of a preset, or the path of a ``.yaml`` file; the file names the method.

    Raises:
        UserError: there is no such preset or file, its name is a preset's, or a key or value in it
            is wrong.
    """
    path = _file_of(name)
    values = read_yaml(path)
    values.pop("summary", None)
    return build(MethodConfig, {"name": path.stem, **read_yaml(BASE), **values}, str(path))


def summary(name: str) -> str:
    """Return the sentence that a preset or a file says of itself, empty without one."""
    return str(read_yaml(_file_of(name)).get("summary", ""))


def differences(one: str, other: str) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two methods differ, with the value of each.

    Args:
        one: name of a preset, or path of a ``.yaml`` file.
        other: the same.
    """
    ours, theirs = to_dict(load_method(one)), to_dict(load_method(other))
    return {
        key: (ours[key], theirs[key]) for key in ours if key != "name" and ours[key] != theirs[key]
    }


def _file_of(name: str) -> Path:
    if not name.endswith((".yaml", ".yml")):
        if name not in presets():
            raise UserError(
                f"method: {name!r} is unknown; choose one of {', '.join(presets())}, or give the "
                "path of a .yaml file of your own"
            )
        return PRESETS / f"{name}.yaml"
    path = Path(name)
    if path.stem in (*presets(), BASE.stem):
        raise UserError(f"{path}: {path.stem!r} is the name of a preset; rename the file")
    return path
