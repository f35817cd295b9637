#!/usr/bin/env bash
# PyTorch's SyncBatchNorm conversion removes the activations of timm's EfficientNets.
#
# Guess: `SyncBatchNorm.convert_sync_batchnorm(model)` changes how statistics are collected, not what the
#   network computes in evaluation mode.
# Seen: timm puts the activation into its BatchNorm layer (`BatchNormAct2d`, a subclass of BatchNorm2d).
#   PyTorch replaces the layer by a plain SyncBatchNorm: the activation stays as a child that is never
#   called. No warning. A ResNet is unchanged. `timm.layers.convert_sync_batchnorm` is right.
# Hurts: training on several GPUs with any timm encoder that has BatchNormAct2d (EfficientNet, MobileNet,
#   RegNet, ...). The network has no nonlinearity at these places, and still trains.
# Version: torch 2.15.0, timm 1.0.31. Known upstream: timm issue 1254, PyTorch issue 187298.
# Source: `torch/nn/modules/batchnorm.py:926`; `timm/layers/norm_act.py:170`.

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
import copy
import sys
import timm
import torch
from timm.layers import convert_sync_batchnorm

torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__, "timm", timm.__version__)
image = torch.randn(1, 3, 64, 64)
seen = {}
for name in ("resnet18", "efficientnet_lite0"):
    model = timm.create_model(name).eval()
    by_torch = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    by_timm = convert_sync_batchnorm(copy.deepcopy(model)).eval()
    with torch.no_grad():
        output = model(image)
        scale = output.std()
        seen[name] = [((other(image) - output).abs().max() / scale).item() for other in (by_torch, by_timm)]
    print(f"{name:20} largest change of the output, in standard deviations: torch {seen[name][0]:.3g}, timm {seen[name][1]:.3g}")
same = seen["efficientnet_lite0"][0] > 0.1 and max(seen["resnet18"]) < 1e-3 and seen["efficientnet_lite0"][1] < 1e-3
sys.exit(0 if same else "changed: the conversion keeps the activation, or timm's no longer does")
EOF
