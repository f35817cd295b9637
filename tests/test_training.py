"""One training step does what it says, in its six parts, and nothing besides."""

import dataclasses
import functools
import typing

import pytest
import torch
from torch import nn

import ddfp_lib.training.step as steps
import ddfp_lib.training.views as views
from ddfp_lib.config import MethodConfig, load_method, presets
from ddfp_lib.constants import IGNORE_INDEX, UNLABELED
from ddfp_lib.data import open_dataset
from ddfp_lib.data.loaders import Batch, training_batches
from ddfp_lib.data.splits import make_split
from ddfp_lib.method.config import PERTURBATIONS
from ddfp_lib.models.maps import resize_nearest, to_rows
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.training.learner import Learner, first_step
from ddfp_lib.training.losses import PseudoLabels, cross_entropy, density_training_data
from ddfp_lib.training.step import _labeled_first, teacher_pass, training_step
from ddfp_lib.training.teacher import ema_decay_at, make_teacher, update_ema

CPU = torch.device("cpu")
WHOLE = {"consistency_from": 0.0, "perturb_from": 0.0}  # all of the method from step 0
SHORT = {"steps": 4, "consistency_from": 0.25, "perturb_from": 0.5}  # one, one and two steps


@functools.cache
def dataset_of(data):
    return open_dataset(data.dataset, "train", digits=data.digits)


