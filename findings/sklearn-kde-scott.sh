#!/usr/bin/env bash
# scikit-learn: `KernelDensity(bandwidth="scott")` does not look at the scale of the data.
#
# Guess: Scott's rule gives a bandwidth in the units of the data, as in the textbook and in SciPy.
# Seen: the bandwidth is n ** (-1 / (d + 4)), without the standard deviation. Data in meters and the same
#   data in millimeters get the same bandwidth. `scipy.stats.gaussian_kde` scales with the data.
# Hurts: kernel density estimates on features that were not standardised. With a small spread the
#   estimate is one blob, with a large one it is a row of spikes.
# Version: scikit-learn 1.9.1, SciPy 1.17.1.
# Source: `sklearn/neighbors/_kde.py:225`; `scipy/stats/_kde.py:105` (factor) times the data's covariance.

set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PY:-}" ]; then  # PY: a Python that has the packages already
    python3 -m venv "$work/venv"
    PY=$work/venv/bin/python
    "$PY" -m pip install -q --no-compile scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
fi
cd "$work"
OMP_NUM_THREADS=1 "$PY" - <<'EOF'
import sys
import numpy as np
import scipy
import sklearn
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity

print("scikit-learn", sklearn.__version__, "SciPy", scipy.__version__)
rng = np.random.default_rng(0)
data, fresh = rng.normal(size=(500, 1)), rng.normal(size=(500, 1))
rows = []
for scale in (0.01, 1.0, 100.0):
    learned = KernelDensity(bandwidth="scott").fit(scale * data)
    other = gaussian_kde((scale * data).T, bw_method="scott")
    truth = -0.5 * np.mean(fresh**2) - 0.5 * np.log(2 * np.pi) - np.log(scale)
    rows.append((learned.bandwidth_, float(np.sqrt(other.covariance.item())) / scale))
    print(f"scale {scale:6}: bandwidth sklearn {learned.bandwidth_:.3f}, SciPy {rows[-1][1] * scale:.5f}; mean log density of "
          f"new points: sklearn {learned.score_samples(scale * fresh).mean():7.2f}, "
          f"SciPy {other.logpdf((scale * fresh).T).mean():6.2f}, true {truth:6.2f}")
sklearn_widths, scipy_widths = np.array(rows).T
same = np.ptp(sklearn_widths) == 0 and np.allclose(scipy_widths, scipy_widths[0])
sys.exit(0 if same else "changed: the bandwidth follows the scale of the data")
EOF
