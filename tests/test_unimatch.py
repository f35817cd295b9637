"""The baselines UniMatch and UniMatch V2, against their formulas."""

import copy

import pytest
import torch

from ddfp_lib.config import load_method
from ddfp_lib.method.perturb import ChannelDropout, complementary_masks
from ddfp_lib.training.losses import PseudoLabels, cross_entropy
from ddfp_lib.training.step import training_step
from tests.test_training import WHOLE, make_batches, make_learner, watch_losses

PLAIN = {"augment": {"cutmix_p": 0.0, "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def parts_of_a_step(tiny_config, monkeypatch, method, **changes):
    config = tiny_config(method, training=WHOLE, network={"dropout": 0.0}, **changes)
    learner = make_learner(config)
    twin = copy.deepcopy(learner)
    seen = watch_losses(learner, monkeypatch)
    batch = make_batches(config, 1)[0]
    losses = training_step(learner, batch, 0)
    return losses, {name: float(value.detach()) for name, value in seen[0].items()}, twin, batch


@pytest.mark.parametrize("method", ["unimatch", "unimatch_ema"])
def test_the_loss_of_unimatch(tiny_config, monkeypatch, method):
    """(labeled + strong1 / 4 + strong2 / 4 + dropped / 2) / 2, with golden numbers."""
    losses, part, *_ = parts_of_a_step(tiny_config, monkeypatch, method)
    assert part.keys() == {"supervised", "clean", "perturbed"}
    strong = 2 * part["clean"]  # the mean over both views, so twice it is their sum
    expected = (part["supervised"] + strong / 4 + part["perturbed"] / 2) / 2
    assert float(losses["loss"]) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_unimatch_v2(tiny_config, monkeypatch):
    """(labeled + the mean of two strong views) / 2."""
    losses, part, *_ = parts_of_a_step(tiny_config, monkeypatch, "unimatch_v2")
    assert part.keys() == {"supervised", "clean"}
    assert float(losses["loss"]) == pytest.approx((part["supervised"] + part["clean"]) / 2)


@pytest.mark.parametrize(
    ("method", "loss"),
    [("unimatch", 0.8125), ("unimatch_ema", 0.8125), ("unimatch_v2", 0.75)],
)
def test_golden_numbers_of_the_weights(method, loss):
    """labeled 1, strong views 0.5 each, dropped 0.75: by the published formulas.

    (1 + 0.5 / 4 + 0.5 / 4 + 0.75 / 2) / 2 = 0.8125 and (1 + 0.5) / 2 = 0.75.
    """
    weights = load_method(method)
    values = {"labeled": 1.0, "clean": 0.5, "perturbed": 0.75}
    found = (
        weights.labeled_weight * values["labeled"]
        + weights.clean_weight * values["clean"]
        + weights.perturbed_weight * values["perturbed"]
    )
    assert found == pytest.approx(loss)


def test_without_augmentation_a_step_is_the_formula(tiny_config, monkeypatch):
    """Two equal views and a dropped weak view, computed again with a copy of the network."""
    _, part, twin, batch = parts_of_a_step(tiny_config, monkeypatch, "unimatch", data=PLAIN)
    student, config = twin.student, twin.config
    weak = batch.weak_images / 255
    with torch.no_grad():
        belief = copy.deepcopy(student).eval()(weak)  # the student itself, in evaluation mode
        pseudo = PseudoLabels.of(belief, batch.valid, config.training.confidence)
        labeled = batch.labeled_images / 255
        views = weak.repeat_interleave(2, 0)
        features = student.encode(torch.cat([labeled, views, weak]))
        count, size = len(labeled), weak.shape[2:]
        logits = student.classify(student.embed(features[: count + len(views)]), size)
        assert part["supervised"] == pytest.approx(
            float(cross_entropy(logits[:count], batch.labels)), rel=1e-5
        )
        strong = logits[count:]
        for view in (strong[0::2], strong[1::2]):
            expected = float(pseudo.cross_entropy(view, "valid"))
            assert part["clean"] == pytest.approx(expected, rel=1e-4)
        assert pseudo.confident.any()

        start = features[count + len(views) :]
        generator = twin.generators(0)[1]
        valid = pseudo.at(start.shape[2:]).valid
        shift = ChannelDropout()(start, valid, None, generator)
        moved = student.classify(student.embed(start + shift), size)
        expected = float(pseudo.cross_entropy(moved, "valid"))
    assert part["perturbed"] == pytest.approx(expected, rel=1e-4)


def test_half_of_the_channels_are_dropped_and_the_others_doubled(tiny_config):
    config = tiny_config("unimatch")
    features = torch.rand(4, 500, 3, 3, generator=seeded()) + 1
    everywhere = torch.ones(4, 3, 3, dtype=torch.bool)
    learner = make_learner(config)
    dropped = features + learner.perturbation(features, everywhere, None, seeded())
    ratio = (dropped / features).flatten(2)
    assert set(ratio.round(decimals=4).unique().tolist()) == {0.0, 2.0}
    assert (ratio == ratio[..., :1]).all()
    assert 0.4 < (ratio[..., 0] == 0).float().mean() < 0.6


def test_the_student_is_its_own_teacher(tiny_config):
    """Weights and statistics, in evaluation mode, after steps and after a resume."""
    config = tiny_config("unimatch", training=WHOLE)
    learner = make_learner(config)
    for step, batch in enumerate(make_batches(config, 2)):
        training_step(learner, batch, step)
    resumed = make_learner(config)
    resumed.load_state_dict(learner.state_dict())
    images = batch.weak_images / 255
    for each in (learner, resumed):
        student = each.student.state_dict()
        assert all(value.equal(student[key]) for key, value in each.teacher.state_dict().items())
        assert not any(module.training for module in each.teacher.modules())
        assert torch.equal(each.teacher(images), copy.deepcopy(each.student).eval()(images))


def test_an_ema_teacher_is_not_the_student(tiny_config):
    config = tiny_config("unimatch_ema", training=WHOLE)
    learner = make_learner(config)
    for step, batch in enumerate(make_batches(config, 2)):
        training_step(learner, batch, step)
    student = dict(learner.student.named_parameters())
    assert any(not p.equal(student[name]) for name, p in learner.teacher.named_parameters())


@pytest.mark.parametrize("images", [1, 2, 5, 8])
def test_complementary_masks(images):
    """2 m and 2 - 2 m; half of the images keep everything."""
    kept = []
    for seed in range(40):
        first, second = complementary_masks(images, 64, seeded(seed))
        assert first.shape == second.shape == (images, 64, 1, 1)
        assert torch.equal(first + second, torch.full_like(first, 2.0))
        whole = (first == 1).all(dim=1).flatten()
        dropped = first[~whole]
        assert ((dropped == 0) | (dropped == 2)).all()
        kept.append(int(whole.sum()))
    assert set(kept) <= {images // 2, (images + 1) // 2}
    assert sum(kept) / 40 == pytest.approx(images / 2, abs=0.3)
    doubled = torch.cat([complementary_masks(2, 64, seeded(s))[0].flatten() for s in range(40)])
    assert 0.4 < (doubled[doubled != 1] == 2).float().mean() < 0.6


def test_two_views_of_an_image_see_complementary_channels(tiny_config, monkeypatch):
    config = tiny_config("unimatch_v2", training=WHOLE, data=PLAIN, network={"dropout": 0.0})
    learner = make_learner(config)
    batch = make_batches(config, 1)[0]
    embed, seen = learner.student.embed, []
    monkeypatch.setattr(
        learner.student, "embed", lambda features, **_: seen.append(features) or embed(features)
    )
    twin = copy.deepcopy(learner.student)
    training_step(learner, batch, 0)
    weak = batch.weak_images / 255
    features = twin.encode(torch.cat([batch.labeled_images / 255, weak.repeat_interleave(2, 0)]))
    views = seen[0][4:]
    torch.testing.assert_close(views[0::2] + views[1::2], 2 * features[4::2])
    torch.testing.assert_close(seen[0][:4], features[:4])
    assert not torch.equal(views[0::2], views[1::2])
