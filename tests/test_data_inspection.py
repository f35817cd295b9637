"""What is wrong with data is found before step 0, in one line that says what to do."""

import json
import os
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddfp_lib.config import from_dict, load_method, to_dict
from ddfp_lib.data import facts, open_dataset
from ddfp_lib.data.facts import mask_facts
from ddfp_lib.data.inspection import inspect_data
from ddfp_lib.data.splits import classes_present
from ddfp_lib.data.verify import verify
from ddfp_lib.data.voc import Voc, voc_palette
from ddfp_lib.errors import UserError
from ddfp_lib.experiments import reproduction
from ddfp_lib.experiments.matrix import Cell
from ddfp_lib.experiments.reproduction import Request, check_inputs, reproduce
from ddfp_lib.files import write_text
from ddfp_lib.runs.identity import check_classes, check_identity, write_identity
from ddfp_lib.training.data import data_of, open_run_data, split_of
from ddfp_lib.training.loop import train
from tests.conftest import TINY
from tests.fixtures.png import save_few_bits, write_png
from tests.fixtures.trees import make_voc

CLASSES = ("ground", "cell", "rim")
LISTS = {"train": ["t0", "t1", "t2", "t3"], "val": ["v0", "v1"], "test": ["w0"]}
PALETTE = [channel for colour in voc_palette(256) for channel in colour]


@pytest.fixture
def root(tmp_path):
    return make_voc(tmp_path / "data", LISTS, classes=CLASSES, without_mask=["t2", "t3"])


def config(root, **data):
    """A run on ``root``; t0 and t1 are labeled."""
    labeled = root / "labeled.txt"
    if not labeled.exists():
        labeled.write_text("t0\nt1\n")
    settings = {"dataset": "voc", "root": str(root), "labeled": "labeled.txt"}
    return from_dict(
        {**TINY, "method": to_dict(load_method("supervised")), "data": {**settings, **data}}
    )


def repaint(root, name, change, **options):
    """Change the pixels of a mask; ``change`` gets and returns uint8 (H, W)."""
    path = root / "SegmentationClass" / f"{name}.png"
    mask = Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8))
    if options.get("palette", True):
        mask.putpalette(PALETTE)
    mask.save(path)


def everywhere(root, change):
    for path in (root / "SegmentationClass").iterdir():
        repaint(root, path.stem, change)


def refused(call, *words):
    with pytest.raises(UserError) as error:
        call()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_good_data_have_no_findings(root):
    data = open_run_data(config(root))
    assert data.findings.errors == data.findings.notices == []
    assert (data.labeled, data.unlabeled) == ([0, 1], [2, 3])
    assert set(data.findings.sets) == {"labeled", "validation", "test"}


def test_a_broken_link_is_called_so(root):
    for folder, name in (("SegmentationClass", "t1.png"), ("JPEGImages", "t3.jpg")):
        path = root / folder / name
        path.unlink()
        path.symlink_to(root / "nowhere")
        words = f"{path}: is a broken link: {root / 'nowhere'} is missing"
        refused(lambda: open_run_data(config(root)), words)
        assert any(line.startswith(words) for line in verify("voc", root)["train"].problems)
        path.unlink()
        make_voc(root, LISTS, classes=CLASSES, without_mask=["t2", "t3"])


@pytest.mark.fault(
    "wrong labels", "your own data with a second folder or list whose PASCAL VOC name has priority"
)
def test_folders_and_lists_of_voc_in_own_data_are_noticed(root):
    """By every command; those that read no training images say nothing of their list."""
    folder = root / "ImageSets" / "Segmentation"
    (root / "SegmentationClass").rename(root / "SegmentationClassAug")
    (folder / "train_aug.txt").write_text((folder / "train.txt").read_text())
    first, second = open_run_data(config(root)).findings.notices
    assert f"{root / 'SegmentationClassAug'}: masks are read from this folder" in first
    assert f"{folder / 'train_aug.txt'}: training images are those of this list" in second
    assert inspect_data(root, {"validation": Voc(root, "val")}).notices == [first]
    assert verify("voc", root)["train"].notices == [first, second]


