r"""The whole method in one function: start reading here.

This is a step of preset ``ddfp`` once all of its parts are switched on, for one device and one
batch. Training itself runs the general form, :func:`~ddfp_lib.training.step.training_step`, where
presets set the weights. On a CPU in float32 both give the same bits
(``tests/test_reference_step.py``).
"""

import torch
from torch import Tensor

from ddfp_lib.data.augment import cutmix_box, mix, strong_view
from ddfp_lib.data.loaders import Batch
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.losses import PseudoLabels, cross_entropy, density_training_data
from ddfp_lib.training.teacher import update_ema


def reference_step(learner: Learner, batch: Batch, step: int) -> Tensor:
    r"""Take one training step of DDFP.

    .. math:: L = \mathrm{CE}(\text{labeled}) + \tfrac12 \mathrm{CE}(\text{strong}, y)
        + \tfrac12 \mathrm{CE}(\text{strong perturbed}, y)

    y are the pseudo-labels of the EMA teacher. The last two are sums over the pixels that have a
    pseudo-label, divided by the number of pixels that are not padding. The features F of strongly
    augmented images are perturbed by :math:`\epsilon \, g / |g|` with
    :math:`g = -\nabla_F \log p(v(F))`, one step down the density that the flow has learned of the
    embeddings v. Other perturbations of the same length take its place in presets such as
    ``noise``; without one (``consistency``)
    :math:`L = \mathrm{CE}(\text{labeled}) + \mathrm{CE}(\text{strong}, y)`.

    Args:
        learner: networks, density estimator, perturbation and optimizer; changed in place.
        batch: B labeled and U unlabeled images, see :class:`~ddfp_lib.data.loaders.Batch`.
        step: number of this step, from 0. All randomness is a function of it and of the seed.

    Returns:
        L, 0-d float32 without a graph, in nats.

    Raises:
        FloatingPointError: L or its gradient is not finite; the student is as before the step.

    Source: the paper's abstract and framework figure; train_ddfp_pascal.py:372-524 of the release.
    """
    config, student, teacher = learner.config, learner.student, learner.teacher
    augment, training = config.data.augment, config.training
    for_views, for_features = learner.generators(step)
    labeled, weak = batch.labeled_images / 255, batch.weak_images / 255
    count, size = len(labeled), weak.shape[2:]

    # The teacher predicts y on weakly augmented images; where it is not confident there is no y.
    with torch.no_grad():
        seen = weak if learner.density is None else torch.cat([labeled, weak])
        teacher_v = teacher.embed(teacher.encode(seen))
        scores = teacher.classify(teacher_v[-len(weak) :], size)
        y = PseudoLabels.of(scores, batch.valid, training.confidence)

    # Strong augmentation: colors, blur, and CutMix of images and pseudo-labels alike.
    box = cutmix_box(*size, augment, for_views).to(weak.device)
    strong, y = mix(strong_view(weak, augment, for_views), box), y.mixed(box)

    # The first two terms: image -> F -> v -> logits.
    features = student.encode(torch.cat([labeled, strong]), generator=for_features)
    logits = student.classify(student.embed(features, generator=for_features), size)
    supervised = cross_entropy(logits[:count], batch.labels)
    clean = y.cross_entropy(logits[count:], mean="valid")
    loss = supervised + clean

    # The third: confident features take one step; their BatchNorm statistics are their own.
    if config.method.perturbation != "none":
        start, confident = features[count:], y.at(features.shape[2:]).confident
        models = learner.feature_models(for_features)
        shift = learner.perturbation(start.detach(), confident, models, for_features)
        moved_v = student.embed(start + shift, auxiliary=True, generator=for_features)
        perturbed = y.cross_entropy(student.classify(moved_v, size), mean="valid")
        loss = supervised + 0.5 * clean + 0.5 * perturbed

    learner.optimizer.zero_grad()
    loss.backward()
    learner.optimizer_step({"loss": loss.detach()}, step)

    # The flow minimizes its negative log-likelihood, apart from L; then the teacher follows.
    if learner.density is not None:
        rows, classes = density_training_data(teacher_v, batch)
        learner.density.fit_step(rows, classes, generator=for_features)
    update_ema(teacher, student, step, training.ema_decay)
    return loss.detach()
