#!/usr/bin/env bash
# scikit-learn: `GaussianMixture.sample` returns its rows sorted by component.
#
# Guess: `X, y = mixture.sample(300)` is a random sample in random order.
# Seen: first all rows of component 0, then all of component 1, and so on. With a test set cut off by position
#   (`X[200:]`) the training set lacks a component, and the test set consists of little else.
# Hurts: toy data for density estimation and classification; mini-batches read in order. Shuffle the rows,
#   or use `train_test_split`, which shuffles.
# Version: scikit-learn 1.9.1.
# Source: `sklearn/mixture/_base.py:466` (the components are stacked one after the other).

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

print("scikit-learn", sklearn.__version__)
rng = np.random.default_rng(0)
centers = np.array([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0]])
data = centers[rng.integers(0, 3, 600)] + rng.normal(size=(600, 2))
mixture = GaussianMixture(3, random_state=0).fit(data)
rows, component = mixture.sample(300)
print("components of all rows:     ", np.bincount(component, minlength=3))
print("components of rows 0 to 199:", np.bincount(component[:200], minlength=3))
print("components of rows 200 on:  ", np.bincount(component[200:], minlength=3))
print("changes of component from row to row:", int((np.diff(component) != 0).sum()), "(about 200 in random order)")
same = (np.diff(component) >= 0).all() and len(np.unique(component)) == 3
sys.exit(0 if same else "changed: the rows are no longer sorted by component")
EOF
