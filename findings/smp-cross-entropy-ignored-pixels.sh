#!/usr/bin/env bash
# segmentation_models_pytorch: `SoftCrossEntropyLoss` divides by all pixels, ignored ones included.
#
# Guess: with `ignore_index` the mean runs over the pixels that count, as in `F.cross_entropy`.
# Seen: ignored pixels count as zeros in the mean. If 7 of 8 rows are ignored, the loss and its gradient
#   are 8 times smaller than those of `F.cross_entropy` with the same label smoothing. Without ignored
#   pixels both agree.
# Hurts: sparse labels, scribbles, pseudo-labels above a threshold: the fewer pixels have a label, the
#   smaller the step. An image with few labeled pixels hardly counts.
# Version: segmentation-models-pytorch 0.6.0, torch 2.15.0.
# Source: `segmentation_models_pytorch/losses/_functional.py:284` (`mean()` after `masked_fill(..., 0)`).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 torchvision==0.29.2 timm==1.0.31 segmentation-models-pytorch==0.6.0
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
print("segmentation_models_pytorch", smp.__version__, "torch", torch.__version__)
logits = torch.randn(2, 21, 8, 8)
full = torch.randint(0, 21, (2, 8, 8))
sparse = full.clone()
sparse[:, 1:] = 255
ratios = []
for name, target in (("all pixels labeled", full), ("1 of 8 rows labeled", sparse)):
    reference = F.cross_entropy(logits, target, ignore_index=255, label_smoothing=0.1).item()
    loss = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255)(logits, target).item()
    ratios.append(reference / loss)
    print(f"{name:20} torch {reference:.4f}, smp {loss:.4f}, ratio {ratios[-1]:.3f}")
same = abs(ratios[0] - 1) < 1e-3 and abs(ratios[1] - 8) < 1e-2
sys.exit(0 if same else "changed: the mean no longer runs over ignored pixels")
EOF
