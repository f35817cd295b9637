"""From published archives to a training run, in the real formats, and all that can be wrong."""

import copy
import json
import os
import shutil
import signal
import tarfile
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddfp_lib.cli import app, run
from ddfp_lib.config import load_config
from ddfp_lib.data import open_dataset
from ddfp_lib.data.cityscapes import CLASSES, Cityscapes, to_train_ids
from ddfp_lib.data.prepare import prepare_camvid, prepare_cityscapes, prepare_voc
from ddfp_lib.data.published import COUNTS
from ddfp_lib.data.splits import read_names, read_split
from ddfp_lib.data.verify import verify
from ddfp_lib.data.voc import Voc
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.ledger import ledger
from ddfp_lib.experiments.published import published_scores
from ddfp_lib.reports.results import results_page
from ddfp_lib.runs.folder import finished_result
from tests.conftest import TINY
from tests.fixtures.server import start_ddfp, status_of
from tests.fixtures.trees import (
    add_member,
    annotation,
    make_camvid,
    make_cityscapes,
    make_sbd_archive,
    make_voc,
    make_voc_archive,
    published,
)

FINE, VAL, SBD = ["f0", "f1", "f2"], ["v0", "v1"], ["s0", "s1", "s2", "s3", "s4"]
VOC_COUNTS = {"train": 8, "fine": 3, "val": 2}
CITYSCAPES_COUNTS = {"train": 6, "val": 2}
CAMVID_COUNTS = {"train": 6, "val": 2, "test": 2}


def ddfp(*words):
    try:
        return run(lambda: app([str(word) for word in words]))
    except SystemExit as end:
        return end.code or 0


class Archives:
    """Tiny archives of VOC and SBD; SBD has annotations of VOC's own images too, as it really has.

    Attributes:
        voc, sbd: paths.
        files: what their publishers would say of them.
    """

    def __init__(self, folder):
        tree = folder / "tree"
        self.voc, self.sbd = folder / "voc.tar", folder / "benchmark.tgz"
        lists = {"train": FINE, "val": VAL, "unlisted": SBD}
        self.files = {
            "voc_file": make_voc_archive(self.voc, tree, lists),
            "sbd_file": make_sbd_archive(self.sbd, tree, [*SBD, FINE[0], VAL[0]]),
        }

    def prepare(self, root, counts=VOC_COUNTS, **files):
        files = self.files | files
        prepare_voc(root, self.voc, self.sbd, **files, counts=counts, say=lambda text: None)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return Archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def tiny_counts(monkeypatch):
    """Let the command line expect as few images as the tiny trees have."""
    monkeypatch.setitem(COUNTS, "voc", VOC_COUNTS)
    monkeypatch.setitem(COUNTS, "cityscapes", CITYSCAPES_COUNTS)
    monkeypatch.setitem(COUNTS, "camvid", CAMVID_COUNTS)


def silently(prepare, root, counts):
    prepare(root, counts=counts, say=lambda text: None)
    return root


def test_voc_is_made_of_both_archives(archives, tmp_path):
    archives.prepare(tmp_path / "voc")
    train, val = Voc(tmp_path / "voc", "train"), Voc(tmp_path / "voc", "val")
    assert train.names == sorted(FINE + SBD)
    assert val.names == VAL
    for index, name in enumerate(train.names):
        values = set(train.mask(index).unique().tolist())
        assert values == {20} if name in SBD else 255 in values  # VOC's own masks have borders
    assert val.mask(0).unique().numel() > 1  # VOC's too, though SBD has the image
    with Image.open(tmp_path / "voc" / "SegmentationClassAug" / "s0.png") as mask:
        assert mask.mode == "P"
        assert mask.convert("RGB").getpixel((5, 5)) == (0, 64, 128)  # tv monitor
    assert sorted(path.name for path in (tmp_path / "voc").iterdir()) == [
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
    ]


