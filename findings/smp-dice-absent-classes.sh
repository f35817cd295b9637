#!/usr/bin/env bash
# segmentation_models_pytorch: a prediction that is wrong everywhere has a Dice loss of 2/21.
#
# Guess: the multiclass Dice loss is near 1 for a mask that is wrong everywhere.
# Seen: classes without a pixel in the batch count as loss 0, and the mean still runs over all classes.
#   With 2 of 21 classes present the largest possible loss is 2/21 = 0.095. JaccardLoss does the same.
# Hurts: sums such as cross-entropy + Dice: the weight of the Dice term falls with the number of classes
#   and changes with each batch. False positives of an absent class cost nothing.
# Version: segmentation-models-pytorch 0.6.0.
# Source: `segmentation_models_pytorch/losses/dice.py:134` to the mean that follows.

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
print("segmentation_models_pytorch", smp.__version__, "torch", torch.__version__)
seen = {}
for classes in (2, 21):
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[:, 4:] = 1
    wrong = 100.0 * F.one_hot(1 - target, classes).permute(0, 3, 1, 2).float()
    for kind in (smp.losses.DiceLoss, smp.losses.JaccardLoss):
        seen[kind.__name__, classes] = kind("multiclass")(wrong, target).item()
        print(f"{kind.__name__:12} {classes:2} classes, 2 of them present, every pixel wrong: {seen[kind.__name__, classes]:.4f}")
same = all(abs(value - 2 / classes) < 1e-3 for (_, classes), value in seen.items())
sys.exit(0 if same else "changed: absent classes no longer count in the mean")
EOF
