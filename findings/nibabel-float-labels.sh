#!/usr/bin/env bash
# nibabel: labels saved as float with the header of the scan come back just below the whole number.
#
# Guess: whole numbers from 0 to 5 survive `nib.save` and `nib.load`: int16 and float can both hold them.
# Seen: `Nifti1Image(labels, scan.affine, scan.header)` takes the data type of the scan, int16. For an
#   integer array the labels are stored as they are. A float array is stretched over the whole range of
#   int16, with a slope and an intercept in the header. On reading, 3 becomes 2.9999999993. NumPy prints it as 3,
#   and `astype("uint8")` makes it 2: for the labels 0 to 5 this is the case in 83 % of the voxels. No warning.
# Hurts: label volumes that went through `get_fdata()`, resampling or a network, and were saved next to
#   their scan. Convert to integers before saving, or round after loading.
# Version: nibabel 5.4.2. Known upstream: nibabel issues 1001, 1069 and 1344.
# Source: `nibabel/arraywriters.py:441` (SlopeInterArrayWriter) and `:582`.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile nibabel==5.4.2 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import nibabel as nib
import numpy as np

print("nibabel", nib.__version__)
nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), "scan.nii.gz")
scan = nib.load("scan.nii.gz")
labels = (np.arange(512) % 6).reshape(8, 8, 8)
wrong = {}
for dtype in ("uint8", "float32", "float64"):
    nib.save(nib.Nifti1Image(labels.astype(dtype), scan.affine, scan.header), "labels.nii.gz")
    loaded = nib.load("labels.nii.gz")
    values = loaded.get_fdata()
    wrong[dtype] = (values.astype(np.uint8) != labels).mean()
    assert (np.rint(values) == labels).all()
    print(f"saved as {dtype:7} in a file of {loaded.get_data_dtype()}: read back as {np.unique(values).tolist()}, "
          f"wrong after astype: {wrong[dtype]:.0%}")
same = wrong["uint8"] == 0 and wrong["float32"] > 0.3 and wrong["float64"] > 0.3
sys.exit(0 if same else "changed: float labels are stored exactly")
EOF
