"""Which images a run has seen, as a few digits."""

import hashlib
import json
from collections.abc import Sequence

from ddfp_lib.data.base import SegmentationDataset


def data_digest(
    training: SegmentationDataset,
    labeled: Sequence[int],
    unlabeled: Sequence[int],
    validation: SegmentationDataset,
) -> str:
    """Return eight hexadecimal digits that name the images of a run, cheaply.

    They change with the name of an image, the size of its file, the order of the lists, and with
    an image's being labeled. No file is opened: that every pixel is right is the business of
    ``ddfp data verify``.
    """
    lists = {
        "labeled": [(training.names[i], training.file_size(i)) for i in labeled],
        "unlabeled": [(training.names[i], training.file_size(i)) for i in unlabeled],
        "validation": [(name, validation.file_size(i)) for i, name in enumerate(validation.names)],
    }
    return hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:8]
