"""Facts about published data sets: numbers of images, archives, lists of labeled images."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from ddfp_lib.data.download import CHUNK, PublishedFile, opened
from ddfp_lib.data.splits import read_lines, read_names
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text

COUNTS = {
    "voc": {"train": 10_582, "fine": 1_464, "val": 1_449},
    "cityscapes": {"train": 2_975, "val": 500},
    "camvid": {"train": 367, "val": 101, "test": 233},
}
"""Images of each subset. VOC's ``train`` is its own 1,464 ``fine`` ones and SBD's 9,118."""

# Addresses and MD5 as torchvision has them (datasets/voc.py, datasets/sbd.py).
VOC_ARCHIVE = PublishedFile(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "6cd6e144f989b92b3379bac3b3de84fd",
)
SBD_ARCHIVE = PublishedFile(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)

LISTS = "https://raw.githubusercontent.com/Gavinwxy/DDFP/7956c72/data/splits"
"""Folder of the release's lists, at the commit that this project follows.

The address was not tried when it was written down. What it returns is compared with the recorded
hashes.
"""

FOLDERS = {"voc": "pascal", "cityscapes": "cityscapes"}
"""Names that the release gives to the data sets for which it has lists."""


def check_counts(
    root: Path, found: Mapping[str, int], expected: Mapping[str, int], advice: str = ""
) -> None:
    """Compare numbers of images.

    Args:
        root: folder of the data, for the message.
        found: images of each subset.
        expected: images that it should have.
        advice: ends the message.

    Raises:
        UserError: a subset has another number of images.
    """
    for subset, count in expected.items():
        if found[subset] != count:
            raise UserError(
                f"{root}: {subset} has {found[subset]:,} images where {count:,} are published; "
                f"fetch or unpack the data again{advice}"
            )


def list_hashes(name: str) -> dict[str, str]:
    """Return the hash (see :func:`names_hash`) of each published list of a data set.

    Returns:
        SHA-256 by path, such as ``732/labeled.txt``.

    Raises:
        UserError: no lists of this data set are published.
    """
    if name not in FOLDERS:
        raise UserError(
            f"{name}: has no published lists; those of {' and '.join(FOLDERS)} are known, for "
            f"others: ddfp data splits make {name}"
        )
    text = files("ddfp_lib.data").joinpath("published_splits.sha256").read_text(encoding="utf-8")
    entries = (line.split() for line in text.splitlines() if not line.startswith("#"))
    folder = FOLDERS[name] + "/"
    return {
        path.removeprefix(folder): digest for digest, path in entries if path.startswith(folder)
    }


def names_hash(path: Path) -> str:
    """Return the SHA-256 of a list's lines, joined by single newlines.

    The kind of line ends, and whether the last line has one, do not change it.
    """
    return hashlib.sha256("\n".join(read_lines(path)).encode()).hexdigest()


def fetch_splits(
    name: str,
    root: Path,
    source: Path | None = None,
    *,
    hashes: Mapping[str, str] | None = None,
    total: int | None = None,
) -> list[Path]:
    """Write the published lists of a data set to ``root/splits/<labeled images>/``.

    All are checked before the first is written.

    Args:
        name: ``voc`` or ``cityscapes``.
        root: folder of the data set; its images need not be there yet.
        source: folder of lists that are on disk (``<n>/labeled.txt``), instead of a download.
        hashes: SHA-256 of each list; None for the recorded ones.
        total: training images; None for the published number.

    Returns:
        The folders written, each with ``labeled.txt`` and ``unlabeled.txt``.

    Raises:
        UserError: a list cannot be had or is not the published one.
    """
    hashes = list_hashes(name) if hashes is None else hashes
    if source is None:
        with TemporaryDirectory() as folder:
            _download(f"{LISTS}/{FOLDERS[name]}", hashes, Path(folder))
            return fetch_splits(name, root, Path(folder), hashes=hashes, total=total)
    total = COUNTS[name]["train"] if total is None else total
    counts = sorted({int(Path(path).parent.name) for path in hashes})
    lists = {path: _published_lines(source / path, digest) for path, digest in hashes.items()}
    for count in counts:
        labeled, unlabeled = (
            set(read_names(source / f"{count}/{part}.txt")) for part in ("labeled", "unlabeled")
        )
        if (len(labeled), len(labeled | unlabeled)) != (count, total):
            raise UserError(
                f"{source / str(count)}: has {len(labeled):,} labeled of "
                f"{len(labeled | unlabeled):,} images, not {count:,} of {total:,}"
            )
    folders = [Path(root) / "splits" / str(count) for count in counts]
    for path, lines in lists.items():
        write_text(Path(root) / "splits" / path, "\n".join(lines) + "\n")
    return folders


def _download(url: str, paths: Mapping[str, str], folder: Path) -> None:
    for path in paths:
        try:
            with opened(f"{url}/{path}") as response:
                text = response.read(CHUNK).decode()  # no list is longer
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{url}/{path}: cannot be fetched ({error}); start again, or give a folder of "
                "lists with --from"
            ) from error
        write_text(folder / path, text)


def _published_lines(path: Path, digest: str) -> list[str]:
    found = names_hash(path)
    if found != digest:
        raise UserError(
            f"{path}: is not the published list (SHA-256 of its names {found[:12]}..., recorded "
            f"{digest[:12]}...); to use a list of another origin, give its path as data.labeled"
        )
    return read_lines(path)
