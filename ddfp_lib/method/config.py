"""Settings of a method and of the density estimator, and the names of the perturbations."""

from dataclasses import dataclass, field
from typing import Any, Literal

PERTURBATIONS = ("none", "density", "noise", "vat", "dropout", "channel_dropout")
"""The names that :func:`~ddfp_lib.method.perturb.make_perturbation` knows."""


@dataclass(frozen=True)
class DensityConfig:
    """Shape and training of the estimator; the defaults are the released values.

    Attributes:
        kind: ``flow``, learned online; or as controls ``gmm`` and ``kde``, fitted once when
            perturbation starts, see :mod:`ddfp_lib.method.frozen`. The other settings apply to the
            flow only.
        blocks: coupling blocks of the flow; 0: no flow, the mixture alone.
        hidden: width of the subnets' hidden layers.
        clamp: bound of a coupling's absolute log-scale.
        lr: starting learning rate of Adam.
        betas: betas of Adam.
        lr_decay: ratio of the last learning rate to the first.
        noise: standard deviation of the Gaussian noise added to training features.
        samples: rows that one training step uses at most, of each share (``method.shares``).
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


@dataclass(frozen=True)
class MethodConfig:
    """What makes one method differ from another.

    What each key means and whose behavior its value is (the paper's, its release's, ours) stands
    beside its default in ``ddfp_lib/presets/base.yaml``. Here are the values that it takes.

    Attributes:
        name: the preset's name, or that of the user's own file.
        consistency: whether unlabeled images are used.
        perturbation: ``none``, ``density``, ``noise``, ``vat``, ``dropout``, or a class of your
            own as ``package.module:Class``, see :mod:`ddfp_lib.method.own`.
        perturb_at: ``features`` (F) or ``embedding`` (v).
        clean_weight, perturbed_weight: weights of these two losses, at least 0.
        consistency_mean: ``valid`` or ``confident``.
        moved: ``confident``, ``all`` or ``leaky``.
        descent_steps: at least 1; each is ``eps / descent_steps`` long.
        max_fall: nats, above 0; see :class:`~ddfp_lib.method.perturb.DensityDescent`.
        drop: probability, 0 to below 1.
        descend: ``marginal`` or ``conditional``.
        density_of: ``embedding`` (v) or ``features`` (F).
        density_void: ``unlabeled`` or ``dropped``.
        density_query: ``frozen`` or ``auxiliary``.
        perturbed_norm: ``auxiliary`` or ``shared``.
        warmup_norm: ``main`` or ``split``.
        teacher: ``ema``, ``tied`` or ``student``.
        teacher_mode: ``eval`` or ``train``.
        perturbation_options: keyword arguments of a class of your own.
        learns_density: whether a density is learned for a class of your own.
        labeled_weight: weight of the loss on labeled images, at least 0.
        strong_views: strong views of each unlabeled image, at least 1.
        complementary_drop: channel dropout of two strong views with complementary masks.
        perturbed_view: ``strong`` or ``weak``.
        shares: at least 1; divides both batch sizes.
        cutmix_box: ``batch`` or ``image``.
        strong_norm: ``main`` or ``auxiliary``.
        density_schedule: ``steps`` or ``epochs``.
    """

    name: str
    consistency: bool
    perturbation: str
    perturb_at: Literal["features", "embedding"]
    clean_weight: float
    perturbed_weight: float
    consistency_mean: Literal["valid", "confident"]
    moved: Literal["confident", "all", "leaky"]
    descent_steps: int
    max_fall: float
    drop: float
    descend: Literal["marginal", "conditional"]
    density_of: Literal["embedding", "features"]
    density_void: Literal["unlabeled", "dropped"]
    density_query: Literal["frozen", "auxiliary"]
    perturbed_norm: Literal["auxiliary", "shared"]
    warmup_norm: Literal["main", "split"]
    teacher: Literal["ema", "tied", "student"]
    teacher_mode: Literal["eval", "train"]
    perturbation_options: dict[str, Any] = field(default_factory=dict)
    learns_density: bool = False
    labeled_weight: float = 1.0
    strong_views: int = 1
    complementary_drop: bool = False
    perturbed_view: Literal["strong", "weak"] = "strong"
    shares: int = 1
    cutmix_box: Literal["batch", "image"] = "batch"
    strong_norm: Literal["main", "auxiliary"] = "main"
    density_schedule: Literal["steps", "epochs"] = "steps"

    @property
    def has_density(self) -> bool:
        """Whether a density of the features is learned."""
        return self.perturbation == "density" or self.learns_density
