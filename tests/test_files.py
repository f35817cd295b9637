"""A file is whole or not there, whatever happens while it is written."""

import hashlib

import pytest

from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256, write_atomically, write_text


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "deep" / "down" / "file.txt"
    write_text(path, "old")

    def write(partial):
        partial.write_text("n")
        assert path.read_text() == "old"
        partial.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write(partial):
        partial.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_in_one_line(tmp_path):
    path = tmp_path / "file.txt"

    def write(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"file\.txt: cannot be written \(No space left") as caught:
        write_atomically(path, write)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/below\.txt: cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "text")


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "file.txt", "Größe ≤ 1")
    assert (tmp_path / "file.txt").read_bytes() == "Größe ≤ 1".encode()


def test_sha256(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
