#!/usr/bin/env bash
# scikit-learn: the density of `BayesianGaussianMixture` does not integrate to 1.
#
# Guess: `score_samples` is the log-density of a mixture, as its docstring says ("log-likelihood of each
#   sample") and as it is for GaussianMixture. `exp(score_samples)` integrates to 1.
# Seen: it returns the expected log terms of the variational fit. The integral is below 1 and falls with the
#   number of dimensions: 0.87 for 20 points in 1 dimension, 0.48 for 500 points in 32 dimensions, which is
#   0.73 nats of each sample's log-likelihood. GaussianMixture gives 1.
# Hurts: comparisons of density estimators by log-likelihood, and thresholds on densities between models:
#   the Bayesian mixture loses without having a worse fit. For a normalized density evaluate the normal
#   distributions of `weights_`, `means_` and `covariances_`.
# Version: scikit-learn 1.9.1. Known upstream: scikit-learn issue 10148.
# Source: `sklearn/mixture/_bayesian_mixture.py:737` and `:755`.

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
import warnings
warnings.simplefilter("ignore")
import numpy as np
import sklearn
from scipy.stats import multivariate_normal
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

print("scikit-learn", sklearn.__version__)

def plain_density(mixture, x):
    """Density of the mixture with the fitted weights, means and covariances."""
    parts = zip(mixture.weights_, mixture.means_, mixture.covariances_)
    return sum(w * multivariate_normal(m, c).pdf(x) for w, m, c in parts)

rng = np.random.default_rng(0)
few = np.concatenate([rng.normal(-2, 1, 10), rng.normal(3, 0.5, 10)])[:, None]
grid = np.linspace(-40, 40, 80001)[:, None]
step = grid[1, 0] - grid[0, 0]
many = rng.normal(size=(500, 32))
seen = {}
for kind in (GaussianMixture, BayesianGaussianMixture):
    one = kind(n_components=2, max_iter=1000, random_state=0).fit(few)
    high = kind(n_components=2, max_iter=1000, random_state=0).fit(many)
    draws, _ = high.sample(20000)  # importance sampling: `sample` draws from the plain density
    ratio = np.exp(high.score_samples(draws)) / plain_density(high, draws)
    seen[kind] = np.exp(one.score_samples(grid)).sum() * step, ratio.mean()
    error = ratio.std() / np.sqrt(len(ratio))
    print(f"{kind.__name__:23} integral for 20 points in 1 dimension {seen[kind][0]:.3f} "
          f"(plain density {plain_density(one, grid).sum() * step:.3f}), "
          f"for 500 points in 32 dimensions {seen[kind][1]:.3f} (standard error {error:.3f})")
same = np.allclose(seen[GaussianMixture], 1, atol=0.05) and max(seen[BayesianGaussianMixture]) < 0.95
sys.exit(0 if same else "changed: the density of BayesianGaussianMixture integrates to 1")
EOF
