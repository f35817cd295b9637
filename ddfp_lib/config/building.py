"""From plain values to dataclasses: every wrong key or value gets one clear error."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

import dacite

from ddfp_lib.errors import UserError, one_line


def build(
    kind: type, values: Mapping[str, Any], source: str, given: Mapping[str, str] | None = None
) -> Any:
    """Build a dataclass, or say which key or value is wrong.

    Args:
        kind: the dataclass, with dataclasses as sections.
        values: nested plain values.
        source: the file that they come from, for error messages.
        given: another source for some dotted keys, as ``--set KEY=VALUE``.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type.
    """

    def wrong(key: str, words: str) -> UserError:
        # the other source gave this key, its whole section, or a key below it
        by = (
            name
            for at, name in (given or {}).items()
            if f"{key}.".startswith(f"{at}.") or f"{at}.".startswith(f"{key}.")
        )
        return UserError(f"{next(by, source)}: {words}")

    known = dict(_keys(kind))
    for key in _unknown(kind, values):
        near = _nearest(key, known)
        hint = f"did you mean {near!r}?" if near else "remove it"
        if key in known:  # a key with a dot does not reach into a section
            section, _, name = key.rpartition(".")
            hint = f"write {name!r} below {section!r}"
        raise wrong(key, f"unknown key {one_line(key)}; {hint}")
    tuples = {
        part
        for type_ in known.values()
        for part in (type_, *get_args(type_))
        if get_origin(part) is tuple
    }
    hooks = {
        float: _to_float,
        int: _to_int,
        dict[str, Any]: _numbers_in,
        **dict.fromkeys(tuples, _to_tuple),
    }
    settings = dacite.Config(strict=True, type_hooks=hooks)
    try:
        return dacite.from_dict(kind, dict(values), settings)
    except dacite.MissingValueError as error:
        raise UserError(f"{source}: key {error.field_path} is missing; add it") from error
    except dacite.WrongTypeError as error:
        raise wrong(error.field_path or "", _wrong_type(error, values)) from error
    except dacite.DaciteFieldError as error:
        raise wrong(error.field_path or "", f"{one_line(error)}; fix the value") from error
    except (dacite.DaciteError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: {one_line(error)}; fix the value") from error


def _wrong_type(error: dacite.WrongTypeError, values: Mapping[str, Any]) -> str:
    """Say which value has the wrong type; a text that lists items has lost its brackets."""
    field = error.field_path or ""
    value: Any = values
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    kinds = {get_origin(part) or part for part in get_args(error.field_type) or [error.field_type]}
    listed = get_origin(error.field_type) is tuple or kinds == {tuple, type(None)}
    if listed and isinstance(value, str):
        return f"{field}: {value!r} is not a list; write [{value}], in brackets"
    return f"{one_line(error)}; fix the value"


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
    """Return the known key that is most like this one, in its section or without a section."""
    section, _, name = key.rpartition(".")
    beside = [other for other in known if other.rpartition(".")[0] == section]
    for keys, likeness in (([] if section else known, 0.9), (beside, 0.4)):
        names = {other.rpartition(".")[2]: other for other in keys}
        near = difflib.get_close_matches(name, names, n=1, cutoff=likeness)
        if near:
            return names[near[0]]
    return None


def _to_float(value: Any) -> Any:
    value = _number(_to_int(value))
    return float(value) if isinstance(value, int) else value


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3, which has no point, and 1.5e3, which has no sign, as text
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _numbers_in(options: Any) -> Any:
    """Read the numbers among options for classes of others, such as ``encoder_options``."""
    if isinstance(options, Mapping):
        return {name: _numbers_in(value) for name, value in options.items()}
    if isinstance(options, list):
        return [_numbers_in(value) for value in options]
    return _number(options)


def _to_int(value: Any) -> Any:
    # Python takes True for an integer; as a string it is refused with its name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 2**32:
        raise ValueError(f"{value} is larger than any setting can be")
    return value


def _to_tuple(value: Any) -> Any:
    # YAML and JSON write tuples as lists
    return tuple(value) if isinstance(value, list) else value
