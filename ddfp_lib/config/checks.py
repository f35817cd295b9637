"""Values that no run can use are refused when a configuration is built."""

import operator
from typing import TYPE_CHECKING

from ddfp_lib.data import KNOWN
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.errors import UserError
from ddfp_lib.imports import OWN
from ddfp_lib.method.config import PERTURBATIONS

if TYPE_CHECKING:
    from ddfp_lib.config.schema import Config

LARGEST = 1e30
"""Upper bound of lengths, rates and weights: float32 also has to hold their multiples."""


def check(config: "Config") -> None:
    """Check ranges, and combinations of keys.

    Raises:
        UserError: a value is out of range, or two keys exclude each other; the message names the
            key and the fix.
    """
    counts = ["network.low_width", "network.aspp_width", "network.embedding"]
    counts += ["training.steps", "training.batch_labeled"]
    counts += ["training.evaluate_every", "training.checkpoint_every"]
    if config.method.consistency:
        counts.append("training.batch_unlabeled")
    counts += ["method.descent_steps", "density.hidden", "density.samples"]
    counts += ["method.strong_views", "method.shares", "training.epochs"]
    counts += ["training.ohem_pixels", "training.ohem_images"]
    amounts = ["eps", "method.clean_weight", "method.perturbed_weight", "method.labeled_weight"]
    amounts += ["training.lr_encoder", "training.lr_head"]
    amounts += ["training.weight_decay", "training.poly"]
    amounts += ["density.lr", "density.lr_decay", "density.noise", "density.clamp"]
    fractions = ["training.consistency_from", "training.perturb_from"]
    fractions += ["training.confidence", "training.ema_decay", "training.momentum"]
    fractions += ["training.ohem_threshold"]
    below_one = ["network.dropout", "method.drop"]
    for keys, allowed, fix in (
        (counts, lambda value: value >= 1, "give at least 1"),
        (amounts, lambda value: 0 <= value <= LARGEST, f"give a number from 0 to {LARGEST:g}"),
        (fractions, lambda value: 0 <= value <= 1, "give a fraction between 0 and 1"),
        (below_one, lambda value: 0 <= value < 1, "give 0 or more, and less than 1"),
        (["seed"], lambda value: 0 <= value < 2**32, "give a number from 0 to 4294967295"),
        (["density.betas"], lambda value: all(0 <= b < 1 for b in value), "give 0 to below 1"),
        (["network.dilations"], lambda value: all(d >= 1 for d in value), "give 1 or more"),
        (["network.head_kernel"], lambda value: value > 0 and value % 2 == 1, "give an odd number"),
        (["method.max_fall"], lambda value: value > 0, "give nats above 0"),
        (["density.clip"], lambda value: value > 0, "give a gradient norm above 0"),
        (["density.blocks"], lambda value: value >= 0, "give 0 or more"),
        (["data.workers"], lambda value: value is None or value >= 0, "give 0 or more"),
        (
            ["network.mean"],
            lambda value: value is None or all(0 <= mean <= 1 for mean in value),
            "give red, green and blue of images in 0..1",
        ),
        (
            ["network.std"],
            lambda value: value is None or all(0 < std <= 1 for std in value),
            "give red, green and blue of images in 0..1, each above 0",
        ),
        (["data.size"], lambda value: value is None or min(value) >= 2, "give at least 2"),
        (["data.long_side"], lambda value: value is None or value >= 2, "give at least 2"),
    ):
        for key in keys:
            value = operator.attrgetter(key)(config)
            if not allowed(value):
                raise UserError(f"{key}: {value} is out of range; {fix}")
    Protocol.parse(config.data.protocol)
    if config.data.size is not None and config.data.long_side is not None:
        raise UserError("data.size and data.long_side: both set the size of images; use one")
    if config.network.pretrained and config.network.weights:
        raise UserError(
            "network.pretrained and network.weights: both give starting weights; use one of them"
        )

    method = config.method
    dataset = config.data.dataset
    if dataset not in KNOWN and not OWN.fullmatch(dataset):
        raise UserError(
            f"data.dataset: {dataset!r} is unknown; choose one of {', '.join(KNOWN)}, or write "
            "package.module:Class"
        )
    if method.perturbation not in PERTURBATIONS and not OWN.fullmatch(method.perturbation):
        raise UserError(
            f"method.perturbation: {method.perturbation!r} is unknown; choose one of "
            f"{', '.join(PERTURBATIONS)}, or give a class of your own as package.module:Class"
        )
    if method.perturbation_options and method.perturbation in PERTURBATIONS:
        raise UserError(
            "method.perturbation_options: are the arguments of a class of your own; "
            f"{method.perturbation!r} takes eps and the other keys of the method"
        )
    if method.perturb_at == "embedding" and method.density_of == "features":
        raise UserError(
            "method.density_of: with perturb_at: embedding, the density must be of the embedding; "
            "choose perturb_at: features or density_of: embedding"
        )
    _check_batches(config)
    if method.complementary_drop and method.strong_views != 2:
        raise UserError(
            f"method.complementary_drop: needs two strong views, not {method.strong_views}; choose "
            "strong_views: 2"
        )
    if method.perturbed_view == "weak" and method.perturb_at == "embedding":
        raise UserError(
            "method.perturbed_view: the embedding of weak views is not computed; choose "
            "perturb_at: features"
        )
    if method.teacher == "student" and method.teacher_mode == "train":
        raise UserError(
            "method.teacher: the student as its own teacher would update its BatchNorm statistics "
            "twice in train mode; choose teacher_mode: eval"
        )
    if method.teacher == "tied" and method.teacher_mode == "eval":
        raise UserError(
            "method.teacher: a tied teacher updates its BatchNorm statistics only in train mode; "
            "choose teacher_mode: train"
        )
    if method.drop and method.perturbation == "none":
        raise UserError(
            "method.drop: drops channels before a perturbation, and there is none; choose 0, or "
            "perturbation: dropout"
        )
    if method.descend == "conditional" and config.density.kind != "flow":
        raise UserError(
            f"method.descend: a density of kind {config.density.kind!r} has no classes; "
            "choose marginal"
        )


def _check_batches(config: "Config") -> None:
    """Refuse batches that cannot be divided into the method's shares or OHEM's groups."""
    method, training = config.method, config.training
    sizes = {"batch_labeled": training.batch_labeled}
    if method.consistency:
        sizes["batch_unlabeled"] = training.batch_unlabeled
    for name, size in sizes.items():
        if size % method.shares:
            raise UserError(
                f"method.shares: {method.shares} shares do not divide training.{name}: {size}; "
                "choose another number, such as 1"
            )
    if training.labeled_loss == "ohem" and training.batch_labeled % training.ohem_images:
        raise UserError(
            f"training.ohem_images: groups of {training.ohem_images} images do not divide "
            f"training.batch_labeled: {training.batch_labeled}; choose another number, such as 1"
        )