def test_voc_goes_on_where_it_was_stopped(archives, tmp_path):
    archives.prepare(tmp_path / "whole")
    archives.prepare(tmp_path / "stopped")
    # as if it had been stopped among SBD's masks
    made = tmp_path / "stopped" / "SegmentationClassAug"
    (made / "s3.png").unlink()
    before = (made / "s0.png").stat().st_ino
    made = made.rename(tmp_path / "stopped" / ".SegmentationClassAug.partial")
    archives.prepare(tmp_path / "stopped")
    made = tmp_path / "stopped" / "SegmentationClassAug"
    assert (made / "s0.png").stat().st_ino == before
    for path in (tmp_path / "whole" / "SegmentationClassAug").iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes()


def test_voc_that_is_there_is_kept(archives, tmp_path):
    """Downloaded by hand, as many have it: no archive is opened, only the list is made."""
    archives.prepare(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    prepare_voc(tmp_path, counts=VOC_COUNTS, say=lambda text: None)
    assert read_names(tmp_path / "ImageSets/Segmentation/train_aug.txt") == sorted(FINE + SBD)


@pytest.mark.parametrize("inner", ["VOC2012", "VOCdevkit/VOC2012"])
def test_a_root_too_high_is_corrected(tmp_path, inner):
    (tmp_path / inner / "JPEGImages").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"VOC is in a subfolder; use --root {tmp_path / inner}"):
        prepare_voc(tmp_path)


@pytest.mark.parametrize("subset", ["train", "fine", "val"])
def test_voc_of_another_number_is_refused(archives, tmp_path, subset):
    counts = VOC_COUNTS | {subset: 1000}
    with pytest.raises(UserError, match=rf"{subset} has \d images where 1,000 are published"):
        archives.prepare(tmp_path, counts)


def test_a_training_image_that_is_in_val_is_refused(tmp_path):
    lists = {"train": ["f0", "v0"], "val": ["v0"], "unlisted": []}
    voc = make_voc_archive(tmp_path / "v.tar", tmp_path / "tree", lists)
    sbd = make_sbd_archive(tmp_path / "s.tgz", tmp_path / "tree", [])
    with pytest.raises(UserError, match="fine has 1 images where 2 are published"):
        prepare_voc(
            tmp_path / "voc",
            tmp_path / "v.tar",
            tmp_path / "s.tgz",
            voc_file=voc,
            sbd_file=sbd,
            counts={"train": 1, "fine": 2, "val": 1},
            say=lambda text: None,
        )


@pytest.mark.parametrize("which", ["voc", "sbd"])
def test_another_archive_is_refused(archives, tmp_path, which, capsys):
    (tmp_path / "x.tar").write_bytes(b"another one")
    wrong = {f"{which}_file": published(tmp_path / "x.tar")}
    with pytest.raises(UserError, match=r"(voc\.tar|benchmark\.tgz): its md5 is"):
        archives.prepare(tmp_path / "root", **wrong)
    words = ["data", "prepare", "voc", "--root", tmp_path / "v", "--voc-archive", archives.voc]
    assert ddfp(*words) == 2
    assert "VOCtrainval_11-May-2012.tar is 6cd6e144" in capsys.readouterr().err


def sbd_of(folder, members):
    """An SBD archive of these members."""
    with tarfile.open(folder / "sbd.tgz", "w:gz") as archive:
        for name, content in members.items():
            add_member(archive, name, content)
    return published(folder / "sbd.tgz")


