#!/usr/bin/env bash
# pycocotools: a "bbox" in the results changes the AP of masks for small, medium and large objects.
#
# Guess: with `iouType="segm"` only the masks of the results count; an additional "bbox" has no effect.
# Seen: `loadRes` sets the area of a result to that of its box as soon as the first result has a "bbox",
#   and to that of its mask otherwise. For annotations it is the area in the file, that of the mask.
#   Unmatched results outside a size range are ignored. A thin diagonal object has a mask of 720 pixels
#   (small) and a box of 15,000 (large): a false positive of this shape lowers AP small to 0.5, and with
#   boxes in the same file AP small is 1.0. AP over all sizes stays the same.
# Hurts: comparisons of AP small, medium and large between models whose results come from different code.
#   Remove "bbox" before the evaluation of masks.
# Version: pycocotools 2.0.11.
# Source: `pycocotools/coco.py:342` and `:349`, `pycocotools/cocoeval.py:298`.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile pycocotools==2.0.11 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import contextlib
import io
import sys
from importlib.metadata import version
import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

print("pycocotools", version("pycocotools"))

def diagonal(top, left):
    """A thin object: 120 rows of 6 pixels, each shifted by one."""
    mask = np.zeros((400, 400), np.uint8, order="F")
    for i in range(120):
        mask[top + i, left + i : left + i + 6] = 1
    segment = rle.encode(mask)
    return segment | {"counts": segment["counts"].decode()}

def evaluated(with_boxes):
    """AP, AP small, AP large; one object is found, and a false positive has a higher score."""
    common = {"image_id": 1, "category_id": 1}
    segment = diagonal(0, 0)
    area, box = float(rle.area(segment)), rle.toBbox(segment).tolist()
    predictions = [
        common | {"segmentation": diagonal(250, 250), "score": 0.9},
        common | {"segmentation": segment, "score": 0.5},
    ]
    for prediction in predictions if with_boxes else []:
        prediction["bbox"] = rle.toBbox(prediction["segmentation"]).tolist()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1, "height": 400, "width": 400}],
            "categories": [{"id": 1, "name": "line"}],
            "annotations": [common | {"id": 1, "segmentation": segment, "area": area, "bbox": box, "iscrowd": 0}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [round(float(evaluation.stats[i]), 3) for i in (0, 3)], area, box[2] * box[3]

seen = {}
for with_boxes in (False, True):
    seen[with_boxes], area, box_area = evaluated(with_boxes)
    print(f"results with boxes: {with_boxes!s:5}  AP {seen[with_boxes][0]}, AP small {seen[with_boxes][1]}")
print(f"pixels of the object's mask: {area:.0f}, of its box: {box_area:.0f}; small ends at {32**2}")
same = seen == {False: [0.5, 0.5], True: [0.5, 1.0]}
sys.exit(0 if same else "changed: boxes in the results have no effect on masks, or another one")
EOF
