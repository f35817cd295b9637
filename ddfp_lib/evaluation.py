"""How good a segmentation is: confusion matrix, IoU, and how far pseudo-labels can be trusted."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.models.network import SegmentationNetwork, evaluating


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
    confidence: float = 0.95,
    batch_size: int = 16,
) -> Evaluation:
    """Segment every image of a data set, whole and at single scale, and count.

    Args:
        network: put into evaluation mode for the time being.
        dataset: images with masks; each image counts once.
        device: where ``network`` is.
        confidence: threshold of a pseudo-label, in [0, 1].
        batch_size: images at a time, where they are of one size.
    """
    classes = len(dataset.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    confident = right = 0
    with evaluating(network):
        for images, masks in evaluation_batches(dataset, batch_size):
            masks = masks.to(device)
            probability, labels = network(images.to(device) / 255).softmax(dim=1).max(dim=1)
            confusion += multiclass_confusion_matrix(
                labels, masks, classes, ignore_index=IGNORE_INDEX
            ).cpu()
            sure = (probability > confidence) & (masks != IGNORE_INDEX)
            confident += int(sure.sum())
            right += int((sure & (labels == masks)).sum())
    return Evaluation(confusion, confident, right)
