"""YAML files as plain values, and back."""

from pathlib import Path
from typing import Any

import yaml

from ddfp_lib.config.schema import to_dict
from ddfp_lib.errors import UserError, one_line


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        UserError: the file is missing, is not YAML, names Python objects, or is not a mapping.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = one_line(error)
        raise UserError(f"{path}: is not plain YAML ({where}); fix the file") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no 'key: value' pairs; write one on each line")
    return values


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML, from which ``from_dict`` builds an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