CLS = "benchmark_RELEASE/dataset/cls"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../evil.mat", b"", r"sbd\.tgz: refused: .*evil"),
        (f"{CLS}/s0.mat", b"no annotation", r"s0\.mat: is not an annotation of SBD"),
        (f"{CLS}/zebra.mat", annotation(np.zeros((9, 9), np.uint8)), r"no image 'zebra'"),
        (f"{CLS}/s0.mat", annotation(np.zeros((9, 9), np.uint8)), r"s0\.mat: has \(9, 9\) pixels"),
        (f"{CLS}/s0.mat", annotation(np.full((9, 9), 21, np.uint8)), r"s0\.mat: holds other val"),
        (f"{CLS}/s0.mat", annotation(np.zeros((9, 9))), r"s0\.mat: holds other values"),
    ],
)
def test_annotations_that_are_none_are_refused(archives, tmp_path, name, content, words):
    file = sbd_of(tmp_path, {name: content})
    with pytest.raises(UserError, match=words) as caught:
        prepare_voc(
            tmp_path / "root",
            archives.voc,
            tmp_path / "sbd.tgz",
            voc_file=archives.files["voc_file"],
            sbd_file=file,
            counts=VOC_COUNTS,
            say=lambda text: None,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "root" / "SegmentationClassAug").exists()


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as archive:
        add_member(archive, "VOCdevkit/VOC2007/JPEGImages/a.jpg", b"")
    with pytest.raises(UserError, match=r"other\.tar: has no VOCdevkit/VOC2012/JPEGImages"):
        prepare_voc(tmp_path / "root", path, voc_file=published(path), say=lambda text: None)


def test_table_of_cityscapes():
    label_ids = torch.tensor([[0, 7, 8, 11, 33, 29, 30, 255]], dtype=torch.uint8)
    assert to_train_ids(label_ids).tolist() == [[255, 0, 1, 2, 18, 255, 255, 255]]
    everything = torch.arange(34, dtype=torch.uint8)[None]
    assert (to_train_ids(everything) != 255).sum() == len(CLASSES) == 19
    # torchvision has the table of cityscapesscripts too
    from torchvision.datasets import Cityscapes as Reference

    for label in Reference.classes:
        if 0 <= label.train_id < 19:
            ours = CLASSES[label.train_id]
            assert (ours.name, ours.label_id, ours.colour) == (label.name, label.id, label.color)


def test_cityscapes_is_mapped_to_train_ids(tmp_path):
    root = make_cityscapes(tmp_path, CITYSCAPES_COUNTS)
    silently(prepare_cityscapes, root, CITYSCAPES_COUNTS)
    data = Cityscapes(root, "train")
    assert len(data) == 6
    assert data.names[0] == "train0_000000_leftImg8bit"
    for index, name in enumerate(data.names):
        city, number, _ = name.split("_")
        path = root / "gtFine" / "train" / city / f"{city}_{number}_gtFine_labelIds.png"
        label_ids = torch.from_numpy(np.array(Image.open(path)))
        assert torch.equal(data.mask(index), to_train_ids(label_ids))
        assert data.image(index).shape == (3, 36, 72)
    assert open_dataset("cityscapes", "val", root=root, size=(18, 36)).mask(0).shape == (18, 36)


def test_some_cities_of_cityscapes_are_prepared_if_asked_for(tmp_path):
    root = make_cityscapes(tmp_path, CITYSCAPES_COUNTS)
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(root / folder / "train" / "train1")
    with pytest.raises(UserError, match=r"train has 3 .* a subset of the cities give --partial"):
        silently(prepare_cityscapes, root, None)
    assert not list(root.rglob("*labelTrainIds.png"))
    said = []
    prepare_cityscapes(root, partial=True, say=said.append)
    assert said[0].startswith("train: 3 images; 3 masks made")
    data = Cityscapes(root, "train")
    assert [name.partition("_")[0] for name in data.names] == ["train0"] * 3
    assert all(data.mask(index).shape == (36, 72) for index in range(3))
    checked = verify("cityscapes", root, partial=True)
    assert [len(found.dataset) for found in checked.values()] == [3, CITYSCAPES_COUNTS["val"]]
    assert not any(found.problems for found in checked.values())


def test_unlabeled_images_of_cityscapes_need_no_mask(tmp_path):
    data = Cityscapes(make_cityscapes(tmp_path, {"train": 2}), "train")
    assert data.image(1).shape == (3, 36, 72)
    with pytest.raises(UserError, match=r"labelTrainIds\.png: no such file"):
        data.mask(1)


