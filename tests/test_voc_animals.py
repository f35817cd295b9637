"""Real photographs: the subset of VOC is the same images for everybody who has VOC."""

import pytest

from ddfp_lib.config import find_benchmark, load_config, splits_of
from ddfp_lib.data.splits import LISTS, read_names
from ddfp_lib.errors import UserError
from ddfp_lib.training.data import data_of, open_run_data, split_of
from tests.fixtures.trees import make_voc

ALL = read_names(LISTS / "voc_animals.txt")
HELD_OUT = read_names(LISTS / "voc_animals_val.txt")
BENCHMARK = find_benchmark("voc_animals")


@pytest.fixture(scope="module")
def tiny_voc(tmp_path_factory):
    """A VOC tree in which some names are those of the lists and others are not."""
    root = tmp_path_factory.mktemp("voc")
    free = [name for name in ALL if name not in set(HELD_OUT)]
    train, val = free[:6], free[6:9]
    others = ["2007_999901", "2007_999902", "2007_999903"]
    lists = {
        "train_aug": [*train, *HELD_OUT[:3], *others[:2]],
        "val": [*val, others[2]],
    }
    make_voc(root, lists, masks="SegmentationClassAug")
    split = root / "splits" / "366"
    split.mkdir(parents=True)
    (split / "labeled.txt").write_text("\n".join([*train[:2], others[0]]) + "\n")
    return root, train, val


def config_of(root, *overrides, split="366"):
    return load_config(BENCHMARK, "ddfp", 0, [f"data.root={root}", *overrides], split=split)


def test_the_lists_hold_what_their_page_says():
    assert (len(ALL), len(HELD_OUT)) == (3576, 300)
    assert set(HELD_OUT) < set(ALL)
    assert splits_of(BENCHMARK) == ["92", "183", "366", "732", "1464"]


def test_the_subset_is_built_from_a_whole_voc(tiny_voc):
    root, train, val = tiny_voc
    config = config_of(root, "data.val=null")
    names = [data_of(config, subset).names for subset in ("train", "val", "test")]
    assert names == [[*train, *HELD_OUT[:3]], val, val]
    labeled, unlabeled = split_of(config, data_of(config, "train"))
    assert labeled == [0, 1]  # the published split's third image is none of these
    assert unlabeled == [2, 3, 4, 5, 6, 7, 8]


def test_validation_images_leave_training(tiny_voc, monkeypatch):
    root, train, val = tiny_voc
    held = root / "held.txt"
    held.write_text("\n".join(HELD_OUT[:3]) + "\n")
    data = open_run_data(config_of(root, f"data.val={held}"), inspect=False)
    assert data.training.names == train
    assert data.validation.names == HELD_OUT[:3]
    assert data.test.names == val
    assert data.training.classes == ("background", "cat", "cow", "dog", "horse", "person", "sheep")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.only=animals", "data.only: there is no list animals; .* one of voc_animals, voc_a"),
        ("data.only=mine.txt", r"data.only: there is no list .*mine\.txt"),
        ("data.val=photos", "data.val: there is no list photos"),
    ],
)
def test_a_list_that_is_not_there_is_named(tiny_voc, override, words):
    root, *_ = tiny_voc
    with pytest.raises(UserError, match=words):
        open_run_data(config_of(root, override), inspect=False)


def test_a_list_without_an_image_of_the_data_is_named(tiny_voc, tmp_path):
    root, *_ = tiny_voc
    other = tmp_path / "other.txt"
    other.write_text("nobody\n")
    with pytest.raises(UserError, match=r"other\.txt: names no image of voc"):
        data_of(config_of(root, f"data.only={other}"), "train")


def test_what_is_left_out_changes_the_hash(tiny_voc):
    root, *_ = tiny_voc
    config = config_of(root)
    assert config_of(root, "data.only=null").config_hash != config.config_hash
    assert config_of("/elsewhere").config_hash == config.config_hash
