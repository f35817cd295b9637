"""What the release does otherwise than the paper, switch by switch, against slow oracles."""

import copy

import pytest
import torch
from torch import nn

from ddfp_lib.config import load_method
from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.errors import UserError
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.losses import (
    PixelCounts,
    PseudoLabels,
    cross_entropy,
    density_rows,
    ohem_cross_entropy,
)
from ddfp_lib.training.step import training_step
from ddfp_lib.training.views import CutMix, draw_cutmix
from tests.test_training import CPU, SHORT, WHOLE, batch_of, make_batches, make_learner

SHARES = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def guess():
    """Logits (8, 4, 6, 6), labels with void, and pseudo-labels with padding, of 8 images."""
    rng = seeded()
    logits = torch.randn(8, 4, 6, 6, generator=rng)
    labels = torch.randint(4, (8, 6, 6), generator=rng)
    labels[torch.rand(8, 6, 6, generator=rng) < 0.3] = IGNORE_INDEX
    valid = torch.rand(8, 6, 6, generator=rng) < 0.8
    labels[4:6] = IGNORE_INDEX  # a share in which no pixel counts
    return logits, labels, PseudoLabels(labels.where(valid, IGNORE_INDEX), valid)


# Pixels -----------------------------------------------------------------------------------------


def test_confident_pixels_are_those_of_the_release():
    """By its steps: threshold, CutMix of labels and padding apart, padding out, nearest pixels."""
    rng = seeded()
    probability = torch.rand(4, 21, 57, 57, generator=rng).mul(100).softmax(dim=1)
    ignore = torch.zeros(4, 57, 57, dtype=torch.int64)
    for image, edge in enumerate((57, 40, 13, 50)):
        ignore[image, edge:] = IGNORE_INDEX
    box = torch.zeros(57, 57, dtype=torch.bool)
    box[3:50, 10:40] = True

    chance, labels = probability.max(dim=1)
    labels[chance.le(0.95) & (ignore != IGNORE_INDEX)] = IGNORE_INDEX
    labels, ignore_mixed = (each.where(~box, each.roll(-1, 0)) for each in (labels, ignore))
    labels[ignore_mixed == IGNORE_INDEX] = IGNORE_INDEX
    small = nn.functional.interpolate(labels[:, None].float(), size=(15, 15), mode="nearest")

    ours = PseudoLabels.of(probability.log(), ignore == 0, 0.95).mixed(box)
    assert torch.equal(ours.labels, labels)
    assert torch.equal(ours.at((15, 15)).confident, small[:, 0] != IGNORE_INDEX)
    assert 0.1 < ours.confident.float().mean() < 0.9


# Means over shares -------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["valid", "confident"])
def test_losses_are_means_over_shares_of_means_over_pixels(guess, mean):
    """As each GPU of the release computes its own, and DDP averages them."""
    logits, labels, pseudo = guess
    counts = PixelCounts.of(labels, pseudo, SHARES)
    parts = zip(logits.chunk(SHARES), labels.chunk(SHARES), pseudo.chunk(SHARES), strict=True)
    alone = [(cross_entropy(x, y), p.cross_entropy(x, mean)) for x, y, p in parts]
    supervised, clean = (torch.stack(each).mean() for each in zip(*alone, strict=True))
    torch.testing.assert_close(cross_entropy(logits, labels, counts), supervised)
    torch.testing.assert_close(pseudo.cross_entropy(logits, mean, counts), clean)
    whole = PixelCounts.of(labels, pseudo)
    assert cross_entropy(logits, labels, whole) != supervised
    assert counts.coverage == whole.coverage

    halves = zip(logits.chunk(2), labels.chunk(2), pseudo.chunk(2), counts.chunk(2), strict=True)
    in_parts = [(cross_entropy(x, y, c), p.cross_entropy(x, mean, c)) for x, y, p, c in halves]
    torch.testing.assert_close(in_parts[0][0] + in_parts[1][0], supervised)
    torch.testing.assert_close(in_parts[0][1] + in_parts[1][1], clean)


# CutMix ------------------------------------------------------------------------------------------


