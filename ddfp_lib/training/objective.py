"""One training step, in six parts, on one screen: see :func:`training_step`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfp_lib.config import Config
from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.data.augment import cutmix_boxes, mix, strong_view
from ddfp_lib.data.loaders import Batch
from ddfp_lib.density import DensityEstimator
from ddfp_lib.errors import UserError
from ddfp_lib.frozen import FrozenDensity
from ddfp_lib.models.network import SegmentationNetwork, resize
from ddfp_lib.models.norms import share_statistics
from ddfp_lib.perturb import FeaturePerturbation, Query, make_perturbation
from ddfp_lib.seeds import generator
from ddfp_lib.training.distributed import first_of_next, rank, sum_gradients, total, world_size
from ddfp_lib.training.teacher import follow, make_teacher
from ddfp_lib.training.watch import Watch


def training_step(learner: "Learner", batch: Batch, step: int) -> dict[str, Tensor]:
    """Take one step of training.

    ``loss = CE(labeled) + a * CE(strong, y) + b * CE(strong perturbed, y)`` with the pseudo-labels
    y, and ``a``, ``b`` the method's ``clean_weight`` and ``perturbed_weight``.

    Args:
        learner: networks, density estimator and optimizer; changed in place.
        batch: this rank's share of labeled and unlabeled images, see
            :class:`~ddfp_lib.data.loaders.Batch`.
        step: number of this step, from 0. All randomness is a function of it and of the seed.

    Returns:
        Scalars for the log, as tensors, of the batch of all ranks: the losses, the norm of the
        student's gradient, the part of valid pixels with a pseudo-label (``coverage``), and of the
        flow its bits per dimension.

    Raises:
        FloatingPointError: loss or gradient is not finite, and the student is as before the step.
            On a GPU it is found out later, see :class:`~ddfp_lib.training.watch.Watch`.
    """
    config, method, stage = learner.config, learner.config.method, learner.stage(step)
    student, teacher, density = learner.student, learner.teacher, learner.density
    host, device = learner.generators(step)
    labeled, weak = batch.labeled_images / 255, batch.weak_images / 255
    if not stage.consistency:
        return supervised_step(learner, labeled, batch.labels, step)

    # 1. The teacher sees weak views: pseudo-labels, and the features that the flow learns from.
    with torch.no_grad():
        looked_at = weak if density is None else torch.cat([labeled, weak])
        encoded = torch.cat([teacher.encode(x) for (x,) in learner.parts(looked_at)])
        seen = torch.cat([teacher.embed(x, generator=device) for (x,) in learner.parts(encoded)])
        scores = resize(teacher.classify(seen[-len(weak) :]), weak.shape[2:])
        pseudo = PseudoLabels.of(scores, batch.valid, config.training.confidence)

    # 2. The student sees labeled images and strong views, once.
    box = cutmix_boxes(*weak.shape[2:], config.data.augment, host).to(weak.device)
    torch.rand(rank() * len(weak), 8, generator=host)  # the draws of the ranks before this one
    strong = mix_over_ranks(strong_view(weak, config.data.augment, host), box)
    pixels, losses = Pixels.of(batch.labels, pseudo), {}
    learner.optimizer.zero_grad()
    for images, labels, views, target in learner.parts(
        labeled, batch.labels, strong, pseudo.mixed(box)
    ):
        features = student.encode(torch.cat([images, views]))
        clean = student.embed(features, generator=device)

        # 3. The perturbation looks for a direction, for confident pixels.
        at_embedding = method.perturb_at == "embedding"
        movable = (clean if at_embedding else features)[len(images) :]
        if stage.perturb:
            small = target.at(movable.shape[2:])
            moved = small.valid if method.moved == "all" else small.confident
            query = learner.query(device, labels=small)
            shift = learner.perturbation(movable.detach(), moved, query, device)

        # 4. Clean and perturbed features are classified; backward, then the optimizer's step.
        logits = resize(student.classify(clean), weak.shape[2:])
        part = {
            "supervised": cross_entropy(logits[: len(images)], labels, pixels),
            "clean": target.cross_entropy(logits[len(images) :], method.consistency_mean, pixels),
        }
        if stage.perturb:
            shifted = movable + shift
            if not at_embedding:
                auxiliary = method.perturbed_norm == "auxiliary"
                shifted = student.embed(shifted, auxiliary=auxiliary, generator=device)
            logits = resize(student.classify(shifted), weak.shape[2:])
            part["perturbed"] = target.cross_entropy(logits, method.consistency_mean, pixels)
        learner.backward(part, losses)
    losses = learner.descend(losses, step)

    # 5. The flow takes its own step, on features without a graph.
    if density is not None:
        described = encoded if method.density_of == "features" else seen
        believed = pseudo.labels if config.density.labels == "teacher" else None
        void = method.density_void
        rows, known = density_rows(described, batch.labels, batch.valid, believed, void=void)
        losses["bits_per_dim"] = density.fit_step(rows, known, generator=device).bits_per_dim

    # 6. The teacher follows.
    if method.teacher == "ema":
        follow(teacher, student, step, config.training.ema_decay)
    return {**losses, "coverage": pixels.confident / pixels.valid.clamp(min=1)}


def supervised_step(
    learner: "Learner", labeled: Tensor, labels: Tensor, step: int
) -> dict[str, Tensor]:
    """Take a step on labeled images alone: the supervised rival, and the others' warm-up.

    With ``warmup_norm: split`` every second image passes through the auxiliary BatchNorm, as
    released: the second, the fourth, ... of those that one process sees at a time.
    """
    method, student = learner.config.method, learner.student
    _, device = learner.generators(step)
    pixels, losses = Pixels.of(labels), {}
    learner.optimizer.zero_grad()
    for images, known in learner.parts(labeled, labels):
        features = student.encode(images)
        if method.warmup_norm == "split":
            halves = features[0::2], features[1::2]
            embedded = [
                student.embed(half, auxiliary=auxiliary, generator=device)
                for auxiliary, half in enumerate(halves)
                if len(half)
            ]
            known, clean = torch.cat([known[0::2], known[1::2]]), torch.cat(embedded)
        else:
            clean = student.embed(features, generator=device)
        logits = resize(student.classify(clean), known.shape[1:])
        learner.backward({"supervised": cross_entropy(logits, known, pixels)}, losses)
    losses = learner.descend(losses, step)
    if method.teacher == "ema":
        follow(learner.teacher, student, step, learner.config.training.ema_decay)
    return losses


def cross_entropy(logits: Tensor, labels: Tensor, pixels: "Pixels | None" = None) -> Tensor:
    """Mean cross-entropy over pixels that have a label, in nats; 0 where none has.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64, ``IGNORE_INDEX`` where there is none.
        pixels: of the whole batch, of which these are a part; without it these are all.
    """
    summed = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    count = (labels != IGNORE_INDEX).sum() if pixels is None else pixels.labeled
    return summed / count.clamp(min=1)


@dataclass(frozen=True)
class Pixels:
    """How many pixels of the whole batch, of all ranks, the losses are means over.

    A rank that divides its sums by these counts has its share of the losses: the shares of all
    ranks and of all their parts add up to what one process would have computed.

    Attributes:
        labeled: pixels of labeled images that have a label; 0-d int64, as the others.
        valid: pixels of unlabeled images that are no padding.
        confident: those of them that have a pseudo-label. CutMix changes neither number: in the
            batch as a whole it only moves pixels.
    """

    labeled: Tensor
    valid: Tensor
    confident: Tensor

    @classmethod
    def of(cls, labels: Tensor, pseudo: "PseudoLabels | None" = None) -> "Pixels":
        """Count this rank's pixels and add those of the others.

        Args:
            labels: (B, H, W) int64, of the labeled images.
            pseudo: of the unlabeled images; none in a supervised step.
        """
        counts = [(labels != IGNORE_INDEX).sum()] * 3
        if pseudo is not None:
            counts[1:] = pseudo.valid.sum(), pseudo.confident.sum()
        return cls(*total(torch.stack(counts)))


@dataclass(frozen=True)
class PseudoLabels:
    """What the teacher believes of unlabeled images.

    Attributes:
        labels: (B, H, W) int64, ``IGNORE_INDEX`` where the teacher is not confident or no image is.
        valid: (B, H, W) bool, False in padding.
    """

    labels: Tensor
    valid: Tensor

    @classmethod
    def of(cls, logits: Tensor, valid: Tensor, confidence: float) -> "PseudoLabels":
        """Keep the most probable class where its probability exceeds ``confidence``.

        Args:
            logits: (B, K, H, W) float, the teacher's.
            valid: (B, H, W) bool.
            confidence: threshold in [0, 1].
        """
        probability, labels = logits.float().softmax(dim=1).max(dim=1)
        return cls(labels.where((probability > confidence) & valid, IGNORE_INDEX), valid)

    def mixed(self, box: Tensor) -> "PseudoLabels":
        """Apply CutMix's box (H, W) to labels and valid area alike."""
        return PseudoLabels(mix_over_ranks(self.labels, box), mix_over_ranks(self.valid, box))

    def chunk(self, count: int) -> list["PseudoLabels"]:
        """Cut into ``count`` parts of B / ``count`` images, as ``Tensor.chunk``."""
        parts = zip(self.labels.chunk(count), self.valid.chunk(count), strict=True)
        return [PseudoLabels(*part) for part in parts]

    def at(self, size: torch.Size) -> "PseudoLabels":
        """Return the same at a feature map's size (h, w)."""
        valid = resize_nearest(self.valid, size) == 1
        return PseudoLabels(resize_nearest(self.labels, size), valid)

    @property
    def confident(self) -> Tensor:
        """Which pixels have a pseudo-label: (B, H, W) bool."""
        return self.labels != IGNORE_INDEX

    def cross_entropy(self, logits: Tensor, mean: str, pixels: Pixels | None = None) -> Tensor:
        """Cross-entropy against the pseudo-labels, in nats; 0 where there are none.

        Args:
            logits: (B, K, H, W) float, the student's.
            mean: divide the sum over confident pixels by the number of ``valid`` pixels (as
                UniMatch) or of ``confident`` ones (as the release).
            pixels: of the whole batch, of which these are a part; without it these are all.
        """
        summed = F.cross_entropy(logits, self.labels, ignore_index=IGNORE_INDEX, reduction="sum")
        if pixels is None:
            count = (self.valid if mean == "valid" else self.confident).sum()
        else:
            count = pixels.valid if mean == "valid" else pixels.confident
        return summed / count.clamp(min=1)

    def coverage(self) -> Tensor:
        """Return the part of valid pixels that have a pseudo-label."""
        return self.confident.sum() / self.valid.sum().clamp(min=1)


