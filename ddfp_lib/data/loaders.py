"""Batches as a function of (seed, step): there is no loader state to save or to lose.

What step 700 sees is computed from the number 700. So a resumed run, a run with other workers and
a run on other ranks see the same images, views and order as one that never stopped.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddfp_lib.data.augment import AugmentConfig, weak_view
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.workers import checked_batches
from ddfp_lib.errors import UserError
from ddfp_lib.machine import usable_cores
from ddfp_lib.seeds import derive_seed, generator

Item = TypeVar("Item")


@dataclass
class Batch:
    """What one rank sees in one step: B labeled and U unlabeled weak views.

    Attributes:
        labeled_images: uint8 (B, 3, h, w).
        labels: int64 (B, h, w), classes or ``IGNORE_INDEX``.
        weak_images: uint8 (U, 3, h, w).
        valid: bool (U, h, w), of the unlabeled views, False in the padding.
        labeled_valid: bool (B, h, w), of the labeled views. Void pixels, which show something and
            have no class, are True.
    """

    labeled_images: Tensor
    labels: Tensor
    weak_images: Tensor
    valid: Tensor
    labeled_valid: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``; from pinned memory the copy runs alongside."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def chunk(self, count: int) -> list["Batch"]:
        """Cut labeled and unlabeled images into ``count`` parts each, as ``Tensor.chunk``."""
        parts = zip(*(tensor.chunk(count) for tensor in vars(self).values()), strict=True)
        return [Batch(*part) for part in parts]

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory; the DataLoader calls this by its name."""
        return Batch(*(tensor.pin_memory() for tensor in vars(self).values()))


