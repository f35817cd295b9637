"""Density-Descending Feature Perturbation, as a library that can be read in an afternoon.

Start with :mod:`ddfp_lib.training.reference_step` (one training step on one screen), then
:mod:`ddfp_lib.method.density` (what is learned about the features) and
:mod:`ddfp_lib.method.perturb` (how the features are moved). ``docs/architecture.md`` draws the
packages. The names below are imported when they are first used, so ``import ddfp_lib`` is quick.
"""

from ddfp_lib.imports import offered

__version__ = "0.1.0"

_HOMES = {
    "config": ("Config", "load_config"),
    "data": ("open_dataset",),
    "evaluation.descent": ("measure_descent",),
    "evaluation.prediction": ("overlay", "predict", "predict_files", "segment"),
    "evaluation.scores": ("evaluate",),
    "method.config": ("DensityConfig",),
    "method.density": ("DensityEstimator",),
    "method.flow": ("CouplingBlock", "Flow"),
    "method.mixture": ("GaussianMixture",),
    "method.perturb": (
        "AdversarialVAT",
        "ChannelDropout",
        "DensityDescent",
        "FeatureModels",
        "UniformNoise",
    ),
    "models.network": ("SegmentationNetwork",),
    "runs.folder": ("Run",),
    "training.data": ("data_of", "split_of"),
    "training.learner": ("Learner", "load_learner"),
    "training.loop": ("train",),
    "training.reference_step": ("reference_step",),
    "training.step": ("training_step",),
}
"""The module of each name that this package offers."""

_names, __getattr__ = offered(__name__, _HOMES)

__all__ = ["__version__", *_names]


def __dir__() -> list[str]:
    return __all__
