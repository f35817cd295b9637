import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddfp_lib.data.augment import AugmentConfig, cutmix_box, mix, strong_view, weak_view
from ddfp_lib.errors import UserError
from ddfp_lib.seeds import generator
from tests.fixtures.trees import InMemory, block_masks

seeds = st.integers(0, 2**32)
still = AugmentConfig(jitter_p=0.0, gray_p=0.0, blur_p=0.0)


def random_images(count=4, side=32, seed=0):
    return torch.rand(count, 3, side, side, generator=generator(seed))


@given(seeds, st.sampled_from([24, 64, (20, 90)]))
def test_weak_view_keeps_image_and_mask_together(seed, crop):
    data = InMemory(block_masks(1, seed=seed))
    config = AugmentConfig(crop=crop, scale=(0.8, 2.0))  # blocks of 8 stay wider than 5
    image, mask, _ = weak_view(data.image(0), data.mask(0), config, generator(seed))
    assert image.shape == (3, *config.size)
    assert mask.shape == config.size
    assert image.dtype == mask.dtype == torch.uint8
    # Where the mask is one class for 2 pixels around, resizing has mixed no colors.
    inner = mask[None].float()
    same = nn.functional.max_pool2d(inner, 5, 1)[0] == -nn.functional.max_pool2d(-inner, 5, 1)[0]
    flat = nn.functional.pad(same, [2] * 4)
    assert flat.any()
    expected = torch.where(mask == 255, 0, mask * 20)
    assert torch.equal(image[:, flat], expected[flat].expand(3, -1))


@given(seeds)
def test_padding_is_ignored_and_black_and_below_and_right(seed):
    image = torch.full((3, 30, 40), 200, dtype=torch.uint8)
    mask = torch.ones(30, 40, dtype=torch.uint8)
    config = AugmentConfig(crop=64, flip=False)
    view, labels, inside = weak_view(image, mask, config, generator(seed))
    assert torch.equal(labels == 1, inside)
    assert torch.equal(labels == 255, ~inside)
    assert (view[:, inside] == 200).all()
    assert (view[:, ~inside] == 0).all()
    height, width = int(inside[:, 0].sum()), int(inside[0].sum())
    assert inside[:height, :width].all()
    assert inside.sum() == height * width
    if width < 64:  # the long side is inside the scale, the short one keeps the ratio
        assert 0.5 * 40 <= width <= 2 * 40
        assert abs(height - min(64, 0.75 * width)) <= 0.5


def test_weak_view_without_mask_is_the_same_view_without_labels():
    data = InMemory(block_masks(1))
    config = AugmentConfig(crop=64)
    for seed in range(10):
        view, labels, valid = weak_view(data.image(0), data.mask(0), config, generator(seed))
        alone, unknown, same = weak_view(data.image(0), None, config, generator(seed))
        assert torch.equal(view, alone)
        assert torch.equal(valid, same)
        assert torch.equal(valid, labels != 255)  # these masks have no void pixels
        assert (unknown == 255).all()


@given(seeds)
def test_void_is_valid_and_padding_is_not(seed):
    """A void pixel shows something that has no class; padding shows nothing."""
    image = torch.full((3, 30, 40), 200, dtype=torch.uint8)
    void = torch.full((30, 40), 255, dtype=torch.uint8)
    view, labels, valid = weak_view(image, void, AugmentConfig(crop=64), generator(seed))
    assert torch.equal(valid, view[0] > 0)
    assert (labels == 255).all()


def test_weak_view_mirrors_half_of_the_time_and_only_if_asked():
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)

    def mirrored(**changes):
        config = AugmentConfig(crop=32, scale=(1.0, 1.0), **changes)
        rng = generator(0)
        return [bool(weak_view(ramp, None, config, rng)[0][0, 0, 0] == 31) for _ in range(100)]

    assert 30 < sum(mirrored()) < 70
    assert not any(mirrored(flip=False))


def test_weak_view_leaves_its_input_alone():
    image, mask = torch.ones(3, 9, 9, dtype=torch.uint8), torch.ones(9, 9, dtype=torch.uint8)
    view, labels, _ = weak_view(image, mask, AugmentConfig(crop=9, scale=(1, 1)), generator(0))
    view.zero_()
    labels.zero_()
    assert image.all()
    assert mask.all()


def test_smallest_allowed_crop_can_be_blurred_most():
    config = AugmentConfig(crop=7, blur_p=1.0, blur_sigma=(2.0, 2.0))
    assert strong_view(random_images(side=7), config, generator(0)).shape == (4, 3, 7, 7)


def test_blur_does_not_round_beyond_white():
    white = torch.ones(64, 3, 16, 16)
    config = AugmentConfig(**{**vars(still), "blur_p": 1.0})
    assert strong_view(white, config, generator(0)).max() <= 1


