import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import get_worker_info

from ddfp_lib.data import workers as loading
from ddfp_lib.data.augment import AugmentConfig
from ddfp_lib.data.loaders import (
    evaluation_batches,
    sample_order,
    training_batches,
)
from ddfp_lib.data.workers import LostWorkerError, default_workers, lost_worker_named
from ddfp_lib.errors import UserError
from ddfp_lib.seeds import derive_seed, generator
from tests.fixtures.trees import InMemory, block_masks

counts = st.integers(1, 30)
sizes = st.integers(1, 12)


class LabeledOnly(InMemory):
    """Refuses to open the mask of any image above the third."""

    def mask(self, index):
        assert index < 3, "the mask of an unlabeled image was opened"
        return super().mask(index)


def batches(start_step=0, stop_step=6, **changes):
    arguments = {"batch_labeled": 4, "batch_unlabeled": 6, "seed": 5, **changes}
    return list(
        training_batches(
            LabeledOnly(block_masks(11)),
            [0, 1, 2],
            range(3, 11),
            AugmentConfig(crop=24),
            start_step=start_step,
            stop_step=stop_step,
            **arguments,
        )
    )


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name, tensor in vars(a).items():
            assert torch.equal(tensor, getattr(b, name)), name


def test_derived_seeds_are_stable_and_distinct():
    assert derive_seed(1, "order") == derive_seed(1, "order")
    tuples = [(0,), (1,), (0, 0), (0, 1), (1, 0), (10, 1), (1, 1, 0), ("0",), ("a",), (0, "a"), ()]
    seeds = {derive_seed(*parts) for parts in tuples}
    assert len(seeds) == len(tuples)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(torch.tensor(3)) == derive_seed(3)
    assert derive_seed(0) == 6197007067532723406  # a constant of all machines and versions


@given(counts, sizes, st.integers(0, 20), st.integers(0, 9))
def test_order_is_a_function_of_the_draw_number(count, batch_size, step, seed):
    order = sample_order(count, batch_size, step, seed)
    assert [draw for _, draw in order] == list(range(step * batch_size, (step + 1) * batch_size))
    assert order == [pair for _, d in order for pair in sample_order(count, 1, d, seed)]


