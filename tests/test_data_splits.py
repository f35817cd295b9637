import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddfp_lib.data.splits import classes_present, make_split, read_names, read_split, write_split
from ddfp_lib.errors import UserError
from tests.fixtures.trees import InMemory, block_masks


def write(folder, text):
    path = folder / "list.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2007_000032\n2007_000039\n", ["2007_000032", "2007_000039"]),
        ("2007_000032\n2007_000039", ["2007_000032", "2007_000039"]),
        ("\ufeffa\r\nb\r\n\r\n", ["a", "b"]),
        ("v1.2_a\nv1.2_b\n", ["v1.2_a", "v1.2_b"]),
        ("leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png\n", ["ulm_0_1_leftImg8bit"]),
        ("JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png", ["2007_000032"]),
        ("my photo 1\nmy photo 2.v1\n", ["my photo 1", "my photo 2.v1"]),
        ("IMG 1.JPG\nx/IMG 2.jpeg\n", ["IMG 1", "IMG 2"]),
        ("my x.jpg masks of x/my x.png\n", ["my x"]),
        ('"/train/b 2.jpg" "trainannot/b 2.png"\n/train/a.jpg trainannot/a.png', ["b 2", "a"]),
        ("JPEGImages\\a.jpg SegmentationClass\\a.png\r\n", ["a"]),
    ],
)
def test_lists_of_every_format(tmp_path, text, names):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    assert read_names(path) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a\n\nb\n", "line 2: is empty"),
        ("a\nb\na\n", "line 3: 'a' repeats line 1"),
        ("x/a.png\ny/a.png\n", "line 2: 'a' repeats line 1"),
        ("a.jpg x/a.png\n'a'\na\n", "line 3: 'a' repeats line 1"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=words) as error:
        read_names(path)
    assert str(path) in str(error.value)


def test_missing_or_binary_list_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_names(tmp_path / "none.txt")
    for content in (b"\xff\xd8\xff", "a\nb\n".encode("utf-16")):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read as a text file .* UTF-8"):
            read_names(tmp_path / "list.txt")


def test_read_split_finds_the_indices_and_refuses_strangers(tmp_path):
    data = InMemory(block_masks(4))
    labeled, unlabeled = tmp_path / "l.txt", tmp_path / "u.txt"
    labeled.write_text("image2")
    unlabeled.write_text("image3\nimage0\n")
    assert read_split(data, labeled, unlabeled) == ([2], [3, 0])
    assert read_split(data, labeled) == ([2], [0, 1, 3])
    unlabeled.write_text("image3\nimage9\n")
    with pytest.raises(UserError, match=r"u\.txt: 1 of 2 names.*memory.*'image9'"):
        read_split(data, labeled, unlabeled)


def masks_of(presence):
    """One row of pixels for each image: the classes that it has, and an ignored pixel."""
    rows = [[k for k, there in enumerate(row) if there] + [255] for row in presence]
    return [torch.tensor([row], dtype=torch.uint8) for row in rows]


presences = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12)


@given(presences, st.integers(0, 2**40), st.data())
def test_split_is_a_partition_that_covers_the_classes(presence, seed, data):
    dataset = InMemory(masks_of(presence), classes=4)
    count = data.draw(st.integers(1, len(presence)))
    labeled, unlabeled = make_split(dataset, count, seed)
    assert len(labeled) == count
    assert labeled == sorted(labeled)
    assert unlabeled == sorted(unlabeled)
    assert sorted(labeled + unlabeled) == list(range(len(presence)))
    present = torch.tensor(presence)
    assert torch.equal(classes_present(dataset), present)
    covered, coverable = present[labeled].any(0).sum(), present.any(0).sum()
    assert covered >= min(count, coverable)
    assert make_split(dataset, count, seed) == (labeled, unlabeled)
    assert make_split(dataset, count, seed, include_labeled=True) == (
        labeled,
        list(range(len(presence))),
    )


def test_seed_changes_the_split():
    dataset = InMemory(block_masks(40))
    splits = {tuple(make_split(dataset, 4, seed)[0]) for seed in range(5)}
    assert len(splits) > 1


def test_rare_class_is_among_the_labeled():
    presence = [[True, False]] * 99 + [[True, True]]
    dataset = InMemory(masks_of(presence), classes=2)
    assert all(99 in make_split(dataset, 2, seed)[0] for seed in range(5))


@pytest.mark.parametrize(
    ("labeled", "count"), [(3, 3), ("3", 3), ("1/16", 2), ("all", 32), ("1/2", 16)]
)
def test_labeled_as_count_part_or_all(labeled, count):
    dataset = InMemory(block_masks(32, side=16))
    assert len(make_split(dataset, labeled, seed=0)[0]) == count


@pytest.mark.parametrize("labeled", [0, 33, -1, "1/100", "2/1", "many", "1/0", "0.5"])
def test_impossible_split_is_refused(labeled):
    with pytest.raises(UserError, match=f"labeled '?{labeled}'?: "):
        make_split(InMemory(block_masks(32, side=16)), labeled, seed=0)


def test_a_written_split_comes_back(tmp_path):
    data = InMemory(block_masks(5))
    write_split(data, ([3, 1], [0, 2, 4]), tmp_path / "2")
    lists = tmp_path / "2" / "labeled.txt", tmp_path / "2" / "unlabeled.txt"
    assert read_split(data, *lists) == ([3, 1], [0, 2, 4])
    with pytest.raises(UserError, match=r"3/labeled\.txt: there is no such list"):
        read_split(data, tmp_path / "3" / "labeled.txt")
