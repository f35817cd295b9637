"""Files that are either whole or not there."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ddfp_lib.errors import UserError


@contextlib.contextmanager
def raises_user_error(path: Path) -> Iterator[None]:
    """Tell in one line that ``path`` cannot be written.

    Raises:
        UserError: an OSError came out of the block.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free some space or choose another folder with --out"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    A reader sees the old file or the new one, never a part: the temporary file is flushed to disk
    before the rename, and removed when ``write`` fails.

    Args:
        path: where the file shall stand; missing parent folders are made.
        write: called with the temporary path, writes all of the content.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with raises_user_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # where there could be no folder, there is no file
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def repository() -> Path:
    """Return the checkout that this package lies in, where ``reproduce/`` and its configs are.

    Raises:
        UserError: the package was installed without its repository.
    """
    root = Path(__file__).parent.parent
    if not (root / "reproduce" / "configs").is_dir():
        raise UserError(
            f"{root}: holds no reproduce/configs; clone the repository and run 'make reproduce' in "
            "it, or give the path of a benchmark's .yaml"
        )
    return root
