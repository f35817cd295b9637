"""Read YAML files as plain values, and write plain values as YAML."""

from pathlib import Path
from typing import Any

import yaml

from ddfp_lib.config.schema import to_dict
from ddfp_lib.errors import UserError, one_line

LIBYAML = getattr(yaml, "CSafeLoader", None)
"""The safe loader that libyaml does the reading for, in a tenth of the time, where it is there."""

SHORT = 20_000
"""Characters of a text that libyaml may read: brackets nested 50,000 deep crash the process."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        UserError: the file is missing, is not YAML, names Python objects, or is not a mapping.
    """
    path = Path(path)
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        where = one_line(error)
        raise UserError(f"{path}: is not plain YAML ({where}); fix the file") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no 'key: value' pairs; write one on each line")
    return values


def _parsed(text: str) -> Any:
    quick = LIBYAML is not None and len(text) <= SHORT
    return yaml.load(text, LIBYAML if quick else yaml.SafeLoader)


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML, from which ``from_dict`` builds an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
