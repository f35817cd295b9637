"""Scores of a segmentation: confusion matrix, IoU, and coverage and precision of pseudo-labels."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import batches_of_one_size, read_ahead
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.evaluation.prediction import BATCH, pixels_at_a_time
from ddfp_lib.models.inference import answering
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.ranks import rank, total, world_size


@dataclass(frozen=True)
class Evaluation:
    """Counts from one pass over a data set, and what follows from them.

    Attributes:
        confusion: (K, K) int64, pixels of true class (row) predicted as class (column).
        confident: pixels whose highest probability exceeds the threshold.
        confident_right: those of them that are right.
    """

    confusion: Tensor
    confident: int
    confident_right: int

    @property
    def pixels(self) -> int:
        """Number of pixels with a label."""
        return int(self.confusion.sum())

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class in percent, (K,) float64; NaN where absent."""
        hits = self.confusion.diag().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return 100 * hits / union

    @property
    def miou(self) -> float:
        """Mean IoU in percent over the classes that occur in labels or predictions."""
        return float(self.iou.nanmean())

    @property
    def coverage(self) -> float:
        """Fraction of the labeled pixels that would get a pseudo-label."""
        return self.confident / max(1, self.pixels)

    @property
    def precision(self) -> float:
        """Fraction of these pseudo-labels that would be right; NaN where there are none."""
        return self.confident_right / self.confident if self.confident else float("nan")


def evaluate(
    network: SegmentationNetwork,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    protocol: str = "whole",
    confidence: float = 0.95,
    batch_size: int = BATCH,
) -> Evaluation:
    """Segment every image of a data set at single scale, and count; see :func:`evaluate_all`."""
    (found,) = evaluate_all(
        [network],
        dataset,
        device=device,
        protocol=protocol,
        confidence=confidence,
        batch_size=batch_size,
    )
    return found


@torch.inference_mode()
def evaluate_all(
    networks: Sequence[SegmentationNetwork],
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    protocol: str = "whole",
    confidence: float = 0.95,
    batch_size: int = BATCH,
) -> list[Evaluation]:
    """Segment every image of a data set by several networks, and count; each file is read once.

    Where several processes train together, all of them call this: each segments its share of the
    images, and the counts are added. Every image counts once.

    Args:
        networks: put into evaluation mode for the time being.
        dataset: images with masks.
        device: device that ``networks`` are on.
        protocol: see :class:`~ddfp_lib.data.protocol.Protocol`.
        confidence: threshold of a pseudo-label, in [0, 1].
        batch_size: largest number of images at a time; they must have one size.

    Returns:
        The counts of each network.

    Raises:
        UserError: the protocol is unknown, or an image or mask cannot be read.
    """
    rule, classes = Protocol.parse(protocol), len(dataset.classes)
    confusions = torch.zeros(len(networks), classes, classes, dtype=torch.int64)
    sure_and_right = torch.zeros(len(networks), 2, dtype=torch.int64)
    mine = range(rank(), len(dataset), world_size())

    def read(position: int) -> tuple[Tensor, Tensor]:
        return dataset.image(mine[position]), dataset.mask(mine[position])

    batches = batches_of_one_size(
        [dataset.shape(index) for index in mine], batch_size, pixels_at_a_time(device)
    )
    with ExitStack() as modes:
        answers = [modes.enter_context(answering(network)) for network in networks]
        for _, items in read_ahead(read, batches):
            images, masks = (torch.stack(parts) for parts in zip(*items, strict=True))
            images, masks = rule.prepare(images, masks.long())
            images, masks = images.to(device) / 255, masks.to(device)
            labeled = masks != IGNORE_INDEX
            for number, answer in enumerate(answers):
                probability, labels = rule.probabilities(answer, images).max(dim=1)
                # all values are right: labels of a maximum, masks of a reader that checks them
                confusions[number] += confusion_matrix(labels, masks, classes).cpu()
                sure = (probability > confidence) & labeled
                right = sure & (labels == masks)
                sure_and_right[number] += torch.stack([sure.sum(), right.sum()]).cpu()
    confusions, sure_and_right = total(confusions), total(sure_and_right)
    return [
        Evaluation(confusion, *counts)
        for confusion, counts in zip(confusions, sure_and_right.tolist(), strict=True)
    ]


def confusion_matrix(labels: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Count the pixels of each pair of true and predicted class.

    One ``bincount``, as torchvision's reference scripts for segmentation have it. torchmetrics
    counts the same way, and importing it takes two seconds in every process that trains.

    Args:
        labels: predicted classes, integers in 0..K-1, of any shape.
        masks: true classes, integers in 0..K-1 or ``IGNORE_INDEX``, of the same shape.
        classes: number of classes K.

    Returns:
        (K, K) int64; row: true class, column: predicted class. Ignored pixels are not counted.
    """
    rows = masks.long().clamp(max=classes)  # ignored pixels get a row of their own
    pairs = rows * classes + labels.long()
    counts = torch.bincount(pairs.flatten(), minlength=classes * (classes + 1))
    return counts[: classes**2].view(classes, classes)
