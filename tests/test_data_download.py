"""Downloads against a server in this process, and archives that want to get out."""

import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ddfp_lib.data import download
from ddfp_lib.data.download import PublishedFile, opened, opened_archive, unpack
from ddfp_lib.errors import UserError
from tests.fixtures.trees import add_member, published

CONTENT = bytes(range(256)) * 5000


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every name, and notes what it was asked for.

    Attributes:
        ranges: whether it can begin in the middle.
        cut: bytes after which it hangs up.
        redirect: where it sends everybody.
    """

    ranges, cut, redirect = True, None, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : server.cut])

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server without encryption, which the tests alone may use."""
    monkeypatch.setattr(download, "SCHEMES", ("http",))
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def file(server, tmp_path):
    (tmp_path / "original").write_bytes(CONTENT)
    return PublishedFile(server.url, published(tmp_path / "original").md5)


def test_a_file_is_fetched_once(server, file, tmp_path):
    path = file.fetch(tmp_path / "archives")
    assert path.read_bytes() == CONTENT
    assert file.fetch(tmp_path / "archives") == path
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.fault("download", "interrupted: the next start continues it")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_short_goes_on(server, file, tmp_path, ranges):
    server.cut, server.ranges = 300_000, ranges
    with pytest.raises(UserError, match=r"ended after 300000 of 1280000 bytes.*start again"):
        file.fetch(tmp_path / "archives")
    assert not (tmp_path / "archives" / "data.tar").exists()
    server.cut = None
    assert file.fetch(tmp_path / "archives").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


@pytest.mark.fault("download", "a downloaded file that is not the published one")
def test_what_is_not_the_published_file_is_removed(server, tmp_path):
    with pytest.raises(UserError, match=r"its md5 is \w{32}, that of http.*data\.tar is 00"):
        PublishedFile(server.url, 32 * "0").fetch(tmp_path / "archives")
    assert not list((tmp_path / "archives").iterdir())


@pytest.mark.fault("download", "an archive on disk that is not the published one")
def test_a_given_file_is_checked_too(file, tmp_path):
    assert file.check(tmp_path / "original") == tmp_path / "original"
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(UserError, match="other: its md5 is"):
        file.check(tmp_path / "other")
    with pytest.raises(UserError, match="none: cannot be read"):
        file.check(tmp_path / "none")


def read(url):
    with opened(url) as response:
        return response.read()


def test_a_missing_file_is_told_in_one_line(server):
    with pytest.raises(UserError, match=r"missing: the server answers 404 \(Not Found\)"):
        read(server.url.replace("data.tar", "missing"))


@pytest.mark.fault("download", "from an address that is not https")
@pytest.mark.parametrize("url", ["http://host/a", "file:///etc/passwd", "ftp://host/a", "a"])
def test_only_https_is_fetched(url, tmp_path):
    with pytest.raises(UserError, match="is not encrypted; only https"):
        read(url)
    with pytest.raises(UserError, match="is not encrypted; only https"):
        PublishedFile(url, "").fetch(tmp_path)


@pytest.mark.fault("download", "redirected away from https")
def test_a_redirect_cannot_leave_the_allowed_scheme(server):
    server.redirect = "ftp://127.0.0.1/data.tar"
    with pytest.raises(UserError, match=r"ftp://127\.0\.0\.1/data\.tar: is not encrypted"):
        read(server.url)


def test_only_wanted_folders_are_unpacked(tmp_path):
    path = archive_of(tmp_path, {"a/b/one": b"1", "a/c/two": b"2", "a/bb/three": b"3"})
    unpack(path, tmp_path / "out", ["a/b"])
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [
        tmp_path / "out" / "a" / "b" / "one"
    ]


@pytest.mark.fault("hostile file", "tar and zip with paths outside of their folder")
@pytest.mark.parametrize("name", ["../evil", "a/b/../../../evil", "a/b/../../../../evil"])
def test_members_that_lead_out_are_refused(tmp_path, name):
    path = archive_of(tmp_path, {"a/b/one": b"1", name: b"evil"})
    with pytest.raises(UserError, match=r"data\.tar: refused: .*evil.*outside") as caught:
        unpack(path, tmp_path / "deep" / "out", ["a/b"])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.fault("hostile file", "tar with links outside of its folder")
def test_links_that_lead_out_are_refused(tmp_path):
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a/b/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../secret"
        archive.addfile(link)
    with pytest.raises(UserError, match=r"refused: .*link"):
        unpack(path, tmp_path / "out", ["a/b"])


@pytest.mark.fault("download", "damaged archives")
def test_damaged_archives_are_told_in_one_line(tmp_path):
    path = tmp_path / "data.tgz"
    with tarfile.open(path, "w:gz") as archive:
        add_member(archive, "a/b/one", io.BytesIO(CONTENT[::-7]).read())
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"data\.tgz: cannot be unpacked"):
        unpack(path, tmp_path / "out", ["a/b"])
    path.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"data\.tgz: cannot be unpacked"), opened_archive(path):
        pass


def archive_of(folder, members):
    path = folder / "data.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add_member(archive, name, content)
    return path
