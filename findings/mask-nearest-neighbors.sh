#!/usr/bin/env bash
# OpenCV, Pillow, SciPy: "nearest" halves a mask in three different ways.
#
# Guess: nearest-neighbor resizing picks the same pixels in every library, so that a mask can be halved with
#   one of them and its image or its prediction with another.
# Seen: of 8 columns OpenCV's INTER_NEAREST keeps 0 2 4 6, Pillow and scikit-image keep 1 3 5 7, and
#   `scipy.ndimage.zoom(order=0)` keeps 0 2 5 7, with uneven gaps. OpenCV's INTER_NEAREST_EXACT is Pillow's.
# Hurts: pipelines that prepare data with one library and train or evaluate with another: borders of all
#   objects move by up to a pixel, and small objects appear or vanish.
# Version: opencv-python-headless 5.0.0.93, Pillow 13.0.0, SciPy 1.17.1, scikit-image 0.26.0.
# Source: https://docs.opencv.org (InterpolationFlags) names the difference to Pillow for INTER_NEAREST_EXACT;
#   SciPy's `zoom` maps corners to corners unless `grid_mode=True`.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile opencv-python-headless==5.0.0.93 pillow==13.0.0 scipy==1.17.1 scikit-image==0.26.0 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import cv2
import numpy as np
import PIL
import scipy
import skimage
from PIL import Image
from scipy import ndimage
from skimage.transform import resize

print("OpenCV", cv2.__version__, "Pillow", PIL.__version__, "SciPy", scipy.__version__, "scikit-image", skimage.__version__)
columns = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
small = {
    "OpenCV INTER_NEAREST": cv2.resize(columns, (4, 4), interpolation=cv2.INTER_NEAREST),
    "OpenCV INTER_NEAREST_EXACT": cv2.resize(columns, (4, 4), interpolation=cv2.INTER_NEAREST_EXACT),
    "Pillow NEAREST": np.asarray(Image.fromarray(columns).resize((4, 4), Image.Resampling.NEAREST)),
    "scikit-image order=0": resize(columns, (4, 4), order=0, preserve_range=True),
    "SciPy zoom order=0": ndimage.zoom(columns, 0.5, order=0),
}
seen = {name: [int(v) for v in picture[0]] for name, picture in small.items()}
for name, kept in seen.items():
    print(f"{name:27} keeps the columns {kept}")
expected = [[0, 2, 4, 6], [1, 3, 5, 7], [1, 3, 5, 7], [1, 3, 5, 7], [0, 2, 5, 7]]
sys.exit(0 if list(seen.values()) == expected else f"changed: expected {expected}")
EOF
