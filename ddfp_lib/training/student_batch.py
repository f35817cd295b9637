"""What the student learns from in one step: images, views and their pseudo-labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddfp_lib.training.learner import Learner, Stage
from ddfp_lib.training.losses import PixelCounts, PseudoLabels
from ddfp_lib.training.views import strong_views


@dataclass(frozen=True)
class StudentBatch:
    """What the student learns from in a step, or in a micro-batch of it.

    Attributes:
        images: labeled images, (B, 3, H, W) float in [0, 1].
        labels: (B, H, W) int64.
        strong: strong views, (V U, 3, H, W); the V views of an image are neighbors.
        target: their pseudo-labels.
        counts: pixels that the losses of labeled images and strong views are means over.
        extra: weak views, (U, 3, H, W), where features of those are perturbed, else none.
        moved_target, moved_counts: the same of the perturbed features.
    """

    images: Tensor
    labels: Tensor
    strong: Tensor
    target: PseudoLabels
    counts: PixelCounts
    extra: Tensor
    moved_target: PseudoLabels
    moved_counts: PixelCounts

    def chunk(self, count: int) -> list["StudentBatch"]:
        """Cut into ``count`` parts with the same number of images each, as ``Tensor.chunk``."""
        parts = zip(*(each.chunk(count) for each in vars(self).values()), strict=True)
        return [StudentBatch(*part) for part in parts]


def student_batch(
    learner: Learner,
    labeled: Tensor,
    labels: Tensor,
    weak: Tensor,
    pseudo: PseudoLabels,
    stage: Stage,
    host: torch.Generator,
) -> StudentBatch:
    """Draw the strong views of a batch and apply their CutMix to the pseudo-labels.

    Args:
        learner: its configuration is used.
        labeled: (B, 3, H, W) float in [0, 1].
        labels: (B, H, W) int64.
        weak: (U, 3, H, W) float in [0, 1].
        pseudo: pseudo-labels of the weak views.
        stage: stage of the schedule.
        host: generator of the views.
    """
    method = learner.config.method
    views = [
        (view, pseudo.mapped(cutmix)) for view, cutmix in strong_views(learner.config, weak, host)
    ]
    strong = torch.stack([view for view, _ in views], dim=1).flatten(0, 1)
    target = PseudoLabels(
        torch.stack([mixed.labels for _, mixed in views], dim=1).flatten(0, 1),
        torch.stack([mixed.valid for _, mixed in views], dim=1).flatten(0, 1),
    )
    counts = PixelCounts.of(labels, target, method.shares)
    if method.perturbed_view == "strong" or not stage.perturb:
        of_moved = weak[:0], target, counts
    else:
        of_moved = weak, pseudo, PixelCounts.of(labels, pseudo, method.shares)
    return StudentBatch(labeled, labels, strong, target, counts, *of_moved)
