#!/usr/bin/env bash
# OpenCV: where two parts of one object overlap, `fillPoly` leaves a hole; COCO's own tool fills it.
#
# Guess: an object of two polygons becomes the same mask by cv2.fillPoly(mask, parts, 1) and by pycocotools.
# Seen: pycocotools takes the union of the parts. fillPoly counts crossings over all polygons of a call
#   (even-odd), so that the overlap stays 0. Here 79 % of the object is left. Parts that only touch are
#   right, and so is a call for each part. No warning.
# Hurts: COCO exports to masks: annotators draw parts of one object so that they overlap a little. The masks
#   have small holes where the object is certain.
# Version: opencv-python-headless 4.13.0.92, pycocotools 2.0.11. Upstream: opencv issue 5256.
# Source: `modules/imgproc/src/drawing.cpp` (`FillEdgeCollection`); pycocotools `common/maskApi.c` (`rleMerge`).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile opencv-python-headless==4.13.0.92 pycocotools==2.0.11 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
from importlib.metadata import version

import cv2
import numpy as np
from pycocotools import mask as rle

print("opencv-python-headless", version("opencv-python-headless"))
print("pycocotools", version("pycocotools"))

SIDE = 100
left = [10, 10, 60, 10, 60, 60, 10, 60]  # x, y of a square's corners
overlapping = [30, 30, 80, 30, 80, 80, 30, 80]
touching = [60, 10, 90, 10, 90, 60, 60, 60]


def by_coco(parts):
    return rle.decode(rle.merge(rle.frPyObjects(parts, SIDE, SIDE))).astype(bool)


def by_opencv(parts, one_call):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    corners = [np.array(part, np.int32).reshape(-1, 2) for part in parts]
    for some in [corners] if one_call else [[each] for each in corners]:
        cv2.fillPoly(mask, some, 1)
    return mask.astype(bool)


left_of = {}
for name, other in (("overlapping", overlapping), ("touching", touching)):
    parts = [left, other]
    coco, whole, single = by_coco(parts), by_opencv(parts, True), by_opencv(parts, False)
    left_of[name] = [100 * (mask & coco).sum() / coco.sum() for mask in (whole, single)]
    print(f"{name} parts: pixels of the object that fillPoly sets: one call {left_of[name][0]:.0f} %, "
          f"a call for each part {left_of[name][1]:.0f} %")

same = left_of["overlapping"][0] < 80 and left_of["overlapping"][1] > 99 and min(left_of["touching"]) > 99
sys.exit(0 if same else 1)
EOF
