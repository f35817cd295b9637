#!/usr/bin/env bash
# torchvision, albumentations, kornia: a rotated or padded mask gets class 0 in its new pixels.
#
# Guess: new pixels of a mask are "ignore" (255), as in the training scripts of DeepLab and PSPNet.
# Seen: all three fill masks with 0 by default: background in VOC, road in Cityscapes (train ids),
#   wall in ADE20K. Padding before a random crop does the same. A rotation by 30 degrees makes 16 % of a
#   mask that has only class 5 into class 0; a crop larger than the image makes more than half of it.
# Hurts: training on VOC, Cityscapes and ADE20K: the network learns class 0 from black corners, and
#   nothing warns. Set it: torchvision `fill={tv_tensors.Mask: 255, "others": 0}`, albumentations
#   `fill_mask=255`. kornia has no such option: rotate mask + 1 and map 0 to 255 afterwards.
# Version: torchvision 0.29.2, albumentations 2.0.8, kornia 0.9.0.
# Source: `torchvision/transforms/v2/_geometry.py` (`fill=0` of every class),
#   `albumentations/augmentations/geometric/rotate.py:383`, `kornia/augmentation/_2d/geometric/rotation.py:128`.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 torchvision==0.29.2 albumentations==2.0.8 kornia==0.9.0
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import os
import sys
import warnings
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
warnings.simplefilter("ignore")
import albumentations as A
import kornia
import numpy as np
import torch
import torchvision
from kornia import augmentation as K
from torchvision import tv_tensors
from torchvision.transforms import v2

torch.set_num_threads(1)
torch.manual_seed(0)
print("torchvision", torchvision.__version__, "albumentations", A.__version__, "kornia", kornia.__version__)
size = 40
image, mask = np.full((size, size, 3), 90, np.uint8), np.full((size, size), 5, np.uint8)
seen = {}
for name, transform in {
    "torchvision RandomRotation": v2.RandomRotation((30, 30)),
    "torchvision RandomCrop, padded": v2.RandomCrop(60, pad_if_needed=True),
}.items():
    _, new = transform(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask)))
    seen[name] = new.numpy()
for name, transform in {
    "albumentations Rotate": A.Rotate((30, 30), border_mode=0, p=1),
    "albumentations RandomCrop, padded": A.RandomCrop(60, 60, pad_if_needed=True, p=1),
}.items():
    seen[name] = A.Compose([transform])(image=image, mask=mask)["mask"]
for name, transform in {
    "kornia RandomRotation": K.RandomRotation((30.0, 30.0), p=1.0),
    "kornia RandomCrop, padded": K.RandomCrop((60, 60), pad_if_needed=True, p=1.0),
}.items():
    both = K.AugmentationSequential(transform, data_keys=["input", "mask"])
    _, new = both(torch.rand(1, 3, size, size), torch.from_numpy(mask)[None, None].float())
    seen[name] = new.numpy()
same = True
for name, new in seen.items():
    classes, counts = np.unique(new, return_counts=True)
    print(f"{name:34}", {int(c): f"{n / new.size:.0%}" for c, n in zip(classes, counts)})
    same &= classes.tolist() == [0, 5] and counts[0] > 0.1 * new.size
sys.exit(0 if same else "changed: new pixels of a mask are no longer class 0 everywhere")
EOF
