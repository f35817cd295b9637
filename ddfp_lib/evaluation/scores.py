"""How good a segmentation is: confusion matrix, IoU, and how far pseudo-labels can be trusted."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.models.network import SegmentationNetwork, evaluating
from ddfp_lib.ranks import rank, total, world_size

PIXELS = 2**20
"""Most pixels that are segmented at a time, but for a single image that has more."""


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
        """Part of the labeled pixels that would get a pseudo-label."""
        return self.confident / max(1, self.pixels)

    @property
    def precision(self) -> float:
        """Part of these pseudo-labels that would be right; NaN where there are none."""
        return self.confident_right / self.confident if self.confident else float("nan")


@torch.inference_mode()
def evaluate(
    network: SegmentationNetwork,
    dataset: SegmentationDataset,
    *,
    device: torch.device,
    protocol: str = "whole",
    confidence: float = 0.95,
    batch_size: int = 16,
) -> Evaluation:
    """Segment every image of a data set at single scale, and count.

    Where several processes train together, all of them call this: each segments every so manieth
    image, and the counts are added. No image is there twice to make the shares equal.

    Args:
        network: put into evaluation mode for the time being.
        dataset: images with masks; each image counts once.
        device: where ``network`` is.
        protocol: see :class:`~ddfp_lib.data.protocol.Protocol`.
        confidence: threshold of a pseudo-label, in [0, 1].
        batch_size: images at a time, where they are of one size.

    Raises:
        UserError: the protocol is unknown, or an image or mask cannot be read.
    """
    rule, classes = Protocol.parse(protocol), len(dataset.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    sure_and_right = torch.zeros(2, dtype=torch.int64)
    mine = range(rank(), len(dataset), world_size())
    with evaluating(network):
        for images, masks in _small(evaluation_batches(dataset, batch_size, mine)):
            images, masks = rule.prepare(images, masks)
            masks = masks.to(device)
            scores = rule.probabilities(network, images.to(device) / 255)
            probability, labels = scores.max(dim=1)
            confusion += multiclass_confusion_matrix(
                labels, masks, classes, ignore_index=IGNORE_INDEX
            ).cpu()
            sure = (probability > confidence) & (masks != IGNORE_INDEX)
            sure_and_right += torch.stack([sure.sum(), (sure & (labels == masks)).sum()]).cpu()
    confident, right = total(sure_and_right).tolist()
    return Evaluation(total(confusion), confident, right)


def _small(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut batches of large images into smaller ones, of at most ``PIXELS`` where possible."""
    for images, masks in batches:
        count = max(1, PIXELS // masks[0].numel())
        yield from zip(images.split(count), masks.split(count), strict=True)