def mix_over_ranks(batch: Tensor, box: Tensor) -> Tensor:
    """Apply CutMix's box (H, W) to the batch of all ranks: the last image meets the next rank's.

    Args:
        batch: this rank's share, (B, ..., H, W), images, labels or masks alike.
        box: bool (H, W), the same on every rank.
    """
    return mix(torch.cat([batch, first_of_next(batch)]), box)[:-1]


def resize_nearest(labels: Tensor, size: torch.Size) -> Tensor:
    """Resize labels (B, H, W) to (B, *size) without inventing values."""
    # float32 holds every label value exactly
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def density_rows(
    described: Tensor,
    labels: Tensor,
    valid: Tensor,
    pseudo: Tensor | None = None,
    *,
    void: str = "unlabeled",
) -> tuple[Tensor, Tensor]:
    """Turn the teacher's features into the rows that the density estimator learns from.

    Args:
        described: (B + U, D, h, w) float, of the labeled and then the weak images.
        labels: (B, H, W) int64, of the labeled images.
        valid: (U, H, W) bool, of the weak images; padding is left out.
        pseudo: (U, H, W) int64, pseudo-labels that teach classes too; none where ``IGNORE_INDEX``.
        void: pixels of labeled images that have no class are ``unlabeled`` rows or ``dropped``,
            as released (train_ddfp_pascal.py:455-500).

    Returns:
        (N, D) float and (N,) int64: class, or ``UNLABELED``.
    """
    if pseudo is None:
        pseudo = torch.full_like(valid, IGNORE_INDEX, dtype=labels.dtype)
    size = described.shape[2:]
    masks, believed = resize_nearest(labels, size), resize_nearest(pseudo, size)
    learned = (masks != IGNORE_INDEX) | (void == "unlabeled")
    learned = torch.cat([learned, resize_nearest(valid, size) == 1]).flatten()
    known = torch.cat([masks, believed]).flatten()
    known = known.where(known != IGNORE_INDEX, UNLABELED)
    return to_rows(described)[learned], known[learned]


