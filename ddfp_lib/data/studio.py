"""Label Studio's export "Brush labels to PNG": a file for each label of each image."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ddfp_lib.data.labels import index_labels
from ddfp_lib.errors import UserError

STUDIO = re.compile(
    r"task-(?P<task>\d+)-annotation-(?P<annotation>\w+)-by-[^-]*-[^-]+-(?P<label>.+)-\d+"
)
"""How Label Studio names a file: who drew it (number, address or nobody), the name of the labels in
the project's settings, one label or several, and a number."""


def studio(
    files: Sequence[Path], classes: Sequence[str], values: Callable[[Path], np.ndarray]
) -> tuple[list[str], dict[str, Callable[[], np.ndarray]]]:
    """Put the files of each image together.

    Args:
        files: mask files of the export, at least one.
        classes: names in the order of the indices; empty for ``background``, where no label is,
            and the labels in alphabetical order.
        values: reads a file, integers (H, W), above 0 where the label is.

    Returns:
        Names of the classes; and what makes each mask, uint8 (H, W), by ``task-N``: the export does
        not name the images.

    Raises:
        UserError: a file that is named otherwise, as :func:`index_labels`, or a task
            that two people annotated. When a mask is made: labels that overlap, or of other sizes.
    """
    parts: dict[str, list[tuple[str, Path]]] = {}
    by: dict[str, str] = {}
    for path in files:
        match = STUDIO.fullmatch(path.stem)
        if match is None:
            raise UserError(f"{path}: is not named as Label Studio names masks")
        task, annotation = f"task-{match['task']}", match["annotation"]
        if by.setdefault(task, annotation) != annotation:
            raise UserError(
                f"{path}: {task} has the annotations {by[task]} and {annotation}; keep the files "
                "of one"
            )
        parts.setdefault(task, []).append((match["label"], path))
    labels = sorted({label for found in parts.values() for label, _ in found}, key=str.strip)
    names, indices = index_labels(labels, classes, "background", files[0].parent)

    def read(found: list[tuple[str, Path]]) -> np.ndarray:
        mask: np.ndarray | None = None
        # the background last, so that every overlap with it is seen
        for label, path in sorted(found, key=lambda part: indices[part[0]] == 0):
            region = values(path) > 0
            if mask is None:
                mask = np.zeros(region.shape, dtype=np.uint8)
            if region.shape != mask.shape:
                raise UserError(f"{path}: has another size than the other labels of its image")
            index = indices[label]
            if (mask[region & (mask != index)] != 0).any():
                raise UserError(
                    f"{path}: overlaps another label of its image; a pixel has one class: correct "
                    "the regions in Label Studio"
                )
            mask[region] = index
        return mask

    return names, {task: lambda found=found: read(found) for task, found in parts.items()}
