#!/usr/bin/env bash
# SciPy: the distance transform of a mask without background measures to a pixel that does not exist.
#
# Guess: with no background anywhere, all distances are infinite, or zero, or there is an error.
# Seen: `distance_transform_edt` returns distances to the position (-1, 0), one row above the first pixel:
#   1 in this corner, growing to the opposite one. They look like real distances, and they change when the
#   mask is flipped. OpenCV returns a huge number everywhere, `distance_transform_cdt` -1.
# Hurts: boundary losses, distance-weighted cross-entropy and watershed seeds: a class that fills the whole
#   crop (sky, road, background) gets a wedge of weights from one corner. Test `mask.all()` first.
# Version: SciPy 1.17.1, opencv-python-headless 5.0.0.93. Known upstream: SciPy issues 1616 and 15585.
# Source: `scipy/ndimage/_morphology.py:2435`: the docstring defines no result for this case.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile scipy==1.17.1 opencv-python-headless==5.0.0.93 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import cv2
import numpy as np
import scipy
from scipy import ndimage

print("SciPy", scipy.__version__, "OpenCV", cv2.__version__)
full = np.ones((4, 5), np.uint8)
distances = ndimage.distance_transform_edt(full)
print("mask of 4 x 5 without background, distance_transform_edt:")
print(distances.round(2))
rows, columns = np.indices(full.shape)
to_nowhere = np.hypot(rows + 1, columns)
print("largest difference to the distance from (-1, 0):", np.abs(distances - to_nowhere).max())
chamfer = np.unique(ndimage.distance_transform_cdt(full))
opencv = cv2.distanceTransform(full, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
print("distance_transform_cdt:", chamfer.tolist(), " OpenCV:", np.unique(opencv).tolist())
same = np.allclose(distances, to_nowhere) and opencv.min() > 1e6 and chamfer.tolist() == [-1]
sys.exit(0 if same else "changed: masks without background are handled in another way")
EOF
