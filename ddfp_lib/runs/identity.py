"""Which images, masks and classes a run has seen: stored at its start, compared at later starts.

``data.json`` in the run folder holds them. A run that goes on, or that has ended, is compared with
the data as they are now: changed labels are never answered with old numbers.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddfp_lib.data.base import SegmentationDataset
from ddfp_lib.data.inspection import Findings
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text

FILE = "data.json"


@dataclass(frozen=True)
class Identity:
    """What names the data of a run.

    Attributes:
        classes: names, in the order of the indices.
        images: see :func:`data_digest`.
        labeled: number of labeled images.
        unlabeled: number of unlabeled images.
        masks: digest of each set of images, see :func:`mask_digests`; empty if images are made.
        files: digest of each set's names and file sizes, see :func:`files_digest`.
    """

    classes: tuple[str, ...]
    images: str
    labeled: int
    unlabeled: int
    masks: dict[str, str]
    files: dict[str, str]


def data_digest(
    training: SegmentationDataset,
    labeled: Sequence[int],
    unlabeled: Sequence[int],
    validation: SegmentationDataset,
) -> str:
    """Return eight hexadecimal digits that name the images of a run, cheaply.

    They change with the name of an image, the size of its file, the order of the lists, and with
    which images are labeled. No file is opened. Test images are not among them, so that the digest
    of old runs stays the same; see :func:`files_digest`.

    Args:
        training: training images.
        labeled: indices of the labeled ones.
        unlabeled: indices of the unlabeled ones.
        validation: validation images.
    """
    return _digest(
        {
            "labeled": _sizes(training, labeled),
            "unlabeled": _sizes(training, unlabeled),
            "validation": _sizes(validation, range(len(validation))),
        }
    )


def files_digest(dataset: SegmentationDataset, indices: Sequence[int] | None = None) -> str:
    """Return eight hexadecimal digits for the names and file sizes of images, in their order.

    Args:
        dataset: N images.
        indices: the images that are taken; ``None`` for all.
    """
    return _digest(_sizes(dataset, range(len(dataset)) if indices is None else indices))


def mask_digests(findings: Findings) -> dict[str, str]:
    """Return eight hexadecimal digits for the masks of each inspected set of images.

    They change with every pixel of a mask, not with how its file is written.
    """
    return {
        title: _digest(
            [
                (name, mask and (mask.height, mask.width, mask.checksum))
                for name, mask in zip(inspected.dataset.names, inspected.masks, strict=True)
            ]
        )
        for title, inspected in findings.sets.items()
    }


def check_classes(classes: Sequence[str], found: Sequence[str], where: object) -> None:
    """Compare the classes of a run with those of data.

    Args:
        classes: class names of the run, in the order of the indices.
        found: class names of the data, in the same order.
        where: folder or name of the data, for the message.

    Raises:
        UserError: another number of classes, other names, or another order.
    """
    classes, found = tuple(classes), tuple(found)
    if classes == found:
        return
    if len(classes) != len(found):
        what = f"has {len(found)} classes, the run learned {len(classes)}"
    else:
        index = next(
            i for i, pair in enumerate(zip(classes, found, strict=True)) if len({*pair}) > 1
        )
        what = f"calls class {index} {found[index]!r}, the run learned {classes[index]!r}"
        if set(classes) == set(found):
            what += ": the same classes in another order"
    raise UserError(f"{where}: {what}; use data with the classes of the run: {', '.join(classes)}")


def check_identity(out: Path, now: Identity, data: object) -> None:
    """Compare the data of a run folder with the data as they are now; nothing is written.

    A folder from before ``data.json`` is compared by its classes, and by its images if it is
    finished. A folder without a checkpoint and a result passes: the run starts again.

    Args:
        out: the run folder.
        now: identity of the data as they are now.
        data: folder or name of the data, for messages.

    Raises:
        UserError: other classes, images or masks, or other images are labeled.
    """
    out = Path(out)
    if not (out / "result.json").is_file() and not (out / "checkpoints" / "index.json").is_file():
        return
    advice = "choose another --out, or remove the folder to train again"
    environment = _read(out / "environment.json")
    if environment:
        check_classes(environment["classes"], now.classes, data)
    before = _read(out / FILE)
    if not before:
        result = _read(out / "result.json")
        if result and result.get("data", now.images) != now.images:
            raise UserError(f"{out}: was trained on other images or labels than {data}; {advice}")
        return
    for kind in ("labeled", "unlabeled"):
        if before[kind] != getattr(now, kind):
            raise UserError(
                f"{out}: was started with {before[kind]} {kind} images, {data} has "
                f"{getattr(now, kind)} now; {advice}"
            )
    if before["images"] != now.images:
        raise UserError(
            f"{out}: was started with different images or lists from those in {data}; {advice}"
        )
    for title, digest in before.get("files", {}).items():  # runs of before have none
        if now.files.get(title, digest) != digest:
            raise UserError(
                f"{out}: was started with different {title} images from those in {data}; {advice}"
            )
    for title, digest in before["masks"].items():
        if now.masks.get(title, digest) != digest:
            raise UserError(
                f"{out}: the masks of {title} images have changed since this run started; {advice}"
            )


def write_identity(out: Path, identity: Identity) -> None:
    """Store the identity of the data in a run folder."""
    write_text(Path(out) / FILE, json.dumps(asdict(identity), indent=2))


def changed_since(out: Path, title: str, findings: Findings) -> str:
    """Say what of a set of images is no longer as it was when a run started.

    Args:
        out: the run folder.
        title: ``labeled``, ``validation`` or ``test``; a run with one set for the last two has
            stored its masks as ``validation``.
        findings: the inspection of these images, by the same title.

    Returns:
        ``images``, ``masks``, or both, for a message; empty where nothing has changed or nothing
        is stored.
    """
    before = _read(Path(out) / FILE) or {}
    now = {
        "images": ("files", files_digest(findings.sets[title].dataset)),
        "masks": ("masks", mask_digests(findings)[title]),
    }
    changed = []
    for name, (key, digest) in now.items():
        stored = before.get(key, {})
        known = stored.get("validation" if title == "test" and title not in stored else title)
        if known not in (None, digest):
            changed.append(name)
    return " and ".join(changed)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sizes(dataset: SegmentationDataset, indices: Iterable[int]) -> list[tuple[str, int]]:
    return [(dataset.names[index], dataset.file_size(index)) for index in indices]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