def test_cityscapes_masks_that_are_there_are_kept(tmp_path):
    root = make_cityscapes(tmp_path, CITYSCAPES_COUNTS)
    made = root / "gtFine" / "train" / "train0" / "train0_000000_gtFine_labelTrainIds.png"
    Image.new("L", (72, 36), 3).save(made)
    silently(prepare_cityscapes, root, CITYSCAPES_COUNTS)
    assert (Cityscapes(root, "train").mask(0) == 3).all()


def test_cityscapes_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no gtFine; register at https://www\.cityscapes"):
        prepare_cityscapes(tmp_path)
    root = make_cityscapes(tmp_path, {"train": 1})
    with pytest.raises(UserError, match=r"leftImg8bit/val: no such folder"):
        prepare_cityscapes(root)
    with pytest.raises(UserError, match=r"train has 1 images where 2,975 are published"):
        prepare_cityscapes(make_cityscapes(tmp_path, {"val": 1}))
    with pytest.raises(UserError, match=r"subset 'test'.*set data\.test to val"):
        Cityscapes(root, "test")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (72, 36), 34), "mask value 34 is no class"),
        (Image.new("RGB", (72, 36)), "a mask of mode RGB"),
        (Image.new("L", (36, 36)), "36 x 36 pixels"),
        (None, "no such file"),
    ],
)
def test_published_masks_that_are_not_right_are_refused(tmp_path, mask, words):
    root = make_cityscapes(tmp_path, {"train": 1})
    path = root / "gtFine" / "train" / "train0" / "train0_000000_gtFine_labelIds.png"
    path.unlink()
    if mask:
        mask.save(path)
    with pytest.raises(UserError, match=rf"labelIds\.png: .*{words}"):
        silently(prepare_cityscapes, root, {"train": 1})
    assert not list(root.rglob("*labelTrainIds.png"))


def test_camvid_is_looked_at(tmp_path):
    with pytest.raises(UserError, match="has no folder 'train'; get CamVid with 'git clone"):
        prepare_camvid(tmp_path)
    root = make_camvid(tmp_path / "c", CAMVID_COUNTS)
    silently(prepare_camvid, root, CAMVID_COUNTS)
    with pytest.raises(UserError, match="train has 6 images where 367 are published"):
        prepare_camvid(root)


def spoil(kind, path):
    if kind == "missing":
        path.unlink()
    elif kind == "colours":
        Image.open(path).convert("RGB").save(path)
    elif kind == "size":
        Image.new("L", (5, 7)).save(path)
    elif kind == "value":
        mask = np.array(Image.open(path))
        mask[3, 3] = 77
        Image.fromarray(mask).save(path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("colours", "holds colors, not class indices"),
        ("size", "the mask has 7 x 5 pixels"),
        ("value", "mask value 77 is no class"),
        ("cut", "not a whole image"),
    ],
)
def test_verify_names_each_mask_that_is_not_right(tmp_path, tiny_counts, capsys, kind, words):
    root = make_camvid(tmp_path, CAMVID_COUNTS)
    for name in ("trainannot/0001TP_000001.png", "valannot/0001TP_000000.png"):
        spoil(kind, root / name)
    assert ddfp("data", "verify", "camvid", "--root", root) == 2
    told = capsys.readouterr()
    first, second = told.out.splitlines()
    assert words in first
    assert "trainannot/0001TP_000001.png" in first
    assert "valannot/0001TP_000000.png" in second
    assert told.err.count("\n") == 1
    assert "2 problems" in told.err
    assert not (root / "samples.png").exists()


def test_verify_names_an_image_that_is_cut(tmp_path, tiny_counts, capsys):
    root = make_camvid(tmp_path, CAMVID_COUNTS, suffix=".jpg")
    spoil("cut", root / "test" / "0001TP_000001.jpg")
    assert ddfp("data", "verify", "camvid", "--root", root) == 2
    assert "test/0001TP_000001.jpg: not a whole image" in capsys.readouterr().out


