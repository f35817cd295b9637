"""The command line: what it does, and one line with status 2 for everything a user gets wrong."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
import yaml
from PIL import Image

from ddfp_lib.cli import app, run
from ddfp_lib.config import differences, presets, summary
from ddfp_lib.data.voc import CLASSES
from ddfp_lib.files import sha256
from tests.conftest import TINY
from tests.fixtures.trees import make_camvid, make_voc


def ddfp(*words: object) -> int:
    """Run the command line in this process; return its exit status."""
    try:
        return run(lambda: app([str(word) for word in words]))
    except SystemExit as end:
        return end.code or 0


@pytest.fixture
def tiny(tmp_path) -> Path:
    """The YAML of a benchmark whose runs take half a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def folder_benchmark(path: Path, dataset: str, **data: object) -> Path:
    values = copy.deepcopy(TINY)
    values["data"] = {"dataset": dataset, "labeled": 2, "augment": {"crop": 32}, **data}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished tiny run of ddfp."""
    folder = tmp_path_factory.mktemp("trained")
    benchmark = folder / "tiny.yaml"
    benchmark.write_text(yaml.safe_dump(TINY))
    assert ddfp("train", benchmark, "--out", folder / "run", "--device", "cpu") == 0
    return folder / "run"


def test_train_leaves_a_complete_run(trained, capsys):
    assert {path.name for path in trained.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "result.json",
    }
    result = json.loads((trained / "result.json").read_text())
    assert result["method"] == "ddfp"
    assert 0 <= result["test_miou"] <= 100


def test_evaluate_prints_what_the_run_recorded(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    assert ddfp("evaluate", trained, "--subset", "test") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split() == ["mIoU", f"{result['test_miou']:.2f}"]
    assert ddfp("evaluate", trained, "--network", "student") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split() == ["mIoU", f"{result['miou_last']:.2f}"]
    assert "protocol whole" in printed[0]
    assert ddfp("evaluate", trained, "--protocol", "slide16") == 0
    assert "protocol slide16" in capsys.readouterr().out


def test_predict_writes_indices_and_overlays(trained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    picture = tmp_path / "street.jpg"
    Image.fromarray(rng.integers(0, 256, (45, 61, 3), dtype=np.uint8)).save(picture)
    assert ddfp("predict", trained, picture, "--out", tmp_path / "seen", "--long-side", 40) == 0
    labels = Image.open(tmp_path / "seen" / "street.png")
    assert labels.mode == "P"
    assert labels.size == (61, 45)
    assert np.asarray(labels).max() < 4
    assert Image.open(tmp_path / "seen" / "street-overlay.png").size == (61, 45)


@pytest.mark.fault("wrong labels", "pictures that are turned by their EXIF orientation")
def test_predict_says_that_it_turns_pictures(trained, tmp_path, capsys):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in "ab":
        Image.new("RGB", (40, 32)).save(tmp_path / f"{name}.jpg", exif=turned)
    Image.new("RGB", (40, 32)).save(tmp_path / "c.jpg")
    note = "note: 2 pictures are stored turned (EXIF orientation) and are read upright"
    assert ddfp("predict", trained, tmp_path, "--out", tmp_path / "seen") == 0
    assert capsys.readouterr().out.count(note) == 1
    assert Image.open(tmp_path / "seen" / "a.png").size == (32, 40)
    assert ddfp("predict", trained, tmp_path / "c.jpg", "--out", tmp_path / "seen") == 0
    assert "note" not in capsys.readouterr().out


def test_predict_writes_over_no_picture_and_no_result_of_another(trained, tmp_path, capsys):
    names = ["a.png", "b-overlay.png", "b.png", "c.jpg", "c.png"]
    for name in names:
        Image.new("RGB", (20, 20), "red").save(tmp_path / name)
    a, b_overlay, b, c_jpg, c_png = (tmp_path / name for name in names)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert ddfp("predict", trained, a, "--out", tmp_path) == 2
    assert "a.png is one of the pictures" in capsys.readouterr().err
    for pictures in ((b_overlay, b), (c_jpg, c_png)):
        assert ddfp("predict", trained, *pictures, "--out", tmp_path / "seen") == 2
        assert "two folders" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert ddfp("predict", trained, a, a, "--out", tmp_path / "seen") == 0
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {
        "a.png", "a-overlay.png", "legend.png",
    }  # fmt: skip


def test_settings_seed_and_labeled_reach_the_run(tiny, tmp_path):
    words = ["--method", "supervised", "--seed", 5, "--labeled", "1/5", "--set", "training.steps=2"]
    assert ddfp("train", tiny, "--out", tmp_path / "run", *words) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["seed"], result["split"], result["steps"]) == (5, "1/5", 2)


def test_starting_weights_reach_the_run_and_are_named(tiny, tmp_path, capsys):
    path, out = tmp_path / "start.pth", tmp_path / "run"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    words = ["--weights", path, "--set", "training.steps=2", "--method", "supervised"]
    assert ddfp("train", tiny, "--out", out, *words) == 0
    assert sha256(path) in capsys.readouterr().out
    assert json.loads((out / "environment.json").read_text())["weights"] == sha256(path)
    path.unlink()  # a trained network needs them no more
    assert ddfp("evaluate", out) == 0


@pytest.mark.parametrize("dataset", ["camvid", "voc"])
def test_folders_in_the_real_formats_train(dataset, tmp_path):
    if dataset == "camvid":
        make_camvid(tmp_path / "data", {"train": 6, "val": 2, "test": 2})
    else:
        lists = {"train": [f"t{n}" for n in range(6)], "val": ["v0", "v1"], "test": ["x0"]}
        make_voc(tmp_path / "data", lists, classes=CLASSES)
    benchmark = folder_benchmark(tmp_path / "b.yaml", dataset)
    words = ["--out", tmp_path / "run", "--data", tmp_path / "data"]
    assert ddfp("train", benchmark, *words) == 0
    assert ddfp("evaluate", tmp_path / "run", "--data", tmp_path / "data") == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_run_in_one_line(workers, tmp_path, capsys):
    root = make_camvid(tmp_path / "data", {"train": 3, "val": 1, "test": 1}, suffix=".jpg")
    path = root / "train" / "0001TP_000001.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    benchmark = folder_benchmark(tmp_path / "b.yaml", "camvid", workers=workers)
    assert ddfp("train", benchmark, "--out", tmp_path / "run", "--data", root) == 2
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("ddfp: ")]) == 1
    assert f"{path}: not a whole image" in told[-1]


def test_unlabeled_images_of_ones_own_need_no_mask(tmp_path):
    names = [f"p{n}" for n in range(6)]
    make_voc(
        tmp_path / "data",
        {"train": names, "labeled": names[:2], "val": ["v0"], "test": ["v0"]},
        classes=["ground", "thing"],
        without_mask=names[2:],
    )
    labeled = "ImageSets/Segmentation/labeled.txt"
    benchmark = folder_benchmark(tmp_path / "b.yaml", "voc", labeled=labeled)
    words = ["--out", tmp_path / "run", "--data", tmp_path / "data"]
    assert ddfp("train", benchmark, *words) == 0


BAD_WORDS = {
    "unknown benchmark": (["train", "citscapes"], ["'citscapes'", "digits"]),
    "unknown method": (["train", "TINY", "--method", "ddpf"], ["'ddpf'", "ddfp"]),
    "unknown key": (["train", "TINY", "--set", "training.step=3"], ["step", "did you mean"]),
    "unknown preset key": (["train", "TINY", "--set", "method.moves=leaky"], ["moves"]),
    "unknown choice": (["train", "TINY", "--set", "method.teacher=copy"], ["method.teacher"]),
    "unknown backbone": (
        ["train", "TINY", "--set", "network.encoder=resnet_101"],
        ["'resnet_101'", "did you mean"],
    ),
    "eps below 0": (["train", "TINY", "--set", "eps=-1"], ["eps", "-1"]),
    "no equals sign": (["train", "TINY", "--set", "eps"], ["--set eps", "KEY=VALUE"]),
    "missing weights": (["train", "TINY", "--weights", "no/such.pth"], ["--weights no/such.pth"]),
    "missing data folder": (["train", "TINY", "--data", "no/such"], ["--data no/such"]),
    "unknown device": (["train", "TINY", "--device", "gpuu"], ["--device gpuu"]),
    "another kind": (["train", "TINY", "--device", "meta"], ["--device meta"]),
    "no such GPU": (["train", "TINY", "--device", "cuda:97"], ["--device cuda:97"]),
    "more GPUs than there are": (["train", "TINY", "--gpus", "97"], ["--gpus 97"]),
    "no processes": (["train", "TINY", "--processes", "0"], ["--processes 0"]),
    "GPUs and processes": (
        ["train", "TINY", "--gpus", "1", "--processes", "2"],
        ["--gpus and --processes"],
    ),
    "processes on a GPU": (
        ["train", "TINY", "--processes", "2", "--device", "cuda"],
        ["--processes 2", "--gpus"],
    ),
    "parts that do not divide the batch": (
        ["train", "TINY", "--accumulate", "3"],
        ["training.batch_labeled: 4 images", "--accumulate"],
    ),
    "unknown protocol": (["train", "TINY", "--set", "data.protocol=slide"], ["'slide'", "crop513"]),
    "too many labels": (["train", "TINY", "--labeled", "4000"], ["4000", "40"]),
    "labels that are no count": (["train", "TINY", "--labeled", "some"], ["'some'"]),
    "neither benchmark nor config": (["train"], ["ddfp train digits"]),
    "no run folder": (["evaluate", "no/run"], ["no/run", "run folder"]),
    "seeds that are no numbers": (["reproduce", "TINY", "--seeds", "0,a"], ["--seeds 0,a"]),
    "no methods": (["reproduce", "TINY", "--methods", ","], ["--methods"]),
    "quick without settings": (["reproduce", "TINY", "--quick"], ["quick"]),
    "a method that is none": (["reproduce", "TINY", "--methods", "ddfp,best"], ["'best'"]),
    "unknown split": (
        ["reproduce", "voc", "--splits", "732,733", "--dry-run"],
        ["'733'", "92, 183, 366, 732, 1464"],
    ),
    "two names for the labeled": (
        ["reproduce", "voc", "--splits", "732", "--labeled", "92"],
        ["--splits and --labeled"],
    ),
    "a benchmark without splits": (
        ["reproduce", "digits", "--splits", "92"],
        ["'92'", "--labeled"],
    ),
    "record without results": (["record", "no/run"], ["results.csv"]),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_words_get_one_line_and_status_2(case, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, told = BAD_WORDS[case]
    assert ddfp(*[tiny if word == "TINY" else word for word in words]) == 2
    check_one_line(capsys.readouterr().err, told)
    assert not list(tmp_path.rglob("*.pt"))


def check_one_line(stderr: str, told: list[str]) -> None:
    assert len(stderr.strip().splitlines()) == 1
    assert stderr.startswith("ddfp: ")
    for word in told:
        assert word in stderr


def missing_mask(root: Path) -> list[str]:
    path = sorted((root / "trainannot").iterdir())[0]
    path.unlink()
    return [path.name]


def mask_outside_the_classes(root: Path) -> list[str]:
    path = sorted((root / "trainannot").iterdir())[0]
    mask = np.asarray(Image.open(path)).copy()
    mask[3, 4] = 77
    Image.fromarray(mask).save(path)
    return [path.name, "77"]


def colour_mask(root: Path) -> list[str]:
    path = sorted((root / "trainannot").iterdir())[0]
    Image.open(path).convert("RGB").save(path)
    return [path.name, "RGB"]


def broken_image(root: Path) -> list[str]:
    path = sorted((root / "train").iterdir())[0]
    path.write_bytes(path.read_bytes()[:200])
    return [path.name]


def empty_folder(root: Path) -> list[str]:
    for path in (root / "val").iterdir():
        path.unlink()
    return [str(root / "val")]


@pytest.mark.parametrize(
    "spoil", [missing_mask, mask_outside_the_classes, colour_mask, broken_image, empty_folder]
)
def test_bad_data_gets_one_line_that_names_the_file(spoil, tmp_path, capsys):
    root = make_camvid(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    told = spoil(root)
    benchmark = folder_benchmark(tmp_path / "b.yaml", "camvid")
    words = ["--out", tmp_path / "run", "--data", root, "--method", "consistency"]
    assert ddfp("train", benchmark, *words) == 2
    check_one_line(capsys.readouterr().err, told)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("content", "told"), [("", "is empty"), ("p0\nnobody\n", "nobody")], ids=["empty", "unknown"]
)
def test_bad_labeled_lists_are_named(content, told, tmp_path, capsys):
    root = make_voc(tmp_path / "data", {"train": ["p0", "p1"], "val": ["v"], "test": ["v"]})
    (root / "labeled.txt").write_text(content)
    benchmark = folder_benchmark(tmp_path / "b.yaml", "voc", labeled="labeled.txt")
    assert ddfp("train", benchmark, "--out", tmp_path / "run", "--data", root) == 2
    check_one_line(capsys.readouterr().err, ["labeled.txt", told])


def test_a_folder_of_another_configuration_is_refused(trained, tiny, capsys):
    assert ddfp("train", tiny, "--out", trained, "--set", "eps=3") == 2
    check_one_line(capsys.readouterr().err, [str(trained), "--out"])


def test_a_dry_run_tells_the_plan_and_needs_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--splits", "732,1464", "--methods", "supervised,ddfp", "--seeds", "0,1", "--gpus", 4]
    assert ddfp("reproduce", "voc", *words, "--dry-run") == 0
    _, heads, *lines, total, hours, memory, parts = capsys.readouterr().out.splitlines()
    assert heads.split()[-4:] == ["A100", "H100", "4090", "3090"]
    cells = [tuple(line.split()[:4]) for line in lines]
    assert cells == [
        ("732", "supervised", "2", "49,200"),
        ("732", "ddfp", "2", "49,200"),
        ("1464", "supervised", "2", "45,600"),
        ("1464", "ddfp", "2", "45,600"),
    ]
    assert total.startswith("8 runs on 4 GPUs each, 8 to do; hours one after another: A100 ")
    assert "40% of the card's dense peak" in hours
    assert "not measured" in memory
    assert parts.startswith("micro-batches: ")
    assert not list(tmp_path.iterdir())


def test_a_benchmark_runs_all_its_splits_unless_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, runs in ([], 3), (["--quick"], 1), (["--labeled", "1/3"], 1):
        assert (
            ddfp("reproduce", "camvid", "--seeds", 0, "--methods", "ddfp", "--dry-run", *words) == 0
        )
        assert f"{runs} runs" in capsys.readouterr().out


def test_methods_are_listed_with_their_summaries(capsys):
    assert ddfp("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == presets()
    for line, name in zip(lines, presets(), strict=True):
        assert summary(name) and line.endswith(f" {summary(name)}")


def test_methods_prints_the_keys_in_which_two_differ(capsys):
    assert ddfp("methods", "--diff", "ddfp", "noise") == 0
    heads, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heads == ["key", "ddfp", "noise"]
    assert [row[0] for row in rows] == list(differences("ddfp", "noise"))
    assert ["perturbation", "density", "noise"] in rows


def test_report_names_the_pages_and_the_results_without_a_configuration(capsys, monkeypatch):
    lines = ["results.csv: 1 run without a configuration", "  digits, 85 labeled, ddfp, seed 0"]
    monkeypatch.setattr("ddfp_lib.reports.pages.write_pages", lambda: [Path("README.md")])
    monkeypatch.setattr("ddfp_lib.experiments.matches.unmatched_lines", lambda *_: lines)
    assert ddfp("report") == 0
    assert capsys.readouterr().out.splitlines() == ["README.md", *lines]


def test_help_is_there_for_every_command(capsys):
    for command in ("train", "evaluate", "predict", "reproduce", "record", "report"):
        assert ddfp(command, "--help") == 0
        assert len(capsys.readouterr().out.splitlines()) > 8


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['ddfp', '--help']\n"
        "from ddfp_lib.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'torchvision', 'matplotlib', 'umap', 'sklearn', 'pandas'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def commands(group=None, words=("ddfp",)):
    """Yield each command with the words that call it."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def test_the_page_of_commands_has_each_with_its_own_line_and_an_example():
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ddfp .+)` \| (.+) \| `(ddfp .+)` \|$", text, re.MULTILINE)
    known = dict(commands())
    assert sorted(name for name, _, _ in rows) == sorted(known)
    for name, line, example in rows:
        assert line == " ".join(known[name].help.partition("\n\n")[0].split())
        assert example.startswith(name)
        # parses the options, and calls nothing
        known[name].make_context(name, example.removeprefix(name).split())


def test_the_options_on_the_page_of_commands_exist():
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--[a-z-]+).*?` \| (.+) \| .+ \|$", text, re.MULTILINE)
    assert len(rows) > 8
    known = dict(commands())
    for option, names in rows:
        for name in re.findall(r"`(.+?)`", names):
            given = known[f"ddfp {name}"].params
            assert any(option in each.opts for each in given), f"{name} {option}"
