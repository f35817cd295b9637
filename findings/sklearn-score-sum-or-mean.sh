#!/usr/bin/env bash
# scikit-learn: `score` of one density estimator is a sum, of the other a mean.
#
# Guess: `KernelDensity.score(X)` and `GaussianMixture.score(X)` are the same quantity: both are called
#   log-likelihood, both are what `cross_val_score` and `GridSearchCV` compare.
# Seen: KernelDensity returns the sum over the rows, GaussianMixture the mean. On 300 rows the two numbers
#   differ by a factor of 300. The score of KernelDensity doubles with twice as many rows.
# Hurts: comparisons of density estimators through `score`, and scores of folds with different sizes.
#   `score_samples(X).mean()` means the same for both.
# Version: scikit-learn 1.9.1.
# Source: `sklearn/neighbors/_kde.py:310` (`np.sum`), `sklearn/mixture/_base.py:393` (`mean`).

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
import sklearn
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

print("scikit-learn", sklearn.__version__)
rng = np.random.default_rng(0)
data, fresh = rng.normal(size=(500, 2)), rng.normal(size=(300, 2))
factors = {}
for model in (KernelDensity(bandwidth=0.4), GaussianMixture(1)):
    model.fit(data)
    name = type(model).__name__
    score, mean = model.score(fresh), model.score_samples(fresh).mean()
    factors[name] = score / mean
    print(f"{name:16} score {score:9.3f}, mean of score_samples {mean:.3f}, ratio {score / mean:.1f}")
same = np.isclose(factors["KernelDensity"], 300) and np.isclose(factors["GaussianMixture"], 1)
sys.exit(0 if same else "changed: both scores are computed alike")
EOF