def test_masks_of_0_and_255_are_refused(root):
    everywhere(root, lambda mask: np.where(mask > 0, 255, 0))
    refused(lambda: open_run_data(config(root)), "0 and 255", "write 1, not 255", "data convert")


def test_some_masks_of_0_and_255_are_noticed(root):
    repaint(root, "t0", lambda mask: np.where(mask > 0, 255, 0))
    (notice,) = open_run_data(config(root)).findings.notices
    assert "1 of 2 labeled masks hold no value but 0 and 255" in notice


@pytest.mark.parametrize(
    ("names", "value", "words"),
    [
        (["t0", "t1"], 255, "every pixel of the labeled masks is ignored"),
        (["v0", "v1"], 255, "every pixel of the validation masks is ignored"),
        (["w0"], 255, "every pixel of the test masks is ignored"),
    ],
)
def test_nothing_to_learn_or_to_score_is_refused(root, names, value, words):
    for name in names:
        repaint(root, name, lambda mask: np.full_like(mask, value))
    refused(lambda: open_run_data(config(root)), words)


def test_labels_of_a_single_class_are_noticed(root):
    for name in ("t0", "t1"):
        repaint(root, name, lambda mask: np.ones_like(mask))
    first, second = open_run_data(config(root)).findings.notices
    assert "the labeled masks show no class but 'cell': there is nothing to learn" in first
    assert "no labeled mask shows 'ground', 'rim'" in second


def test_classes_that_no_mask_shows_are_noticed(root):
    everywhere(root, lambda mask: np.where(mask == 2, 0, mask))
    notices = open_run_data(config(root)).findings.notices
    assert [notice.split(": ")[1] for notice in notices] == [
        f"no {title} mask shows 'rim'" for title in ("labeled", "validation", "test")
    ]


def test_mostly_ignored_pixels_are_noticed(root):
    def hide(mask):
        mask[: int(0.8 * len(mask))] = 255
        return mask

    repaint(root, "t0", hide)
    repaint(root, "t1", hide)
    notices = open_run_data(config(root)).findings.notices
    assert any("% of the pixels of labeled masks are ignored" in notice for notice in notices)


@pytest.mark.parametrize("name", ["t1", "v1", "w0"])
def test_missing_masks_are_found_before_training(root, name):
    mask = root / "SegmentationClass" / f"{name}.png"
    mask.rename(mask.with_name(f"{name}_mask.png"))
    refused(lambda: open_run_data(config(root)), f"{name}.png", f"the folder has {name}_mask.png")


def test_missing_lists_and_images_are_found_before_training(root):
    lists = root / "ImageSets" / "Segmentation"
    (lists / "test.txt").unlink()
    refused(lambda: open_run_data(config(root)), "test.txt", "train, val", "data.test=val")
    assert open_run_data(config(root, test="val")).findings.errors == []
    image = root / "JPEGImages" / "v0.jpg"
    image.rename(image.with_suffix(".tif"))
    refused(
        lambda: open_run_data(config(root, test="val")), "'v0'", ".jpg, .jpeg or .png", "v0.tif"
    )


def test_labeled_images_are_drawn_only_where_all_have_masks(root):
    refused(lambda: open_run_data(config(root, labeled=2)), "t2.png", "2 of 4 training", "a list")


def test_two_images_of_one_name_are_refused(root):
    image = Image.open(root / "JPEGImages" / "t0.jpg")
    image.save(root / "JPEGImages" / "t0.PNG", format="PNG")
    refused(lambda: open_run_data(config(root)), "t0.jpg", "t0.PNG", "'t0'")