@given(seeds)
def test_strong_view_keeps_geometry_range_and_input(seed):
    images = random_images(seed=seed)
    kept = images.clone()
    config = AugmentConfig()
    views = strong_view(images, config, generator(seed))
    assert views.shape == images.shape
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(images, kept)
    mirrored = strong_view(images.flip(3), config, generator(seed))
    torch.testing.assert_close(mirrored.flip(3), views, atol=1e-5, rtol=0)


def test_strong_view_is_a_function_of_the_generator():
    images, config = random_images(), AugmentConfig()
    views = strong_view(images, config, generator(1))
    assert torch.equal(views, strong_view(images, config, generator(1)))
    assert not torch.equal(views, strong_view(images, config, generator(2)))


def test_strong_view_of_an_image_does_not_depend_on_its_neighbours():
    images, config = random_images(8), AugmentConfig()
    other = torch.cat([images[:1], 1 - images[1:]])
    for seed in range(5):
        views, others = (strong_view(batch, config, generator(seed)) for batch in (images, other))
        assert torch.equal(views[0], others[0])


def test_each_strong_change_does_what_its_name_says():
    images = random_images(8, seed=3)

    def change(**kwargs):
        return strong_view(images, AugmentConfig(**{**vars(still), **kwargs}), generator(0))

    assert torch.equal(change(), images)
    gray = change(gray_p=1.0)
    assert (gray == gray[:, :1]).all()
    sharpness = images.diff(dim=3).abs().mean((1, 2, 3))
    assert (
        change(blur_p=1.0, blur_sigma=(1.0, 2.0)).diff(dim=3).abs().mean((1, 2, 3)) < sharpness / 2
    ).all()
    darker = change(jitter_p=1.0, jitter=(0.5, 0.0, 0.0, 0.0))
    factor = darker.mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert factor.min() > 0.49
    assert factor.max() < 1.5
    assert factor.std() > 0.1
    hue = change(jitter_p=1.0, jitter=(0.0, 0.0, 0.0, 0.5))
    torch.testing.assert_close(hue.amax(1), images.amax(1))  # HSV value
    torch.testing.assert_close(hue.amin(1), images.amin(1), atol=1e-5, rtol=0)
    assert (hue - images).abs().mean() > 0.1


def test_strong_changes_come_as_often_as_asked():
    images = random_images(1, side=8).expand(400, -1, -1, -1)
    config = AugmentConfig(jitter_p=0.0, gray_p=0.2, blur_p=0.0)
    views = strong_view(images, config, generator(0))
    assert 0.12 < (views == views[:, :1]).all(3).all(2).all(1).float().mean() < 0.28


def test_strong_view_stays_on_the_device():
    """The meta device refuses to meet the host's tensors; chances come from the host."""
    config = AugmentConfig(jitter_p=1.0, gray_p=0.5, blur_p=1.0)
    host = generator(0)
    views = strong_view(random_images(6).to("meta"), config, host)
    assert views.is_meta
    drawn = generator(0)
    strong_view(random_images(6), config, drawn)
    assert torch.equal(host.get_state(), drawn.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_strong_view_is_the_same_on_a_gpu():
    images, config = random_images(), AugmentConfig()
    views = strong_view(images.cuda(), config, generator(0))
    assert views.is_cuda
    torch.testing.assert_close(
        views.cpu(), strong_view(images, config, generator(0)), atol=1e-4, rtol=0
    )


@given(seeds, st.integers(1, 70), st.integers(1, 70))
def test_cutmix_box_is_a_rectangle_of_half_the_area(seed, height, width):
    box = cutmix_box(height, width, AugmentConfig(cutmix_p=1.0), generator(seed))
    assert box.shape == (height, width)
    assert box.dtype == torch.bool
    rows, columns = box.any(1), box.any(0)
    assert torch.equal(box, rows[:, None] & columns)
    assert abs(box.sum() - height * width / 2) <= width / 2


def test_cutmix_comes_as_often_as_asked():
    rng = generator(0)
    boxes = [cutmix_box(8, 8, AugmentConfig(cutmix_p=0.3), rng).any() for _ in range(500)]
    assert 0.23 < torch.stack(boxes).float().mean() < 0.37


def test_mix_takes_the_box_from_the_next_image():
    box = torch.tensor([[True, False]])
    labels = torch.tensor([[[0, 1]], [[2, 3]], [[4, 5]]])
    assert mix(labels, box).tolist() == [[[2, 1]], [[4, 3]], [[0, 5]]]
    images = labels[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(mix(images, box), mix(labels, box)[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(mix(labels > 2, box), mix(labels, box) > 2)
    assert torch.equal(mix(labels, torch.zeros_like(box)), labels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": 6}, "crop 6: use more than the 6 pixels"),
        ({"scale": (0.0, 2.0)}, "scale"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": (1.0, math.inf)}, "scale .*at most 100"),
        ({"jitter": (0.5, 0.5, 0.5, 0.6)}, "jitter.*hue"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma"),
        ({"blur_sigma": (math.nan, math.nan)}, "blur_sigma .*at most 100"),
        ({"gray_p": 1.5}, "gray_p 1.5"),
    ],
)
def test_impossible_views_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        AugmentConfig(**change)