def test_each_image_has_its_box_and_each_share_its_coin(tiny_config):
    """Boxes of half the area; images mix within their share, labels and masks alike."""
    config = tiny_config("ddfp_released", method={"shares": 2})
    images = torch.rand(8, 3, 32, 32, generator=seeded())
    rng, coins, boxes = seeded(1), [], set()
    for _ in range(100):
        cutmix = draw_cutmix(config, images, rng)
        areas = cutmix.boxes.flatten(1).sum(1)
        assert all(area == 0 or abs(area - 512) <= 16 for area in areas)
        shares = (areas > 0).view(2, 4)
        assert (shares.all(1) | ~shares.any(1)).all()
        coins += shares[:, 0].tolist()
        boxes |= {box.numpy().tobytes() for box in cutmix.boxes if box.any()}
        partner = torch.tensor([1, 2, 3, 0, 5, 6, 7, 4])
        expected = torch.where(cutmix.boxes[:, None], images[partner], images)
        assert torch.equal(cutmix(images), expected)
        assert torch.equal(cutmix(images[:, 0]), expected[:, 0])
    assert 70 < sum(coins) < 130
    assert len(boxes) > 2 * sum(coins)


def test_one_share_with_a_box_for_each_image_mixes_around_the_batch(tiny_config):
    config = tiny_config("ddfp", method={"cutmix_box": "image"}, data={"augment": {"cutmix_p": 1}})
    images = torch.rand(3, 3, 32, 32, generator=seeded())
    cutmix = draw_cutmix(config, images, seeded())
    expected = torch.where(cutmix.boxes[:, None], images.roll(-1, 0), images)
    assert torch.equal(cutmix(images), expected)
    assert len({box.numpy().tobytes() for box in cutmix.boxes}) == 3


def test_one_box_for_a_share(tiny_config):
    config = tiny_config("ddfp", method={"shares": 2}, data={"augment": {"cutmix_p": 1}})
    cutmix = draw_cutmix(config, torch.rand(4, 3, 32, 32), seeded())
    assert torch.equal(cutmix.boxes[0], cutmix.boxes[1])
    assert torch.equal(cutmix.boxes[2], cutmix.boxes[3])
    assert not torch.equal(cutmix.boxes[0], cutmix.boxes[2])
    assert isinstance(cutmix, CutMix) and cutmix.shares == 2


# The flow ----------------------------------------------------------------------------------------


def test_the_flow_draws_its_rows_from_each_share():
    labels = torch.arange(4).view(4, 1, 1).expand(4, 4, 4)
    seen = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4)  # a feature names its image
    batch = batch_of(labels.tolist(), torch.ones(8, 4, 4).tolist())
    batch.labeled_valid[0] = False
    rows, known, _ = density_rows(seen, batch, shares=2, samples=40, generator=seeded())
    counts = rows.flatten().long().bincount(minlength=8).tolist()
    assert counts[0] == 0  # padding
    assert counts[1] + counts[4] + counts[5] == 40
    assert counts[2] + counts[3] + counts[6] + counts[7] == 40
    assert all(
        int(image) == (label if label != UNLABELED else image)
        for image, label in zip(rows.flatten(), known, strict=True)
    )
    rows, _, _ = density_rows(seen, batch, shares=2, samples=999, generator=seeded())
    assert len(rows) == 7 * 16


def test_the_flow_of_voc_sees_a_seventh_of_the_pixels():
    """20,480 rows of each share; 32 images of 129 x 129 features."""
    assert load_method("ddfp_released").shares == 4
    assert 1 / 7 < 4 * 20480 / (32 * 129 * 129) < 1 / 6


def test_the_flows_learning_rate_is_a_staircase_of_epochs(tiny_config):
    """9.44e-4 in epoch 1 to 1.06e-5 in epoch 79, and equal within an epoch."""
    training = {"steps": 240, "consistency_from": 1 / 80, "epochs": 80}
    learner = Learner(tiny_config("ddfp_released", training=training), 4, CPU)
    rates = [1e-3 * 0.01 ** learner.density.progress(step) for step in range(237)]
    assert rates[0] == pytest.approx(9.44e-4, rel=1e-3)
    assert rates[-1] == pytest.approx(1.059e-5, rel=1e-3)
    for epoch in range(1, 80):
        first = 3 * (epoch - 1)
        expected = 1e-3 * 0.01 ** (epoch / 80)
        assert rates[first : first + 3] == pytest.approx([expected] * 3)


# BatchNorm ---------------------------------------------------------------------------------------


def test_strong_views_use_the_auxiliary_norm_until_features_are_perturbed(tiny_config):
    """In the first epoch of consistency; labeled images use the main one."""
    config = tiny_config(
        "ddfp",
        method={"strong_norm": "auxiliary"},
        network={"dropout": 0.0},
        training={"consistency_from": 0.0, "perturb_from": 1.0},
        data={"augment": {"cutmix_p": 0.0, "jitter_p": 0, "gray_p": 0, "blur_p": 0}},
    )
    learner = make_learner(config)
    twin = copy.deepcopy(learner.student)
    batch = make_batches(config, 1)[0]
    training_step(learner, batch, 0)
    features = twin.encode(torch.cat([batch.labeled_images, batch.weak_images]) / 255)
    twin.embed(features[:4])
    twin.embed(features[4:], auxiliary=True)
    buffers = dict(learner.student.named_buffers())
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)
    config = tiny_config("ddfp", method={"strong_norm": "auxiliary"}, training=WHOLE)
    assert training_step(make_learner(config), make_batches(config, 1)[0], 0)["perturbed"] >= 0