def test_verify_finds_val_images_and_strangers_in_lists(archives, tmp_path):
    archives.prepare(tmp_path)
    for count, names in {"1": ["v0"], "2": ["f0", "zebra"]}.items():
        (tmp_path / "splits" / count).mkdir(parents=True)
        (tmp_path / "splits" / count / "labeled.txt").write_text("\n".join(names))
        (tmp_path / "splits" / count / "unlabeled.txt").write_text("s0")
    with (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").open("a") as names:
        names.write("v1\n")
    problems = verify("voc", tmp_path, counts={"train": 9, "val": 2})["train"].problems
    assert [problem.partition(": ")[2].partition(";")[0] for problem in problems] == [
        "is in train and in val, like 1 of 2 validation images",
        "1 of 1 names are not in voc, the first is 'v0'",
        "1 of 2 names are not in voc, the first is 'zebra'",
    ]


def test_verify_refuses_wrong_roots_and_counts(tmp_path, tiny_counts, capsys):
    for name, words in {
        "voc": "JPEGImages: no such folder",
        "cityscapes": "leftImg8bit/train: no such folder",
        "camvid": "train: no such folder",
        "digits": "digits: is not a data set of files",
    }.items():
        assert ddfp("data", "verify", name, "--root", tmp_path) == 2
        assert words in capsys.readouterr().err
    make_camvid(tmp_path, {"train": 5, "val": 2, "test": 2})
    assert ddfp("data", "verify", "camvid", "--root", tmp_path) == 2
    assert "train has 5 images where 6 are published" in capsys.readouterr().err


def test_verify_own_data_may_lack_masks(tmp_path, capsys):
    lists = {"train": ["a", "b", "c"], "val": ["v"]}
    make_voc(tmp_path, lists, classes=["ground", "thing"], without_mask=["a", "c"])
    assert ddfp("data", "verify", "voc", "--root", tmp_path) == 0
    assert "train: 3 images, 2 without a mask" in capsys.readouterr().out
    (tmp_path / "SegmentationClass" / "v.png").unlink()
    assert "v.png: no such file" in verify("voc", tmp_path)["val"].problems[0]
    (tmp_path / "splits" / "2").mkdir(parents=True)
    (tmp_path / "splits" / "2" / "labeled.txt").write_text("a\nb\n")
    (problem,) = verify("voc", tmp_path)["train"].problems
    assert problem.endswith("splits/2/labeled.txt: 1 images have no mask, the first is 'a'")


def test_verify_counts_classes_and_draws_samples(tmp_path, tiny_counts, capsys):
    root = make_camvid(tmp_path, CAMVID_COUNTS)
    assert ddfp("data", "verify", "camvid", "--root", root, "--sheet", tmp_path / "s.png") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "train: 6 images"
    shares = [float(line.split("images")[1].split()[0]) for line in out.splitlines()[1:12]]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width == 1800


def prepared(name, archives, root):
    """Prepare a data set as a user would; return its folder."""
    if name == "voc":
        archives.prepare(root)
    else:
        make, counts = {
            "cityscapes": (make_cityscapes, CITYSCAPES_COUNTS),
            "camvid": (make_camvid, CAMVID_COUNTS),
        }[name]
        make(root, counts)
        assert ddfp("data", "prepare", name, "--root", root) == 0
    return root


@pytest.mark.parametrize("name", ["voc", "cityscapes", "camvid"])
def test_prepare_verify_split_train(name, archives, tmp_path, tiny_counts, capsys):
    root = prepared(name, archives, tmp_path / "data")
    assert ddfp("data", "verify", name, "--root", root) == 0
    assert (root / "samples.png").is_file()
    make = ["data", "splits", "make", name, "--root", root, "--labeled", "1/3"]
    assert ddfp(*make) == 0
    count = round(COUNTS[name]["train"] / 3)
    lists = root / "splits" / f"{count}-seed0"
    first = {path.name: path.read_bytes() for path in lists.iterdir()}
    assert ddfp(*make) == 0
    assert {path.name: path.read_bytes() for path in lists.iterdir()} == first
    names = [read_names(lists / f"{part}.txt") for part in ("labeled", "unlabeled")]
    assert len(names[0]) == count
    assert sorted(names[0] + names[1]) == sorted(open_dataset(name, "train", root=root).names)
    assert ddfp("data", "verify", name, "--root", root) == 0

    values = copy.deepcopy(TINY)
    values["data"] = {
        "dataset": name,
        "labeled": f"splits/{count}-seed0/labeled.txt",
        "unlabeled": f"splits/{count}-seed0/unlabeled.txt",
        "test": "val",
        "workers": 1,
        "augment": {"crop": 32},
    }
    benchmark = tmp_path / "b.yaml"
    benchmark.write_text(yaml.safe_dump(values))
    words = ["train", benchmark, "--data", root, "--device", "cpu", "--out"]
    assert ddfp(*words, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 6
    capsys.readouterr()
    words = [*words, tmp_path / "other", "--labeled", "splits/777/labeled.txt"]
    assert ddfp(*words) == 2
    told = capsys.readouterr().err
    assert "splits/777/labeled.txt: there is no such list; make it with 'ddfp data splits'" in told


@pytest.mark.parametrize(("name", "processes"), [("voc", 2), ("cityscapes", 1)])
def test_killed_resumed_evaluated_told(name, processes, archives, tmp_path, tiny_counts, capsys):
    """From a prepared tree to a row of the ledger, with a kill -9 on the way."""
    root, out = prepared(name, archives, tmp_path / "data"), tmp_path / "run"
    values = copy.deepcopy(TINY) | {"benchmark": name}
    values["data"] = {"dataset": name, "labeled": 2, "test": "val", "augment": {"crop": 32}}
    values["training"].update(steps=30, evaluate_every=15, batch_labeled=2, batch_unlabeled=2)
    benchmark = tmp_path / "b.yaml"
    benchmark.write_text(yaml.safe_dump(values))
    words = ["train", benchmark, "--data", root]
    words += ["--device", "cpu", "--processes", processes, "--out", out]
    process = start_ddfp(*words)
    while not (out / "checkpoints" / "index.json").is_file():
        assert process.is_alive()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not (out / "result.json").exists()

    config = load_config(benchmark, "ddfp").at(root)
    resumed = tmp_path / "resumed.txt"
    assert status_of(start_ddfp(*words, out=resumed)) == 0
    assert "on validation images" in resumed.read_text()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").open()]
    assert steps == sorted(steps)
    assert steps[-1] == 30

    assert ddfp("evaluate", out, "--data", root, "--device", "cpu") == 0
    result = finished_result(out, config)
    assert f"mIoU{result.teacher_miou_last:15.2f}" in capsys.readouterr().out
    assert result.processes == processes
    row = ledger([result])
    assert len(row) == 1
    assert f"| `ddfp` | **{result.test_miou:.1f}**" in results_page(row, published_scores())


def test_unimatchs_lists_are_read(tmp_path, archives):
    """splits/<dataset>/<n>/labeled.txt there: "img mask" a line, at any place."""
    archives.prepare(tmp_path / "voc")
    lists = tmp_path / "UniMatch" / "splits" / "pascal" / "2"
    lists.mkdir(parents=True)
    for part, names in {"labeled": ["s1", "f0"], "unlabeled": ["s2"]}.items():
        lines = [f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in names]
        (lists / f"{part}.txt").write_text("\n".join(lines) + "\n")
    data = Voc(tmp_path / "voc", "train")
    labeled, unlabeled = read_split(data, lists / "labeled.txt", lists / "unlabeled.txt")
    assert [data.names[index] for index in labeled + unlabeled] == ["s1", "f0", "s2"]
    assert (data.mask(labeled[0]) == 20).all()  # of SegmentationClassAug, which UniMatch renames