def sample_order(count: int, batch_size: int, step: int, seed: int) -> list[tuple[int, int]]:
    """Return what step ``step`` draws from ``count`` items: (item, draw number) pairs.

    The draws of all steps form one line, d = step * batch_size, ...: draw d is item d mod count of
    the permutation of epoch d // count. A batch may cross a border of epochs.

    Args:
        count: number of items, at least 1.
        batch_size: draws in one step.
        step: number of the step, from 0.
        seed: seed of the permutations.

    Returns:
        ``batch_size`` pairs; no draw number ever comes twice.
    """
    draws = range(step * batch_size, (step + 1) * batch_size)
    return [(_permutation(count, seed, d // count)[d % count], d) for d in draws]


def batch_names(
    dataset: SegmentationDataset,
    labeled: Sequence[int],
    unlabeled: Sequence[int],
    *,
    batch_labeled: int,
    batch_unlabeled: int,
    seed: int,
    step: int,
) -> list[str]:
    """Return the names of the images in the global batch of a step, labeled ones first.

    Arguments as of :func:`training_batches`; nothing is read.
    """
    names = []
    for kind, indices, size in (
        ("labeled", labeled, batch_labeled),
        ("unlabeled", unlabeled, batch_unlabeled),
    ):
        order = sample_order(len(indices), size, step, derive_seed(seed, kind))
        names += [dataset.names[indices[item]] for item, _ in order]
    return names


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).tolist()


@dataclass
class _Steps(Dataset):
    """Item ``step`` is the whole batch of that step for one rank, or what is wrong with it.

    Bad input is returned, not raised: an error from a worker would show two tracebacks instead of
    one line.
    """

    dataset: SegmentationDataset
    labeled: Sequence[int]
    unlabeled: Sequence[int]
    augment: AugmentConfig
    batch_labeled: int
    batch_unlabeled: int
    seed: int
    rank: int
    world: int

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self._batch(step)
        except UserError as error:
            return error

    def _batch(self, step: int) -> Batch:
        labeled = [
            weak_view(self.dataset.image(index), self.dataset.mask(index), self.augment, rng)
            for index, rng in self._draws("labeled", self.labeled, self.batch_labeled, step)
        ]
        unlabeled = [
            weak_view(self.dataset.image(index), None, self.augment, rng)
            for index, rng in self._draws("unlabeled", self.unlabeled, self.batch_unlabeled, step)
        ]
        images, labels, labeled_valid = self._stack(labeled)
        weak, _, valid = self._stack(unlabeled)
        return Batch(images, labels.long(), weak, valid, labeled_valid)

    def _draws(
        self, kind: str, indices: Sequence[int], batch_size: int, step: int
    ) -> Iterator[tuple[int, torch.Generator]]:
        """Yield this rank's part of a step: the images' indices and the generators of views."""
        if batch_size == 0:
            return
        order = sample_order(len(indices), batch_size, step, derive_seed(self.seed, kind))
        share = batch_size // self.world
        for item, draw in order[self.rank * share :][:share]:
            yield indices[item], generator(self.seed, kind, "view", draw)

    def _stack(self, views: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, ...]:
        """Stack views, masks and valid areas: (B, 3, h, w) and twice (B, h, w), B = 0 included."""
        if not views:
            none = torch.empty(0, *self.augment.size)
            return torch.empty(0, 3, *self.augment.size).byte(), none.byte(), none.bool()
        return tuple(torch.stack(planes) for planes in zip(*views, strict=True))


def training_batches(
    dataset: SegmentationDataset,
    labeled: Sequence[int],
    unlabeled: Sequence[int],
    augment: AugmentConfig,
    *,
    batch_labeled: int,
    batch_unlabeled: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of steps ``start_step`` .. ``stop_step - 1`` for one rank.

    The global batch is cut contiguously by rank: ``world`` ranks together see what one would.

    Args:
        dataset: masks are read for labeled images only.
        labeled: indices of labeled images.
        unlabeled: indices of unlabeled images; may be empty where ``batch_unlabeled`` is 0.
        augment: augmentation of the weak views.
        batch_labeled: labeled images in the global batch of one step.
        batch_unlabeled: unlabeled ones; 0 trains on labeled images alone.
        seed: seed of order and views.
        start_step: first step, 0 in a new run.
        stop_step: one past the last step.
        rank: this process, 0..world-1.
        world: number of processes.
        workers: processes that make batches ahead, from the first step to the last; 0 makes them
            here. The bits are the same.

    Raises:
        UserError: a batch that ranks cannot share, or one drawn from no images. Later, where the
            batch is asked for: an image or mask cannot be read.
    """
    for kind, indices, size in (
        ("labeled", labeled, batch_labeled),
        ("unlabeled", unlabeled, batch_unlabeled),
    ):
        if size < 0 or size % world:
            raise UserError(f"batch_{kind} {size}: use a multiple of the {world} process(es)")
        if size and not len(indices):
            raise UserError(f"batch_{kind} {size}: there are no {kind} images; use 0 or add some")
    steps = _Steps(
        dataset, labeled, unlabeled, augment, batch_labeled, batch_unlabeled, seed, rank, world
    )
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start_step, stop_step),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=generator(seed, "loader"),  # without it the global one is drawn from
    )
    return checked_batches(loader)


def evaluation_batches(
    dataset: SegmentationDataset, batch_size: int, indices: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images with their masks, in order: consecutive ones of one size share a batch.

    Args:
        dataset: masks are read with the images.
        batch_size: greatest number of images in a batch.
        indices: indices of the images; ``None``: all.

    Yields:
        Images uint8 (B, 3, H, W) and masks int64 (B, H, W), 1 <= B <= ``batch_size``.
    """
    images: list[Tensor] = []
    masks: list[Tensor] = []
    for index in range(len(dataset)) if indices is None else indices:
        image = dataset.image(index)
        if images and (len(images) == batch_size or image.shape != images[0].shape):
            yield torch.stack(images), torch.stack(masks).long()
            images, masks = [], []
        images.append(image)
        masks.append(dataset.mask(index))
    if images:
        yield torch.stack(images), torch.stack(masks).long()


def batches_of_one_size(
    shapes: Sequence[tuple[int, int]], batch_size: int, pixels: int
) -> list[list[int]]:
    """Group images of equal size into batches, whatever their order.

    Args:
        shapes: (height, width) of each image.
        batch_size: greatest number of images in a batch.
        pixels: greatest number of pixels in a batch, except for a single image that has more.

    Returns:
        Positions in ``shapes``, each once; within one size in their order.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position, shape in enumerate(shapes):
        groups.setdefault(tuple(shape), []).append(position)
    batches = []
    for (height, width), positions in groups.items():
        count = max(1, min(batch_size, pixels // (height * width)))
        batches += [positions[i : i + count] for i in range(0, len(positions), count)]
    return batches


def read_ahead(
    read: Callable[[int], Item], batches: Sequence[Sequence[int]], workers: int = 0
) -> Iterator[tuple[Sequence[int], list[Item]]]:
    """Read the items of batches in parallel, while the batch before is worked on.

    Args:
        read: returns an item; decoding image files leaves Python's lock to other threads.
        batches: numbers of items.
        workers: threads that read; 0: one for each core of this machine, at most 4.

    Yields:
        Each batch with its items, in order.

    Raises:
        Whatever ``read`` raises, where its batch is due.
    """
    with ThreadPoolExecutor(workers or min(4, usable_cores())) as pool:
        waiting: deque[list[Future[Item]]] = deque()
        try:
            for number, batch in enumerate(batches):
                while len(waiting) < 2 and number + len(waiting) < len(batches):
                    ahead = batches[number + len(waiting)]
                    waiting.append([pool.submit(read, item) for item in ahead])
                yield batch, [item.result() for item in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
