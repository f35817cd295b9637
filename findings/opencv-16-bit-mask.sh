#!/usr/bin/env bash
# OpenCV: a 16-bit mask read with IMREAD_GRAYSCALE has no classes left.
#
# Guess: `cv2.imread(path, cv2.IMREAD_GRAYSCALE)` returns the class numbers of a gray PNG, with 8 or 16 bits.
# Seen: values of a 16-bit file are divided by 256. Classes 0, 7 and 200 all become 0, 300 becomes 1. No
#   warning. Pillow's `convert("L")` clips instead: 300 becomes 255, which many data sets use for "ignore".
#   IMREAD_UNCHANGED and Pillow without `convert` return the numbers.
# Hurts: masks from instance labels (Cityscapes `instanceIds`), from scientific imaging and from tools that
#   save uint16: training runs on masks that are background everywhere.
# Version: opencv-python-headless 5.0.0.93, Pillow 13.0.0.
# Source: https://docs.opencv.org (ImreadModes: only IMREAD_ANYDEPTH and IMREAD_UNCHANGED keep 16 bits).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import cv2
import numpy as np
import PIL
from PIL import Image

print("OpenCV", cv2.__version__, "Pillow", PIL.__version__)
mask = np.repeat(np.array([[0, 7, 200, 300]], np.uint16), 4, axis=0)
Image.fromarray(mask).save("mask.png")
read = {
    "OpenCV IMREAD_GRAYSCALE": cv2.imread("mask.png", cv2.IMREAD_GRAYSCALE),
    "OpenCV IMREAD_UNCHANGED": cv2.imread("mask.png", cv2.IMREAD_UNCHANGED),
    "Pillow": np.asarray(Image.open("mask.png")),
    'Pillow convert("L")': np.asarray(Image.open("mask.png").convert("L")),
}
seen = {name: pixels[0].tolist() for name, pixels in read.items()}
for name, classes in seen.items():
    print(f"{name:24} {classes}")
expected = [[0, 0, 0, 1], [0, 7, 200, 300], [0, 7, 200, 300], [0, 7, 200, 255]]
sys.exit(0 if list(seen.values()) == expected else f"changed: expected {expected}")
EOF
