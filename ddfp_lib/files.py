"""Writing files completely or not at all."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ddfp_lib.errors import UserError


@contextlib.contextmanager
def raises_user_error(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that names ``path``.

    Raises:
        UserError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "free some space or choose another folder with --out"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, then rename it to ``path``.

    A reader sees the old file or the new one, never half of it: the temporary file is flushed to
    disk before it is renamed, and removed if ``write`` fails.

    Args:
        path: path of the file; missing parent folders are made.
        write: called with the temporary path; writes the whole content.

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
        with contextlib.suppress(OSError):  # without a folder there is no file to remove
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, completely or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def repository() -> Path:
    """Return the checkout that holds this package, with ``reproduce/`` and its configs.

    Raises:
        UserError: the package is installed without its repository.
    """
    root = Path(__file__).parent.parent
    if not (root / "reproduce" / "configs").is_dir():
        raise UserError(
            f"{root}: holds no reproduce/configs; clone the repository and run 'make reproduce' in "
            "it, or give the path of a benchmark's .yaml"
        )
    return root
