"""Scores are counts: compared with counting pixel by pixel."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.scores import Evaluation, evaluate

CPU = torch.device("cpu")
CLASSES = 5
CONFIDENCE = 0.705  # between two of the whole percents below
SIZES = [(7, 9), (7, 9), (7, 9), (1, 1), (12, 5), (12, 5), (7, 9)]


class Painted(SegmentationDataset):
    """Images whose red channel is the prediction to make, and whose green one how surely.

    Labels and predictions are drawn from classes 0 to 3: class 4 is absent from both. Class 3 is
    never predicted, class 0 never labeled.
    """

    name = "painted"
    classes = tuple("abcde")
    palette = ((0, 0, 0),) * CLASSES

    def __init__(self, sizes=SIZES):
        rng = torch.Generator().manual_seed(0)
        self.names = [str(index) for index in range(len(sizes))]
        self.predicted, self.percent, self._masks = [], [], []
        for size in sizes:
            self.predicted.append(torch.randint(0, 3, size, generator=rng))
            self.percent.append(torch.randint(30, 100, size, generator=rng))
            mask = torch.randint(1, 4, size, generator=rng)
            mask[torch.rand(size, generator=rng) < 0.2] = IGNORE_INDEX
            self._masks.append(mask.to(torch.uint8))

    def image(self, index):
        planes = [self.predicted[index], self.percent[index], torch.zeros_like(self.percent[index])]
        return torch.stack(planes).to(torch.uint8)

    def mask(self, index):
        return self._masks[index]


class Reader(nn.Module):
    """The network that predicts what is painted; counts the images it has seen."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images):
        assert not self.training
        self.batches.append(len(images))
        red, green, _ = (images * 255).round().unbind(1)
        sure = green[:, None] / 100
        painted = nn.functional.one_hot(red.long(), CLASSES).movedim(-1, 1) == 1
        return torch.where(painted, sure, (1 - sure) / (CLASSES - 1)).log()


@pytest.fixture(scope="module")
def counted():
    """Confusion matrix, confident pixels and right ones, by loops."""
    dataset = Painted()
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    confident = right = 0
    for index, (height, width) in enumerate(SIZES):
        for y in range(height):
            for x in range(width):
                label = dataset.mask(index)[y, x].item()
                guess = dataset.predicted[index][y, x].item()
                if label == IGNORE_INDEX:
                    continue
                confusion[label][guess] += 1
                if dataset.percent[index][y, x].item() > 100 * CONFIDENCE:
                    confident += 1
                    right += guess == label
    return confusion, confident, right


def test_every_pixel_counts_once_in_any_batches(counted):
    """Odd batch sizes, a smaller last batch, and images of several sizes."""
    confusion, confident, right = counted
    for batch_size in (1, 2, 3, 100):
        network = Reader()
        scores = evaluate(
            network, Painted(), device=CPU, confidence=CONFIDENCE, batch_size=batch_size
        )
        assert sum(network.batches) == len(SIZES)
        assert max(network.batches) <= batch_size
        assert scores.confusion.tolist() == confusion
        assert (scores.confident, scores.confident_right) == (confident, right)
        assert scores.pixels == sum(map(sum, confusion))
        assert scores.coverage == confident / scores.pixels
        assert scores.precision == right / confident


def test_iou_is_intersection_over_union(counted):
    confusion, _, _ = counted
    scores = evaluate(Reader(), Painted(), device=CPU)
    expected = []
    for k in range(CLASSES):
        labeled = sum(confusion[k])
        guessed = sum(row[k] for row in confusion)
        union = labeled + guessed - confusion[k][k]
        expected.append(100 * confusion[k][k] / union if union else math.nan)
    assert scores.iou.tolist() == pytest.approx(expected, nan_ok=True)
    assert math.isnan(expected[4])  # absent from labels and predictions: counts nowhere
    assert expected[0] == expected[3] == 0  # absent from one of them: an error, counts as zero
    assert scores.miou == pytest.approx(sum(expected[:4]) / 4)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_put_back_into_its_mode(training):
    network = Reader().train(training)
    evaluate(network, Painted(), device=CPU)
    assert network.training is training


def test_perfect_predictions_score_100():
    dataset = Painted()
    dataset._masks = [p.to(torch.uint8) for p in dataset.predicted]
    scores = evaluate(Reader(), dataset, device=CPU, confidence=0.0)
    assert scores.miou == 100
    assert scores.coverage == scores.precision == 1


def test_nothing_labeled_and_nothing_confident_are_no_crash():
    dataset = Painted([(4, 6)])
    nothing = evaluate(Reader(), dataset, device=CPU, confidence=1.0)
    assert nothing.coverage == 0
    assert math.isnan(nothing.precision)
    dataset._masks = [torch.full((4, 6), IGNORE_INDEX, dtype=torch.uint8)]
    void = evaluate(Reader(), dataset, device=CPU)
    assert void.pixels == 0
    assert void.coverage == 0
    assert math.isnan(void.miou)


