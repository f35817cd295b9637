#!/usr/bin/env bash
# torchvision transforms v2: whether a mask is resized correctly depends on the mode of its file.
#
# Guess: `v2.Resize(25)(image, mask)` with two PIL images either treats the second one as a mask or as
#   an image, whatever file it came from.
# Seen: a palette mask (mode "P", PASCAL VOC) comes out right. A gray mask (mode "L", most other data
#   sets) with the same pixels gets values that are no class of it: between 0 and 15 there appears 8.
#   Both are resized as images, bilinear; Pillow silently uses nearest for palettes.
# Hurts: code that was tested on VOC and then reads gray masks. Wrap the mask in `tv_tensors.Mask`.
# Version: torchvision 0.29.2, Pillow 13.0.0.
# Source: `PIL/Image.py:2412` (modes "1" and "P" are always NEAREST).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile torch==2.15.0 torchvision==0.29.2 pillow==13.0.0
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision.transforms import v2

print("torchvision", torchvision.__version__, "Pillow", PIL.__version__)
pixels = np.zeros((40, 60), np.uint8)
pixels[:, 30:] = 15
photo = Image.new("RGB", (60, 40))
gray, palette = Image.fromarray(pixels), Image.fromarray(pixels)
palette.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
seen = {}
for mask in (gray, palette):
    _, small = v2.Resize(25)(photo, mask)
    seen[mask.mode] = np.unique(np.asarray(small)).tolist()
    print(f'mode "{mask.mode}": classes before {np.unique(pixels).tolist()}, after {seen[mask.mode]}')
same = seen["P"] == [0, 15] and len(seen["L"]) > 2
sys.exit(0 if same else "changed: both modes are resized alike")
EOF
