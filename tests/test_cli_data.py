"""Commands on data that have changed since a run was trained, or are not right."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddfp_lib.evaluation.scores import evaluate
from ddfp_lib.experiments import reproduction
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.data import data_of, split_of
from ddfp_lib.training.learner import load_learner
from tests.fixtures.trees import make_cityscapes, make_voc
from tests.test_cli import check_one_line, ddfp, folder_benchmark

CLASSES = ("ground", "cell", "rim")
LISTS = {"train": [f"t{n}" for n in range(6)], "val": ["v0", "v1"], "test": ["w0"]}


def make_data(root: Path) -> Path:
    """A user's data, of whose training images t1 and t3 are labeled."""
    make_voc(root, LISTS, classes=CLASSES)
    (root / "labeled.txt").write_text("t1\nt3\n")
    return root


def benchmark_of(folder: Path, **data: object) -> Path:
    return folder_benchmark(folder / "b.yaml", "voc", **{"labeled": "labeled.txt", **data})


def trained_on(folder: Path, root: Path, **data: object) -> Path:
    words = ["--out", folder / "run", "--data", root, "--method", "supervised"]
    assert ddfp("train", benchmark_of(folder, **data), *words) == 0
    return folder / "run"


@pytest.fixture(scope="module", params=["test", "val"])
def finished(request, tmp_path_factory) -> tuple[Path, Path]:
    """A run and its data; the run ends with the list ``test``, or with ``val`` again."""
    folder = tmp_path_factory.mktemp("own")
    root = make_data(folder / "data")
    return trained_on(folder, root, test=request.param), root


@pytest.fixture
def copied(finished, tmp_path) -> tuple[Path, Path]:
    """The same run, and a copy of its data that a test may change."""
    run, root = finished
    return run, Path(shutil.copytree(root, tmp_path / "data"))


