"""Scores are counts: compared with counting pixel by pixel."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.loaders import batches_of_one_size, read_ahead
from ddfp_lib.data.protocol import Protocol
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.prediction import Pictures, legend, predict_files
from ddfp_lib.evaluation.scores import Evaluation, evaluate, evaluate_all
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.training.data import data_of
from tests.fixtures.trees import make_voc

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
    assert math.isnan(expected[4])  # absent from labels and predictions: not counted
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
    network = SegmentationNetwork(tiny_config("supervised").network, CLASSES)
    scores = evaluate(network, Painted([(33, 47), (1, 5), (64, 31)]), device=CPU, batch_size=2)
    assert 0 <= scores.miou <= 100


# Protocols ---------------------------------------------------------------------------------------


def logits(images):
    """A network that looks at its whole window: the mean color sways every pixel."""
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
    monkeypatch.setattr("ddfp_lib.evaluation.scores.pixels_at_a_time", lambda device: 2 * 7 * 9)
    network = Reader()
    scores = evaluate(network, Painted(), device=CPU)
    assert network.batches == [2, 2, 1, 2]  # images of one size, wherever they lie
    assert scores.confusion.tolist() == counted[0]


def test_two_networks_share_one_reading(counted):
    class Counting(Painted):
        reads = 0

        def mask(self, index):
            Counting.reads += 1
            return super().mask(index)

    first, second = evaluate_all([Reader(), Reader()], Counting(), device=CPU)
    assert first.confusion.equal(second.confusion)
    assert first.confusion.tolist() == counted[0]
    assert Counting.reads == len(SIZES)


@given(st.lists(st.tuples(SIDES, SIDES), max_size=12), st.integers(1, 5), st.integers(1, 900))
def test_batches_hold_every_image_once(shapes, batch_size, pixels):
    batches = batches_of_one_size(shapes, batch_size, pixels)
    assert sorted(i for batch in batches for i in batch) == list(range(len(shapes)))
    for batch in batches:
        assert len({shapes[i] for i in batch}) == 1
        height, width = shapes[batch[0]]
        assert len(batch) == 1 or len(batch) <= min(batch_size, pixels // (height * width))


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_ahead_keeps_the_order_and_raises_where_it_is_due(workers):
    batches = [[3, 1], [2], [5, 0]]

    def read(item):
        if item == 5:
            raise UserError("five is broken")
        return 10 * item

    found = read_ahead(read, batches, workers)
    assert next(found) == ([3, 1], [30, 10])
    assert next(found) == ([2], [20])
    with pytest.raises(UserError, match="five"):
        next(found)


# Prediction is what was evaluated ----------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    lists = {"train": ["t"], "val": ["a", "b", "c", "d"]}
    return make_voc(tmp_path_factory.mktemp("photos"), lists, classes=["ground", "cell", "rim"])


def run_on(root, tmp_path, tiny_config, **data):
    from ddfp_lib.runs.folder import Run

    config = tiny_config("supervised", data={"dataset": "voc", "root": str(root), **data})
    dataset = data_of(config, "val")
    return Run(tmp_path, config, dataset.classes, dataset.palette), dataset


@pytest.mark.parametrize("protocol", ["whole", "slide24", "crop33", "crop80"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"size": [31, 29]},
        {"long_side": 30},
        {"long_side": 4000},
        {"long_side": 30, "classes": ["rim", "ground"]},
    ],
    ids=str,
)
def test_predicted_masks_score_what_evaluate_says(
    photographs, tmp_path, tiny_config, protocol, sizes
):
    """The masks on disk, counted with numpy at the size that the evaluation looked at."""
    run, dataset = run_on(photographs, tmp_path, tiny_config, protocol=protocol, **sizes)
    classes = len(dataset.classes)
    network = SegmentationNetwork(run.config.network, classes)
    expected = evaluate(network, dataset, device=CPU, protocol=protocol).confusion.numpy()
    pictures = sorted((photographs / "JPEGImages").glob("[abcd].jpg"))
    list(predict_files(network, run, pictures, tmp_path / "p", device=CPU))
    confusion = np.zeros((classes, classes), np.int64)
    for index, path in enumerate(pictures):
        found = Image.open(tmp_path / "p" / f"{path.stem}.png")
        assert found.size == Image.open(path).size
        height, width = dataset.shape(index)
        found = np.array(found.resize((width, height), Image.NEAREST))
        truth = dataset.mask(index).numpy()
        seen = (truth != IGNORE_INDEX) & (found != IGNORE_INDEX)
        np.add.at(confusion, (truth[seen], found[seen]), 1)
    assert confusion.tolist() == expected.tolist()


def test_predictions_of_a_data_set_are_those_of_its_pictures(photographs, tmp_path, tiny_config):
    run, dataset = run_on(photographs, tmp_path, tiny_config, long_side=30)
    network = SegmentationNetwork(run.config.network, 3)
    pictures = sorted((photographs / "JPEGImages").glob("[abcd].jpg"))
    by_hand = list(predict_files(network, run, pictures, tmp_path / "p", device=CPU))
    as_data = Pictures.of_dataset(dataset)
    for first, second in zip(
        by_hand, predict_files(network, run, as_data, tmp_path / "q", device=CPU), strict=True
    ):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()


def test_a_long_side_shrinks_only_and_masks_keep_the_size_of_pictures(
    photographs, tmp_path, tiny_config
):
    run, _ = run_on(photographs, tmp_path, tiny_config)
    network = SegmentationNetwork(run.config.network, 3)
    path = photographs / "JPEGImages" / "a.jpg"
    masks = []
    for limit in (None, 24, 5000):
        out = tmp_path / str(limit)
        list(predict_files(network, run, [path], out, device=CPU, long_side=limit))
        masks.append(np.array(Image.open(out / "a.png")))
    assert masks[0].shape == Image.open(path).size[::-1]
    assert masks[1].shape == masks[0].shape
    assert (masks[2] == masks[0]).all()


def test_folders_patterns_and_upright_pictures(photographs, tmp_path, tiny_config):
    run, _ = run_on(photographs, tmp_path, tiny_config)
    folder = tmp_path / "pictures"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "one.jpg", exif=turned)
    Image.new("RGB", (40, 30)).save(folder / "two.png")
    (folder / "notes.txt").write_text("no picture")
    network = SegmentationNetwork(run.config.network, 3)
    names = {
        path.name for path in predict_files(network, run, [folder], tmp_path / "p", device=CPU)
    }
    assert names == {
        "one.png", "one-overlay.png", "two.png", "two-overlay.png", "legend.png",
    }  # fmt: skip
    assert Image.open(tmp_path / "p" / "one.png").size == (30, 40)
    assert Pictures.of_files([folder / "*.png", folder / "two.png"], run).names == ["two"]
    for wrong, words in (
        (tmp_path / "p" / "*.bmp", "no file matches"),
        (tmp_path, "no picture"),
        (Path("a**b*"), "not a pattern"),
    ):
        with pytest.raises(UserError, match=words):
            Pictures.of_files([wrong], run)
    with pytest.raises(UserError, match=r"legend\.png is one of the pictures"):
        list(
            predict_files(network, run, [tmp_path / "p" / "legend.png"], tmp_path / "p", device=CPU)
        )


def test_the_legend_shows_the_colour_of_each_class():
    palette = [(0, 0, 0), (200, 10, 20), (7, 90, 30)]
    picture = legend(["ground", "cell", "rim"], palette)
    shown = [picture.getpixel((20, 4 + 24 * row + 10)) for row in range(3)]
    assert shown == palette