@pytest.mark.parametrize(("subset", "name"), [("val", "val"), ("test", "test")])
def test_scored_images_that_are_trained_on_are_refused(root, subset, name):
    path = root / "ImageSets" / "Segmentation" / f"{subset}.txt"
    path.write_text("t1\n")
    refused(lambda: open_run_data(config(root)), f"in train and in {name}", "t1.jpg", "data.val")


def test_classes_of_labelme_are_refused(root):
    (root / "classes.txt").write_text("__ignore__\n_background_\ncell\nrim\n")
    refused(lambda: open_run_data(config(root)), "classes.txt, line 1", "'__ignore__'", "delete")


def test_own_data_name_their_classes(root):
    (root / "classes.txt").unlink()
    refused(lambda: open_run_data(config(root)), "classes.txt", "not an image of PASCAL VOC")


def test_an_image_turned_by_exif_is_noticed(root):
    turned = Image.Exif()
    turned[0x0112] = 3
    path = root / "JPEGImages" / "t0.jpg"
    Image.open(path).save(path, exif=turned)
    (notice,) = open_run_data(config(root)).findings.notices
    assert "t0.jpg: is stored turned" in notice


def test_a_mask_turned_against_its_image_is_refused(root):
    repaint(root, "v1", lambda mask: mask.T.copy())
    refused(lambda: open_run_data(config(root)), "v1.png", "turn it back", "EXIF")


def test_images_of_sixteen_bits_are_refused(root):
    path = root / "JPEGImages" / "t3.jpg"
    save_sixteen_bits(Image.open(path).convert("L"), path)
    refused(lambda: open_run_data(config(root)), "t3.jpg", "more than 8 bits per channel (RGB;16B)")


def test_files_in_folders_below_are_named(root):
    for folder, suffix, words in (
        ("SegmentationClass", "png", ("t0.png: no such file", "a/t0.png is in a subfolder")),
        ("JPEGImages", "jpg", ("no image 't0'", "a/t0.jpg is in a subfolder")),
    ):
        below = root / folder / "a"
        below.mkdir()
        (root / folder / f"t0.{suffix}").rename(below / f"t0.{suffix}")
        refused(lambda: open_run_data(config(root)), *words)


def test_links_are_followed_and_broken_ones_named(root):
    path = root / "JPEGImages" / "t3.jpg"
    path.rename(root / "stored.jpg")
    path.symlink_to(root / "stored.jpg")
    assert open_run_data(config(root)).findings.errors == []
    (root / "stored.jpg").unlink()
    refused(lambda: open_run_data(config(root)), "t3.jpg", f"{root / 'stored.jpg'} is missing")


def test_hidden_files_are_no_images(root):
    for name in ("._t0.jpg", ".DS_Store"):
        (root / "JPEGImages" / name).write_bytes(b"not an image")
    assert open_run_data(config(root)).findings.errors == []


@pytest.mark.parametrize("names", [["cell"], ["ground,cell,rim"]])
def test_a_single_class_is_refused(root, names):
    (root / "classes.txt").write_text("\n".join(names))
    refused(lambda: open_run_data(config(root)), "classes.txt", "has one class", "one per line")


# Masks that cannot be trusted --------------------------------------------------------------------


def save_jpeg(mask, path):
    mask.convert("L").save(path, format="JPEG")


def save_jpeg_tiff(mask, path):
    mask.convert("L").save(path, format="TIFF", compression="jpeg")


def save_webp(mask, path):
    mask.convert("L").save(path, format="WEBP", lossless=True)


def save_jpeg2000(mask, path):
    Image.fromarray(np.array(mask)).save(path, format="JPEG2000")


def save_deep(mask, path):
    Image.fromarray(np.array(mask).astype(np.uint16)).save(path, format="PNG")


def save_one_bit(mask, path):
    Image.fromarray(np.array(mask) == 1).save(path, format="PNG")


def save_four_bits(mask, path):
    save_few_bits(mask, path, 4)


