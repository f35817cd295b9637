"""Classes of your own, named as ``package.module:Class`` in a configuration."""

import importlib
import inspect
import re

from ddfp_lib.errors import UserError

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