def to_rows(features: Tensor) -> Tensor:
    """(B, D, *S) to (B * prod(S), D), pixels in reading order."""
    return features.movedim(1, -1).flatten(0, -2)


@dataclass(frozen=True)
class Stage:
    """Which parts of the method are switched on at a step."""

    consistency: bool
    perturb: bool


class Learner:
    """All that training changes: two networks, the density estimator, the optimizer.

    Args:
        config: of the run.
        classes: number of classes K.
        device: where everything lives.
        accumulate: parts in which a step's images go through the networks, one after another;
            the gradients of all parts make one step. Memory falls with their size. BatchNorm's
            training statistics are of one part.
    """

    def __init__(
        self, config: Config, classes: int, device: torch.device, accumulate: int = 1
    ) -> None:
        method, training = config.method, config.training
        self.config, self.device, self.accumulate = config, device, accumulate
        # channels_last: convolutions run 1.4 to 2 times faster on CPUs, and on GPUs' tensor cores
        student = SegmentationNetwork(config.network, classes, config.seed, training.precision)
        student.to(device, memory_format=torch.channels_last).train()
        self.student = share_statistics(student, device)
        self.teacher = make_teacher(self.student, method.teacher, method.teacher_mode)
        if training.compile:
            for network in (self.student, self.teacher):
                for part in network.children():
                    part.compile()
        self.perturbation: FeaturePerturbation = make_perturbation(
            method.perturbation,
            config.eps,
            leak=method.moved == "leaky",
            steps=method.descent_steps,
            max_fall=method.max_fall,
            drop=method.drop,
        )
        self.density = self._make_density(classes)
        self.optimizer = self._make_optimizer()
        # half precision's gradients would underflow; bfloat16 has float32's range
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
        self.watch = Watch(device)

    def _make_density(self, classes: int) -> DensityEstimator | FrozenDensity | None:
        config, method, training = self.config, self.config.method, self.config.training
        if method.perturbation != "density":
            return None
        of_features = method.density_of == "features"
        width = self.student.fusion.channels if of_features else config.network.embedding
        begin = round(training.consistency_from * training.steps)
        if config.density.kind != "flow":
            if world_size() > 1:  # each rank would remember features of its own
                raise UserError(
                    f"density.kind: {config.density.kind} learns in one process; leave --gpus out"
                )
            return FrozenDensity(
                config.density.kind,
                width,
                classes,
                freeze_after=round(training.perturb_from * training.steps) - begin,
                seed=config.seed,
            ).to(self.device)
        return DensityEstimator(
            width,
            classes,
            config.density,
            total_steps=max(1, training.steps - begin),
            seed=config.seed,
        ).to(self.device)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        training = self.config.training
        encoder = list(self.student.encoder.parameters())
        inside = set(encoder)
        head = [p for p in self.student.parameters() if p not in inside]
        groups = [
            {"params": encoder, "lr": training.lr_encoder},
            {"params": head, "lr": training.lr_head},
        ]
        if training.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=True)
        return torch.optim.SGD(
            groups, momentum=training.momentum, weight_decay=training.weight_decay
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that training changes, as nested dicts of tensors and numbers.

        Raises:
            FloatingPointError: a step's loss or gradient was not finite: nothing worth keeping.
        """
        self.watch.check()
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that :meth:`state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {"student": self.student, "teacher": self.teacher, "optimizer": self.optimizer}
        if self.density is not None:
            parts["density"] = self.density
        if self.scaler.is_enabled():
            parts["scaler"] = self.scaler
        return parts

    def stage(self, step: int) -> Stage:
        """Return what is switched on at this step, of the method's own parts."""
        method, training = self.config.method, self.config.training
        done = step / training.steps
        return Stage(
            consistency=method.consistency and done >= training.consistency_from,
            perturb=method.perturbation != "none"
            and done >= max(training.perturb_from, training.consistency_from),
        )

    def generators(self, step: int) -> tuple[torch.Generator, torch.Generator]:
        """Return a step's randomness: on the host for views, on the device for features.

        Views are drawn for the whole batch, the same on every rank. Features belong to one rank:
        the first has the stream that a process alone has, each other one its own.
        """
        seed, others = self.config.seed, [rank()] if rank() else []
        return generator(seed, 1, step), generator(seed, 2, step, *others, device=self.device)

    def parts(self, *batches: Any) -> Iterator[tuple[Any, ...]]:
        """Cut this rank's share of a batch into ``accumulate`` parts, all of it alike.

        Args:
            batches: tensors (B, ...) or :class:`PseudoLabels`, B a multiple of ``accumulate``.
        """
        return zip(*(batch.chunk(self.accumulate) for batch in batches), strict=True)

    def query(
        self,
        dropout: torch.Generator,
        network: SegmentationNetwork | None = None,
        labels: PseudoLabels | None = None,
    ) -> Query:
        """Return what a perturbation may ask, about F or about v as the method wants.

        The network is asked as it is at this moment. By default it answers without dropout and
        by its running statistics, as the teacher did when the flow learned its features, and
        keeps no trace of having been asked.

        Args:
            dropout: used by ``density_query: auxiliary`` alone.
            network: whose features are asked about; the student's where none is given.
            labels: of the features, at their size; used by ``descend: conditional`` alone.
        """
        network, density, method = network or self.student, self.density, self.config.method

        def embed(features: Tensor) -> Tensor:
            if method.perturb_at == "embedding":
                return features
            if method.density_query == "auxiliary":
                return network.embed(features, auxiliary=True, generator=dropout)
            return network.embed(features, frozen=True)

        known = None
        if method.descend == "conditional" and labels is not None:
            known = labels.labels.where(labels.confident, UNLABELED).flatten()

        def log_density(features: Tensor) -> Tensor:
            described = features if method.density_of == "features" else embed(features)
            maps = described.shape[:1] + described.shape[2:]
            return density.log_prob(to_rows(described), known).view(maps)

        return Query(log_density, lambda features: network.classify(embed(features)))

    def backward(self, part: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
        """Add the gradients of a part of the batch, and its losses to those of other parts.

        The loss is the losses' weighted sum. Before features are perturbed, clean strong views
        carry the weight of both.

        Args:
            part: losses of this part, with their graphs.
            losses: sums over the parts before, detached; changed in place, ``loss`` included.
        """
        method = self.config.method
        weights = {
            "supervised": 1.0,
            "clean": method.clean_weight,
            "perturbed": method.perturbed_weight,
        }
        if "perturbed" not in part:
            weights["clean"] += method.perturbed_weight
        loss = torch.stack([weights[name] * value for name, value in part.items()]).sum()
        self.scaler.scale(loss).backward()
        for name, value in {**part, "loss": loss}.items():
            losses[name] = losses[name] + value.detach() if name in losses else value.detach()

    def descend(self, losses: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Take the optimizer's step, on the gradients of all parts and ranks.

        Args:
            losses: this rank's share of them.
            step: number of this step, from 0, for the learning rate.

        Returns:
            The losses of the whole batch, and the norm of its gradient.

        Raises:
            FloatingPointError: on a CPU, where loss or gradient is not finite; nothing has moved.
        """
        training = self.config.training
        factor = (1 - step / training.steps) ** training.poly
        for group, base in zip(
            self.optimizer.param_groups, (training.lr_encoder, training.lr_head), strict=True
        ):
            group["lr"] = base * factor
        sum_gradients(self.student.parameters())
        self.scaler.unscale_(self.optimizer)
        losses = dict(zip(losses, total(torch.stack(list(losses.values()))), strict=True))
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.student.parameters() if p.grad is not None]
        )
        # the scaler looks for gradients that are too large by having some that are not finite
        watched = losses if self.scaler.is_enabled() else {**losses, "grad_norm": norm}
        self.watch.note(step, watched)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**losses, "grad_norm": norm}