def save_sixteen_bits(mask, path):
    """Write an RGB PNG of 16 bits, whose lower 8 Pillow drops."""
    rows = np.repeat(np.array(mask)[..., None], 3, axis=2).astype(">u2")
    write_png(path, mask.size, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def save_colours(mask, path):
    mask.convert("RGB").save(path, format="PNG")


def save_pages(mask, path):
    mask.save(path, format="TIFF", save_all=True, append_images=[mask])


@pytest.mark.fault("wrong labels", "masks whose file does not hold the class indices")
@pytest.mark.parametrize(
    ("save", "words"),
    [
        (save_jpeg, "lossy"),
        (save_jpeg_tiff, "lossy"),
        (save_webp, "lossy"),
        (save_jpeg2000, "lossy"),
        (save_deep, "more than 8 bits"),
        (save_sixteen_bits, "holds colors"),
        (save_one_bit, "not stored with 8 bits"),
        (save_four_bits, "not stored with 8 bits"),
        (save_colours, "holds colors"),
        (save_pages, "2 pages"),
    ],
)
def test_masks_that_cannot_be_trusted_are_refused_by_content(root, save, words):
    path = root / "SegmentationClass" / "v1.png"
    mask = Image.open(path).copy()
    save(mask, path)
    refused(lambda: open_run_data(config(root)), "v1.png", words)


def renumber(path, order):
    """Save a palette mask with its colors in another order, as optimizers of PNG files do."""
    mask = np.array(Image.open(path))
    colours = voc_palette(256)
    table = np.zeros(256, np.uint8)
    table[list(order)] = np.arange(len(order))
    image = Image.fromarray(table[mask])
    image.putpalette([channel for value in order for channel in colours[value]])
    image.save(path, bits=8)


@pytest.mark.fault("wrong labels", "palettes that a PNG optimizer has renumbered")
@pytest.mark.parametrize("published", [False, True])
def test_renumbered_palettes_are_refused(tmp_path, published):
    names = ["2007_000001", "2007_000002", "2007_000003", "2007_000004"]
    lists = {"train": names[:2], "val": names[2:]}
    root = make_voc(tmp_path, lists, classes=() if published else CLASSES)
    for name in names if published else names[1:2]:
        mask = root / "SegmentationClass" / f"{name}.png"
        array = np.array(Image.open(mask))
        array = np.where(array == 255, 255 if published else 0, array % 3)
        kept = Image.fromarray(array.astype(np.uint8))
        kept.putpalette(PALETTE)
        kept.save(mask)
        renumber(mask, [255, 0, 2, 1] if published else [0, 2, 1])
    read = open_dataset("voc", "train", root=root)
    sets = {"labeled": read, "validation": open_dataset("voc", "val", root=root)}
    errors = inspect_data(root, sets, read).errors
    assert any("the palette was renumbered" in e or "a palette was renumbered" in e for e in errors)


@pytest.mark.parametrize(("order", "noticed"), [([0, 1, 2], False), ([1, 0, 2], True)])
def test_palettes_that_look_renumbered_are_noticed(root, order, noticed):
    """All in the same way, as where RGB masks are quantised: own data may have any colors."""
    for path in (root / "SegmentationClass").iterdir():
        repaint(root, path.stem, lambda mask: np.where(mask == 255, 0, mask))
        renumber(path, order)
    notices = open_run_data(config(root)).findings.notices
    found = [notice for notice in notices if "was the palette renumbered?" in notice]
    assert len(found) == noticed


def test_a_renumbered_gray_ramp_is_refused(root):
    path = root / "SegmentationClass" / "t0.png"
    mask = np.array(Image.open(path))
    table = np.zeros(256, np.uint8)
    table[[2, 1, 0, 255]] = range(4)
    image = Image.fromarray(table[mask])
    image.putpalette([2, 2, 2, 1, 1, 1, 0, 0, 0, 255, 255, 255])
    image.save(path, bits=8)
    # value 3 is no class of three: paint the border over, so that only the ramp tells
    repainted = np.where(table[mask] == 3, 2, table[mask])
    image = Image.fromarray(repainted.astype(np.uint8))
    image.putpalette([2, 2, 2, 1, 1, 1, 0, 0, 0] + [9] * 759)
    image.save(path)
    refused(lambda: open_run_data(config(root)), "t0.png", "gray", "renumbered")


def test_lost_void_of_short_palettes_is_noticed(root):
    path = root / "SegmentationClass" / "t0.png"
    names = [*CLASSES, "last"]
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    image = Image.fromarray(np.array(Image.open(path)) % 4)
    image.putpalette(PALETTE[:12])
    image.save(path, bits=2)
    notices = open_run_data(config(root)).findings.notices
    assert any("with 2 bits" in notice and "class 3" in notice for notice in notices)


# The cache ---------------------------------------------------------------------------------------


def test_a_mask_is_read_once_and_again_when_it_changes(root, monkeypatch):
    paths = sorted((root / "SegmentationClass").glob("*.png"))
    past = time.time() - 60
    for path in paths:
        os.utime(path, (past, past))
    monkeypatch.setattr(facts, "SETTLED", -1)  # these files were made a moment ago
    first = mask_facts(paths)
    monkeypatch.setattr(facts, "_look_at_mask", lambda path: pytest.fail(f"{path} is read again"))
    assert mask_facts(paths) == first
    monkeypatch.undo()
    repaint(root, paths[0].stem, lambda mask: np.zeros_like(mask))
    again = mask_facts(paths)
    assert again[0].values == (0,)
    assert again[1:] == first[1:]


def test_facts_are_those_of_the_mask(root):
    data = Voc(root, "val")
    for index, fact in enumerate(mask_facts(data.mask_paths)):
        mask = data.mask(index)
        values, counts = mask.unique(return_counts=True)
        assert (fact.height, fact.width) == tuple(mask.shape)
        assert (list(fact.values), list(fact.counts)) == (values.tolist(), counts.tolist())


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "files": {"v0.png": [[0], {}]}}'])
def test_a_broken_cache_is_no_cache(root, content, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(facts, "SETTLED", -1)
    paths = Voc(root, "val").mask_paths
    first = mask_facts(paths)
    (cache,) = (tmp_path / "cache" / "ddfp").iterdir()
    write_text(cache, content)
    assert mask_facts(paths) == first


def test_classes_present_are_those_of_the_masks(root):
    data = Voc(root, "val").with_classes(["rim", "ground"])
    read = [[bool((data.mask(i) == k).any()) for k in range(2)] for i in range(len(data))]
    assert classes_present(data).tolist() == read


# A subset of the classes, a long side, a validation list ------------------------------------------


def test_chosen_classes_are_renumbered_and_the_others_ignored(root):
    full = data_of(config(root), "val")
    part = data_of(config(root, classes=["rim", "ground"]), "val")
    assert part.classes == ("rim", "ground")
    assert part.palette == (full.palette[2], full.palette[0])
    expected = full.mask(0).clone()
    for old, new in ((0, 1), (1, 255), (2, 0)):
        expected[full.mask(0) == old] = new
    assert part.mask(0).equal(expected)


@pytest.mark.parametrize("names", [["rim"], ["rim", "rim"], ["rim", "water"], []])
def test_wrong_choices_of_classes_are_refused(root, names):
    refused(lambda: data_of(config(root, classes=names), "val"), "data.classes")


@pytest.mark.parametrize("limit", [20, 40, 1000])
def test_images_are_shrunk_and_never_enlarged(root, limit):
    full, part = (data_of(config(root, **more), "val") for more in ({}, {"long_side": limit}))
    for index in range(len(full)):
        height, width = full.shape(index)
        assert max(part.shape(index)) == min(limit, max(height, width))
        assert part.image(index).shape[1:] == part.mask(index).shape == part.shape(index)
        assert set(part.mask(index).unique().tolist()) <= set(full.mask(index).unique().tolist())
        if limit >= max(height, width):
            assert part.image(index).equal(full.image(index))


def test_size_and_long_side_exclude_one_another(root):
    refused(lambda: config(root, size=[20, 20], long_side=30), "data.size and data.long_side")


def test_own_validation_images_leave_the_training_set(root):
    (root / "mine.txt").write_text("t2\n")
    held = config(root, val="mine.txt")
    repaint_source = np.array(Image.open(root / "SegmentationClass" / "t0.png"))
    with Image.open(root / "JPEGImages" / "t2.jpg") as image:
        size = image.size
    Image.fromarray(np.resize(repaint_source % 3, size[::-1])).save(
        root / "SegmentationClass" / "t2.png"
    )
    train, val, test = (data_of(held, subset) for subset in ("train", "val", "test"))
    assert (train.names, val.names, test.names) == (["t0", "t1", "t3"], ["t2"], ["w0"])
    assert split_of(held, train) == ([0, 1], [2])
    at_the_end = config(root, val="mine.txt", test="val")
    assert data_of(at_the_end, "test").names == ["v0", "v1"]
    assert data_of(at_the_end, "val").names == ["t2"]
    assert open_run_data(held).findings.errors == []
    (root / "labeled.txt").write_text("t0\nt2\n")
    refused(lambda: split_of(held, train), "data.val", "'t2'")
    refused(lambda: data_of(config(root, val="none.txt"), "val"), "none.txt", "data.val")


def test_unlabeled_lists_may_name_held_out_images(root):
    (root / "mine.txt").write_text("t3\n")
    (root / "unlabeled.txt").write_text("t2\nt3\n")
    held = config(root, val="mine.txt", unlabeled="unlabeled.txt")
    assert split_of(held, data_of(held, "train")) == ([0, 1], [2])


# Identity ----------------------------------------------------------------------------------------


@pytest.fixture
def run(root, tmp_path):
    write_identity(tmp_path / "run", open_run_data(config(root)).identity)
    write_text(tmp_path / "run" / "checkpoints" / "index.json", "{}")
    return tmp_path / "run"


def changed(run, root, *words):
    now = open_run_data(config(root)).identity
    refused(lambda: check_identity(run, now, root), str(run), "--out", *words)


def test_the_same_data_are_recognised(run, root):
    check_identity(run, open_run_data(config(root)).identity, root)
    stored = json.loads((run / "data.json").read_text())
    assert stored["classes"] == list(CLASSES)


def test_a_run_without_a_checkpoint_starts_anew(run, root):
    (run / "checkpoints" / "index.json").unlink()
    (root / "labeled.txt").write_text("t0\n")
    check_identity(run, open_run_data(config(root)).identity, root)


def test_more_labeled_images_are_other_data(run, root):
    (root / "labeled.txt").write_text("t0\n")
    changed(run, root, "2 labeled images", "1 now")


@pytest.mark.parametrize(
    ("name", "title"), [("t0", "labeled"), ("v1", "validation"), ("w0", "test")]
)
def test_one_changed_pixel_is_other_data(run, root, name, title):
    def move(mask):
        """Swap two values: the histogram stays, the mask is another."""
        y, x = np.argwhere(mask == 1)[0]
        v, u = np.argwhere(mask == 0)[0]
        mask[y, x], mask[v, u] = 0, 1
        return mask

    repaint(root, name, move)
    changed(run, root, f"masks of {title} images")


def test_a_rewritten_file_of_the_same_mask_is_the_same(run, root):
    path = root / "SegmentationClass" / "t0.png"
    Image.fromarray(np.array(Image.open(path))).save(path)  # gray instead of a palette
    check_identity(run, open_run_data(config(root)).identity, root)


def test_another_unlabeled_image_is_other_data(run, root):
    Image.new("RGB", (50, 40)).save(root / "JPEGImages" / "t3.jpg")
    changed(run, root, "different images")


def test_another_test_image_is_other_data(run, root):
    """Also where its mask is the same; a run of before has not stored the size of its file."""
    Image.new("RGB", Image.open(root / "JPEGImages" / "w0.jpg").size).save(
        root / "JPEGImages" / "w0.jpg"
    )
    changed(run, root, "different test images")
    stored = json.loads((run / "data.json").read_text())
    del stored["files"]
    write_text(run / "data.json", json.dumps(stored))
    check_identity(run, open_run_data(config(root)).identity, root)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (["a", "b", "c"], "has 3 classes, the run learned 2"),
        (["b", "a"], "calls class 0 'b', the run learned 'a': the same classes in another order"),
        (["a", "x"], "calls class 1 'x', the run learned 'b'"),
    ],
)
def test_other_classes_are_one_line(found, words):
    refused(lambda: check_classes(["a", "b"], found, "data"), words)
    check_classes(["a", "b"], ("a", "b"), "data")


