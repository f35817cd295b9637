"""Cross-entropies, pseudo-labels, and what the density estimator is trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.data.augment import mix
from ddfp_lib.data.loaders import Batch
from ddfp_lib.models.maps import resize_nearest, to_rows
from ddfp_lib.ranks import first_of_next, total


def cross_entropy(logits: Tensor, labels: Tensor, pixels: "PixelCounts | None" = None) -> Tensor:
    """Mean cross-entropy over pixels that have a label, in nats; 0 where none has.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64, ``IGNORE_INDEX`` where there is none.
        pixels: of the whole batch, of which these are a part; without it these are all.
    """
    summed = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    count = (labels != IGNORE_INDEX).sum() if pixels is None else pixels.labeled
    return summed / count.clamp(min=1)


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels of the whole batch, of all ranks, the losses are means over.

    A rank that divides its sums by these counts has its share of the losses: the shares of all
    ranks and of all their parts add up to what one process would have computed.

    Attributes:
        labeled: pixels of labeled images that have a label; 0-d int64, as the others.
        valid: pixels of unlabeled images that are no padding.
        confident: those of them that have a pseudo-label. CutMix changes neither number: in the
            batch as a whole it only moves pixels.
    """

    labeled: Tensor
    valid: Tensor
    confident: Tensor

    @classmethod
    def of(cls, labels: Tensor, pseudo: "PseudoLabels | None" = None) -> "PixelCounts":
        """Count this rank's pixels and add those of the others.

        Args:
            labels: (B, H, W) int64, of the labeled images.
            pseudo: of the unlabeled images; none in a supervised step.
        """
        counts = [(labels != IGNORE_INDEX).sum()] * 3
        if pseudo is not None:
            counts[1:] = pseudo.valid.sum(), pseudo.confident.sum()
        return cls(*total(torch.stack(counts)))


@dataclass(frozen=True)
class PseudoLabels:
    """What the teacher believes of unlabeled images.

    Attributes:
        labels: (B, H, W) int64, ``IGNORE_INDEX`` where the teacher is not confident or no image is.
        valid: (B, H, W) bool, False in padding.
    """

    labels: Tensor
    valid: Tensor

    @classmethod
    def of(cls, logits: Tensor, valid: Tensor, confidence: float) -> "PseudoLabels":
        """Keep the most probable class where its probability exceeds ``confidence``.

        Args:
            logits: (B, K, H, W) float, the teacher's.
            valid: (B, H, W) bool.
            confidence: threshold in [0, 1].
        """
        probability, labels = logits.float().softmax(dim=1).max(dim=1)
        return cls(labels.where((probability > confidence) & valid, IGNORE_INDEX), valid)

    def mixed(self, box: Tensor) -> "PseudoLabels":
        """Apply CutMix's box (H, W) to labels and valid area alike."""
        return PseudoLabels(mix_over_ranks(self.labels, box), mix_over_ranks(self.valid, box))

    def chunk(self, count: int) -> list["PseudoLabels"]:
        """Cut into ``count`` parts of B / ``count`` images, as ``Tensor.chunk``."""
        parts = zip(self.labels.chunk(count), self.valid.chunk(count), strict=True)
        return [PseudoLabels(*part) for part in parts]

    def at(self, size: torch.Size) -> "PseudoLabels":
        """Return the same at a feature map's size (h, w)."""
        valid = resize_nearest(self.valid, size) == 1
        return PseudoLabels(resize_nearest(self.labels, size), valid)

    @property
    def confident(self) -> Tensor:
        """Which pixels have a pseudo-label: (B, H, W) bool."""
        return self.labels != IGNORE_INDEX

    def cross_entropy(self, logits: Tensor, mean: str, pixels: PixelCounts | None = None) -> Tensor:
        """Cross-entropy against the pseudo-labels, in nats; 0 where there are none.

        Args:
            logits: (B, K, H, W) float, the student's.
            mean: divide the sum over confident pixels by the number of ``valid`` pixels (as
                UniMatch) or of ``confident`` ones (as the release).
            pixels: of the whole batch, of which these are a part; without it these are all.
        """
        summed = nn.functional.cross_entropy(
            logits, self.labels, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        if pixels is None:
            count = (self.valid if mean == "valid" else self.confident).sum()
        else:
            count = pixels.valid if mean == "valid" else pixels.confident
        return summed / count.clamp(min=1)

    def coverage(self) -> Tensor:
        """Return the part of valid pixels that have a pseudo-label."""
        return self.confident.sum() / self.valid.sum().clamp(min=1)


def mix_over_ranks(batch: Tensor, box: Tensor) -> Tensor:
    """Apply CutMix's box (H, W) to the batch of all ranks: the last image meets the next rank's.

    Args:
        batch: this rank's share, (B, ..., H, W), images, labels or masks alike.
        box: bool (H, W), the same on every rank.
    """
    return mix(torch.cat([batch, first_of_next(batch)]), box)[:-1]


def density_training_data(
    described: Tensor,
    batch: Batch,
    pseudo: Tensor | None = None,
    *,
    void: str = "unlabeled",
) -> tuple[Tensor, Tensor]:
    """Turn the teacher's features into the rows that the density estimator learns from.

    Padding is left out, of labeled and of unlabeled images: it shows nothing, and a flow that
    learned it would hold black areas for the densest features of all.

    Args:
        described: (B + U, D, h, w) float, of the labeled and then the weak images.
        batch: those images, with labels and valid areas.
        pseudo: (U, H, W) int64, pseudo-labels that teach classes too; none where ``IGNORE_INDEX``.
        void: what becomes of pixels of labeled images that show something and have no class:
            ``unlabeled`` rows, or ``dropped`` as released (train_ddfp_pascal.py:473).

    Returns:
        (N, D) float and (N,) int64: class, or ``UNLABELED``.
    """
    if pseudo is None:
        pseudo = torch.full_like(batch.valid, IGNORE_INDEX, dtype=batch.labels.dtype)
    size = described.shape[2:]
    classes = resize_nearest(torch.cat([batch.labels, pseudo]), size)
    learned = resize_nearest(torch.cat([batch.labeled_valid, batch.valid]), size) == 1
    if void == "dropped":
        learned[: len(batch.labels)] &= classes[: len(batch.labels)] != IGNORE_INDEX
    known = classes.where(classes != IGNORE_INDEX, UNLABELED)[learned]
    return to_rows(described)[learned.flatten()], known