def test_iou_of_many_pixels_is_exact():
    """Counts beyond what float32 holds: 2^24 pixels are a hundred photographs."""
    many = 2**40
    scores = Evaluation(torch.tensor([[many, 1], [0, many]]), 0, 0)
    assert scores.pixels == 2 * many + 1
    assert scores.iou[0].item() == 100 * many / (many + 1)


def test_a_real_network_takes_odd_sizes(tiny_config):
    from ddfp_lib.models.network import SegmentationNetwork

    network = SegmentationNetwork(tiny_config("supervised").network, CLASSES)
    scores = evaluate(network, Painted([(33, 47), (1, 5), (64, 31)]), device=CPU, batch_size=2)
    assert 0 <= scores.miou <= 100


# Protocols ---------------------------------------------------------------------------------------


def logits(images):
    """A network that looks at its whole window: the mean colour sways every pixel."""
    return torch.cat([images, images.mean((2, 3), keepdim=True) - images], dim=1)


SIDES = st.integers(1, 30)


@given(SIDES, SIDES, st.integers(2, 40))
def test_a_window_that_covers_the_image_is_the_whole_image(height, width, size):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(size))
    whole = Protocol("whole").probabilities(logits, images)
    slid = Protocol("slide", size).probabilities(logits, images)
    assert slid.shape == whole.shape
    torch.testing.assert_close(slid.sum(dim=1), torch.ones(2, height, width))
    if size >= max(height, width):
        assert slid.equal(whole)


@given(SIDES, SIDES, st.integers(2, 20))
def test_windows_cover_every_pixel_and_what_does_not_look_around_sees_no_difference(
    height, width, size
):
    """A network of single pixels gives the same in any windows, if each was weighed right."""
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(size))
    windows = []

    def pixelwise(part):
        windows.append(part.shape[2:])
        return part

    slid = Protocol("slide", size).probabilities(pixelwise, images)
    torch.testing.assert_close(slid, images.softmax(dim=1))
    assert all(max(window) <= size for window in windows)


def test_cityscapes_is_seen_through_the_windows_of_the_release():
    """Two rows of four, cut off at the border: 1024 x 2048 by 801 with stride 534."""
    slide = Protocol.parse("slide801")
    assert list(slide._windows(1024)) == [(0, 801), (534, 1024)]
    assert list(slide._windows(2048)) == [(0, 801), (534, 1335), (1068, 1869), (1602, 2048)]


@given(SIDES, SIDES, st.integers(2, 40))
def test_a_crop_is_the_middle_padded_with_what_counts_nowhere(height, width, size):
    rng = torch.Generator().manual_seed(size)
    images = torch.randint(1, 256, (2, 3, height, width), generator=rng).to(torch.uint8)
    masks = torch.randint(0, 5, (2, height, width), generator=rng)
    cropped, counted = Protocol("crop", size).prepare(images, masks)
    assert cropped.shape == (2, 3, size, size)
    assert counted.shape == (2, size, size)
    inside = counted != IGNORE_INDEX
    assert inside.sum() == 2 * min(height, size) * min(width, size)
    assert (cropped.amin(dim=1) > 0).equal(inside)  # no pixel of the image is black
    # what is seen lies in the middle, image and mask alike
    top, left = max(0, height - size) // 2, max(0, width - size) // 2
    down, right = max(0, size - height) // 2, max(0, size - width) // 2
    h, w = min(height, size), min(width, size)
    window = (..., slice(down, down + h), slice(right, right + w))
    assert cropped[window].equal(images[..., top : top + h, left : left + w])
    assert counted[window].equal(masks[..., top : top + h, left : left + w])


@pytest.mark.parametrize("name", ["whole", "slide801", "crop513", "slide2"])
def test_protocols_are_what_their_names_say(name):
    assert Protocol.parse(name).name == name


@pytest.mark.parametrize("name", ["", "slide", "crop0", "slide1", "slide-5", "crop5x5", "Whole"])
def test_an_unknown_protocol_is_refused(name, tiny_config):
    with pytest.raises(UserError, match=r"data\.protocol"):
        Protocol.parse(name)
    with pytest.raises(UserError, match="slide801 or crop513"):
        evaluate(Reader(), Painted(), device=CPU, protocol=name)


def test_protocols_count_what_they_see(counted):
    """Pixelwise predictions: windows change nothing, a crop leaves out what it does not see."""
    confusion, confident, right = counted
    slid = evaluate(Reader(), Painted(), device=CPU, protocol="slide4", confidence=CONFIDENCE)
    assert slid.confusion.tolist() == confusion
    assert (slid.confident, slid.confident_right) == (confident, right)
    large = evaluate(Reader(), Painted(), device=CPU, protocol="crop13")
    assert large.confusion.tolist() == confusion
    small = evaluate(Reader(), Painted(), device=CPU, protocol="crop5")
    assert 0 < small.pixels < large.pixels


def test_large_images_go_one_at_a_time(monkeypatch, counted):
    monkeypatch.setattr("ddfp_lib.evaluation.scores.PIXELS", 2 * 7 * 9)
    network = Reader()
    scores = evaluate(network, Painted(), device=CPU)
    assert network.batches == [2, 1, 1, 2, 1]
    assert scores.confusion.tolist() == counted[0]