@given(counts, sizes, st.integers(0, 9))
def test_each_epoch_sees_each_item_once(count, batch_size, seed):
    steps = range(-(-3 * count // batch_size))
    items = [item for step in steps for item, _ in sample_order(count, batch_size, step, seed)]
    for epoch in range(3):
        assert sorted(items[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_are_ordered_differently():
    orders = [
        tuple(item for item, _ in sample_order(20, 20, epoch, seed))
        for epoch in range(3)
        for seed in range(3)
    ]
    assert len(set(orders)) == 9


def test_batches_have_the_promised_shapes():
    (batch,) = batches(stop_step=1)
    assert batch.labeled_images.shape == (4, 3, 24, 24)
    assert batch.labels.shape == (4, 24, 24)
    assert batch.weak_images.shape == (6, 3, 24, 24)
    assert batch.valid.shape == (6, 24, 24)
    dtypes = [tensor.dtype for tensor in vars(batch).values()]
    assert batch.labeled_valid.shape == (4, 24, 24)
    assert dtypes == [torch.uint8, torch.int64, torch.uint8, torch.bool, torch.bool]
    assert set(batch.labels.unique().tolist()) <= {*range(6), 255}


def test_a_run_started_late_sees_what_it_would_have_seen():
    assert_equal(batches()[4:], batches(start_step=4))


def test_seeds_and_steps_differ():
    first, second = batches(stop_step=2)
    other = batches(stop_step=1, seed=6)[0]
    assert not torch.equal(first.weak_images, second.weak_images)
    assert not torch.equal(first.weak_images, other.weak_images)


def test_each_draw_of_an_image_is_another_view():
    (batch,) = batches(stop_step=1, batch_labeled=6)  # each of 3 images twice
    views = {tuple(image.flatten().tolist()) for image in batch.labeled_images}
    assert len(views) == 6


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_that_one_process_sees(world):
    ranks = [batches(batch_unlabeled=8, rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(batches(batch_unlabeled=8), *ranks, strict=True):
        for name, tensor in vars(whole).items():
            assert torch.equal(tensor, torch.cat([getattr(part, name) for part in parts])), name


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(workers):
    assert_equal(batches(start_step=2), batches(start_step=2, workers=workers))


class Damaged(InMemory):
    """Its last image cannot be read."""

    def image(self, index):
        if index == len(self) - 1:
            raise UserError("pictures/last.jpg: not a whole image")
        return super().image(index)


class Deadly(InMemory):
    """Kills the worker that reads its last image, as the kernel does when memory runs out."""

    def image(self, index):
        if index == len(self) - 1:
            assert get_worker_info() is not None
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


def batches_of(dataset, workers):
    """One image a step, until the last image has come."""
    return training_batches(
        dataset,
        range(len(dataset)),
        [],
        AugmentConfig(crop=16),
        batch_labeled=1,
        batch_unlabeled=0,
        seed=0,
        start_step=0,
        stop_step=len(dataset),
        workers=workers,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_in_one_line(workers):
    with pytest.raises(UserError) as caught:
        list(batches_of(Damaged(block_masks(5)), workers))
    assert str(caught.value) == "pictures/last.jpg: not a whole image"


def test_a_lost_worker_gives_one_line():
    lost = pytest.raises(UserError, match=r"data\.workers: .*Start again to continue")
    with lost as caught, lost_worker_named():
        list(batches_of(Deadly(block_masks(5)), workers=2))
    assert "\n" not in str(caught.value)


def broken_connection(error):
    """Batches whose worker ends while it hands one over."""
    yield "a batch"
    raise error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset"), EOFError()])
def test_a_worker_lost_while_it_hands_a_batch_over_gives_one_line(error, monkeypatch):
    monkeypatch.setattr(loading, "SIGNAL_WAIT", 0.0)
    batches = loading.checked_batches(broken_connection(error))
    assert next(batches) == "a batch"
    with pytest.raises(LostWorkerError, match=r"data\.workers: .*Error.* again") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


def test_the_signal_of_a_lost_worker_is_awaited_and_gives_the_reason():
    """A child ends after its connection broke; PyTorch's handler then raises as this one does."""

    def handler(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        lost = pytest.raises(LostWorkerError, match=r"data\.workers: .*is killed by signal")
        with lost, lost_worker_named():
            list(loading.checked_batches(broken_connection(ConnectionRefusedError())))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="out of memory"), lost_worker_named():
        raise RuntimeError("CUDA out of memory")


def test_workers_are_for_gpus():
    assert default_workers(torch.device("cpu")) == 0
    assert 1 <= default_workers(torch.device("cuda"), world=4) <= 8


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    batches()
    assert torch.equal(torch.get_rng_state(), before)


def test_supervised_training_needs_no_unlabeled_images():
    (batch,) = training_batches(
        InMemory(block_masks(3)),
        [0, 1, 2],
        [],
        AugmentConfig(crop=16),
        batch_labeled=2,
        batch_unlabeled=0,
        seed=0,
        start_step=0,
        stop_step=1,
    )
    assert batch.labeled_images.shape == (2, 3, 16, 16)
    assert batch.weak_images.shape == (0, 3, 16, 16)
    assert batch.valid.shape == (0, 16, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"world": 3}, "batch_labeled 4: use a multiple of the 3"),
        ({"world": 4}, "batch_unlabeled 6: use a multiple of the 4"),
        ({"batch_labeled": -1}, "batch_labeled -1"),
    ],
)
def test_batches_that_ranks_cannot_share_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        batches(**change)


def test_batches_of_no_images_are_refused():
    with pytest.raises(UserError, match="batch_unlabeled 1: there are no unlabeled images"):
        training_batches(
            InMemory(block_masks(1)),
            [0],
            [],
            AugmentConfig(),
            batch_labeled=1,
            batch_unlabeled=1,
            seed=0,
            start_step=0,
            stop_step=1,
        )


@given(st.lists(st.sampled_from([(8, 8), (8, 9)]), min_size=1, max_size=9), st.integers(1, 4))
def test_evaluation_sees_every_image_once_in_order(shapes, batch_size):
    data = InMemory([torch.full(shape, n, dtype=torch.uint8) for n, shape in enumerate(shapes)], 9)
    seen = []
    for images, masks in evaluation_batches(data, batch_size):
        assert 1 <= len(images) == len(masks) <= batch_size
        assert images.dtype == torch.uint8
        assert masks.dtype == torch.int64
        seen += [(tuple(mask.shape), int(mask[0, 0])) for mask in masks]
    assert seen == [(shape, n) for n, shape in enumerate(shapes)]
    if len(set(shapes)) == 1:
        assert len(list(evaluation_batches(data, batch_size))) == -(-len(shapes) // batch_size)


def test_batch_moves_whole():
    (batch,) = batches(stop_step=1)
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in vars(moved).values())
    assert moved.labels.shape == batch.labels.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_pinned_where_there_is_a_gpu():
    (batch,) = batches(stop_step=1, workers=1)
    assert all(tensor.is_pinned() for tensor in vars(batch).values())
    assert_equal([batch.to("cuda").to("cpu")], [batch])


def test_generators_of_equal_parts_draw_equal_numbers():
    a, b, c = (torch.rand(3, generator=generator(*parts)) for parts in [(1, 2), (1, 2), (2, 1)])
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