def make_learner(config):
    """A learner whose networks know the images' statistics.

    Untrained ones in evaluation mode find all pixels alike: all are confident, or none.
    """
    learner = Learner(config, config.data.digits.classes + 1, CPU)
    dataset = dataset_of(config.data)
    images = torch.stack([dataset.image(index) for index in range(8)]) / 255
    norms = [part for part in learner.student.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        features = learner.student.encode(images)
        for auxiliary in (False, True):
            learner.student.embed(features, auxiliary=auxiliary)
    for norm in norms:
        norm.momentum = 0.1
    learner.teacher.load_state_dict(learner.student.state_dict())
    return learner


def make_batches(config, steps):
    dataset = dataset_of(config.data)
    labeled, unlabeled = make_split(dataset, config.data.labeled, config.data.split_seed)
    batches = training_batches(
        dataset,
        labeled,
        unlabeled,
        config.data.augment,
        batch_labeled=config.training.batch_labeled,
        batch_unlabeled=config.training.batch_unlabeled if config.method.consistency else 0,
        seed=config.seed,
        start_step=0,
        stop_step=steps,
    )
    return list(batches)


def take_steps(config, steps=None):
    """Train from scratch; return the learner and each step's losses."""
    learner = make_learner(config)
    batches = make_batches(config, steps or config.training.steps)
    return learner, [training_step(learner, batch, step) for step, batch in enumerate(batches)]


def weights(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def snapshot(module):
    """Copies of all tensors of a module's state."""
    state = module.state_dict(keep_vars=False)
    return {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}


def changed(module, before):
    return {name for name, value in snapshot(module).items() if not value.equal(before[name])}


def gradients(module):
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def watch_losses(learner, monkeypatch):
    """Collect the losses of each step, graph and all, before the optimizer's step."""
    seen = []
    backward = learner.backward

    def spy(part, losses):
        seen.append(dict(part))
        backward(part, losses)

    monkeypatch.setattr(learner, "backward", spy)
    return seen


def watch_shift(learner, monkeypatch):
    """Collect (features, moved, shift) of each time the perturbation is asked."""
    seen = []
    perturbation = learner.perturbation

    def spy(features, moved, models, generator):
        shift = perturbation(features, moved, models, generator)
        seen.append((features, moved, shift))
        return shift

    monkeypatch.setattr(learner, "perturbation", spy)
    return seen


# The teacher -------------------------------------------------------------------------------------


def test_ema_teacher_is_the_average_of_the_students(tiny_config):
    """With decay 0.8 ten steps are five of the plain mean and five of the geometric average:

    ``t = 0.8^5 * mean(s_0 .. s_4) + 0.2 * (0.8^4 s_5 + 0.8^3 s_6 + ... + s_9)``, weights and
    BatchNorm statistics alike.
    """
    config = tiny_config("ddfp", training={"steps": 10, "ema_decay": 0.8})
    learner = make_learner(config)
    students = []
    for step, batch in enumerate(make_batches(config, 10)):
        training_step(learner, batch, step)
        students.append(snapshot(learner.student))
    part = [0.8**5 / 5] * 5 + [0.2 * 0.8**k for k in (4, 3, 2, 1, 0)]
    assert sum(part) == pytest.approx(1)
    teacher = snapshot(learner.teacher)
    assert any(name.endswith("running_var") for name in teacher)
    for name, value in teacher.items():
        if value.is_floating_point():
            expected = sum(p * s[name].double() for p, s in zip(part, students, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert value.equal(students[-1][name]), name


def test_ema_forgets_the_random_start():
    assert ema_decay_at(0, 0.999) == 0
    assert ema_decay_at(1, 0.999) == 0.5
    assert ema_decay_at(10_000, 0.999) == 0.999
    keeps = [ema_decay_at(step, 0.9) for step in range(30)]
    assert keeps == sorted(keeps)


def test_following_changes_the_teacher_alone(tiny_config):
    learner = make_learner(tiny_config("ddfp"))
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter += 1
    before = snapshot(learner.student)
    update_ema(learner.teacher, learner.student, step=1, decay=0.9)
    assert not changed(learner.student, before)
    for ours, theirs in zip(
        learner.teacher.parameters(), learner.student.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs - 0.5)  # halfway: step 1 keeps a half
        assert ours.data_ptr() != theirs.data_ptr()


def test_tied_teacher_is_the_student_but_for_its_statistics(tiny_config):
    """Before training, after it, and after a resume."""
    config = tiny_config("ddfp_released")
    learner, _ = take_steps(config)
    resumed = make_learner(config)
    resumed.load_state_dict(learner.state_dict())
    for each in (make_learner(config), learner, resumed):
        student = dict(each.student.named_parameters())
        teacher = dict(each.teacher.named_parameters())
        assert student.keys() == teacher.keys()
        assert all(teacher[name] is student[name] for name in student)
        buffers = dict(each.student.named_buffers())
        for name, buffer in each.teacher.named_buffers():
            assert buffer.data_ptr() != buffers[name].data_ptr(), name
    statistics = dict(learner.student.named_buffers())
    differing = {
        name
        for name, buffer in learner.teacher.named_buffers()
        if not buffer.equal(statistics[name])
    }
    assert any("running_mean" in name for name in differing)
    assert all("running" in name or "batches" in name for name in differing)
    taught = [id(p) for group in learner.optimizer.param_groups for p in group["params"]]
    assert len(taught) == len(set(taught)) == len(student)


def test_teacher_in_eval_mode_leaves_its_statistics_to_the_average(tiny_config, monkeypatch):
    config = tiny_config("ddfp", training=WHOLE)
    monkeypatch.setattr(steps, "update_ema", lambda *args: None)
    learner = make_learner(config)
    assert not any(module.training for module in learner.teacher.modules())
    before = dict(learner.teacher.named_buffers())
    before = {name: value.clone() for name, value in before.items()}
    for step, batch in enumerate(make_batches(config, 2)):
        training_step(learner, batch, step)
    assert all(value.equal(before[name]) for name, value in learner.teacher.named_buffers())


def test_teacher_in_train_mode_updates_them_itself(tiny_config, monkeypatch):
    config = tiny_config("ddfp", method={"teacher_mode": "train"}, training=WHOLE)
    monkeypatch.setattr(steps, "update_ema", lambda *args: None)
    learner = make_learner(config)
    assert all(module.training for module in learner.teacher.modules())
    before = snapshot(learner.teacher)
    training_step(learner, make_batches(config, 1)[0], 0)
    moved = changed(learner.teacher, before)
    assert any(name.endswith("running_mean") for name in moved)
    assert not any("auxiliary" in name for name in moved)


def test_a_teacher_starts_as_the_students_equal(tiny_config):
    learner, _ = take_steps(tiny_config("ddfp"))
    for kind in ("ema", "tied", "student"):
        for mode in ("eval", "train"):
            teacher = make_teacher(learner.student, kind, mode)
            assert not changed(teacher, snapshot(learner.student))


# Who learns from whom ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ddfp", "vat", "dropout"])
def test_each_loss_teaches_the_student_and_nobody_else(tiny_config, monkeypatch, method):
    config = tiny_config(method, training=WHOLE)
    learner = make_learner(config)
    others = list(learner.teacher.parameters())
    others += [] if learner.density is None else list(learner.density.parameters())
    encoder = list(learner.student.encoder.parameters())
    seen = []

    def spy(part, losses):
        for name, loss in part.items():
            others_see = [p.requires_grad_() for p in others]
            reached = torch.autograd.grad(loss, encoder, retain_graph=True)
            leaked = torch.autograd.grad(loss, others_see, retain_graph=True, allow_unused=True)
            assert any(gradient.any() for gradient in reached), name
            assert all(gradient is None for gradient in leaked), name
            seen.append(name)
        losses |= part

    monkeypatch.setattr(learner, "backward", spy)
    training_step(learner, make_batches(config, 1)[0], 0)
    assert seen == ["supervised", "clean", "perturbed"]


def test_the_step_leaves_gradients_on_the_student_alone(tiny_config):
    learner, _ = take_steps(tiny_config("ddfp"))
    assert gradients(learner.student)
    assert not gradients(learner.teacher)
    assert not any(parameter.requires_grad for parameter in learner.teacher.parameters())
    assert not any(gradient.any() for gradient in gradients(learner.density))


def test_the_flow_teaches_no_network(tiny_config):
    """Though it is given features with a graph."""
    config = tiny_config("ddfp")
    learner = make_learner(config)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = to_rows(learner.student.embed(learner.student.encode(image)))
    assert rows.requires_grad
    before = snapshot(learner.student)
    learner.density.fit_step(rows, generator=torch.Generator().manual_seed(0))
    assert learner.density.steps == 1
    assert not gradients(learner.student)
    assert not changed(learner.student, before)


@pytest.mark.parametrize("method", ["ddfp", "ddfp_released"])
def test_the_teacher_keeps_no_graph(tiny_config, monkeypatch, method):
    """Nor does a tied one, whose weights learn: its activations would fill the memory."""
    learner = make_learner(tiny_config(method, training=WHOLE))
    fit_step, given = learner.density.fit_step, []

    def spy(rows, labels, generator):
        given.append(rows)
        return fit_step(rows, labels, generator=generator)

    monkeypatch.setattr(learner.density, "fit_step", spy)
    training_step(learner, make_batches(learner.config, 1)[0], 0)
    assert not given[0].requires_grad


@pytest.mark.parametrize("method", ["ddfp", "vat"])
def test_asking_for_a_direction_leaves_no_trace(tiny_config, method):
    config = tiny_config(method, training=WHOLE)
    learner, _ = take_steps(config, 2)
    learner.optimizer.zero_grad()
    batch = make_batches(config, 1)[0]
    features = learner.student.encode(batch.weak_images / 255).detach()
    before = snapshot(learner.student)
    rng = torch.Generator().manual_seed(0)
    moved = torch.ones(features.shape[:1] + features.shape[2:]).bool()
    shift = learner.perturbation(features, moved, learner.feature_models(rng), rng)
    assert shift.norm(dim=1).min() > 0
    assert not gradients(learner.student)
    assert learner.density is None or not gradients(learner.density)
    assert not changed(learner.student, before)
    assert learner.student.training
    again = torch.Generator().manual_seed(0)
    models = learner.feature_models(
        torch.Generator().manual_seed(9)
    )  # dropout's generator has no part
    assert torch.equal(learner.perturbation(features, moved, models, again), shift)


def test_the_released_query_leaves_its_trace_in_the_auxiliary_statistics(tiny_config):
    learner = make_learner(tiny_config("ddfp_released"))
    features = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    before = snapshot(learner.student)
    rng = torch.Generator().manual_seed(0)
    learner.perturbation(features, torch.ones(2, 8, 8).bool(), learner.feature_models(rng), rng)
    moved = changed(learner.student, before)
    assert moved
    assert all(".auxiliary." in name for name in moved)
    assert not gradients(learner.student)


def test_the_density_is_asked_about_the_embedding_of_the_features(tiny_config):
    """The step goes down log p(embed(F)): over F by default, over v itself with perturb_at."""
    config = tiny_config("ddfp", training=WHOLE)
    learner, _ = take_steps(config, 3)
    student, density = learner.student, learner.density
    features = torch.randn(1, 12, 4, 5, generator=torch.Generator().manual_seed(0))
    values = learner.feature_models(torch.Generator()).log_density(features)
    with torch.no_grad():
        rows = student.eval().embed(features).permute(0, 2, 3, 1).reshape(20, 8)
        torch.testing.assert_close(values, density.log_prob(rows).view(1, 4, 5))
    learner.config = tiny_config("ddfp", method={"perturb_at": "embedding"})
    values = learner.feature_models(torch.Generator()).log_density(features[:, :8])
    rows = features[:, :8].permute(0, 2, 3, 1).reshape(20, 8)
    torch.testing.assert_close(values, density.log_prob(rows).view(1, 4, 5))


# Losses ------------------------------------------------------------------------------------------


def test_cross_entropy_is_the_mean_over_labeled_pixels():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=rng, requires_grad=True)
    labels = torch.randint(0, 4, (2, 3, 5), generator=rng)
    labels[0, 1] = IGNORE_INDEX
    expected = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    nothing = cross_entropy(logits, torch.full_like(labels, IGNORE_INDEX))
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def test_pseudo_labels_are_the_classes_that_exceed_the_threshold():
    probability = torch.tensor([[0.5, 0.1, 0.9, 0.8], [0.5, 0.9, 0.1, 0.2]])
    logits = probability.log().view(1, 2, 1, 4)
    valid = torch.tensor([[[True, True, False, True]]])
    pseudo = PseudoLabels.of(logits, valid, 0.75)
    assert pseudo.labels.tolist() == [[[IGNORE_INDEX, 1, IGNORE_INDEX, 0]]]
    assert pseudo.coverage() == pytest.approx(2 / 3)
    assert PseudoLabels.of(logits, valid, 1.0).coverage() == 0
    assert PseudoLabels.of(logits, torch.zeros_like(valid), 0.0).coverage() == 0


def test_consistency_mean_over_valid_or_confident_pixels():
    """Four pixels: right and confident, wrong and confident, unconfident, padding."""
    logits = torch.tensor([[3.0, 3.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    labels = torch.tensor([[[0, 1, IGNORE_INDEX, IGNORE_INDEX]]])
    pseudo = PseudoLabels(labels, torch.tensor([[[True, True, True, False]]]))
    # -log(e^3 / (e^3 + 1)) + -log(1 / (e^3 + 1)) = 0.048587 + 3.048587
    total = 3.0971747
    assert pseudo.cross_entropy(logits, "valid").item() == pytest.approx(total / 3)
    assert pseudo.cross_entropy(logits, "confident").item() == pytest.approx(total / 2)
    nothing = PseudoLabels(torch.full_like(labels, IGNORE_INDEX), torch.zeros(1, 1, 4).bool())
    for mean in ("valid", "confident"):
        assert nothing.cross_entropy(logits, mean) == 0


def test_resizing_labels_invents_none():
    labels = torch.tensor([[[0, 255, 3, 1], [2, 1, 0, 254]]])
    assert resize_nearest(labels, (4, 8)).unique().tolist() == labels.unique().tolist()
    assert resize_nearest(labels, (2, 4)).equal(labels)
    small = resize_nearest(labels.repeat_interleave(4, 1).repeat_interleave(4, 2), (2, 4))
    assert small.equal(labels)


def batch_of(labels, shown, times=1):
    """A batch with these labels and valid areas, of labeled and then of unlabeled images."""
    labels, shown = (
        torch.tensor(area).repeat_interleave(times, 1).repeat_interleave(times, 2)
        for area in (labels, shown)
    )
    count, images = len(labels), torch.zeros(len(shown), 3, *shown.shape[1:]).byte()
    shown = shown.bool()
    return Batch(images[:count], labels, images[count:], shown[count:], shown[:count])


def test_the_flow_learns_all_that_is_there_with_what_is_known_of_it():
    """Labels at feature resolution, void as unlabeled, padding of all images left out."""
    seen = torch.arange(3 * 2 * 2 * 2.0).view(3, 2, 2, 2)  # one labeled and two weak images
    shown = [[[0, 1], [1, 1]], [[1, 0], [1, 1]], [[0, 0], [1, 0]]]
    batch = batch_of([[[IGNORE_INDEX, 0], [IGNORE_INDEX, 2]]], shown, times=4)
    rows, known = density_training_data(seen, batch)
    expected = [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0)]
    assert rows.tolist() == [seen[b, :, y, x].tolist() for b, y, x in expected]
    assert known.tolist() == [0, UNLABELED, 2] + [UNLABELED] * 4


@pytest.mark.parametrize("void", ["unlabeled", "dropped"])
def test_no_row_of_the_flow_is_padding(tiny_config, void):
    """Of the views that training sees, where padding is black and no pixel of an image is."""
    batch = make_batches(tiny_config("ddfp", training={"batch_labeled": 8}), 1)[0]
    images = torch.cat([batch.labeled_images, batch.weak_images]) / 255
    shown = torch.cat([batch.labeled_valid, batch.valid])
    assert 0.5 < batch.labeled_valid.float().mean() < 1  # there is padding to leave out
    rows, known = density_training_data(images, batch, void=void)
    padding = images.movedim(1, -1)[~shown]
    assert padding.unique().tolist() == [0]
    classes = int((batch.labels != IGNORE_INDEX).sum())
    assert (known != UNLABELED).sum() == classes
    if void == "unlabeled":
        assert len(rows) == shown.sum()
    else:
        assert len(rows) == classes + batch.valid.sum()


@pytest.mark.parametrize("method", ["ddfp", "ddfp_released"])
def test_the_flow_takes_the_same_step_without_a_wait(tiny_config, method):
    """As on a GPU, whose host does not learn how many pixels are no padding; no row is left out."""
    density = {"noise": 0.0, "samples": 512}
    learners = [make_learner(tiny_config(method, density=density, training=WHOLE)) for _ in "ab"]
    learners[1].finite_check.at_once = False
    batch = make_batches(learners[0].config, 1)[0]
    assert not batch.valid.all()
    waited, queued = (training_step(learner, batch, 0) for learner in learners)
    torch.testing.assert_close(queued, waited)
    for ours, theirs in zip(*(learner.density.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    learners[1].finite_check.check()


def test_void_pixels_may_be_dropped_as_released():
    seen = torch.arange(2 * 2 * 2 * 2.0).view(2, 2, 2, 2)
    batch = batch_of([[[4, 0], [IGNORE_INDEX, 2]]], [[[1, 1], [1, 1]]] * 2)
    rows, known = density_training_data(seen, batch, void="dropped")
    assert known.tolist() == [4, 0, 2] + [UNLABELED] * 4
    assert rows[2].tolist() == seen[0, :, 1, 1].tolist()


def test_the_teacher_may_tell_the_flow_what_it_is_sure_of():
    """Confident pixels only, at feature resolution, and still without padding."""
    seen = torch.arange(2 * 2 * 2 * 2.0).view(2, 2, 2, 2)  # one labeled and one weak image
    shown = [[[1, 1], [1, 1]], [[1, 0], [1, 1]]]
    batch = batch_of([[[4, 0], [IGNORE_INDEX, 2]]], shown, times=4)
    pseudo = torch.tensor([[[3, IGNORE_INDEX], [IGNORE_INDEX, 1]]])
    pseudo = pseudo.repeat_interleave(4, 1).repeat_interleave(4, 2)
    rows, known = density_training_data(seen, batch, pseudo)
    assert len(rows) == len(known) == 4 + 3
    assert known.tolist() == [4, 0, UNLABELED, 2, 3, UNLABELED, 1]


def test_only_a_flow_that_asks_for_it_learns_pseudo_labels(tiny_config):
    """With ``labels: teacher`` the flow's likelihood is another as soon as pseudo-labels exist."""
    told, untold = (
        take_steps(tiny_config("ddfp", density={"labels": labels}, training={"confidence": 0.0}))
        for labels in ("teacher", "masks")
    )
    first = 2  # consistency begins
    assert told[1][first]["bits_per_dim"] > untold[1][first]["bits_per_dim"]


def test_to_rows_reads_pixels_in_order():
    features = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    rows = to_rows(features)
    assert rows.shape == (40, 3)
    assert rows[20 + 2 * 5 + 3].equal(features[1, :, 2, 3])


def test_the_loss_is_the_weighted_sum(tiny_config):
    weights = {"clean_weight": 0.25, "perturbed_weight": 2.0}
    config = tiny_config("ddfp", method=weights)
    _, losses = take_steps(config)
    for step, values in enumerate(losses):
        expected = values["supervised"]
        if step in (2,):  # until features are perturbed, clean views carry both weights
            expected = expected + 2.25 * values["clean"]
        if step >= 3:
            expected = expected + 0.25 * values["clean"] + 2.0 * values["perturbed"]
        torch.testing.assert_close(values["loss"], expected)


# One step ----------------------------------------------------------------------------------------


def test_stages_follow_one_another(tiny_config):
    config = tiny_config(
        "ddfp", training={"steps": 10, "consistency_from": 0.3, "perturb_from": 0.6}
    )
    learner = make_learner(config)
    untrained = snapshot(learner.density)
    for step, batch in enumerate(make_batches(config, 10)):
        losses = training_step(learner, batch, step)
        names = {"supervised", "loss", "grad_norm"}
        if step >= 3:
            names |= {"clean", "bits_per_dim", "coverage"}
        if step >= 6:
            names |= {"perturbed"}
        assert losses.keys() == names, step
        assert learner.density.steps == max(0, step - 2)
        assert bool(changed(learner.density, untrained)) == (step >= 3)
    assert learner.density.total_steps == learner.density.steps


def test_perturbation_waits_for_consistency(tiny_config):
    training = {"steps": 4, "consistency_from": 0.5, "perturb_from": 0.0}
    _, losses = take_steps(tiny_config("ddfp", training=training))
    assert ["perturbed" in values for values in losses] == [False, False, True, True]


def test_cutmix_moves_images_labels_and_valid_area_alike(tiny_config, monkeypatch):
    config = tiny_config("ddfp", training=WHOLE)
    learner = make_learner(config)
    batch = make_batches(config, 1)[0]
    batch.valid[1, :7] = False
    box = torch.zeros(32, 32).bool()
    box[4:20, 8:30] = True
    monkeypatch.setattr(views, "cutmix_box", lambda *args: box)
    monkeypatch.setattr(views, "strong_view", lambda images, *args: images)
    encode, encoded = learner.student.encode, []
    monkeypatch.setattr(
        learner.student, "encode", lambda images, **_: encoded.append(images) or encode(images)
    )
    seen, compare = [], PseudoLabels.cross_entropy
    monkeypatch.setattr(
        PseudoLabels,
        "cross_entropy",
        lambda self, *args: seen.append(self) or compare(self, *args),
    )
    with torch.no_grad():  # what the teacher says of the weak views, before the step
        weak = batch.weak_images / 255
        unmixed = PseudoLabels.of(learner.teacher(weak), batch.valid, config.training.confidence)
    training_step(learner, batch, 0)

    def mixed(maps):
        """Image i outside of the box, i + 1 inside; the last takes from the first."""
        out = maps.clone()
        for i in range(len(maps)):
            out[i][..., box] = maps[(i + 1) % len(maps)][..., box]
        return out

    assert encoded[0][: len(batch.labels)].equal(batch.labeled_images / 255)
    assert encoded[0][len(batch.labels) :].equal(mixed(weak))
    assert len(seen) == 2  # clean and perturbed
    for target in seen:
        assert target.labels.equal(mixed(unmixed.labels))
        assert target.valid.equal(mixed(unmixed.valid))
    assert not mixed(weak).equal(weak)
    assert not target.labels.equal(unmixed.labels)


@pytest.mark.parametrize("perturb_at", ["features", "embedding"])
def test_exactly_the_confident_pixels_move_by_eps(tiny_config, monkeypatch, perturb_at):
    config = tiny_config("ddfp", eps=2.5, training=WHOLE, method={"perturb_at": perturb_at})
    learner = make_learner(config)
    shifts = watch_shift(learner, monkeypatch)
    _, losses = [training_step(learner, b, s) for s, b in enumerate(make_batches(config, 2))]
    assert 0 < losses["coverage"] < 1  # the test looks at both kinds of pixels
    for features, moved, shift in shifts:
        assert features.shape == (4, 12 if perturb_at == "features" else 8, 8, 8)
        assert not features.requires_grad
        torch.testing.assert_close(shift.norm(dim=1), 2.5 * moved.float())
    assert 0 < shifts[-1][1].float().mean() < 1


@pytest.mark.parametrize("method", [name for name in presets() if name != "supervised"])
def test_nothing_confident_trains_on(tiny_config, monkeypatch, method):
    config = tiny_config(method, training={**WHOLE, "confidence": 1.0})
    learner = make_learner(config)
    shifts = watch_shift(learner, monkeypatch)
    before = weights(learner.student)
    for step, batch in enumerate(make_batches(config, 2)):
        losses = training_step(learner, batch, step)
    assert losses["clean"] == 0
    assert losses["coverage"] == 0
    assert losses["supervised"] > 0
    weight = config.method.labeled_weight
    assert losses["loss"] == weight * losses["supervised"]
    if config.method.moved != "all":
        assert all(not shift.any() for _, _, shift in shifts)
    assert losses.get("perturbed", 0) == 0
    assert any(not p.equal(before[name]) for name, p in learner.student.named_parameters())
    assert all(p.isfinite().all() for p in learner.student.parameters())


@pytest.mark.parametrize("method", ["supervised", "ddfp", "ddfp_released"])
def test_nothing_labeled_trains_on(tiny_config, method):
    """A crop may hold nothing but void; cross-entropy's own mean would be NaN for the whole run."""
    config = tiny_config(method)
    learner = make_learner(config)
    for step, batch in enumerate(make_batches(config, 6)):
        batch.labels.fill_(IGNORE_INDEX)
        losses = training_step(learner, batch, step)
        assert losses["supervised"] == 0
        assert losses["loss"].isfinite()
    assert all(p.isfinite().all() for p in learner.student.parameters())


def test_nothing_but_padding_trains_on(tiny_config):
    config = tiny_config("ddfp", training=WHOLE)
    learner = make_learner(config)
    batch = make_batches(config, 1)[0]
    batch.valid.fill_(False)
    losses = training_step(learner, batch, 0)
    assert losses["clean"] == losses["perturbed"] == losses["coverage"] == 0
    assert all(p.isfinite().all() for p in learner.student.parameters())


@pytest.mark.parametrize("method", ["supervised", "ddfp_released"])
@pytest.mark.parametrize("count", [1, 3])
def test_batches_of_odd_and_single_images(tiny_config, method, count):
    config = tiny_config(
        method,
        training={"batch_labeled": count, "batch_unlabeled": count},
        method={"shares": 1},
    )
    _, losses = take_steps(config)
    assert all(values["loss"].isfinite() for values in losses)


def test_split_warm_up_sends_every_second_image_through_the_auxiliary_norm(tiny_config):
    """And the labels stay with their images."""
    config = tiny_config("supervised", method={"warmup_norm": "split"})
    config = tiny_config("supervised", network={"dropout": 0.0}, method={"warmup_norm": "split"})
    learner, twin = make_learner(config), make_learner(config)
    batch = make_batches(config, 1)[0]
    loss = training_step(learner, batch, 0)["supervised"]
    student = twin.student
    features = student.encode(batch.labeled_images / 255)
    logits = [
        student.classify(student.embed(half, auxiliary=aux), (32, 32))
        for half, aux in ((features[0::2], False), (features[1::2], True))
    ]
    total = sum(
        nn.functional.cross_entropy(part, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        for part, labels in zip(logits, (batch.labels[0::2], batch.labels[1::2]), strict=True)
    )
    torch.testing.assert_close(loss, total / (batch.labels != IGNORE_INDEX).sum())
    statistics = dict(learner.student.named_buffers())
    for name, buffer in twin.student.named_buffers():
        torch.testing.assert_close(statistics[name], buffer)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_learning_rates_fall_to_zero_by_the_polynomial(tiny_config, optimizer):
    rates = {"lr_encoder": 0.002, "lr_head": 0.03, "poly": 0.7, "optimizer": optimizer}
    config = tiny_config("supervised", training=rates)
    learner = make_learner(config)
    encoder = {id(p) for p in learner.student.encoder.parameters()}
    everything = {id(p) for p in learner.student.parameters()}
    for step, batch in enumerate(make_batches(config, 6)):
        training_step(learner, batch, step)
        for group in learner.optimizer.param_groups:
            inside = {id(p) for p in group["params"]}
            assert inside in (encoder, everything - encoder)
            base = 0.002 if inside == encoder else 0.03
            assert group["lr"] == pytest.approx(base * (1 - step / 6) ** 0.7)


# Presets and switches ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", presets())
def test_every_preset_trains(tiny_config, method):
    config = tiny_config(method, training=SHORT)
    learner, losses = take_steps(config)
    assert all(value.isfinite() for values in losses for value in values.values())
    start = weights(make_learner(config).student)
    still = {n for n, p in learner.student.named_parameters() if p.equal(start[n])}
    # The auxiliary norm is for perturbed features alone.
    idle = {name for name in start if ".auxiliary." in name}
    perturbed = config.method.perturbation != "none"
    unused = not perturbed or config.method.perturbed_norm == "shared"
    assert still == (idle if unused else set())


@pytest.mark.parametrize("method", ["ddfp", "ddfp_released", "vat"])
def test_methods_train_on_a_transformer_unchanged(tiny_config, method):
    options = {"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 28}
    network = {"encoder": "vit_small_patch14_dinov2", "encoder_options": options}
    _, log = take_steps(tiny_config(method, network=network))
    assert all(float(losses["loss"]) > 0 for losses in log)
    assert log[-1]["perturbed"] >= 0


def switches():
    """Every other value of every key of ``ddfp``: (key, value)."""
    ours = load_method("ddfp")
    for field in dataclasses.fields(MethodConfig):
        value = getattr(ours, field.name)
        if field.name in ("name", "perturbation_options", "learns_density"):
            continue  # of the user's classes: tests/test_own_methods.py
        others = (
            typing.get_args(field.type)
            or {bool: (False, True), int: (2, 4), float: (0.125,), str: PERTURBATIONS}[field.type]
        )
        yield from ((field.name, other) for other in others if other != value)


@pytest.fixture(scope="module")
def trained(tiny_config):
    """The student after a few steps of ``ddfp``."""
    return snapshot(take_steps(tiny_config("ddfp", training=SHORT))[0].student)


@pytest.mark.parametrize(("key", "value"), list(switches()))
def test_no_switch_is_dead(tiny_config, trained, key, value):
    """Each key alone, those that make ``ddfp_released`` among them, changes a few steps' result."""
    method = {key: value}
    if key == "complementary_drop":
        method["strong_views"] = 2
        two = tiny_config("ddfp", training=SHORT, method={"strong_views": 2})
        trained = snapshot(take_steps(two)[0].student)
    if key == "teacher" and value == "tied":  # a tied teacher is to be had in train mode alone
        method["teacher_mode"] = "train"
        untied = tiny_config("ddfp", training=SHORT, method={"teacher_mode": "train"})
        trained = snapshot(take_steps(untied)[0].student)
    learner, _ = take_steps(tiny_config("ddfp", training=SHORT, method=method))
    assert changed(learner.student, trained) & dict(learner.student.named_parameters()).keys()


def test_the_same_switches_give_the_same_student(tiny_config, trained):
    learner, _ = take_steps(tiny_config("ddfp", training=SHORT))
    assert not changed(learner.student, trained)


def test_the_release_is_made_of_tested_switches():
    ours, released = load_method("ddfp"), load_method("ddfp_released")
    differing = {
        (field.name, getattr(released, field.name))
        for field in dataclasses.fields(MethodConfig)
        if getattr(released, field.name) != getattr(ours, field.name)
    }
    assert differing - {("name", "ddfp_released")} <= set(switches())
    assert len(differing) > 5


def test_randomness_is_that_of_the_step_and_the_seed(tiny_config):
    """No two streams are one: not of host and device, of two steps or of two seeds."""
    learners = [make_learner(tiny_config("ddfp", seed=seed)) for seed in (0, 1)]
    streams = [each for learner in learners for step in (0, 1) for each in learner.generators(step)]
    assert len({stream.initial_seed() for stream in streams}) == len(streams)
    again = learners[0].generators(0)
    assert [each.initial_seed() for each in again] == [each.initial_seed() for each in streams[:2]]


def test_steps_leave_global_randomness_alone(tiny_config):
    state = torch.get_rng_state()
    take_steps(tiny_config("ddfp", training=SHORT))
    take_steps(tiny_config("ddfp_released", training=SHORT))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("steps", [7, 40, 60, 1000, 36900])
def test_a_stage_begins_at_the_first_step_that_reaches_its_fraction(steps):
    for fraction in (0.0, 0.1, 1 / 3, 0.3, 0.7, 1.0, 2 / 7, 1 / 60):
        expected = next(s for s in range(steps + 1) if s / steps >= fraction)
        assert first_step(fraction, steps) == expected


def test_the_density_begins_with_the_stage(tiny_config):
    """1.8 of 6 steps: consistency starts in step 2, and the density has the 4 steps from there."""
    learner = make_learner(tiny_config("ddfp", training={"consistency_from": 0.3}))
    begins = next(step for step in range(6) if learner.stage(step).consistency)
    assert (begins, learner.density.total_steps) == (2, 4)


def test_a_teacher_in_train_mode_sees_labeled_and_weak_images_in_each_part(
    tiny_config, monkeypatch
):
    config = tiny_config("ddfp_released", training=WHOLE, method={"shares": 1})
    learner = Learner(config, config.data.digits.classes + 1, CPU, accumulate=2)
    batch = make_batches(config, 1)[0]
    labeled, weak = batch.labeled_images / 255, batch.weak_images / 255
    encode, seen = learner.teacher.encode, []
    monkeypatch.setattr(
        learner.teacher, "encode", lambda x, **kw: seen.append(x) or encode(x, **kw)
    )
    teacher_features, _ = teacher_pass(learner, labeled, weak, batch.valid, torch.Generator())
    for part, ours, theirs in zip(seen, labeled.chunk(2), weak.chunk(2), strict=True):
        assert torch.equal(part, torch.cat([ours, theirs]))
    assert len(teacher_features) == len(labeled) + len(weak)


def test_the_parts_of_the_teacher_are_put_back_in_order():
    images = torch.arange(6.0)[:, None]
    labeled, weak = images[:2], images[2:]
    parts = list(zip(labeled.chunk(2), weak.chunk(2), strict=True))
    maps = [torch.cat(part) for part in parts]
    assert torch.equal(_labeled_first(maps, parts), images)


def test_what_a_backbone_draws_is_a_function_of_the_generator(tiny_config):
    """timm's DropPath draws from the global generator, which nobody seeds in training."""
    config = tiny_config("consistency")
    settings = {"encoder": "test_convnext", "encoder_options": {"drop_path_rate": 0.5}}
    network = SegmentationNetwork(
        dataclasses.replace(config.network, output_stride=32, **settings), 4
    )
    assert network.encoder.draws
    assert not SegmentationNetwork(config.network, 4).encoder.draws
    images = torch.rand(4, 3, 32, 32)
    before = torch.get_rng_state()
    first, again, other = (
        network.encode(images, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