def test_a_run_from_before_is_compared_by_its_result(root, tmp_path):
    now = open_run_data(config(root)).identity
    write_text(tmp_path / "old" / "result.json", json.dumps({"data": now.images}))
    check_identity(tmp_path / "old", now, root)
    write_text(tmp_path / "old" / "result.json", json.dumps({"data": "00000000"}))
    refused(lambda: check_identity(tmp_path / "old", now, root), "other images or labels")
    assert list((tmp_path / "old").iterdir()) == [tmp_path / "old" / "result.json"]


@pytest.mark.fault("wrong labels", "labels that change between two starts of one command")
@pytest.mark.parametrize("finished", [True, False])
def test_changed_labels_are_never_answered_with_old_numbers(root, tmp_path, finished):
    """Neither by a finished run nor by one that goes on; the folder stays as it is."""
    settings, out = config(root, augment={"crop": 32}), tmp_path / "run"
    start = {"device": torch.device("cpu"), "stop_at": None if finished else 4}
    result = train(settings, out, **start)
    assert (result is not None) == finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = train(settings, out, **start)
    assert again == result
    repaint(root, "t0", lambda mask: np.where(mask == 2, 1, mask))
    refused(lambda: train(settings, out, **start), str(out), "masks of labeled images", "--out")
    (root / "classes.txt").write_text("ground\nrim\ncell\n")
    refused(lambda: train(settings, out, **start), "another order")
    assert {path: path.read_bytes() for path in before} == before


