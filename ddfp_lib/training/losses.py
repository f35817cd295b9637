"""Cross-entropies, pseudo-labels, and what the density estimator is trained on."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.data.loaders import Batch
from ddfp_lib.method.rows import draw_counted
from ddfp_lib.models.maps import resize_nearest, to_rows
from ddfp_lib.ranks import total, world_size
from ddfp_lib.training.views import CutMix


def cross_entropy(logits: Tensor, labels: Tensor, pixels: "PixelCounts | None" = None) -> Tensor:
    """Mean cross-entropy over pixels that have a label, in nats; 0 where none has.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64, ``IGNORE_INDEX`` where there is none.
        pixels: counts over the whole batch, of which these images are a part; None: they are all.
    """
    count = (labels != IGNORE_INDEX).sum() if pixels is None else pixels.labeled
    return _mean(logits, labels, count)


def _mean(logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Return the summed cross-entropy divided by a count, 0-d.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64.
        count: pixels, 0-d; or (B,), with which the sum of each image is divided by its own.
    """
    # on GPUs PyTorch has no deterministic kernel of the sum itself
    apart = logits.is_cuda and torch.are_deterministic_algorithms_enabled()
    if count.dim() == 0 and not apart:
        summed = nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return summed / count.clamp(min=1)
    each = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    if count.dim() == 0:
        return each.sum() / count.clamp(min=1)
    return (each.sum((1, 2)) / count.clamp(min=1)).sum()


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    threshold: float,
    pixels: int,
    images: int,
    groups: int | None = None,
) -> Tensor:
    r"""Mean cross-entropy over hard pixels (online hard example mining), in nats.

    .. math:: \frac1G \sum_{g=1}^{G} \frac{1}{|H_g|} \sum_{i \in H_g} - \log p_i, \qquad
        H_g = \{ i \in g : p_i \le \max(t, p_{(k)}) \}

    with :math:`p_i` the probability of the true class and :math:`p_{(k)}` the k-th smallest one of
    the group. So all pixels with a probability of at most t count, and at least k of them.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64, ``IGNORE_INDEX`` where there is none.
        threshold: t, a probability.
        pixels: k; where a group has fewer labeled pixels, all of them count.
        images: size of a group: consecutive images that are one GPU's batch in the original.
        groups: G, of the whole batch, of which these are a part; ``None``: these are all.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example
    Mining, CVPR 2016; for Cityscapes in U2PL (t = 0.7, k = 100,000) and UniMatch (k = 200,000).
    """
    each = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    labeled = (labels != IGNORE_INDEX).view(-1, images * labels[0].numel())
    each = each.view_as(labeled)
    with torch.no_grad():
        probability = (-each).exp().where(labeled, torch.inf)
        smallest = probability.kthvalue(min(pixels, labeled.shape[1]), dim=1, keepdim=True).values
        hard = labeled & (probability <= smallest.clamp(min=threshold))
    means = each.where(hard, 0.0).sum(1) / hard.sum(1).clamp(min=1)
    return means.sum() / (groups or len(means))


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels of the whole batch, of all ranks, the losses are means over.

    A rank that divides its sums by these counts has its share of the losses: the shares of all
    ranks and of all their micro-batches add up to what one process would have computed. With
    ``method.shares`` the losses are means over shares of means over pixels: then there is one
    number for each image, the pixels of its share times the number of shares.

    Attributes:
        labeled: pixels of labeled images that have a label; int64, 0-d or (B,).
        valid: pixels of strong views that are not padding; 0-d or (U,).
        confident: those of them that have a pseudo-label; 0-d or (U,).
        coverage: fraction of valid pixels with a pseudo-label, 0-d float.
    """

    labeled: Tensor
    valid: Tensor
    confident: Tensor
    coverage: Tensor

    @classmethod
    def of(
        cls, labels: Tensor, pseudo: "PseudoLabels | None" = None, shares: int = 1
    ) -> "PixelCounts":
        """Count this rank's pixels and add those of the others.

        Args:
            labels: (B, H, W) int64, of the labeled images.
            pseudo: pseudo-labels of the unlabeled images, after CutMix; none in a supervised step.
            shares: number of shares of all ranks together; 1: losses are means over the batch.
        """
        areas = [labels != IGNORE_INDEX, *[torch.zeros_like(labels, dtype=torch.bool)] * 2]
        if pseudo is not None:
            areas[1:] = pseudo.valid, pseudo.confident
        counts = total(torch.stack([area.sum() for area in areas]))
        coverage = counts[2] / counts[1].clamp(min=1)
        if shares == 1:
            return cls(*counts, coverage)
        local = shares // world_size()
        return cls(*(shares * _share_counts(area, local) for area in areas), coverage)

    def halves(self) -> "PixelCounts":
        """Return the counts of labeled images 0, 2, 4, ... and then 1, 3, 5, ..."""
        if self.labeled.dim() == 0:
            return self
        labeled = torch.cat([self.labeled[0::2], self.labeled[1::2]])
        return dataclasses.replace(self, labeled=labeled)

    def chunk(self, count: int) -> list["PixelCounts"]:
        """Cut what is of single images into ``count`` parts, as ``Tensor.chunk``."""
        parts = (
            [each] * count if each.dim() == 0 else each.chunk(count)
            for each in (self.labeled, self.valid, self.confident)
        )
        return [PixelCounts(*each, self.coverage) for each in zip(*parts, strict=True)]


def _share_counts(area: Tensor, shares: int) -> Tensor:
    """Return for each image of ``area``, bool (B, H, W), the number of True in its share: (B,)."""
    per_share = len(area) // shares
    return area.sum((1, 2)).view(shares, per_share).sum(1).repeat_interleave(per_share)


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo-labels of unlabeled images.

    Attributes:
        labels: (B, H, W) int64, ``IGNORE_INDEX`` in padding and where the teacher is not confident.
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
        """Apply the CutMix box (H, W) of a batch to labels and valid area alike."""
        return self.mapped(CutMix(box))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "PseudoLabels":
        """Apply a function of label maps to labels and valid area alike."""
        return PseudoLabels(function(self.labels), function(self.valid))

    def chunk(self, count: int) -> list["PseudoLabels"]:
        """Cut into ``count`` parts of B / ``count`` images, as ``Tensor.chunk``."""
        parts = zip(self.labels.chunk(count), self.valid.chunk(count), strict=True)
        return [PseudoLabels(*part) for part in parts]

    def at(self, size: torch.Size) -> "PseudoLabels":
        """Return these pseudo-labels resized to (h, w) by nearest neighbor."""
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
            pixels: counts over the whole batch, of which these images are a part; None: they
                are all.
        """
        if pixels is None:
            count = (self.valid if mean == "valid" else self.confident).sum()
        else:
            count = pixels.valid if mean == "valid" else pixels.confident
        return _mean(logits, self.labels, count)

    def coverage(self) -> Tensor:
        """Return the fraction of valid pixels with a pseudo-label."""
        return self.confident.sum() / self.valid.sum().clamp(min=1)