# What cannot be combined -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"shares": 3}}, r"method\.shares: 3 shares do not divide .*batch_labeled: 4"),
        ({"method": {"complementary_drop": True}}, r"complementary_drop: needs two strong views"),
        ({"method": {"perturbed_view": "weak", "perturb_at": "embedding"}}, "perturbed_view"),
        (
            {"method": {"teacher": "student", "teacher_mode": "train"}},
            "choose teacher_mode: eval",
        ),
        ({"training": {"labeled_loss": "ohem", "ohem_images": 3}}, "groups of 3 images"),
    ],
    ids=str,
)
def test_impossible_combinations_name_the_fix(tiny_config, changes, words):
    with pytest.raises(UserError, match=words):
        tiny_config("ddfp", **changes)


def test_micro_batches_that_cut_a_group_of_ohem_are_refused(tiny_config):
    config = tiny_config("ddfp", training={"labeled_loss": "ohem"})
    Learner(config, 4, CPU, accumulate=2)
    with pytest.raises(UserError, match="only 1 labeled images pass the network at a time"):
        Learner(config, 4, CPU, accumulate=4)


# OHEM --------------------------------------------------------------------------------------------


def slow_ohem(logits, labels, threshold, pixels, images):
    """Pixel by pixel, for each group of images: sort, choose, average."""
    means = []
    for x, y in zip(logits.split(images), labels.split(images), strict=True):
        losses = []
        for image, classes in zip(x, y, strict=True):
            for row in range(classes.shape[0]):
                for column in range(classes.shape[1]):
                    label = int(classes[row, column])
                    if label != IGNORE_INDEX:
                        p = image[:, row, column].double().softmax(0)[label]
                        losses.append((float(p), float(-p.log())))
        losses.sort()
        hard = [loss for p, loss in losses if p <= threshold]
        if len(hard) < pixels:
            hard = [loss for _, loss in losses[:pixels]]
        means.append(sum(hard) / len(hard) if hard else 0.0)
    return sum(means) / len(means)


@pytest.mark.parametrize("images", [1, 2, 8])
@pytest.mark.parametrize("threshold", [0.05, 0.7])
@pytest.mark.parametrize("pixels", [1, 20, 10_000])
def test_ohem_is_the_mean_over_hard_pixels(guess, images, threshold, pixels):
    logits, labels, _ = guess
    loss = ohem_cross_entropy(logits, labels, threshold=threshold, pixels=pixels, images=images)
    expected = slow_ohem(logits, labels, threshold, pixels, images)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_ohem_by_hand():
    """Probabilities 0.8, 0.6, 0.5 and 0.9 of the true class, threshold 0.7."""
    p = torch.tensor([0.8, 0.6, 0.5, 0.9])
    logits = torch.stack([p.log(), (1 - p).log()]).view(1, 2, 2, 2)
    labels = torch.zeros(1, 2, 2, dtype=torch.long)

    def loss(pixels):
        return float(ohem_cross_entropy(logits, labels, threshold=0.7, pixels=pixels, images=1))

    assert loss(1) == loss(2) == pytest.approx(0.601986, abs=1e-5)  # (0.5108 + 0.6931) / 2
    assert loss(3) == pytest.approx(0.475706, abs=1e-5)  # with 0.2231, the third smallest
    assert loss(99) == pytest.approx(0.383119, abs=1e-5)  # all


def test_ohem_is_the_labeled_loss_of_every_stage(tiny_config):
    training = {**SHORT, "labeled_loss": "ohem", "ohem_pixels": 5, "ohem_threshold": 0.3}
    config = tiny_config("ddfp", training=training, network={"dropout": 0.0})
    learner = make_learner(config)
    for step, batch in enumerate(make_batches(config, 4)):
        count, twin = len(batch.labels), copy.deepcopy(learner.student)
        losses = training_step(learner, batch, step)
        assert losses["loss"].isfinite()
        if step == 0:  # on labeled images alone, so BatchNorm is easily computed again
            with torch.no_grad():
                logits = twin(batch.labeled_images / 255)
            expected = slow_ohem(logits[:count], batch.labels, 0.3, 5, 2)
            assert float(losses["supervised"]) == pytest.approx(expected, rel=1e-4)
