"""Data sets of the user, from a package that this project does not know."""

import sys

import pytest
import typer
import yaml

from ddfp_lib.cli import app, run
from ddfp_lib.config import find_benchmark, load_config, to_dict
from ddfp_lib.data import open_dataset
from ddfp_lib.data.digits import DigitScenes, DigitScenesConfig
from ddfp_lib.data.voc import write_voc
from ddfp_lib.errors import UserError
from ddfp_lib.files import repository
from ddfp_lib.runs.folder import Run

PACKAGE = """
from pathlib import Path
from ddfp_lib.data.pairs import FilePairs


class Scenes(FilePairs):
    def __init__(self, root, subset, size=None):
        images = sorted((Path(root) / "JPEGImages").glob(f"*{subset}*.png"))
        masks = [Path(root) / "SegmentationClass" / path.name for path in images]
        classes, colors = ("none", "one", "two", "three"), [(60 * k, 0, 0) for k in range(4)]
        super().__init__("scenes", classes, colors, images, masks, size=size)


class NoDataSet:
    def __init__(self, *arguments):
        raise AssertionError("a class that is no data set must not be made")


class OtherArguments(Scenes):
    def __init__(self, folder):
        super().__init__(folder, "train")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "myscenes.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("myscenes", None)


@pytest.fixture
def scenes(tmp_path):
    root = tmp_path / "scenes"
    config = DigitScenesConfig(
        size=32, classes=3, digits=(1, 2), digit_size=(12, 20), train=8, val=2, test=2
    )
    write_voc({name: DigitScenes(config, name) for name in ("train", "val", "test")}, root)
    return root


def test_a_class_of_ones_own_trains_and_is_evaluated(package, scenes, tiny_config, tmp_path):
    values = to_dict(tiny_config("consistency"))
    del values["method"], values["seed"]
    values["data"] |= {"dataset": "myscenes:Scenes", "labeled": 4}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    folder = tmp_path / "run"
    command = ["train", str(path), "--method", "consistency", "--data", str(scenes)]
    command += ["--out", str(folder)]
    assert run(lambda: app(command, standalone_mode=False)) == 0
    trained = Run.open(folder)
    assert trained.classes == ("none", "one", "two", "three")
    assert trained.config.data.dataset == "myscenes:Scenes"
    assert run(lambda: app(["evaluate", str(folder)], standalone_mode=False)) == 0


def test_sizes_and_classes_work_as_with_other_data_sets(package, scenes):
    found = open_dataset(
        "myscenes:Scenes", "val", root=scenes, classes=["one", "three"], long_side=16
    )
    assert found.classes == ("one", "three")
    assert found.image(0).shape == (3, 16, 16)
    assert set(found.mask(0).unique().tolist()) <= {0, 1, 255}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("myscenes:NoDataSet", "is not a data set; derive it from FilePairs"),
        ("myscenes:Absent", "has no class 'Absent'"),
        ("nomodule:Scenes", "cannot be imported"),
        ("myscenes:OtherArguments", r"define __init__\(self, root, subset, size=None\)"),
    ],
)
def test_what_is_no_data_set_is_refused(package, scenes, name, said):
    with pytest.raises(UserError, match=f"data.dataset: {name}.*{said}"):
        open_dataset(name, "train", root=scenes)


def test_a_subset_without_an_image_is_refused(package, scenes):
    for path in (scenes / "JPEGImages").glob("*test*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no image of the subset 'test'.* set data\.test=val"):
        open_dataset("myscenes:Scenes", "test", root=scenes)
    with pytest.raises(UserError, match=r"no image of the subset 'none'; check the folder and how"):
        open_dataset("myscenes:Scenes", "none", root=scenes)


def test_an_unknown_name_is_refused_before_work_starts():
    with pytest.raises(UserError, match=r"data\.dataset: 'digit' is unknown; choose one of digits"):
        load_config(find_benchmark("digits"), "ddfp", 0, ["data.dataset=digit"])


def test_the_start_of_the_page_on_data_is_a_benchmark_and_real_commands(tmp_path):
    page = (repository() / "docs" / "data.md").read_text(encoding="utf-8")
    start = page.split("## Start\n")[1].split("\n## ")[0]
    (tmp_path / "mine.yaml").write_text(start.split("```yaml\n")[1].split("```")[0])
    config = load_config(find_benchmark(str(tmp_path / "mine.yaml")), "ddfp")
    assert (config.data.dataset, config.data.labeled) == ("voc", "labeled.txt")
    lines = [line.partition("#")[0].split() for line in start.splitlines() if "ddfp " in line[:5]]
    assert [line[1] for line in lines] == ["data", "train", "predict"]
    for _, *words in lines:
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("ddfp", words)  # parses the options, and calls nothing