def density_pixels(
    teacher_features: Tensor,
    batch: Batch,
    pseudo: Tensor | None = None,
    *,
    void: str = "unlabeled",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's features as rows, and which of them the density estimator learns from.

    Padding is left out, of labeled and of unlabeled images: it shows nothing, and a flow that
    learned it would hold black areas for the densest features of all.

    Args:
        teacher_features: v or F of the teacher, (B + U, D, h, w) float, of the labeled and then the
            weak images.
        batch: those images, with labels and valid areas.
        pseudo: (U, H, W) int64, pseudo-labels that teach classes too; none where ``IGNORE_INDEX``.
        void: what becomes of pixels of labeled images that show something and have no class:
            ``unlabeled`` rows, or ``dropped`` as released (train_ddfp_pascal.py:473).

    Returns:
        All N = (B + U) h w rows: (N, D) float; (N,) int64, class or ``UNLABELED``; and which rows
        the estimator learns, (N,) bool.
    """
    if pseudo is None:
        pseudo = torch.full_like(batch.valid, IGNORE_INDEX, dtype=batch.labels.dtype)
    size = teacher_features.shape[2:]
    classes = resize_nearest(torch.cat([batch.labels, pseudo]), size)
    learned = resize_nearest(torch.cat([batch.labeled_valid, batch.valid]), size) == 1
    if void == "dropped":
        learned[: len(batch.labels)] &= classes[: len(batch.labels)] != IGNORE_INDEX
    known = classes.where(classes != IGNORE_INDEX, UNLABELED).flatten()
    return to_rows(teacher_features), known, learned.flatten()


def density_training_data(
    teacher_features: Tensor,
    batch: Batch,
    pseudo: Tensor | None = None,
    *,
    void: str = "unlabeled",
) -> tuple[Tensor, Tensor]:
    """Turn the teacher's features into the rows that the density estimator learns from.

    Arguments as of :func:`density_pixels`. On a GPU the host waits to learn how many rows there
    are; training does without, see :func:`density_rows`.

    Returns:
        (N, D) float and (N,) int64: class, or ``UNLABELED``.
    """
    rows, known, learned = density_pixels(teacher_features, batch, pseudo, void=void)
    chosen = learned.nonzero()[:, 0]
    return rows[chosen], known[chosen]


def density_rows(
    teacher_features: Tensor,
    batch: Batch,
    pseudo: Tensor | None = None,
    *,
    void: str = "unlabeled",
    shares: int | None,
    samples: int,
    generator: torch.Generator,
    wait: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the rows for one step of the density estimator.

    With shares the rows are drawn here, from each share alone: the release draws 20,480 rows on
    each of its 4 GPUs (train_ddfp_pascal.py:478).

    Args:
        teacher_features: as for :func:`density_pixels`, (B + U, D, h, w) float.
        batch: those images.
        pseudo: (U, H, W) int64, or ``None``.
        void: what becomes of pixels of labeled images that show something and have no class:
            ``unlabeled``: rows without a class; ``dropped``: the estimator does not learn them.
        shares: number of shares on this rank; ``None``: nothing is drawn here.
        samples: rows of a share at most; all where it has fewer.
        generator: draws them.
        wait: for the device, to learn how many rows there are; without it some do not count.

    Returns:
        (N, D) float; (N,) int64, class or ``UNLABELED``; and which rows count, (N,) bool, or
        ``None`` if all do.
    """
    if shares is None:
        if wait:
            return *density_training_data(teacher_features, batch, pseudo, void=void), None
        return density_pixels(teacher_features, batch, pseudo, void=void)
    labeled = len(batch.labels)
    parts = zip(
        teacher_features[:labeled].chunk(shares),
        teacher_features[labeled:].chunk(shares),
        batch.chunk(shares),
        [None] * shares if pseudo is None else pseudo.chunk(shares),
        strict=True,
    )
    drawn = []
    for with_labels, without, images, pseudo_part in parts:
        both = torch.cat([with_labels, without])
        if wait:
            rows, known = density_training_data(both, images, pseudo_part, void=void)
            order = torch.randperm(len(rows), generator=generator, device=generator.device)
            chosen = order[:samples].to(rows.device)
            counted = torch.ones_like(chosen, dtype=torch.bool)
        else:
            rows, known, learned = density_pixels(both, images, pseudo_part, void=void)
            chosen, counted = draw_counted(learned, samples, generator)
        drawn.append((rows[chosen], known[chosen], counted))
    rows, known, counted = (torch.cat(each) for each in zip(*drawn, strict=True))
    return rows, known, None if wait else counted
