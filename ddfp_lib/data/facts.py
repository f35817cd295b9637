"""A cache of facts about image and mask files.

A mask is decoded once. Its facts stay in a cache of this user, below ``$XDG_CACHE_HOME/ddfp`` (or
``~/.cache/ddfp``), by the file's path, size and times. Asked again, a file costs one ``stat``. The
cache can be deleted at any time; where it cannot be written, files are read again.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddfp_lib.data.base import check_image, opened_image, orientation
from ddfp_lib.data.stored import Colour, check_mask, palette_colours, stored_bits
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text
from ddfp_lib.machine import usable_cores

FORMAT = 3
"""Raised when the facts or the checks behind them change: older caches are not read."""

SETTLED = 2e9
"""Files younger than this are not remembered, ns: they may change again with the same times."""


@dataclass(frozen=True)
class ImageFacts:
    """The header of an image file.

    Attributes:
        height: pixels.
        width: pixels.
        turned: EXIF orientation, 1 where the picture is stored upright.
    """

    height: int
    width: int
    turned: int = 1


@dataclass(frozen=True)
class MaskFacts:
    """The values of a mask file.

    Attributes:
        height: pixels.
        width: pixels.
        values: the values that occur, ascending.
        counts: pixels of each of them.
        checksum: CRC-32 of all values in reading order.
        bits: bits per pixel in the file.
        colours: the palette's color of each value; None for a gray mask.
    """

    height: int
    width: int
    values: tuple[int, ...]
    counts: tuple[int, ...]
    checksum: int = 0
    bits: int = 8
    colours: tuple[Colour, ...] | None = None


def image_facts(paths: Sequence[Path], *, fresh: bool = False) -> list[ImageFacts | UserError]:
    """Return the header of each image file, or what is wrong with the file.

    Args:
        paths: paths of the files.
        fresh: ignore the cache.
    """
    return _facts(paths, "images", _look_at_image, _image_from, fresh)


def mask_facts(paths: Sequence[Path], *, fresh: bool = False) -> list[MaskFacts | UserError]:
    """Return the values of each mask file, or why the file cannot be used as a mask.

    Args:
        paths: paths of the files.
        fresh: ignore the cache.
    """
    return _facts(paths, "masks", _look_at_mask, _mask_from, fresh)


def _look_at_image(path: Path) -> ImageFacts:
    with opened_image(path) as image:
        check_image(path, image)
        return ImageFacts(image.height, image.width, orientation(image))


def _look_at_mask(path: Path) -> MaskFacts:
    with opened_image(path) as image:
        check_mask(path, image)
        bits = stored_bits(image)
        pixels = np.asarray(image)
        counts = np.bincount(pixels.ravel(), minlength=256)
        values = tuple(np.flatnonzero(counts).tolist())
        colours = None
        if image.mode == "P":
            colours = tuple(palette_colours(image, values).values())
        return MaskFacts(
            height=image.height,
            width=image.width,
            values=values,
            counts=tuple(counts[list(values)].tolist()),
            checksum=zlib.crc32(np.ascontiguousarray(pixels)),
            bits=bits,
            colours=colours,
        )


def _image_from(stored: dict[str, Any]) -> ImageFacts:
    return ImageFacts(**stored)


def _mask_from(stored: dict[str, Any]) -> MaskFacts:
    colours = stored["colours"]
    whole = {"values": tuple(stored["values"]), "counts": tuple(stored["counts"])}
    whole["colours"] = None if colours is None else tuple(map(tuple, colours))
    return MaskFacts(**{**stored, **whole})


def _facts(
    paths: Sequence[Path],
    kind: str,
    look: Callable[[Path], Any],
    restore: Callable[[dict[str, Any]], Any],
    fresh: bool,
) -> list[Any]:
    """Return the facts of each file, from the caches of their folders or by looking."""
    caches = {folder: _Cache(folder, kind) for folder in {path.parent for path in paths}}

    def one(path: Path) -> Any:
        cache = caches[path.parent]
        stamp = _stamp(path)
        stored = None if fresh else cache.get(path.name, stamp)
        if stored is not None:
            with contextlib.suppress(KeyError, TypeError):  # not as this module writes it
                return restore(stored)
        try:
            facts = look(path)
        except UserError as error:
            return error
        cache.put(path.name, stamp, asdict(facts))
        return facts

    # decoding leaves Python's lock to the other threads
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(one, paths, chunksize=1))
    for cache in caches.values():
        cache.save()
    return found


def _stamp(path: Path) -> list[int] | None:
    """Return what changes with a file's content: its size and the times of its last changes."""
    try:
        known = path.stat()
    except OSError:
        return None
    return [known.st_size, known.st_mtime_ns, known.st_ctime_ns]


class _Cache:
    """Facts about the files of one folder, in one JSON file."""

    def __init__(self, folder: Path, kind: str) -> None:
        place = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        key = hashlib.sha256(f"{kind} {folder.resolve()}".encode()).hexdigest()[:16]
        self.path = Path(place) / "ddfp" / f"{kind}-{key}.json"
        self.entries: dict[str, list[Any]] = {}
        self.changed = False
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["format"] == FORMAT:
                self.entries = stored["files"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no cache, or not a whole one: it is made again

    def get(self, name: str, stamp: list[int] | None) -> dict[str, Any] | None:
        entry = self.entries.get(name)
        return entry[1] if entry and stamp is not None and entry[0] == stamp else None

    def put(self, name: str, stamp: list[int] | None, facts: dict[str, Any]) -> None:
        if stamp is not None and time.time_ns() - max(stamp[1:]) > SETTLED:
            self.entries[name] = [stamp, facts]
            self.changed = True

    def save(self) -> None:
        if not self.changed:
            return
        text = json.dumps({"format": FORMAT, "files": self.entries}, separators=(",", ":"))
        with contextlib.suppress(UserError):  # where it cannot be written, that costs time alone
            write_text(self.path, text)


def total_counts(facts: Iterable[MaskFacts]) -> np.ndarray:
    """Add up the pixels of each value over masks: int64 (256,)."""
    total = np.zeros(256, dtype=np.int64)
    for mask in facts:
        total[list(mask.values)] += mask.counts
    return total
