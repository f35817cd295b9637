"""One training step in its general form; read :mod:`~ddfp_lib.training.reference_step` first.

What the reference step leaves out is here: methods other than the paper's, stages of the
schedule, micro-batches, several ranks.

On a GPU the host only queues the step's work and never waits for a result of it, with one
exception: in float16 PyTorch's ``GradScaler`` asks once whether a gradient is infinite.
``tests/test_fake_cuda.py`` counts the waits: of three presets, and of all by ``make soak``.
"""

import torch
from torch import Tensor

from ddfp_lib.data.loaders import Batch
from ddfp_lib.method.frozen import FrozenDensity
from ddfp_lib.method.perturb import complementary_masks
from ddfp_lib.ranks import world_size
from ddfp_lib.training.learner import Learner, Stage
from ddfp_lib.training.losses import (
    PixelCounts,
    PseudoLabels,
    cross_entropy,
    density_rows,
    ohem_cross_entropy,
)
from ddfp_lib.training.student_batch import StudentBatch, student_batch
from ddfp_lib.training.teacher import update_ema


def training_step(learner: Learner, batch: Batch, step: int) -> dict[str, Tensor]:
    """Take one step of training.

    ``loss = c * CE(labeled) + a * CE(strong, y) + b * CE(perturbed, y)`` with the pseudo-labels y,
    and ``c``, ``a``, ``b`` the method's ``labeled_weight``, ``clean_weight`` and
    ``perturbed_weight``.

    Args:
        learner: networks, density estimator and optimizer; changed in place.
        batch: this rank's share of labeled and unlabeled images, see
            :class:`~ddfp_lib.data.loaders.Batch`.
        step: number of this step, from 0. All randomness is a function of it and of the seed.

    Returns:
        Scalars for the log, as 0-d tensors, of the batch of all ranks: the losses in nats, the norm
        of the student's gradient, the fraction of valid pixels with a pseudo-label (``coverage``),
        and of the flow its bits per dimension.

    Raises:
        FloatingPointError: loss or gradient is not finite, and the student is as before the step.
            On a GPU it is found out later, see :class:`~ddfp_lib.training.finite.FiniteCheck`.
    """
    config, method, stage = learner.config, learner.config.method, learner.stage(step)
    host, device = learner.generators(step)
    labeled, weak = batch.labeled_images / 255, batch.weak_images / 255
    if not stage.consistency:
        return supervised_step(learner, labeled, batch.labels, step)

    # 1. The teacher sees weak views: pseudo-labels, and the features that the flow learns from.
    teacher_features, pseudo = teacher_pass(learner, labeled, weak, batch.valid, device)

    # 2. The student sees labeled images and strong views, once.
    learned, losses = student_batch(learner, labeled, batch.labels, weak, pseudo, stage, host), {}
    learner.optimizer.zero_grad()
    for (part,) in learner.micro_batches(learned):
        seen = torch.cat([part.images, part.strong, part.extra])
        features = learner.student.encode(seen, generator=device)
        clean = embed_views(learner, features[: len(seen) - len(part.extra)], part, stage, device)

        # 3. The perturbation looks for a direction, for confident pixels.
        moved = None
        if stage.perturb:
            start = clean if method.perturb_at == "embedding" else features
            first = len(clean) if len(part.extra) else len(part.images)
            start = start[first:]
            moved = start + perturbation_of(learner, start.detach(), part.moved_target, device)

        # 4. Clean and perturbed features are classified; backward, then the optimizer's step.
        learner.backward(student_losses(learner, clean, moved, part, device), losses)
    losses = learner.optimizer_step(losses, step)

    # 5. The flow takes its own step, on features without a graph.
    if learner.density is not None:
        losses["bits_per_dim"] = fit_density(learner, teacher_features, batch, pseudo, device, step)

    # 6. The teacher follows the student.
    if method.teacher == "ema":
        update_ema(learner.teacher, learner.student, step, config.training.ema_decay)
    return {**losses, "coverage": learned.counts.coverage}


