#!/usr/bin/env bash
# OpenCV, imageio, scikit-image: a palette mask (PASCAL VOC) comes back as colors, not as class numbers.
#
# Guess: IMREAD_UNCHANGED, or a reader for scientific images, returns the pixels as they are in the file.
# Seen: a palette PNG with the classes 0, 1, 15 and 255 comes back as its colors, in three channels.
#   With IMREAD_GRAYSCALE the values are gray levels of the colors (0, 38, 147, 220), which look like class
#   numbers. Of these libraries only Pillow returns the numbers.
# Hurts: loaders that were written for gray masks and meet VOC, DAVIS or masks of labelme and CVAT.
# Version: opencv-python-headless 5.0.0.93, imageio 2.38.1, scikit-image 0.26.0, Pillow 13.0.0.
# Source: https://docs.opencv.org (ImreadModes) does not mention palettes.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile opencv-python-headless==5.0.0.93 imageio==2.38.1 scikit-image==0.26.0 pillow==13.0.0 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import warnings
warnings.simplefilter("ignore")
import cv2
import imageio
import imageio.v3 as iio
import numpy as np
import PIL
import skimage
import skimage.io
from PIL import Image

print("OpenCV", cv2.__version__, "imageio", imageio.__version__, "scikit-image", skimage.__version__, "Pillow", PIL.__version__)
picture = Image.fromarray(np.repeat(np.array([[0, 1, 15, 255]], np.uint8), 4, axis=0))
palette = [0] * 768
for index, color in {1: (128, 0, 0), 15: (192, 128, 128), 255: (224, 224, 192)}.items():
    palette[3 * index : 3 * index + 3] = color
picture.putpalette(palette)
picture.save("mask.png", bits=8)
read = {
    "Pillow": np.asarray(Image.open("mask.png")),
    "OpenCV IMREAD_GRAYSCALE": cv2.imread("mask.png", cv2.IMREAD_GRAYSCALE),
    "OpenCV IMREAD_UNCHANGED": cv2.imread("mask.png", cv2.IMREAD_UNCHANGED),
    "imageio": iio.imread("mask.png"),
    "scikit-image": skimage.io.imread("mask.png"),
}
for name, pixels in read.items():
    print(f"{name:24} shape {pixels.shape}, values {np.unique(pixels).tolist()}")
seen = [(pixels.ndim, np.unique(pixels).tolist()) for pixels in read.values()]
colors = (3, [0, 128, 192, 224])
same = seen == [(2, [0, 1, 15, 255]), (2, [0, 38, 147, 220]), colors, colors, colors]
sys.exit(0 if same else "changed: a reader returns other values")
EOF
