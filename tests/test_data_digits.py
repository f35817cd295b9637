import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

from ddfp_lib.data.digits import (
    LUMINANCE,
    MAX_SIZE,
    VISIBLE,
    DigitScenes,
    DigitScenesConfig,
    handwriting,
    photographs,
)
from ddfp_lib.errors import UserError

SUBSETS = ("train", "val", "test")


def scenes(subset="train", **changes):
    config = DigitScenesConfig(**{"train": 40, "val": 40, "test": 40, **changes})
    data = DigitScenes(config, subset)
    images = torch.stack([data.image(index) for index in range(len(data))])
    masks = torch.stack([data.mask(index) for index in range(len(data))])
    return images, masks


def test_shapes_values_and_counts():
    data = DigitScenes(DigitScenesConfig(size=48, classes=3, val=7), "val")
    images, masks = scenes("val", size=48, classes=3, val=7)
    assert len(data) == 7
    assert data.classes == ("background", "0", "1", "2")
    assert len(data.palette) == 4
    assert images.shape == (7, 3, 48, 48)
    assert images.dtype == masks.dtype == torch.uint8
    assert masks.unique().tolist() == [0, 1, 2, 3, 255]


def test_same_seed_same_scenes_other_seed_others():
    first, again, other = scenes(), scenes(), scenes(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_making_scenes_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    scenes()
    assert torch.equal(torch.get_rng_state(), before)


def test_subsets_cut_the_handwriting_into_disjoint_parts():
    data = load_digits()
    shares = [handwriting(subset) for subset in SUBSETS]
    for digit in range(10):
        together = torch.cat([share[digit] for share in shares])
        whole = torch.from_numpy(data.images[data.target == digit]).float() / 16
        assert torch.equal(together, whole)
        assert all(len(share[digit]) >= 20 for share in shares)


def test_subsets_cut_the_photographs_into_disjoint_columns():
    shares = [photographs(subset) for subset in SUBSETS]
    for index, photo in enumerate(load_sample_images().images):
        together = torch.cat([share[index] for share in shares], dim=2)
        assert torch.equal((together * 255).round().byte(), torch.tensor(photo).permute(2, 0, 1))
    assert min(photo.shape[2] for share in shares for photo in share) == MAX_SIZE


def test_ground_is_cut_from_the_columns_of_its_subset():
    images, masks = scenes("val", size=24, digit_size=(8, 8), digits=(0, 0), val=3)
    assert not masks.any()
    rows = [(photo * 255).round().byte().unfold(2, 24, 1) for photo in photographs("val")]
    for image in images:
        top = image[:, 0][:, None, None]
        assert any((found == top).all(-1).all(0).any() for found in rows)


def test_a_single_scene_may_want_fewer_digits_than_it_might_have():
    counts = {
        len(scenes(train=1, seed=seed, digits=(0, 2), size=32, digit_size=(8, 9))[1].unique())
        for seed in range(10)
    }
    assert min(counts) == 1  # background alone
    assert max(counts) > 2


@pytest.mark.parametrize("border", [0, 1, 2])
def test_the_ring_is_as_wide_as_asked_for(border):
    _, masks = scenes(border=border, digits=(1, 1))
    digit = (masks > 0) & (masks < 255)
    grown = nn.functional.max_pool2d(digit.float(), 2 * border + 1, stride=1, padding=border).bool()
    assert torch.equal(grown & ~digit, masks == 255)


def test_digits_stand_out_from_the_ground():
    ground, _ = scenes(digits=(0, 0))
    images, masks = scenes(digits=(1, 1))
    digit = (masks > 0) & (masks < 255)
    change = torch.einsum("nchw,c->nhw", (images.float() - ground) / 255, LUMINANCE) * digit
    assert (change.sum((1, 2)) / digit.sum((1, 2))).abs().min() > 0.25


def test_a_later_digit_leaves_most_of_an_earlier_one_visible():
    _, first = scenes(digits=(1, 1), border=0, digit_size=(40, 50))
    _, both = scenes(digits=(2, 2), border=0, digit_size=(40, 50))
    digit = first > 0
    visible = ((both == first) & digit).sum((1, 2)) / digit.sum((1, 2))
    assert visible.min() >= VISIBLE
    assert visible.min() < 1  # so some do overlap


def test_digits_lie_within_the_scene():
    _, masks = scenes(digits=(1, 1), angle=0.0, border=0, digit_size=(30, 30), train=100)
    for mask in masks:
        rows = mask.any(dim=1).nonzero()
        assert 20 <= rows.max() - rows.min() + 1 <= 34


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": MAX_SIZE + 1}, "size 97"),
        ({"classes": 11}, "classes 11"),
        ({"digits": (3, 2)}, r"digits \(3, 2\)"),
        ({"digit_size": (22, 80)}, r"digit_size \(22, 80\).*64"),
        ({"val": 0}, "val 0"),
        ({"border": -1}, "border -1"),
    ],
)
def test_impossible_scenes_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        DigitScenesConfig(**change)


def test_unknown_subset_is_refused():
    with pytest.raises(UserError, match=r"'dev'.*train, val, test"):
        DigitScenes(DigitScenesConfig(), "dev")
