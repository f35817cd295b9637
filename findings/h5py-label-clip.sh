#!/usr/bin/env bash
# h5py: the label -1 becomes class 0 in a uint8 dataset, not 255.
#
# Guess: h5py converts to the type of the dataset like NumPy, where -1 as uint8 is 255, the usual value for
#   "ignore".
# Seen: HDF5 clips: -1 becomes 0, which is the first class, and 300 becomes 255, which is "ignore". NumPy
#   wraps around: 255 and 44. `create_dataset(data=..., dtype="uint8")` clips like an assignment. No warning.
# Hurts: masks with -1 for "ignore" (PyTorch code, train ids of Cityscapes' license plate) and instance
#   numbers above 255 that are packed into an HDF5 file: ignored pixels are trained as background or road.
#   Convert the array before writing it.
# Version: h5py 3.16.0, NumPy 2.4.6.
# Source: the conversion is HDF5's (H5Tconvert: values outside the range of the target are clipped);
#   h5py hands the array over in its own type (`h5py/_hl/dataset.py:192`).

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile h5py==3.16.0 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import h5py
import numpy as np

print("h5py", h5py.__version__, "HDF5", h5py.version.hdf5_version, "NumPy", np.__version__)
labels = np.array([-1, 0, 5, 300])
with h5py.File("masks.h5", "w") as file:
    assigned = file.create_dataset("assigned", labels.shape, "uint8")
    assigned[:] = labels
    created = file.create_dataset("created", data=labels, dtype="uint8")
    packed = {"h5py, assigned": assigned[:], "h5py, create_dataset": created[:]}
packed["NumPy, astype"] = labels.astype(np.uint8)
print(f"{'labels':21} {labels.tolist()}")
for name, values in packed.items():
    print(f"{name:21} {values.tolist()}")
expected = [[0, 0, 5, 255], [0, 0, 5, 255], [255, 0, 5, 44]]
sys.exit(0 if [v.tolist() for v in packed.values()] == expected else f"changed: expected {expected}")
EOF
