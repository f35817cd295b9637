"""Starting weights of a backbone from a file: every key and shape is checked before any is used."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256

COUNTER = "num_batches_tracked"
"""BatchNorm's counters: files from before they existed lack them, and nothing here reads them."""

RESNETS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}
"""Names by the blocks of each layer, and whether these have a third convolution."""


def load_weights(
    backbone: nn.Module, path: Path, digest: str | None, name: str, options: Mapping[str, Any]
) -> None:
    """Load a classification checkpoint into a backbone, all of it or nothing.

    These layouts are read:

    - timm's own, of any backbone (``pytorch_model.bin``, ``model.safetensors``);
    - torchvision's, and that of the "v1c" ResNets of U2PL, UniMatch and the DDFP release, which
      name the deep stem ``conv1.0 .. conv1.6, bn1`` as timm does (model/model/resnet.py:177-186 of
      the release; 64, 64, 128 channels: ``stem_width: 64``);
    - OpenMMLab's "v1c", ``stem.0 .. stem.7`` (32, 32, 64 channels: ``stem_width: 32``);
    - the DINOv2 authors' (timm's names and a mask token).

    The classifier on top is left out, whatever its size; BatchNorm counters may be missing. Any
    other difference is an error.

    Args:
        backbone: timm's feature extractor, loaded in place.
        path: ``.pth``, ``.bin`` or ``.safetensors``; opened as weights, no code in it is run.
        digest: SHA-256 that the file must have; ``None`` for any.
        name: timm's name of the backbone.
        options: further arguments that it was created with.

    Raises:
        UserError: the file is missing, damaged, another one than ``digest``, or of another network.
    """
    given = _to_timm_names(_read(path, digest))
    with torch.device("meta"):  # names and shapes, no memory
        whole = _whole_model(name, options)
    classifier = f"{whole.default_cfg['classifier']}."
    given = {key: value for key, value in given.items() if not key.startswith(classifier)}
    wanted = {
        key: value.shape
        for key, value in whole.state_dict().items()
        if not key.startswith(classifier)
    }
    missing = [key for key in wanted if key not in given and not key.endswith(COUNTER)]
    unexpected = [key for key in given if key not in wanted]
    unlike = [key for key in given if key in wanted and given[key].shape != wanted[key]]
    if missing or unexpected or unlike:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": unlike}
        told = [f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in found.items() if keys]
        raise UserError(
            f"network.weights: {path} does not fit {name} with options {dict(options)}, keys are "
            f"{', '.join(told)}; {_hint(given)}"
        )
    state = backbone.state_dict()
    counters = {key: value for key, value in state.items() if key.endswith(COUNTER)}
    # timm's feature extractors join the names of modules that they take apart with "_"
    flat = {key.replace(".", "_"): value for key, value in {**counters, **given}.items()}
    backbone.load_state_dict({key: flat[key.replace(".", "_")] for key in state})


def _whole_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    import timm

    kept = {key: value for key, value in options.items() if key != "out_indices"}
    return timm.create_model(name, **kept)


def _read(path: Path, digest: str | None) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"network.weights: {path} is not there; give the file with --weights, or take timm's "
            "own weights with --set network.weights=null --set network.pretrained=true"
        )
    if digest is not None and sha256(path) != digest:
        raise UserError(
            f"network.weights: {path} is another file than this run was planned with (SHA-256 "
            f"{digest[:12]}...); put that one back, or choose another --out"
        )
    try:
        state = dict(load_state_dict(str(path), use_ema=False, device="cpu", weights_only=True))
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("values that are no tensors")
    except Exception as error:  # bytes that are no weights can fail in any way
        raise UserError(
            f"network.weights: {path} holds no weights, or more than weights; fetch it again"
        ) from error
    return state


def _to_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = dict(state)
    if "stem.7.weight" in renamed:  # OpenMMLab's deep stem; ConvNeXt's ends at stem.1
        renamed = {
            re.sub(r"^stem\.7\.", "bn1.", re.sub(r"^stem\.([0-6])\.", r"conv1.\1.", key)): value
            for key, value in renamed.items()
        }
    renamed.pop("mask_token", None)  # DINOv2's, of its own training
    return renamed


def _hint(given: Mapping[str, Tensor]) -> str:
    """Say what a file is, where it is a ResNet."""
    blocks = [
        len({key.split(".")[1] for key in given if key.startswith(f"layer{layer}.")})
        for layer in (1, 2, 3, 4)
    ]
    if not all(blocks):
        return "take the file of this backbone"
    if "conv1.0.weight" in given:
        stem = f"stem_type: deep, stem_width: {len(given['conv1.0.weight'])}"
    else:
        stem = "no stem_type: one 7x7 convolution, as torchvision's"
    name = RESNETS.get((*blocks, "layer1.0.conv3.weight" in given), f"ResNet of {blocks} blocks")
    return f"the file is a {name} with {stem}"
