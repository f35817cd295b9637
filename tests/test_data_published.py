"""The lists of the release: hashes, counts, and both formats that lists come in."""

import os
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from ddfp_lib.data import published
from ddfp_lib.data.published import COUNTS, fetch_splits, list_hashes, names_hash
from ddfp_lib.data.splits import read_names
from ddfp_lib.errors import UserError

RELEASED = os.environ.get("DDFP_RELEASED_LISTS")


def write_lists(folder, labeled, unlabeled):
    """Write lists; return their hashes by path."""
    folder.mkdir(parents=True)
    (folder / "labeled.txt").write_text("\n".join(labeled))
    (folder / "unlabeled.txt").write_text("\r\n".join(unlabeled) + "\r\n")
    return {f"{folder.name}/{part}.txt": names_hash(folder / f"{part}.txt") for part in PARTS}


PARTS = ("labeled", "unlabeled")
PATHS = ["train/x/a_1_leftImg8bit.png gt/x/a_1.png", "train/x/b_1_leftImg8bit.png gt/x/b_1.png"]


@pytest.fixture
def lists(tmp_path):
    """Hashes of two splits of five images below tmp_path/lists, one as names, one as paths."""
    folder = tmp_path / "lists"
    return {
        **write_lists(folder / "1", ["e"], ["a", "b", "c", "d"]),
        **write_lists(folder / "2", PATHS, ["train/y/c.png", "train/y/d.png", "train/y/e.png"]),
    }


def test_lists_on_disk_are_checked_and_written(tmp_path, lists):
    root = tmp_path / "root"
    folders = fetch_splits("voc", root, tmp_path / "lists", hashes=lists, total=5)
    assert folders == [root / "splits" / "1", root / "splits" / "2"]
    assert read_names(root / "splits/1/unlabeled.txt") == ["a", "b", "c", "d"]
    assert read_names(root / "splits/2/labeled.txt") == ["a_1_leftImg8bit", "b_1_leftImg8bit"]
    assert (root / "splits/2/labeled.txt").read_text() == "\n".join(PATHS) + "\n"


def test_lists_are_downloaded_from_the_pinned_commit(tmp_path, lists, monkeypatch):
    asked = []

    @contextmanager
    def opened(url):
        asked.append(url)
        yield BytesIO((tmp_path / "lists" / "/".join(url.split("/")[-2:])).read_bytes())

    monkeypatch.setattr(published, "opened", opened)
    fetch_splits("cityscapes", tmp_path / "root", hashes=lists, total=5)
    assert read_names(tmp_path / "root/splits/1/labeled.txt") == ["e"]
    start = "https://raw.githubusercontent.com/Gavinwxy/DDFP/7956c72/data/splits/cityscapes/"
    assert asked == [start + path for path in lists]


def test_no_connection_is_one_line(tmp_path, lists, monkeypatch):
    def opened(url):
        raise OSError("Name or service not known")

    monkeypatch.setattr(published, "opened", opened)
    with pytest.raises(UserError, match=r"1/labeled\.txt: cannot be fetched.*--from"):
        fetch_splits("voc", tmp_path / "root", hashes=lists, total=5)


def test_other_lists_are_refused_and_nothing_is_written(tmp_path, lists):
    (tmp_path / "lists/2/unlabeled.txt").write_text("c\nd\nf\n")
    with pytest.raises(UserError, match=r"2/unlabeled\.txt: is not the published list \(SHA-256"):
        fetch_splits("voc", tmp_path / "root", tmp_path / "lists", hashes=lists, total=5)
    assert not (tmp_path / "root").exists()


def test_wrong_counts_are_refused(tmp_path, lists):
    with pytest.raises(UserError, match=r"lists/1: has 1 labeled of 5 images, not 1 of 6"):
        fetch_splits("voc", tmp_path / "root", tmp_path / "lists", hashes=lists, total=6)


def test_missing_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"92/labeled\.txt: cannot be read"):
        fetch_splits("voc", tmp_path / "root", tmp_path)
    with pytest.raises(UserError, match=r"camvid: has no published lists.*ddfp data splits make"):
        fetch_splits("camvid", tmp_path / "root", tmp_path)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("voc", {92, 183, 366, 732, 1464, 662, 1323, 2646, 5291}),
        ("cityscapes", {186, 372, 744, 1488}),
    ],
)
def test_every_cell_of_the_tables_has_its_lists(name, counts):
    expected = {f"{count}/{part}.txt" for count in counts for part in PARTS}
    assert list_hashes(name).keys() == expected
    assert all(len(digest) == 64 for digest in list_hashes(name).values())


@pytest.mark.skipif(not RELEASED, reason="DDFP_RELEASED_LISTS names no folder data/splits")
@pytest.mark.parametrize("name", ["voc", "cityscapes"])
def test_the_releases_lists_are_accepted(name, tmp_path):
    folders = fetch_splits(name, tmp_path, Path(RELEASED) / published.FOLDERS[name])
    for folder in folders:
        labeled, unlabeled = (read_names(folder / f"{part}.txt") for part in PARTS)
        assert len(labeled) == int(folder.name)
        assert len(labeled) + len(unlabeled) == COUNTS[name]["train"]
        assert not set(labeled) & set(unlabeled)
