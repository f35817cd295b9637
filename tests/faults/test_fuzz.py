"""Whatever comes in: it works, or one line says what is wrong. More of it: ``make soak``."""

import copy
import io
import itertools
import json
import math
import signal
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from ddfp_lib.cli import app, run
from ddfp_lib.config import find_benchmark, from_dict, load_config, load_method, read_yaml, to_dict
from ddfp_lib.data.augment import AugmentConfig, strong_view, weak_view
from ddfp_lib.data.base import read_image, read_mask
from ddfp_lib.data.splits import make_split, read_split
from ddfp_lib.data.voc import Voc
from ddfp_lib.errors import UserError
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.faults.report import tried
from tests.fixtures.trees import InMemory, block_masks, make_voc

pytestmark = pytest.mark.fuzz
SECONDS = 60

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**32, -(2**64), 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 40), max_size=4),
    st.lists(st.floats(), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
)
"""Any YAML value, of a size that a run can be tried with."""


@contextmanager
def ends_well():
    """Success or a one-line UserError, within a minute."""
    tried()

    def hangs(*_):
        raise AssertionError(f"hangs for more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    except UserError as error:
        assert str(error).strip()
        assert "\n" not in str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def scratch():
    """A folder, and no half-written file in it at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        assert not list(folder.rglob("*.partial"))
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        yield (*path, key)


WHOLE = to_dict(from_dict(copy.deepcopy(TINY) | {"method": to_dict(load_method("ddfp"))}))
WHOLE["training"] |= {"steps": 3, "consistency_from": 0.0, "perturb_from": 0.3}
KEYS = sorted(leaves(WHOLE))
SLOW = {("training", "compile"), ("network", "pretrained")}  # minutes of a compiler; a download
QUICK = [key for key in KEYS if key not in SLOW]


def spoilt(changes, whole=WHOLE):
    values = copy.deepcopy(whole)
    for path, value in changes:
        target = values
        for key in path[:-1]:
            target = target.get(key)
            if not isinstance(target, dict):
                break
        else:
            target[path[-1]] = value
    return values


changes = st.lists(st.tuples(st.sampled_from(KEYS), odd), min_size=1, max_size=3)


# Configurations ----------------------------------------------------------------------------------


@pytest.mark.fault("random input", "configurations")
@given(changes=changes)
@example(changes=[(("data",), "\n")])  # a library's message that repeats it
def test_configurations(changes):
    with ends_well():
        from_dict(spoilt(changes))


@pytest.mark.fault("random input", "runs of odd configurations")
@given(change=st.tuples(st.sampled_from(QUICK), odd))
@example(change=(("training", "weight_decay"), 3.402823466385289e38))  # just beyond float32
@example(change=(("training", "lr_encoder"), 3.402823466385289e38))
def test_runs_of_odd_configurations(change):
    """A configuration that is taken trains, or is refused in a line before it begins."""
    with scratch() as folder, ends_well():
        try:
            train(from_dict(spoilt([change])), folder / "run", device=torch.device("cpu"))
        except FloatingPointError as error:  # as lr 1e300
            assert "\n" not in str(error)


EDGES = [None, True, -1, 0, 1, 0.5, 1e-300, 3e38, math.inf, math.nan, "", "x", {}, []]
EDGES += [[0], [-1, -1], [0, 0], [2, 1], [-1, 0.5], [0.1, 0.2], [math.nan] * 2, [math.inf] * 2]


@pytest.mark.fault("odd settings", "each setting with each of 22 extreme or invalid values")
@pytest.mark.soak
def test_runs_of_each_setting_at_the_edges():
    for key, value in itertools.product(QUICK, EDGES):
        with scratch() as folder, ends_well():
            try:
                train(from_dict(spoilt([(key, value)])), folder / "run", device=torch.device("cpu"))
            except FloatingPointError as error:
                assert "\n" not in str(error)


@pytest.mark.fault("random input", "YAML files")
@given(text=st.one_of(st.text(max_size=40), st.binary(max_size=40)))
def test_yaml_files(text):
    with scratch() as folder, ends_well():
        path = folder / "some.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="replace"))
        from_dict(read_yaml(path), str(path))


TAGGED = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/name:os.system",
    "!!python/object/apply:builtins.eval [\"open('{mark}', 'w')\"]",
]


@pytest.mark.fault("hostile file", "YAML that creates Python objects, in files and in options")
@pytest.mark.parametrize("tagged", TAGGED)
def test_yaml_with_objects_runs_nothing(tmp_path, tagged):
    mark, path = tmp_path / "mark", tmp_path / "some.yaml"
    path.write_text("eps: " + tagged.format(mark=mark))
    with pytest.raises(UserError, match=r"some\.yaml: is not plain YAML") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    with pytest.raises(UserError, match="not plain YAML"):
        load_config(find_benchmark("digits"), "ddfp", 0, ["eps=" + tagged])


@pytest.mark.fault("hostile file", "YAML nested deep enough to crash its reader")
@pytest.mark.parametrize("depth", [2_000, 20_000])
def test_yaml_nested_too_deep_is_one_line(tmp_path, depth):
    path = tmp_path / "some.yaml"
    path.write_text("[" * depth)
    with pytest.raises(UserError, match=r"some\.yaml: is not plain YAML") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


# Lists -------------------------------------------------------------------------------------------

DATASET = InMemory(block_masks(6))
lines = st.lists(
    st.one_of(
        st.sampled_from([*DATASET.names, "image1.png", "a/image2.jpg b/image2.png", ""]),
        st.text(max_size=8),
    ),
    max_size=6,
)


@pytest.mark.fault("random input", "lists of images")
@given(lines=lines, end=st.sampled_from(["", "\n", "\r\n", "\n\n"]))
def test_split_lists(lines, end):
    with scratch() as folder, ends_well():
        path = folder / "labeled.txt"
        path.write_bytes(("\n".join(lines) + end).encode(errors="replace"))
        labeled, unlabeled = read_split(DATASET, path)
        assert not set(labeled) & set(unlabeled)


@pytest.mark.fault("random input", "lists of random bytes")
@given(content=st.binary(max_size=60))
def test_split_lists_of_any_bytes(content):
    with scratch() as folder, ends_well():
        (folder / "labeled.txt").write_bytes(content)
        read_split(DATASET, folder / "labeled.txt")


@pytest.mark.fault("random input", "numbers of labeled images")
@given(labeled=odd)
def test_counts_of_labeled_images(labeled):
    with ends_well():
        labeled_images, _ = make_split(DATASET, labeled, 0)
        assert 1 <= len(labeled_images) <= len(DATASET)


# Images ------------------------------------------------------------------------------------------


@pytest.mark.fault("random input", "image files of random bytes")
@given(
    content=st.binary(max_size=200),
    head=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"BM", b"GIF8"]
    ),
)
def test_image_files_of_any_bytes(content, head):
    with scratch() as folder:
        (folder / "some.png").write_bytes(head + content)
        for read in (read_image, lambda path: read_mask(path, 3)):
            with ends_well():
                read(folder / "some.png")


@pytest.mark.fault("random input", "damaged images")
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4),
    suffix=st.sampled_from([".png", ".jpg", ".gif", ".bmp"]),
)
def test_damaged_images(cut, flips, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation, in a place of its own that can be damaged too
    with scratch() as folder, ends_well():
        path = folder / f"some{suffix}"
        Image.fromarray(pixels).save(path, exif=turned)
        content = bytearray(path.read_bytes())
        for place, change in flips:
            content[int(place * len(content))] ^= change
        path.write_bytes(content[: math.ceil(cut * len(content))])
        assert read_image(path, upright=True).shape[0] == 3


@pytest.mark.fault("random input", "masks of any mode, values and size")
@given(
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "LA", "I;16"]),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    known=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_masks(mode, values, size, known):
    with scratch() as folder, ends_well():
        pixels = np.resize(np.array(values, dtype=np.uint8), size)
        suffix = ".tiff" if mode in ("I", "F", "CMYK") else ".png"
        Image.fromarray(pixels).convert(mode).save(folder / f"some{suffix}")
        mask = read_mask(folder / f"some{suffix}", 3, known)
        assert tuple(mask.shape) == known
        assert set(mask.unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.fault("random input", "images and crops of any size")
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.one_of(st.integers(-1, 50), st.tuples(st.integers(1, 50), st.integers(1, 50))),
    scale=st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)),
    seed=st.integers(0, 99),
)
@example(size=(2, 1), crop=7, scale=(0.5, 1.0), seed=0)  # becomes a single pixel
def test_views_of_images_of_any_size(size, crop, scale, seed):
    rng = torch.Generator().manual_seed(seed)
    with ends_well():
        config = AugmentConfig(crop=crop, scale=scale)
        image = torch.randint(256, (3, *size), generator=rng).byte()
        view, mask, valid = weak_view(image, image[0] % 5, config, rng)
        assert view.shape[1:] == mask.shape == valid.shape == config.size
        strong = strong_view(view[None] / 255, config, rng)
        assert strong.min() >= 0
        assert strong.max() <= 1


@pytest.mark.fault("random input", "folders of images")
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    classes=st.lists(st.text(max_size=4), max_size=4),
    listed=st.lists(st.text(max_size=4), max_size=3),
)
def test_folders_of_images(width, height, classes, listed):
    with scratch() as folder, ends_well():
        make_voc(folder, {"train": ["a"]})
        Image.new("RGB", (width, height)).save(folder / "JPEGImages" / "b.png")
        (folder / "classes.txt").write_bytes("\n".join(classes).encode(errors="replace"))
        names = folder / "ImageSets" / "Segmentation" / "train.txt"
        names.write_bytes("\n".join(["a", *listed]).encode(errors="replace"))
        data = Voc(folder, "train")
        for index in range(len(data)):
            assert data.image(index).shape[1:] == data.mask(index).shape


# The command line --------------------------------------------------------------------------------

OPTIONS = ["--out", "--method", "--seed", "--labeled", "--data", "--set", "--config", "--device"]
OPTIONS += ["--network", "--subset", "--long-side", "--nonsense", "-h", "--help"]
words = st.one_of(
    st.sampled_from(["digits", "camvid", "voc", "cpu", "cuda:9", "ddfp", "teacher", "0", "1/0"]),
    st.sampled_from(["tiny.yaml", "broken.yaml", "run", "/dev/null", "training.steps=0", "eps=["]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
)


@pytest.mark.fault("random input", "command lines")
@given(
    command=st.sampled_from(["train", "evaluate", "predict", "retrain"]),
    arguments=st.lists(
        st.one_of(words, st.tuples(st.sampled_from(OPTIONS), words)), min_size=1, max_size=5
    ),
)
@example(command="evaluate", arguments=["\n"])
def test_command_lines(command, arguments):
    words = [word for one in arguments for word in ([one] if isinstance(one, str) else one)]
    if command == "train" and "digits" in words:
        words += ["--set", "training.steps=0"]  # refused: no ten minutes of training here
    said, told = io.StringIO(), io.StringIO()
    with scratch() as folder, pytest.MonkeyPatch.context() as patch, ends_well():
        patch.chdir(folder)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(WHOLE))
        (folder / "broken.yaml").write_text("eps: [")
        try:
            with redirect_stdout(said), redirect_stderr(told):
                status = run(lambda: app([command, *words]))
        except SystemExit as end:
            status = end.code
        assert status in (0, 1, 2, None)
        assert "Traceback" not in told.getvalue()
        if told.getvalue().startswith("ddfp: "):
            assert told.getvalue().count("\n") == 1
