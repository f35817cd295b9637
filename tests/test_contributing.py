"""The contributors' page: its examples work as they stand, and it says what a lesson needs."""

import re
import sys
from pathlib import Path

import torch

from ddfp_lib.config import load_method
from ddfp_lib.data import open_dataset
from ddfp_lib.data.digits import DigitScenes, DigitScenesConfig
from ddfp_lib.data.voc import write_voc
from ddfp_lib.experiments.study import find_study, studies
from ddfp_lib.lessons import guards, texts
from ddfp_lib.method.perturb import FeatureModels, make_perturbation

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_the_method_of_the_contributors_page_works(tmp_path, monkeypatch):
    (code, _), (preset, _) = blocks("python"), blocks("yaml")
    (tmp_path / "steps.py").write_text(code)
    (tmp_path / "towards_zero.yaml").write_text(preset)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = load_method(str(tmp_path / "towards_zero.yaml"))
    assert method.perturbation == "steps:TowardsZero"
    step = make_perturbation(method.perturbation, 0.5)
    features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    moved = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    models = FeatureModels(lambda v: v.sum(1), lambda v: v)
    shift = step(features, moved, models, torch.Generator())
    torch.testing.assert_close(shift.norm(dim=1), 0.5 * moved.float())
    sys.modules.pop("steps", None)


def test_the_data_set_of_the_contributors_page_works(tmp_path, monkeypatch):
    _, code = blocks("python")
    (tmp_path / "myscenes.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = DigitScenesConfig(
        size=32, classes=3, digits=(1, 2), digit_size=(12, 20), train=2, val=1, test=1
    )
    write_voc({name: DigitScenes(config, name) for name in ("train", "val")}, tmp_path / "data")
    found = open_dataset("myscenes:Scenes", "train", root=tmp_path / "data")
    assert (len(found), len(found.classes)) == (2, 4)
    assert set(found.mask(0).unique().tolist()) <= {0, 1, 2, 3, 255}
    sys.modules.pop("myscenes", None)


def test_the_contributors_page_says_what_a_lesson_needs():
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    lesson = page.split("## Add a lesson\n")[1].split("\n## ")[0]
    for words in (*guards.OPENING, *guards.REPEATED):
        assert words in lesson
    sections = '"{}", "{}", "{}", "{}" and "{}"'.format(*guards.SECTIONS)
    assert sections in " ".join(lesson.split())
    tags = guards.TAGS.keys() - {"colab", "nbval-ignore-output"}
    assert tags <= set(re.findall(r"`([\w-]+)`", lesson))
    assert f"at least {texts.SHORTEST} characters" in lesson
    assert f"smaller than {guards.MAX_BYTES / 1e6:g} MB" in lesson


def test_the_study_of_the_contributors_page_works(tmp_path, monkeypatch):
    """It is about the method of the same page, and its place in STUDY.md is free."""
    preset, study = blocks("yaml")
    (tmp_path / "towards_zero.yaml").write_text(preset)
    (tmp_path / "mine.yaml").write_text(study)
    monkeypatch.chdir(tmp_path)
    found = find_study("mine.yaml")
    assert found.number == 1 + max(other.number for other in studies())
    runs = [(each.method.name, each.seed, each.eps) for each in found.configs()]
    assert len(set(runs)) == 2 * len(found.seeds) == 6
    zero = {each.method.perturbation for each in found.configs()} - {"noise"}
    assert zero == {"steps:TowardsZero"}
    assert len({eps for *_, eps in runs}) == 1, "of the same length"


def test_commands_of_the_contributors_page_exist():
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^ *make ([a-z-]+)", page, re.MULTILINE))
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets and targets <= rules
    for name in re.findall(r"`(tests/\w+\.py|ddfp_lib/[\w/.]+)`", page):
        assert (ROOT / name).exists(), name
