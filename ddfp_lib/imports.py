"""Import by name: names that a package offers, and your classes that a configuration names."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddfp_lib.errors import UserError


def offered(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any]]:
    """Return ``__all__`` and ``__getattr__`` of a package that imports its names at first use.

    So a package offers names of all its modules, and importing it stays quick (PEP 562).

    Args:
        package: its ``__name__``.
        homes: the names that it offers, by the module in it that defines them.

    Returns:
        The names, sorted, and what imports one of them or raises :class:`AttributeError`.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    return sorted(home), find


OWN = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""How a class of your own is written."""


def import_class(name: str, key: str) -> type:
    """Import a class that a configuration names.

    Args:
        name: ``package.module:Class``, importable from where ``ddfp`` runs.
        key: key of the configuration, for error messages.

    Raises:
        UserError: the module cannot be imported, or has no such class.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(
            f"{key}: {name}: cannot be imported ({error}); install its package, or set PYTHONPATH "
            "to the folder that holds it"
        ) from error
    if not inspect.isclass(found):
        raise UserError(f"{key}: {name}: {module} has no class {attribute!r}; check its name")
    return found
