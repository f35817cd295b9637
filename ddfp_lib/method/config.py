"""Settings of the density estimator, and the names of the perturbations."""

from dataclasses import dataclass
from typing import Literal

PERTURBATIONS = ("none", "density", "noise", "vat", "dropout", "channel_dropout")
"""The names that :func:`~ddfp_lib.method.perturb.make_perturbation` knows."""


@dataclass(frozen=True)
class DensityConfig:
    """Shape and training of the estimator; the defaults are the released values.

    Attributes:
        kind: ``flow``, learned online; or as controls ``gmm`` and ``kde``, fitted once when
            perturbation starts, see :mod:`ddfp_lib.method.frozen`; all below is of the flow.
        blocks: coupling blocks of the flow; 0 leaves the mixture alone.
        hidden: width of the subnets' hidden layers.
        clamp: bound of a coupling's absolute log-scale.
        lr: starting learning rate of Adam.
        betas: of Adam.
        lr_decay: the factor that the learning rate falls by over the whole schedule.
        noise: standard deviation of the Gaussian noise added to training features.
        samples: rows that one training step uses at most.
        clip: largest gradient norm.
        labels: which features have a class in training: those of labeled ``masks`` (the method),
            in addition those that the ``teacher`` is confident of (ours), or ``none``.
    """

    kind: Literal["flow", "gmm", "kde"] = "flow"
    blocks: int = 2
    hidden: int = 256
    clamp: float = 2.0
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.9)
    lr_decay: float = 0.01
    noise: float = 0.05
    samples: int = 20480
    clip: float = 50.0
    labels: Literal["masks", "teacher", "none"] = "masks"
