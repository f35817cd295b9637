"""The state of a training run: student, teacher, density, perturbation and optimizer."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfp_lib.config import Config, TrainingConfig
from ddfp_lib.constants import UNLABELED
from ddfp_lib.errors import UserError
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.frozen import FrozenDensity
from ddfp_lib.method.perturb import FeatureModels, FeaturePerturbation, make_perturbation
from ddfp_lib.models.maps import to_rows
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.models.norms import share_statistics
from ddfp_lib.ranks import rank, sum_gradients, total, world_size
from ddfp_lib.runs.folder import Run
from ddfp_lib.seeds import generator
from ddfp_lib.training.finite import FiniteCheck
from ddfp_lib.training.losses import PseudoLabels
from ddfp_lib.training.teacher import make_teacher


def perturbation_for(config: Config) -> FeaturePerturbation:
    """Return the perturbation that a configuration names.

    Raises:
        UserError: it is a class of your own that cannot be imported or is not a perturbation.
    """
    method = config.method
    return make_perturbation(
        method.perturbation,
        config.eps,
        options=method.perturbation_options,
        leak=method.moved == "leaky",
        steps=method.descent_steps,
        max_fall=method.max_fall,
        drop=method.drop,
    )


def _check_groups(config: Config, accumulate: int) -> None:
    """Refuse processes and micro-batches that would cut a share or a group of OHEM in two.

    Raises:
        UserError: the message says which number to change.
    """
    shares, training = config.method.shares, config.training
    if shares > 1 and shares % world_size():
        raise UserError(
            f"method.shares: {shares} shares cannot be divided among {world_size()} processes; "
            "use a number of processes that divides it"
        )
    together = training.batch_labeled // (world_size() * accumulate)
    if training.labeled_loss == "ohem" and together % training.ohem_images:
        raise UserError(
            f"training.ohem_images: hard pixels are chosen among {training.ohem_images} images, "
            f"and only {together} labeled images pass the network at a time; use fewer processes "
            "or micro-batches, or a number that divides them"
        )


def _epochs_over(training: TrainingConfig, begin: int, steps: int) -> float:
    """Return the fraction of the schedule that whole epochs have passed.

    Args:
        training: the schedule.
        begin: steps of training before the first one of the density.
        steps: number of steps of the density.
    """
    return (begin + steps) * training.epochs // training.steps / training.epochs


def first_step(fraction: float, steps: int) -> int:
    """Return the first of ``steps`` steps that has at least this fraction of them before it."""
    step = math.ceil(fraction * steps)  # rounding can miss the number by one, either way
    while step > 0 and (step - 1) / steps >= fraction:
        step -= 1
    return step + (step / steps < fraction)


@dataclass(frozen=True)
class Stage:
    """Which parts of the method are active at a step.

    Attributes:
        consistency: losses on unlabeled images are used, and the density is fitted.
        perturb: features are perturbed; this never starts before consistency.
    """

    consistency: bool
    perturb: bool


class Learner:
    """All that training changes: two networks, the density estimator, the optimizer.

    Args:
        config: configuration of the run.
        classes: number of classes K.
        device: device that everything lives on.
        accumulate: number of micro-batches. A step's images go through the networks in so many
            parts, one after another, and the gradients are summed. More micro-batches need less
            memory. BatchNorm computes its training statistics over one micro-batch, so the number
            changes the result.
    """

    def __init__(
        self, config: Config, classes: int, device: torch.device, accumulate: int = 1
    ) -> None:
        method, training = config.method, config.training
        self.config, self.device, self.accumulate = config, device, accumulate
        _check_groups(config, accumulate)
        # channels_last: convolutions run 1.4 to 2 times faster on CPUs, and on GPUs' tensor cores
        student = SegmentationNetwork(config.network, classes, config.seed, training.precision)
        student.to(device, memory_format=torch.channels_last).train()
        self.student = share_statistics(student, device)
        self.teacher = make_teacher(self.student, method.teacher, method.teacher_mode)
        if training.compile:
            for network in (self.student, self.teacher):
                # with several processes SyncBatchNorm cuts the graph at each of its exchanges
                network.compile_parts(fullgraph=world_size() == 1)
        self.density = self._make_density(classes)
        self.optimizer = self._make_optimizer()
        # half precision's gradients would underflow; bfloat16 has float32's range
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
        self.finite_check = FiniteCheck(device)

    @functools.cached_property
    def perturbation(self) -> FeaturePerturbation:
        """The method's perturbation, made at its first use: reading a folder imports no class."""
        return perturbation_for(self.config)

    def _make_density(self, classes: int) -> DensityEstimator | FrozenDensity | None:
        config, method, training = self.config, self.config.method, self.config.training
        if not method.has_density:
            return None
        of_features = method.density_of == "features"
        width = self.student.fusion.channels if of_features else config.network.embedding
        begin = first_step(training.consistency_from, training.steps)
        if config.density.kind != "flow":
            if world_size() > 1:  # each rank would remember features of its own
                raise UserError(
                    f"density.kind: {config.density.kind} learns in one process; leave --gpus out"
                )
            return FrozenDensity(
                config.density.kind,
                width,
                classes,
                freeze_after=first_step(training.perturb_from, training.steps) - begin,
                seed=config.seed,
            ).to(self.device)
        samples = method.shares * config.density.samples
        return DensityEstimator(
            width,
            classes,
            dataclasses.replace(config.density, samples=samples),
            total_steps=max(1, training.steps - begin),
            seed=config.seed,
            progress=functools.partial(_epochs_over, training, begin)
            if method.density_schedule == "epochs"
            else None,
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
        self.finite_check.check()
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
        """Return which parts of the method are active at this step."""
        method, training = self.config.method, self.config.training
        perturb_from = max(training.perturb_from, training.consistency_from)
        return Stage(
            consistency=method.consistency
            and step >= first_step(training.consistency_from, training.steps),
            perturb=method.perturbation != "none"
            and step >= first_step(perturb_from, training.steps),
        )

    def generators(self, step: int) -> tuple[torch.Generator, torch.Generator]:
        """Return a step's randomness: on the host for views, on the device for features.

        Views are drawn for the whole batch, the same on every rank. Features belong to one rank:
        the first has the stream that a process alone has, each other one its own.
        """
        seed, others = self.config.seed, [rank()] if rank() else []
        return generator(seed, 1, step), generator(seed, 2, step, *others, device=self.device)

    def micro_batches(self, *batches: Any) -> Iterator[tuple[Any, ...]]:
        """Cut this rank's share of a batch into ``accumulate`` micro-batches.

        Args:
            batches: tensors (B, ...) or :class:`PseudoLabels`, B a multiple of ``accumulate``.
        """
        return zip(*(batch.chunk(self.accumulate) for batch in batches), strict=True)

    def feature_models(
        self,
        dropout: torch.Generator,
        network: SegmentationNetwork | None = None,
        labels: PseudoLabels | None = None,
    ) -> FeatureModels:
        """Return the density and the classifier as functions of what the method moves, F or v.

        By default they evaluate ``embed`` with running BatchNorm statistics and without dropout,
        as the teacher did for the features that the flow learned, and update nothing. The weights
        are those of the moment of the call.

        Args:
            dropout: generator of the dropout masks, used by ``density_query: auxiliary`` alone.
            network: the network whose ``embed`` and ``classify`` are used; ``None``: the student.
            labels: pseudo-labels at the size of the features, used by ``descend: conditional``
                alone.
        """
        network, density, method = network or self.student, self.density, self.config.method

        def embed(features: Tensor) -> Tensor:
            if method.perturb_at == "embedding":
                return features
            if method.density_query == "auxiliary":
                return network.embed(features, auxiliary=True, generator=dropout)
            return network.embed(features, eval_mode=True)

        known = None
        if method.descend == "conditional" and labels is not None:
            known = labels.labels.where(labels.confident, UNLABELED).flatten()

        def log_density(features: Tensor) -> Tensor:
            points = features if method.density_of == "features" else embed(features)
            maps = points.shape[:1] + points.shape[2:]
            if density is None:
                raise UserError(
                    f"method.perturbation: {method.perturbation} needs a density, but none is "
                    "learned; set method.learns_density to true"
                )
            return density.log_prob(to_rows(points), known).view(maps)

        return FeatureModels(log_density, lambda features: network.classify(embed(features)))

    def backward(self, part: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
        """Add the gradients of a micro-batch, and its losses to those of the ones before.

        The loss is the losses' weighted sum. Before features are perturbed, clean strong views
        carry the weight of both.

        Args:
            part: losses of this micro-batch, with their graphs.
            losses: sums over earlier micro-batches, detached; changed in place, with ``loss``.
        """
        method = self.config.method
        weights = {
            "supervised": method.labeled_weight,
            "clean": method.clean_weight,
            "perturbed": method.perturbed_weight,
        }
        if "perturbed" not in part:
            weights["clean"] += method.perturbed_weight
        loss = torch.stack([weights[name] * value for name, value in part.items()]).sum()
        self.scaler.scale(loss).backward()
        for name, value in {**part, "loss": loss}.items():
            losses[name] = losses[name] + value.detach() if name in losses else value.detach()

    def optimizer_step(self, losses: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Take the optimizer's step, on the gradients of all parts and ranks.

        Args:
            losses: this rank's share of them.
            step: number of this step, from 0, for the learning rate.

        Returns:
            The losses of the whole batch, and the norm of its gradient.

        Raises:
            NotFiniteError: on a CPU, where loss or gradient is not finite; nothing has moved. In
                float16 an infinite gradient is an error only once the scale of the loss is below 1.
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
        # GradScaler finds its scale by letting some steps overflow, and halves it at each; below 1
        # the gradients themselves are not finite, and it would skip all later steps in silence
        seeking = self.scaler.is_enabled() & (self.scaler.scale(norm.new_ones(())) >= 1)
        watched = torch.where(seeking, norm.nan_to_num(), norm)
        self.finite_check.note(step, {**losses, "grad_norm": watched})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {**losses, "grad_norm": norm}


def load_learner(run: Run, device: torch.device) -> Learner:
    """Return the learner of a run's newest checkpoint.

    Args:
        run: its configuration and classes say what to build.
        device: device of the networks.

    Raises:
        UserError: the run has no checkpoint, or one of another configuration.
    """
    learner = Learner(run.config.bare(), len(run.classes), device)
    learner.load_state_dict(run.newest_checkpoint(device)["learner"])
    return learner