def embed_views(
    learner: Learner, features: Tensor, part: StudentBatch, stage: Stage, device: torch.Generator
) -> Tensor:
    """Return the embeddings v of labeled images and strong views, (B + V U, D, h, w).

    Args:
        learner: its student is trained.
        features: F of these images, (B + V U, C, h, w) float.
        part: the images.
        stage: stage of the schedule.
        device: generator of dropout.
    """
    method, student, count = learner.config.method, learner.student, len(part.images)
    if method.complementary_drop:
        images = len(part.strong) // 2
        masks = complementary_masks(images, features.shape[1], device)
        factors = torch.stack(masks, dim=1).flatten(0, 1).to(features.device)
        features = torch.cat([features[:count], features[count:] * factors])
    if method.strong_norm == "main" or stage.perturb:
        return student.embed(features, generator=device)
    labeled = student.embed(features[:count], generator=device)
    return torch.cat([labeled, student.embed(features[count:], auxiliary=True, generator=device)])


def fit_density(
    learner: Learner,
    teacher_features: Tensor,
    batch: Batch,
    pseudo: PseudoLabels,
    device: torch.Generator,
    step: int,
) -> Tensor:
    """Take the density's step and return its negative log-likelihood in bits per dimension, 0-d.

    Args:
        learner: its density is trained.
        teacher_features: what the teacher made of labeled and weak images, (B + U, D, h, w) float.
        batch: the images.
        pseudo: pseudo-labels of the weak images; used with ``density.labels: teacher`` alone.
        device: generator of the rows and of their noise.
        step: number of this step, for the finite check.

    Raises:
        FloatingPointError: as :func:`training_step`.
    """
    config, method = learner.config, learner.config.method
    rows, known, counted = density_rows(
        teacher_features,
        batch,
        pseudo.labels if config.density.labels == "teacher" else None,
        void=method.density_void,
        shares=None if method.shares == 1 else method.shares // world_size(),
        samples=config.density.samples,
        generator=device,
        wait=learner.finite_check.at_once,
    )
    if counted is None:
        return learner.density.fit_step(rows, known, generator=device).bits_per_dim
    found = learner.density.fit_step(rows, known, generator=device, counted=counted)
    if not isinstance(learner.density, FrozenDensity):  # which has no loss until it is fitted
        values = {"density_loss": found.nll, "density_grad_norm": found.grad_norm}
        learner.finite_check.note(step, values)
    return found.bits_per_dim


@torch.no_grad()
def teacher_pass(
    learner: Learner, labeled: Tensor, weak: Tensor, valid: Tensor, device: torch.Generator
) -> tuple[Tensor, PseudoLabels]:
    """Let the teacher see images without strong augmentation.

    Args:
        learner: its teacher is evaluated, in micro-batches.
        labeled: (B, 3, H, W) float in [0, 1]; seen only where a density is learned.
        weak: (U, 3, H, W) float in [0, 1].
        valid: (U, H, W) bool, False in padding.
        device: generator of the dropout masks of ``teacher_mode: train``.

    Returns:
        What the flow learns from, (B + U, D, h, w) float, v or F as ``density_of`` says; and the
        pseudo-labels of the weak images.
    """
    teacher, config = learner.teacher, learner.config
    # Each part has labeled and weak images, as the student's has: a teacher in train mode
    # normalizes by its part.
    seen = [weak] if learner.density is None else [labeled, weak]
    parts = list(learner.micro_batches(*seen))
    features = [teacher.encode(torch.cat(part), generator=device) for part in parts]
    vectors = [teacher.embed(of_part, generator=device) for of_part in features]
    encoded, embedded = (_labeled_first(maps, parts) for maps in (features, vectors))
    scores = teacher.classify(embedded[-len(weak) :], weak.shape[2:])
    pseudo = PseudoLabels.of(scores, valid, config.training.confidence)
    return encoded if config.method.density_of == "features" else embedded, pseudo


def _labeled_first(maps: list[Tensor], parts: list[tuple[Tensor, ...]]) -> Tensor:
    """Put the maps of micro-batches together: those of all labeled images, then of all others.

    Args:
        maps: (n, C, h, w) of each part.
        parts: the images of each, (labeled, weak) or (weak,).
    """
    split = [
        of_part.split([len(images) for images in part])
        for of_part, part in zip(maps, parts, strict=True)
    ]
    return torch.cat([piece for kind in zip(*split, strict=True) for piece in kind])


