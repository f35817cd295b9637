"""Downloads over https that are checked and can be continued, and safe unpacking of archives."""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ddfp_lib.errors import UserError

SCHEMES = ("https",)
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody else publishes.

    Attributes:
        url: https address.
        md5: MD5 of its bytes, as 32 hexadecimal digits.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(urlsplit(self.url).path).name

    def check(self, path: Path) -> Path:
        """Return ``path`` if it holds this file.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        try:
            with Path(path).open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        if found != self.md5:
            raise UserError(
                f"{path}: its md5 is {found}, that of {self.url} is {self.md5}; "
                "remove it and fetch it again"
            )
        return Path(path)

    def fetch(self, folder: Path) -> Path:
        """Download into a folder, unless it is there; continue a download that was cut short.

        Raises:
            UserError: the file cannot be had, or is not what was published: then it is removed.
        """
        path = Path(folder) / self.name
        if path.is_file():
            return self.check(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with partial.open("ab") as file:
                _append(self.url, file)
        except OSError as error:
            raise UserError(
                f"{self.url}: could not be fetched into {folder} ({error}); start again: it goes "
                "on where it stopped"
            ) from error
        try:
            self.check(partial)
        except UserError:
            partial.unlink()
            raise
        return partial.rename(path)


@contextmanager
def opened(url: str, start: int = 0) -> Iterator[HTTPResponse]:
    """Open a URL for reading; only https, on the way too.

    Args:
        url: to open.
        start: byte to begin with, where the server can (status 206).

    Raises:
        UserError: the URL or one that it leads to is not https, or the server refuses it.
        OSError: the connection fails, now or in the block.
    """
    _refuse_insecure(url)
    headers = {"User-Agent": "ddfp"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        opener = build_opener(_SecureRedirects)
        with opener.open(Request(url, headers=headers), timeout=60) as response:
            yield response
    except HTTPError as error:
        raise UserError(
            f"{url}: the server answers {error.code} ({error.reason}); try later, or fetch the "
            "file by hand"
        ) from error
    except HTTPException as error:
        raise OSError(f"the connection failed: {error!r}") from error


def _append(url: str, file: IO[bytes]) -> None:
    """Write what ``file`` lacks of a URL's content, and show how far it is."""
    from tqdm import tqdm

    with opened(url, file.tell()) as response:
        if response.status != 206:  # from the start, whether this was asked for or not
            file.truncate(0)
            file.seek(0)
        start, length = file.tell(), response.headers["Content-Length"]
        total = start + int(length) if length else None
        name = PurePosixPath(urlsplit(url).path).name
        with tqdm(
            desc=name, initial=start, total=total, unit="B", unit_scale=True, disable=None
        ) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and file.tell() < total:
            raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes")


class _SecureRedirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        _refuse_insecure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_insecure(url: str) -> None:
    if urlsplit(url).scheme not in SCHEMES:
        raise UserError(f"{url}: is not encrypted; only https is fetched")


@contextmanager
def opened_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, compressed or not, for the time of a ``with`` block.

    Args:
        path: path of the archive.

    Yields:
        The opened archive.

    Raises:
        UserError: it is not an archive or ends early, or (in the block) it cannot be unpacked or a
            member leads out of its folder.
    """
    try:
        with tarfile.open(path) as archive:
            yield archive
    except UserError:
        raise
    except tarfile.FilterError as error:
        raise UserError(f"{path}: refused: {error}; fetch the published archive") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({error}); fetch it again, and check that the disk has "
            "enough space"
        ) from error


def unpack(path: Path, folder: Path, wanted: Sequence[str]) -> None:
    """Unpack some folders of a tar archive; nothing of it can land elsewhere.

    Args:
        path: path of the archive.
        folder: to unpack into.
        wanted: folders in the archive; all else is left out.

    Raises:
        UserError: as :func:`opened_archive`; or any member, wanted or not, leads out of ``folder``.
    """

    def inside(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
        checked = tarfile.data_filter(member, target)
        name = PurePosixPath(member.name)
        return checked if any(name.is_relative_to(part) for part in wanted) else None

    with opened_archive(path) as archive:
        archive.extractall(folder, filter=inside)
