"""Density-Descending Feature Perturbation, as a library that can be read in an afternoon.

Start with :mod:`ddfp_lib.training.objective` (one training step on one screen), then
:mod:`ddfp_lib.density` (what is learned about the features) and :mod:`ddfp_lib.perturb` (how the
features are moved). Importing this package imports nothing else.
"""

__version__ = "0.1.0"
