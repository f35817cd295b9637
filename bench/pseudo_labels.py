"""Which classes get pseudo-labels, and how many of them are right?

    .venv/bin/python -m bench.pseudo_labels RUN [RUN ...] --data DIR

The teachers of finished runs label the unlabeled training images, as in training: a pixel gets a
pseudo-label if its highest probability exceeds ``training.confidence``. The images are not
augmented, and the teacher is the one after the last step. The table has one row for each class:
the fraction of the pixels that have this class, the fraction of the pseudo-labels that have it, the
precision (the fraction of its pseudo-labels that are right) and the recall (the fraction of its
pixels that get a pseudo-label of this class). All are means over the runs, in percent.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.scores import confusion_matrix
from ddfp_lib.models.inference import answering
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of, split_of
from ddfp_lib.training.learner import load_learner

COLUMNS = ["pixels", "pseudo-labels", "precision", "recall"]


@torch.inference_mode()
def count(
    network: SegmentationNetwork,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    confidence: float,
) -> tuple[Tensor, Tensor]:
    """Count true classes, and pairs of true class and pseudo-label.

    Args:
        network: on the CPU.
        dataset: images with masks.
        indices: images to label.
        confidence: threshold of a pseudo-label, in [0, 1].

    Returns:
        Pixels of each class, (K,) int64; pixels of true class (row) with a pseudo-label of a class
        (column), (K, K) int64.
    """
    classes = len(dataset.classes)
    pixels, pairs = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, classes).long()
    with answering(network) as answer:
        for index in indices:
            probability, labels = answer(dataset.image(index)[None] / 255).softmax(1)[0].max(0)
            mask = dataset.mask(index).long()
            pixels += torch.bincount(mask[mask != IGNORE_INDEX], minlength=classes)
            sure = mask.masked_fill(probability <= confidence, IGNORE_INDEX)
            pairs += confusion_matrix(labels, sure, classes)
    return pixels, pairs


def table(pixels: Tensor, pairs: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Return :data:`COLUMNS` in percent, a row for each class; NaN where nothing was counted.

    Args:
        pixels: (K,) of :func:`count`.
        pairs: (K, K) of :func:`count`.
        classes: (K,) names.
    """
    right, given = pairs.diag().double(), pairs.sum(0).double()
    parts = [pixels / pixels.sum(), given / given.sum(), right / given, right / pixels]
    return pd.DataFrame(100 * torch.stack(parts, dim=1).numpy(), index=classes, columns=COLUMNS)


def measure(folder: Path, data: Path | None, images: int) -> pd.DataFrame:
    """Measure one run.

    Args:
        folder: of a finished run.
        data: folder of its data set; digit scenes need none.
        images: largest number of unlabeled images, evenly spaced.

    Raises:
        UserError: this is not the folder of a run, or it has no unlabeled images.
    """
    run = Run.open(folder)
    config = run.config.at(data)
    training = data_of(config, "train")
    _, unlabeled = split_of(config, training)
    if not unlabeled:
        raise UserError(f"{folder}: all of its training images are labeled; give another run")
    some = unlabeled[:: -(-len(unlabeled) // images)]
    teacher = load_learner(run, torch.device("cpu")).teacher
    return table(*count(teacher, training, some, config.training.confidence), training.classes)


def main() -> None:
    """Measure the runs and print the table."""
    parser = argparse.ArgumentParser(description="Pseudo-labels of each class.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument("--images", type=int, default=100, help="unlabeled images of each run")
    asked = parser.parse_args()
    if asked.images < 1:
        parser.error(f"--images {asked.images}: use 1 or more")
    torch.set_num_threads(1)
    measured = []
    for folder in asked.runs:
        try:
            measured.append(measure(folder, asked.data, asked.images))
        except UserError as error:
            parser.error(str(error))
        print(f"{folder}: measured", flush=True)
    means = pd.concat(measured).groupby(level=0, sort=False).mean()
    print(means.round(1).to_string())


if __name__ == "__main__":
    main()
