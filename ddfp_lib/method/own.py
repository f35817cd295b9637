"""Perturbations of your own: a class outside this project, named ``package.module:Class``.

The class is made as ``Class(eps, **options)`` and called as every
:class:`~ddfp_lib.method.perturb.FeaturePerturbation`::

    class TowardsZero:
        def __init__(self, eps, factor=1.0): ...
        def __call__(self, features, moved, models, generator): ...

In a preset::

    perturbation: mypackage.steps:TowardsZero
    perturbation_options: {factor: 0.5}
"""

import inspect
from collections.abc import Mapping
from typing import Any

from ddfp_lib.errors import UserError
from ddfp_lib.imports import import_class

CALLED_WITH = ("features", "moved", "models", "generator")
"""The arguments of a perturbation's call, in this order."""


def make_own(name: str, eps: float, options: Mapping[str, Any]) -> Any:
    """Import a perturbation class, check that it can be called as one, and make it.

    Args:
        name: ``package.module:Class``, importable from where ``ddfp`` runs.
        eps: length of the step, in units of the features; the first argument of the class.
        options: its keyword arguments.

    Returns:
        A :class:`~ddfp_lib.method.perturb.FeaturePerturbation`.

    Raises:
        UserError: the module or class is missing, is not callable as a perturbation, or does not
            take these options. A class of another kind is refused before it is made.
    """
    found = import_class(name, "method.perturbation")
    call = found.__dict__.get("__call__") or getattr(found, "__call__", None)  # noqa: B004
    names = list(inspect.signature(call).parameters)[1:] if inspect.isfunction(call) else []
    if tuple(names) != CALLED_WITH:
        raise UserError(
            f"method.perturbation: {name}: is not a perturbation; define "
            f"__call__(self, {', '.join(CALLED_WITH)}), see FeaturePerturbation in "
            "ddfp_lib/method/perturb.py"
        )
    try:
        return found(eps, **options)
    except TypeError as error:
        raise UserError(
            f"method.perturbation_options: {name} does not take {dict(options)} ({error}); "
            "fix its options"
        ) from error
