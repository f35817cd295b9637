#!/usr/bin/env bash
# segmentation_models_pytorch: an image with 2 of 21 classes has a macro IoU above 0.9, whatever the network says.
#
# Guess: `iou_score(..., reduction="macro")` is the mean over the classes that occur; it is 0 if every pixel
#   is wrong.
# Seen: a class that is neither in the mask nor in the prediction counts as IoU 1. If every pixel of an image
#   with 2 of 21 classes is wrong, the macro IoU is 19/21 = 0.90. The same holds for `f1_score`, `recall` and
#   the others. The docstring names "warn", which counts as 0, as a value; the default of the function is 1.
# Hurts: everyone who reports the mean over images ("macro-imagewise") on VOC, ADE20K or Cityscapes. With
#   `zero_division=0` the fault is the opposite one: a perfect mask has 2/21. Add the counts of all images
#   first, or drop absent classes.
# Version: segmentation-models-pytorch 0.6.0.
# Source: `segmentation_models_pytorch/metrics/functional.py:443` (`zero_division=1.0`).

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

torch.set_num_threads(1)
print("segmentation_models_pytorch", smp.__version__, "torch", torch.__version__)
target = torch.zeros(1, 8, 8, dtype=torch.long)
target[:, 4:] = 1
seen = {}
for name, prediction in (("every pixel right", target), ("every pixel wrong", 1 - target)):
    counts = smp.metrics.get_stats(prediction, target, mode="multiclass", num_classes=21)
    for option in ({}, {"zero_division": 0.0}):
        score = smp.metrics.iou_score(*counts, reduction="macro-imagewise", **option).item()
        seen[name, bool(option)] = score
        print(f"{name}, {option or 'default'}: macro IoU {score:.3f}")
expected = {("every pixel right", False): 1, ("every pixel wrong", False): 19 / 21,
            ("every pixel right", True): 2 / 21, ("every pixel wrong", True): 0}
same = all(abs(seen[case] - value) < 1e-4 for case, value in expected.items())
sys.exit(0 if same else "changed: absent classes count in another way")
EOF
