#!/usr/bin/env bash
# timm: one image, one stride, maps of different sizes.
#
# Guess: a feature map of stride s has ceil(height / s) rows with every encoder of `features_only=True`.
# Seen: for an image of 75 x 101 pixels ResNet gives 3 x 4 at stride 32, DenseNet and ConvNeXt give
#   2 x 3, MobileViTv2 gives 4 x 4. `feature_info.reduction()` says 32 for all of them.
# Hurts: decoders that join maps by their stride; code that computes the size of a map from the stride;
#   comparisons of encoders pixel by pixel. The maps also cover different areas of the image.
# Version: timm 1.0.31, torch 2.15.0.
# Source: padded 3x3 convolutions round up. `timm/models/densenet.py:207` (average pooling without
#   padding) and ConvNeXt's unpadded 2x2 convolutions round down. `timm/models/mobilevit.py:536`
#   enlarges the map to a multiple of its patch size and does not restore it (version 1 does, line 273).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 torchvision==0.29.2 timm==1.0.31
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import timm
import torch

torch.set_num_threads(1)
print("timm", timm.__version__, "torch", torch.__version__)
expected = {"resnet18": (3, 4), "densenet121": (2, 3), "convnext_atto": (2, 3), "mobilevitv2_050": (4, 4)}
seen = {}
for name in expected:
    encoder = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 75, 101))
    seen[name] = tuple(maps[-1].shape[-2:])
    sizes = ", ".join(f"1/{r}: {m.shape[-2]}x{m.shape[-1]}" for r, m in zip(encoder.feature_info.reduction(), maps))
    print(f"{name:16} {sizes}")
    if encoder.feature_info.reduction()[-1] != 32:
        sys.exit(f"changed: the last stride of {name} is no longer 32")
sys.exit(0 if seen == expected else f"changed: expected {expected}")
EOF
