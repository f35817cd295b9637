"""From plain values to dataclasses: every wrong key or value gets one clear error."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

import dacite

from ddfp_lib.errors import UserError, one_line


def build(
    kind: type, values: Mapping[str, Any], source: str, told: Mapping[str, str] | None = None
) -> Any:
    """Build a dataclass; ``told`` says which keys came from elsewhere than ``source``."""

    def wrong(key: str, words: str) -> UserError:
        # a setting gave this key, all of its section, or something below it
        by = (
            name
            for at, name in (told or {}).items()
            if f"{key}.".startswith(f"{at}.") or f"{at}.".startswith(f"{key}.")
        )
        return UserError(f"{next(by, source)}: {words}")

    known = dict(_keys(kind))
    for key in _unknown(kind, values):
        near = _nearest(key, known)
        hint = f"did you mean {near!r}?" if near else "remove it"
        if key in known:  # a dot in a name is no section
            section, _, name = key.rpartition(".")
            hint = f"write {name!r} below {section!r}"
        raise wrong(key, f"unknown key {one_line(key)}; {hint}")
    tuples = {
        part
        for type_ in known.values()
        for part in (type_, *get_args(type_))
        if get_origin(part) is tuple
    }
    hooks = {float: _to_float, int: _to_int, **dict.fromkeys(tuples, _to_tuple)}
    settings = dacite.Config(strict=True, type_hooks=hooks)
    try:
        return dacite.from_dict(kind, dict(values), settings)
    except dacite.MissingValueError as error:
        raise UserError(f"{source}: key {error.field_path} is missing; add it") from error
    except dacite.DaciteFieldError as error:
        raise wrong(error.field_path or "", f"{one_line(error)}; mend the value") from error
    except (dacite.DaciteError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: {one_line(error)}; mend the value") from error


def _keys(kind: type, section: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a dataclass and of its sections, with their types."""
    for item in dataclasses.fields(kind):
        yield section + item.name, item.type
        if dataclasses.is_dataclass(item.type):
            yield from _keys(item.type, f"{section}{item.name}.")


def _unknown(kind: type, values: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested values that a dataclass and its sections do not have."""
    types = {item.name: item.type for item in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in types:
            yield f"{section}{name}"
        elif isinstance(value, Mapping) and dataclasses.is_dataclass(types[name]):
            yield from _unknown(types[name], value, f"{section}{name}.")


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that was meant, by its section's names; a section may be forgotten."""
    section, _, name = key.rpartition(".")
    beside = [other for other in known if other.rpartition(".")[0] == section]
    for keys, likeness in (([] if section else known, 0.9), (beside, 0.4)):
        names = {other.rpartition(".")[2]: other for other in keys}
        near = difflib.get_close_matches(name, names, n=1, cutoff=likeness)
        if near:
            return names[near[0]]
    return None


def _to_float(value: Any) -> Any:
    value = _to_int(value)
    # YAML 1.1 takes 1e-3, without a point, for a word
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        return float(value)
    return float(value) if isinstance(value, int) else value


def _to_int(value: Any) -> Any:
    # Python's True is an integer, YAML's is not: as a word it is refused by name.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 2**32:
        raise ValueError(f"{value} is larger than any setting can be")
    return value


def _to_tuple(value: Any) -> Any:
    # lists are how YAML and JSON write tuples
    return tuple(value) if isinstance(value, list) else value
