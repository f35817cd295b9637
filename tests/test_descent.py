"""A measured step goes down the density, and what is measured beside it has the right length."""

import pytest
import torch

from ddfp_lib.data import open_dataset
from ddfp_lib.evaluation import features
from ddfp_lib.evaluation.descent import UNPERTURBED, measure_descent
from ddfp_lib.evaluation.features import labeled_features
from ddfp_lib.evaluation.prediction import cut_to_memory
from ddfp_lib.models.maps import at_centres
from ddfp_lib.models.network import evaluating
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.learner import Learner, load_learner
from ddfp_lib.training.loop import train


def test_measured_descent_lowers_the_density(tiny_config, tmp_path):
    config = tiny_config(
        "ddfp", training={"steps": 60, "evaluate_every": 60, "checkpoint_every": 60}
    )
    cpu = torch.device("cpu")
    train(config, tmp_path, device=cpu)
    learner = load_learner(Run.open(tmp_path), cpu)
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = measure_descent(learner, dataset, eps=0.2)
    count = len(measured.before)
    assert count > 50
    change = {name: after - measured.before for name, after in measured.after.items()}
    # Not all: neighbors move too, and a 3x3 convolution lets each pixel see them.
    assert (change["density descent"] < 0).float().mean() > 0.85
    assert change["density descent"].mean() < change["random"].mean()
    assert all(len(after) == count for after in measured.after.values())
    assert all(0 <= part <= 1 for part in [*measured.kept.values(), *measured.right.values()])
    assert measured.independent == {}
    # the adversarial step is the one that is made to change the prediction
    assert measured.divergence["adversarial (VAT)"] > measured.divergence["random"] > 0
    assert 0 < measured.relative_length < 1


@pytest.mark.parametrize("place", ["features", "embedding"])
def test_an_independent_density_sees_embeddings_before_and_after_each_step(tiny_config, place):
    config = tiny_config("ddfp", training={"confidence": 0.0}, method={"perturb_at": place})
    learner = Learner(config, 4, torch.device("cpu"))
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = measure_descent(
        learner, dataset, eps=1.0, independent=lambda v: v.square().sum(dim=1)
    )
    assert set(measured.independent) == {UNPERTURBED, *measured.after}
    assert all(len(values) == len(measured.before) for values in measured.independent.values())
    assert not torch.equal(measured.independent["random"], measured.independent[UNPERTURBED])


@pytest.mark.parametrize("method", ["ddfp", "ddfp_released"])
def test_a_step_of_no_length_changes_nothing(tiny_config, method):
    """Also where the method asks for the density in another BatchNorm than the prediction's."""
    config = tiny_config(method, training={"confidence": 0.0})
    learner = Learner(config, 4, torch.device("cpu"))
    for name, buffer in learner.teacher.named_buffers():
        if "auxiliary" in name and buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))  # the two statistics differ
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = measure_descent(learner, dataset, eps=1e-6)
    assert set(measured.kept.values()) == {1.0}
    assert max(measured.divergence.values()) < 1e-6


def test_the_first_images_are_measured_whatever_their_sizes(tiny_config):
    """Batches end where the size changes: counted batches would leave images out."""
    config = tiny_config("ddfp", training={"confidence": 0.0})
    learner = Learner(config, 4, torch.device("cpu"))
    dataset = open_dataset("digits", "val", digits=config.data.digits)

    class Cut:
        """Every second image is narrower."""

        classes = dataset.classes

        def __len__(self):
            return len(dataset)

        def image(self, index):
            return dataset.image(index)[..., : 32 - 8 * (index % 2)]

        def mask(self, index):
            return dataset.mask(index)[..., : 32 - 8 * (index % 2)]

    network = learner.teacher
    for images in (1, 3, 4, 99):
        with torch.no_grad(), evaluating(network):
            found = list(labeled_features(network, Cut(), images, batch_size=2))
        assert sum(len(features) for features, _ in found) == min(images, len(dataset))
        assert all(f.shape[2:] == truth.shape[1:] for f, truth in found)


def test_a_feature_has_the_class_at_its_centre():
    columns = torch.arange(12).expand(1, 4, 12)  # one feature covers 4 x 4 pixels
    assert at_centres(columns, (1, 3))[0, 0].tolist() == [2, 6, 10]


def test_descent_of_no_confident_feature_is_empty(tiny_config):
    config = tiny_config("ddfp", training={"confidence": 1.0})
    learner = Learner(config, 4, torch.device("cpu"))
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    measured = measure_descent(learner, dataset, eps=1.0)
    assert len(measured.before) == 0


def test_large_images_are_measured_in_parts_on_a_gpu():
    images, masks = torch.empty(16, 3, 1024, 2048, device="meta"), torch.empty(16, 1024, 2048)
    sizes = [len(part) for part, _ in cut_to_memory(images, masks, torch.device("cuda"))]
    assert sizes == [1] * 16
    small = torch.empty(16, 3, 64, 64), torch.empty(16, 64, 64)
    assert [len(part) for part, _ in cut_to_memory(*small, torch.device("cuda"))] == [16]
    assert [len(part) for part, _ in cut_to_memory(images, masks, torch.device("cpu"))] == [16]


def test_parts_do_not_change_what_is_measured(tiny_config, monkeypatch):
    """Of what has no random direction; batches of one image instead of three."""
    config = tiny_config("ddfp", training={"confidence": 0.0})
    learner = Learner(config, 4, torch.device("cpu"))
    dataset = open_dataset("digits", "val", digits=config.data.digits)
    whole = measure_descent(learner, dataset, eps=1.0, images=3)
    monkeypatch.setattr(
        features,
        "cut_to_memory",
        lambda *batch: zip(*(each.split(1) for each in batch[:2]), strict=True),
    )
    parts = measure_descent(learner, dataset, eps=1.0, images=3)
    torch.testing.assert_close(parts.before, whole.before)
    falls = whole.after["density descent"]
    torch.testing.assert_close(parts.after["density descent"], falls, rtol=1e-3, atol=1e-3)
    assert parts.right[UNPERTURBED] == whole.right[UNPERTURBED]
