"""Configurations: what a run is described by, and how it is read from strict YAML.

:mod:`~ddfp_lib.config.schema` holds the dataclasses, :mod:`~ddfp_lib.config.reading` the benchmarks
and overrides they come from, :mod:`~ddfp_lib.config.methods` the presets,
:mod:`~ddfp_lib.config.building` the errors for wrong keys and values,
:mod:`~ddfp_lib.config.weights` what follows from starting weights.
"""

from ddfp_lib.config.building import build
from ddfp_lib.config.methods import BASE, PRESETS, differences, load_method, presets, summary
from ddfp_lib.config.plain import read_yaml, to_yaml
from ddfp_lib.config.reading import (
    find_benchmark,
    from_dict,
    load_config,
    read_benchmark,
    read_config,
    splits_of,
)
from ddfp_lib.config.schema import (
    Config,
    DataConfig,
    MethodConfig,
    NetworkConfig,
    TrainingConfig,
    to_dict,
)
from ddfp_lib.config.weights import normalisation, tied_to_weights, weights_file

__all__ = [
    "BASE",
    "PRESETS",
    "Config",
    "DataConfig",
    "MethodConfig",
    "NetworkConfig",
    "TrainingConfig",
    "build",
    "differences",
    "find_benchmark",
    "from_dict",
    "load_config",
    "load_method",
    "normalisation",
    "presets",
    "read_benchmark",
    "read_config",
    "read_yaml",
    "splits_of",
    "summary",
    "tied_to_weights",
    "to_dict",
    "to_yaml",
    "weights_file",
]
