"""The data set and the split that a configuration names."""

from pathlib import Path

from ddfp_lib.config import Config
from ddfp_lib.data import open_dataset
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.splits import make_split, read_split


def data_of(config: Config, subset: str) -> SegmentationDataset:
    """Open a subset (``train``, ``val`` or ``test``) of the configured data set."""
    data = config.data
    return open_dataset(data.dataset, subset, root=data.root, digits=data.digits, size=data.size)


def split_of(config: Config, dataset: SegmentationDataset) -> tuple[list[int], list[int]]:
    """Return the indices of the labeled and of the unlabeled training images.

    Raises:
        UserError: a list is missing, empty or names unknown images; or a count does not fit.
    """
    data = config.data
    if not str(data.labeled).endswith(".txt"):
        return make_split(dataset, data.labeled, data.split_seed)
    root = Path(data.root or "")
    unlabeled = None if data.unlabeled is None else root / data.unlabeled
    return read_split(dataset, root / str(data.labeled), unlabeled)
