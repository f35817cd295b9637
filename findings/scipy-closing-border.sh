#!/usr/bin/env bash
# SciPy: `binary_closing` deletes pixels at the border of the image.
#
# Guess: a closing fills gaps and never removes a pixel of the mask; that is what defines it.
# Seen: `scipy.ndimage.binary_closing` takes everything outside the image as background, also in its second
#   step, the erosion. An object of 5 x 5 in a corner becomes 4 x 4; a mask that covers an image of 8 x 8
#   becomes 4 x 4 with `iterations=2`. The closings of scikit-image and OpenCV and SciPy's own
#   `grey_closing` keep all pixels.
# Hurts: post-processing of predictions and pseudo-labels: roads, sky and every object that is cut off by
#   the crop get a frame of background. `border_value=1` is no cure: it joins
#   objects to the border that are two pixels away from it. Pad before and cut off after the closing.
# Version: SciPy 1.17.1, scikit-image 0.26.0, opencv-python-headless 5.0.0.93.
# Source: `scipy/ndimage/_morphology.py:824` (one `border_value` for both steps).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile scipy==1.17.1 scikit-image==0.26.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import cv2
import numpy as np
import scipy
import skimage
from scipy import ndimage
from skimage import morphology

print("SciPy", scipy.__version__, "scikit-image", skimage.__version__, "OpenCV", cv2.__version__)
square = np.ones((3, 3), np.uint8)
corner = np.zeros((8, 8), np.uint8)
corner[:5, :5] = 1
closed = {
    "SciPy binary_closing": ndimage.binary_closing(corner, square),
    "SciPy grey_closing": ndimage.grey_closing(corner, footprint=square),
    "scikit-image closing": morphology.closing(corner, square),
    "OpenCV MORPH_CLOSE": cv2.morphologyEx(corner, cv2.MORPH_CLOSE, square),
}
seen = {}
for name, mask in closed.items():
    removed, added = int(((corner > 0) & (mask == 0)).sum()), int(((corner == 0) & (mask > 0)).sum())
    seen[name] = removed, added
    print(f"object of {corner.sum()} pixels in a corner, {name:22} {removed} removed, {added} added")
full = int(ndimage.binary_closing(np.ones((8, 8)), square, iterations=2).sum())
print(f"mask of 64 pixels that covers the image, SciPy binary_closing with iterations=2: {full} left")
apart = np.zeros((8, 8), np.uint8)
apart[2:5, 2:5] = 1
joined = int((ndimage.binary_closing(apart, square, border_value=1) & (apart == 0)).sum())
kept_apart = int((cv2.morphologyEx(apart, cv2.MORPH_CLOSE, square) & (apart == 0)).sum())
print(f"object of 9 pixels, two pixels from the border: border_value=1 adds {joined} pixels, OpenCV {kept_apart}")
others = ("SciPy grey_closing", "scikit-image closing", "OpenCV MORPH_CLOSE")
same = seen["SciPy binary_closing"] == (9, 0) and full == 16 and all(seen[name] == (0, 0) for name in others)
same = same and joined > 0 and kept_apart == 0
sys.exit(0 if same else "changed: the closing keeps the pixels at the border, or the others do not")
EOF
