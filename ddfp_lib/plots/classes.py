"""Classes as colors: maps of classes, and the legend that names their colors."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ddfp_lib.constants import IGNORE_INDEX

VOID = (255, 255, 255)
"""Color of ignored pixels."""


def colourise(labels: Tensor, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Turn class indices (H, W) into colors (H, W, 3) uint8; ignored pixels are white."""
    table = torch.full((256, 3), 255, dtype=torch.uint8)
    table[: len(palette)] = torch.tensor(palette, dtype=torch.uint8)
    table[IGNORE_INDEX] = torch.tensor(VOID, dtype=torch.uint8)
    return table[labels.long()].numpy()


def class_legend(
    figure: Figure,
    masks: Sequence[Tensor],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Name the colors of the classes that occur, below the pictures.

    Args:
        figure: with a constrained layout.
        masks: (H, W) integers; ignored pixels are left out.
        classes: K names.
        palette: their K colors, 0..255.
    """
    present = sorted({int(v) for mask in masks for v in mask.unique()} - {IGNORE_INDEX})
    handles = [
        Patch(facecolor=np.array(palette[k]) / 255, edgecolor="0.5", label=classes[k])
        for k in present
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8
    )