def test_a_reproduction_is_not_reported_from_runs_of_other_labels(root, tmp_path):
    settings = config(root, augment={"crop": 32})
    cell = Cell(settings, tmp_path / "runs" / "supervised-0")
    train(settings, cell.folder, device=torch.device("cpu"))
    check_inputs([cell])
    (root / "labeled.txt").write_text("t1\nt0\n")
    refused(lambda: check_inputs([cell]), str(cell.folder), "different images or lists")


def test_a_report_of_finished_runs_compares_their_data_first(root, tmp_path, monkeypatch):
    values = {**TINY, "data": {**to_dict(config(root, augment={"crop": 32}).data)}}
    write_text(tmp_path / "b.yaml", yaml.safe_dump(values))
    request = Request(
        benchmark=str(tmp_path / "b.yaml"), splits=[], methods=["supervised", "consistency"],
        seeds=[0], out=str(tmp_path / "out"), settings=[], quick=False, jobs=1, gpus=1,
        accumulate=0, device="cpu", tensorboard=False, only_finished=True,
    )  # fmt: skip
    cell, _ = request.cells()
    train(cell.config, cell.folder, device=torch.device("cpu"))
    executed = []
    monkeypatch.setattr(reproduction, "execute", lambda *words: executed.append(words))
    reproduce(request)
    assert len(executed) == 1
    repaint(root, "t0", lambda mask: np.where(mask == 2, 1, mask))
    refused(lambda: reproduce(request), str(cell.folder), "masks of labeled images")
    assert len(executed) == 1
