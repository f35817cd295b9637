#!/usr/bin/env bash
# pycocotools: an annotation with id 0 always counts as missed.
#
# Guess: COCOeval gives AP 1.0 for predictions that equal the ground truth, whatever the annotations' ids.
# Seen: with ids 1 to 4 AP is 1.0. With ids 0 to 3, as `enumerate` gives them, it is 0.56: the annotation with
#   id 0 is matched, but its id is also the mark for "no match". The best prediction counts as a false
#   positive. No warning.
# Hurts: data sets converted to COCO by a small script. Few objects per class (unit tests, rare
#   classes) lose most; a large data set loses little, and nobody sees it. Count ids from 1.
# Version: pycocotools 2.0.11. Known upstream: cocoapi issues 507 and 664; CVAT and supervision had it
#   in what they wrote (CVAT pull request 748, supervision pull request 1895).
# Source: `pycocotools/cocoeval.py:269`, `:295` and `:375`.

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

def average_precision(first_id):
    """AP of predictions that equal the ground truth: four squares in one image."""
    annotations, predictions = [], []
    for i in range(4):
        mask = np.zeros((400, 400), np.uint8, order="F")
        mask[10 + 90 * i : 70 + 90 * i, 10:70] = 1
        segment = rle.encode(mask)
        segment["counts"] = segment["counts"].decode()
        common = {"image_id": 1, "category_id": 1, "segmentation": segment}
        annotations.append(common | {"id": first_id + i, "iscrowd": 0, "area": 3600.0, "bbox": [10, 10 + 90 * i, 60, 60]})
        predictions.append(common | {"score": 0.9 - 0.1 * i})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1, "height": 400, "width": 400}],
            "categories": [{"id": 1, "name": "square"}],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])

seen = {first: average_precision(first) for first in (1, 0)}
for first, value in seen.items():
    print(f"ids {first} to {first + 3}: AP {value:.3f}")
sys.exit(0 if seen[1] > 0.999 and seen[0] < 0.8 else "changed: AP does not depend on the ids")
EOF