def perturbation_of(
    learner: Learner, features: Tensor, target: PseudoLabels, device: torch.Generator
) -> Tensor:
    """Return the shift of the strong views' features, like ``features``, without a graph.

    Args:
        learner: its perturbation, density and student are evaluated.
        features: (U, C, h, w) float, F or v as ``perturb_at`` says, detached.
        target: pseudo-labels at the size of the images; they say which pixels move.
        device: generator of all randomness.
    """
    small = target.at(features.shape[2:])
    moved = small.valid if learner.config.method.moved == "all" else small.confident
    models = learner.feature_models(device, labels=small)
    return learner.perturbation(features, moved, models, device)


def student_losses(
    learner: Learner,
    clean: Tensor,
    moved: Tensor | None,
    part: StudentBatch,
    device: torch.Generator,
) -> dict[str, Tensor]:
    """Return the cross-entropies of a micro-batch, with their graphs, in nats.

    Args:
        learner: its student is trained.
        clean: (B + V U, D, h, w) float, v of labeled images and strong views.
        moved: (N, C, h, w) float, perturbed features of the strong or weak views, F or v as
            ``perturb_at`` says; ``None`` before features are perturbed.
        part: images, labels and pseudo-labels.
        device: generator of the dropout masks.
    """
    student, method = learner.student, learner.config.method
    labels, mean = part.labels, method.consistency_mean
    logits = student.classify(clean, labels.shape[1:])
    losses = {
        "supervised": labeled_loss(learner, logits[: len(labels)], labels, part.counts),
        "clean": part.target.cross_entropy(logits[len(labels) :], mean, part.counts),
    }
    if moved is not None:
        if method.perturb_at == "features":
            auxiliary = method.perturbed_norm == "auxiliary"
            moved = student.embed(moved, auxiliary=auxiliary, generator=device)
        logits = student.classify(moved, labels.shape[1:])
        losses["perturbed"] = part.moved_target.cross_entropy(logits, mean, part.moved_counts)
    return losses


def labeled_loss(learner: Learner, logits: Tensor, labels: Tensor, counts: PixelCounts) -> Tensor:
    """Return this micro-batch's part of the loss on labeled images, in nats: CE, or OHEM.

    Args:
        learner: its configuration is used.
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64.
        counts: pixels of the whole batch.
    """
    training = learner.config.training
    if training.labeled_loss == "cross_entropy":
        return cross_entropy(logits, labels, counts)
    return ohem_cross_entropy(
        logits,
        labels,
        threshold=training.ohem_threshold,
        pixels=training.ohem_pixels,
        images=training.ohem_images,
        groups=training.batch_labeled // training.ohem_images,
    )


def supervised_step(
    learner: Learner, labeled: Tensor, labels: Tensor, step: int
) -> dict[str, Tensor]:
    """Take a step on labeled images alone: the supervised baseline, and the others' warm-up.

    With ``warmup_norm: split`` every second image passes through the auxiliary BatchNorm, as
    released: the second, the fourth, ... of those that one process sees at a time.

    Args:
        learner: changed in place.
        labeled: (B, 3, H, W) float in [0, 1].
        labels: (B, H, W) int64.
        step: number of this step, from 0.

    Returns:
        Loss and gradient norm, as :func:`training_step`.

    Raises:
        FloatingPointError: as :func:`training_step`.
    """
    method, student = learner.config.method, learner.student
    _, device = learner.generators(step)
    counts, losses = PixelCounts.of(labels, shares=method.shares), {}
    learner.optimizer.zero_grad()
    for images, known, pixels in learner.micro_batches(labeled, labels, counts):
        features = student.encode(images, generator=device)
        if method.warmup_norm == "split":
            halves = features[0::2], features[1::2]
            embedded = [
                student.embed(half, auxiliary=auxiliary, generator=device)
                for auxiliary, half in enumerate(halves)
                if len(half)
            ]
            known, clean = torch.cat([known[0::2], known[1::2]]), torch.cat(embedded)
            pixels = pixels.halves()
        else:
            clean = student.embed(features, generator=device)
        logits = student.classify(clean, known.shape[1:])
        learner.backward({"supervised": labeled_loss(learner, logits, known, pixels)}, losses)
    losses = learner.optimizer_step(losses, step)
    if method.teacher == "ema":
        update_ema(learner.teacher, student, step, learner.config.training.ema_decay)
    return losses
