"""The features of a data set's first images, each with its class."""

from collections.abc import Iterator

from torch import Tensor

from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import evaluation_batches
from ddfp_lib.evaluation.prediction import cut_to_memory
from ddfp_lib.models.maps import at_centres
from ddfp_lib.models.network import SegmentationNetwork


def labeled_features(
    network: SegmentationNetwork, dataset: SegmentationDataset, images: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of the first images of a data set, and the class at each one's center.

    Args:
        network: in evaluation mode.
        dataset: images with masks.
        images: number of images, or all if there are fewer.
        batch_size: greatest number of images at a time; on a GPU fewer of large ones.

    Yields:
        F (B, C, h, w) float, and classes (B, h, w) int64, ``IGNORE_INDEX`` where there is none.
    """
    device = next(network.parameters()).device
    first = range(min(images, len(dataset)))
    for batch in evaluation_batches(dataset, batch_size, first):
        for pictures, masks in cut_to_memory(*batch, device):
            features = network.encode(pictures.to(device) / 255)
            yield features, at_centres(masks.to(device), features.shape[2:])