def repaint(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the pixels of a mask, and keep its palette."""
    path = root / "SegmentationClass" / f"{name}.png"
    image = Image.open(path)
    changed = Image.fromarray(change(np.array(image)).astype(np.uint8))
    changed.putpalette(image.getpalette())
    changed.save(path)


def one_pixel(mask: np.ndarray) -> np.ndarray:
    """Give one pixel another class."""
    y, x = np.argwhere(mask == 0)[0]
    mask[y, x] = 1
    return mask


def commands(run: Path, root: Path, subset: str, out: Path) -> list[list[object]]:
    return [
        ["evaluate", run, "--subset", subset, "--data", root],
        ["predict", run, "--subset", subset, "--data", root, "--out", out],
    ]


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_unchanged_data_get_no_note(copied, subset, tmp_path, capsys):
    for words in commands(*copied, subset, tmp_path / "out"):
        assert ddfp(*words) == 0
        assert "than when the run was trained" not in capsys.readouterr().out


@pytest.mark.fault("wrong labels", "a mask or an image that changes after training")
@pytest.mark.parametrize(
    ("subset", "title"), [("train", "labeled"), ("val", "validation"), ("test", "test")]
)
def test_changed_masks_and_images_get_a_note(copied, subset, title, tmp_path, capsys):
    """Also with ``data.test: val``, whose masks a run stores once, as those of validation."""
    run, root = copied
    config = Run.open(run).config
    name = {"train": "t1", "val": "v0", "test": "w0" if config.data.test == "test" else "v0"}[
        subset
    ]
    repaint(root, name, one_pixel)
    for words in commands(run, root, subset, tmp_path / "out"):
        assert ddfp(*words) == 0
        note = f"note: {root}: other {title} masks than when the run was trained"
        assert note in capsys.readouterr().out
    picture = root / "JPEGImages" / f"{name}.jpg"
    picture.write_bytes(picture.read_bytes() + b"longer")
    for words in commands(run, root, subset, tmp_path / "out"):
        assert ddfp(*words) == 0
        note = f"note: {root}: other {title} images and masks than when the run was trained"
        assert note in capsys.readouterr().out


@pytest.mark.fault("wrong labels", "data whose classes are not in the same order as in training")
def test_other_classes_are_refused(copied, tmp_path, capsys):
    run, root = copied
    (root / "classes.txt").write_text("ground\nrim\ncell\n")
    for words in commands(run, root, "val", tmp_path / "out"):
        assert ddfp(*words) == 2
        check_one_line(capsys.readouterr().err, [str(root), "another order"])


@pytest.mark.fault("wrong labels", "a bad validation mask, given to evaluate or predict")
@pytest.mark.parametrize("fault", ["value", "colors", "missing"])
def test_a_bad_validation_mask_is_named(copied, fault, tmp_path, capsys):
    run, root = copied
    path = root / "SegmentationClass" / "v1.png"
    if fault == "value":
        Image.fromarray(np.where(np.array(Image.open(path)) == 2, 9, 0).astype(np.uint8)).save(path)
    elif fault == "colors":
        Image.open(path).convert("RGB").save(path)
    else:
        path.unlink()
    for words in commands(run, root, "val", tmp_path / "out"):
        assert ddfp(*words) == 2
        check_one_line(capsys.readouterr().err, [path.name])
    assert not (tmp_path / "out").exists()


def test_the_subset_train_is_its_labeled_images_alone(copied, capsys):
    run, root = copied
    assert ddfp("evaluate", run, "--subset", "train", "--data", root) == 0
    lines = capsys.readouterr().out.splitlines()
    opened = Run.open(run)
    config = opened.config.at(root)
    training = data_of(config, "train")
    labeled = training.only(split_of(config, training)[0])
    assert labeled.names == ["t1", "t3"]
    learner = load_learner(opened, torch.device("cpu"))
    expected, of_all = (
        evaluate(learner.teacher, images, device=torch.device("cpu"), protocol=config.data.protocol)
        for images in (labeled, training)
    )
    assert "train: 2 labeled images, teacher" in lines[-5]
    assert lines[-1].split() == ["mIoU", f"{expected.miou:.2f}"]
    assert f"{of_all.miou:.2f}" != f"{expected.miou:.2f}"


def test_a_class_that_no_labeled_mask_shows_is_told_by_every_command(tmp_path, capsys, monkeypatch):
    root = make_data(tmp_path / "data")
    for name in LISTS["train"]:
        repaint(root, name, lambda mask: np.where(mask == 2, 0, mask))
    benchmark, executed = benchmark_of(tmp_path), []
    monkeypatch.setattr(reproduction, "execute", lambda *words: executed.append(words))
    words = ["--data", root, "--set", "training.steps=2", "--out"]
    for line in (
        ["train", benchmark, "--method", "supervised", *words, tmp_path / "run"],
        ["reproduce", benchmark, "--methods", "supervised", *words, tmp_path / "matrix"],
        ["data", "verify", "voc", "--root", root],
    ):
        assert ddfp(*line) == 0
        captured = capsys.readouterr()
        told = captured.out + captured.err  # train tells it with its progress
        assert "no labeled mask shows 'rim': it cannot be learned" in told, line[0]
    assert len(executed) == 1


def test_unprepared_cityscapes_are_told_the_command(tmp_path, capsys):
    root = make_cityscapes(tmp_path / "data", {"train": 4, "val": 2})
    benchmark = folder_benchmark(tmp_path / "b.yaml", "cityscapes", test="val")
    assert ddfp("train", benchmark, "--out", tmp_path / "run", "--data", root) == 2
    told = f"make it with: ddfp data prepare cityscapes --root {root}"
    check_one_line(capsys.readouterr().err, ["labelTrainIds.png", told])
    assert ddfp("data", "prepare", "cityscapes", "--root", root) == 2
    assert "for a subset of the cities give --partial" in capsys.readouterr().err
    assert ddfp("data", "prepare", "cityscapes", "--root", root, "--partial") == 0
    words = ["--method", "supervised", "--set", "training.steps=2"]
    assert ddfp("train", benchmark, "--out", tmp_path / "run", "--data", root, *words) == 0
