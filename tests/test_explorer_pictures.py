"""The page on pictures: all three steps have the library's numbers, on your own data too."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.data.voc import Voc
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.descent import measure_descent
from ddfp_lib.evaluation.mechanism import percentiles
from ddfp_lib.explorer import pages, pictures
from ddfp_lib.explorer.encoding import unpacked
from ddfp_lib.method.perturb import AdversarialVAT, UniformNoise
from ddfp_lib.models.network import evaluating
from ddfp_lib.seeds import generator
from ddfp_lib.training.data import data_of
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.loop import train
from tests.conftest import make_tiny_config
from tests.fixtures.trees import make_voc


@pytest.fixture(scope="module")
def learner() -> Learner:
    settings = pictures.SETTINGS | {
        "data.digits.border": 0,  # no void pixels: measure_descent leaves them out
        "data.digits.val": 3,
        "data.digits.train": 100,
        "training.confidence": 0.285,  # of an untrained network, about half of the features
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    config = load_config(find_benchmark("digits"), "ddfp", 0, given)
    return Learner(config, 4, torch.device("cpu"))


def test_the_page_on_pictures_has_the_numbers_of_measure_descent(learner):
    dataset = data_of(learner.config, "val")
    data = pictures.picture_data(learner, dataset, lengths=(1.0,))
    measured = measure_descent(learner, dataset, eps=1.0)
    confident = [unpacked(image["confident"], "u1") > 0 for image in data["images"]]
    assert 0 < sum(each.sum() for each in confident) < sum(map(len, confident))

    def shown(part, key, dtype):
        values = [unpacked(part(image)[key], dtype) for image in data["images"]]
        pairs = zip(values, confident, strict=True)
        return torch.from_numpy(np.concatenate([v[moved] for v, moved in pairs]))

    before = shown(lambda image: image, "log_prob", "f4")
    torch.testing.assert_close(before, measured.before, rtol=1e-3, atol=1e-3)
    for name, kind in (("descent", "density descent"),):
        after = shown(lambda image, name=name: image["after"][f"{name} 1"], "log_prob", "f4")
        torch.testing.assert_close(after, measured.after[kind], rtol=1e-3, atol=1e-3)
        rank = shown(lambda image, name=name: image["after"][f"{name} 1"], "percentile", "u1")
        expected = percentiles(measured.after[kind], measured.before).round()
        assert ((rank.float() - expected).abs() <= 1).all()
    label = shown(lambda image: image["after"]["descent 1"], "label", "u1")
    kept = label == shown(lambda image: image, "label", "u1")
    assert kept.float().mean() == pytest.approx(measured.kept["density descent"], abs=0.01)


@pytest.mark.parametrize(
    ("direction", "perturbation"), [("random", UniformNoise), ("adversarial", AdversarialVAT)]
)
def test_the_other_two_steps_are_those_of_the_library(learner, direction, perturbation):
    """All that is shown of one image, computed here from the perturbation's own class."""
    dataset, network = data_of(learner.config, "val"), learner.teacher
    (image,) = pictures.picture_data(learner, dataset, images=1, lengths=(0.5, 2.0))["images"]
    threshold = learner.config.training.confidence
    with evaluating(network), torch.no_grad():
        models = learner.feature_models(generator("unused"), network)
        features = [network.encode(dataset.image(n)[None] / 255) for n in range(len(dataset))]
        sure = [models.logits(each).softmax(1).amax(1) > threshold for each in features]
        known = [models.log_density(f)[s] for f, s in zip(features, sure, strict=True)]
        known = torch.cat(known)
        for eps in (0.5, 2.0):
            rng = generator("explorer", direction)
            step = perturbation(eps)(features[0], sure[0], models, rng)
            length = step.norm(dim=1)
            torch.testing.assert_close(length, eps * sure[0].float(), rtol=1e-4, atol=1e-5)
            after = models.log_density(features[0] + step).flatten()
            shown = image["after"][f"{direction} {eps:g}"]
            log_prob = torch.from_numpy(unpacked(shown["log_prob"], "f4").copy())
            torch.testing.assert_close(log_prob, after, rtol=1e-5, atol=1e-5)
            lower = 100 * (known < after[:, None]).float().mean(1)
            percentile = torch.from_numpy(unpacked(shown["percentile"], "u1").copy())
            # between two known values the share of lower ones jumps, the percentile does not
            assert ((percentile.float() - lower).abs() <= 0.51 + 100 / len(known)).all()
            label = models.logits(features[0] + step).argmax(1).flatten()
            assert unpacked(shown["label"], "u1").tolist() == label.tolist()


def test_a_page_of_a_run_shows_the_images_of_its_own_data(tmp_path):
    """A run on a VOC folder, which has been moved since: --data says where it is now."""
    names = [f"2007_{n:06d}" for n in range(4)]
    lists = {"train": names, "val": ["2008_000001", "2008_000002"]}
    root = make_voc(tmp_path / "before", lists, classes=["ground", "thing"])
    values = {"dataset": "voc", "root": str(root), "labeled": 2, "test": "val"}
    config = make_tiny_config("ddfp", data=values | {"augment": {"crop": 32}})
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, steps=2, confidence=0.51)
    )
    train(config, tmp_path / "run", device=torch.device("cpu"))
    moved = root.rename(tmp_path / "now")
    with pytest.raises(UserError, match="before"):
        pages.pictures_page(tmp_path / "run", None, 2)
    text = pages.pictures_page(tmp_path / "run", moved, 2)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["classes"] == ["ground", "thing"]
    assert len(data["images"]) == 2  # and no photograph of another source
    for shown, index in zip(data["images"], range(2), strict=True):
        mask = Voc(moved, "val").mask(index)
        assert (shown["height"], shown["width"]) == tuple(mask.shape)
        assert unpacked(shown["truth"], "u1").tolist() == mask.flatten().tolist()
        assert shown["image"].startswith("data:image/png;base64,")


def test_features_that_do_not_move_keep_their_class_unless_a_neighbour_moves_them(learner):
    data = pictures.picture_data(learner, data_of(learner.config, "val"), images=1, lengths=(0.0,))
    (image,) = data["images"]
    for part in image["after"].values():
        assert part["label"] == image["label"]
        assert part["percentile"] == image["percentile"]


def test_photographs_are_shown_without_a_mask(learner):
    others = [(name, image[:, :32, :48]) for name, image in pictures.photos()]
    data = pictures.picture_data(
        learner, data_of(learner.config, "val"), images=1, lengths=(1.0,), others=others
    )
    photo = data["images"][1]
    assert photo["truth"] is None
    assert len(unpacked(photo["label"], "u1")) == photo["rows"] * photo["columns"]


def test_a_network_without_confidence_is_one_clear_error(learner):
    config = learner.config
    sure = load_config(
        find_benchmark("digits"), "ddfp", 0, ["data.digits.val=2", "training.confidence=0.999"]
    )
    unsure = Learner(sure, 6, torch.device("cpu"))
    assert config is not sure
    with pytest.raises(UserError, match="confident nowhere"):
        pictures.picture_data(unsure, data_of(sure, "val"), images=1, lengths=(1.0,))
