"""Masks from regions that annotation tools store as JSON: COCO and LabelMe.

Regions are drawn by the tool's own package, from the optional extra ``convert``. Packages draw the
border of one polygon differently (by a pixel), so that the version is part of the answer.
"""

import contextlib
import importlib
import io
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.errors import UserError

Masks = dict[str, Callable[[], np.ndarray]]
"""By name of the image: what draws its mask, uint8 (H, W)."""

BACKGROUND = ("_background_", "background")
"""Names that tools give to class 0."""


class Regions(NamedTuple):
    """What annotation files hold.

    Attributes:
        names: names of the classes, in the order of the mask values.
        masks: what draws the mask of each image, by the image's name.
        tool: the package that draws them, with its version.
        notices: what a user should know, a line each.
    """

    names: list[str]
    masks: Masks
    tool: str
    notices: tuple[str, ...] = ()


def annotation_files(source: Path) -> tuple[str, list[Path]] | None:
    """Return the kind of JSON annotations, ``coco`` or ``labelme``, and their files; or None.

    Args:
        source: a COCO file; or a folder that holds one, itself or in ``annotations``; or a folder
            of LabelMe's files.

    Raises:
        UserError: a JSON file that cannot be read, or several COCO files.
    """
    if source.suffix.lower() == ".json":
        files = [source]
    else:
        files = sorted(source.glob("*.json")) or sorted((source / "annotations").glob("*.json"))
    found: dict[str, list[Path]] = {"coco": [], "labelme": []}
    for path in files:
        kind = _kind(_read(path))
        if kind is not None:
            found[kind].append(path)
    if len(found["coco"]) > 1:
        names = ", ".join(path.name for path in found["coco"])
        raise UserError(
            f"{found['coco'][0].parent}: holds several COCO files ({names}); convert one at a time "
            "by its path, all into the same --root"
        )
    return next(((kind, paths) for kind, paths in found.items() if paths), None)


def _kind(content: dict[str, Any]) -> str | None:
    """Return whose annotations of regions a JSON file holds."""
    if "shapes" in content:
        return "labelme"
    entries = content.get("annotations")
    if not isinstance(entries, list) or "images" not in content or "categories" not in content:
        return None  # captions, and what other tools call annotations
    # entries of panoptic files have segments_info instead
    regions = all("segmentation" in entry for entry in entries if isinstance(entry, dict))
    return "coco" if regions else None


def coco(path: Path, classes: Sequence[str]) -> Regions:
    """Read the regions of a COCO file.

    Class 0 is ``background``; the categories follow in the order of their numbers. Where regions
    overlap, the smaller one is on top.

    Regions with ``iscrowd`` are drawn as their class, below all others. COCO means a group of
    objects by it, but annotation tools write it for every region that is stored as run lengths:
    for drawings of a brush (Datumaro, CVAT) and for objects with a hole (supervision).

    Args:
        path: path of the JSON file.
        classes: names in the order of the indices; empty for the order above.

    Returns:
        Names of the classes and, for each image of the file, what draws its mask. Nothing is drawn
        yet.

    Raises:
        UserError: the package is not installed, the file is not a COCO file, regions use a
            category that it does not define or that ``classes`` lacks, or two images have the same
            name or id. Drawing a mask raises one if an annotation cannot be drawn.
    """
    tool = _package("pycocotools.coco", "pycocotools")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
            data = tool.COCO(str(path))
        entries, images = data.dataset["annotations"], data.dataset["images"]
        categories = sorted(data.dataset["categories"], key=lambda entry: entry["id"])
        used = {entry["category_id"] for entry in entries}
        unknown = used - {entry["id"] for entry in categories}
        masks = {Path(image["file_name"]).stem: lambda image=image: draw(image) for image in images}
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not a COCO file ({type(error).__name__}: {error}); export it again"
        ) from error
    if unknown:
        raise UserError(
            f"{path}: regions use category {min(unknown)}, which the file does not define; add it"
        )
    if len(masks) < len(images) or len({image["id"] for image in images}) < len(images):
        raise UserError(f"{path}: two images have the same name or id; change one")
    groups = {entry.get("supercategory") for entry in categories}
    kept = [e for e in categories if e["id"] in used or e["name"] not in groups]
    names = list(classes) or [
        "background",
        *(e["name"] for e in kept if e["name"].lower() not in BACKGROUND),
    ]
    index = {e["id"]: _index(e["name"], names, path) for e in categories if e["id"] in used}

    def draw(image: dict[str, Any]) -> np.ndarray:
        mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        # not by the regions' numbers: some files start their numbers again in each image
        try:
            regions = [(data.annToMask(entry) > 0, entry) for entry in data.imgToAnns[image["id"]]]
        except Exception as error:  # of the package, which has none of its own
            raise UserError(f"{path}: {image['file_name']} cannot be drawn ({error})") from error
        for region, entry in sorted(
            regions, key=lambda pair: (not pair[1].get("iscrowd"), -pair[0].sum())
        ):
            mask[region] = index[entry["category_id"]]
        return mask

    crowds = sum(bool(entry.get("iscrowd")) for entry in entries)
    notice = f"{crowds} of {len(entries)} regions are marked iscrowd: drawn as their class"
    return Regions(
        names, masks, f"pycocotools {version('pycocotools')}", (notice,) if crowds else ()
    )


def labelme(files: Sequence[Path], classes: Sequence[str]) -> Regions:
    """Read the regions of LabelMe's files, one for each image.

    Class 0 is ``_background_``; the labels follow in alphabetical order. A later region is on top
    of an earlier one, as in LabelMe. ``__ignore__`` is ignored.

    Args:
        files: JSON files.
        classes: names in the order of the indices; empty for the order above.

    Raises:
        UserError: the package is not installed, or a file cannot be drawn.
    """
    tool = _package("labelme.utils", "labelme")
    contents = {path: _read(path) for path in files}
    labels = set()
    for path, content in contents.items():
        for shape in content["shapes"]:
            if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
                raise UserError(f"{path}: has a shape without a label; save it in LabelMe again")
            labels.add(shape["label"])
    labels -= {"__ignore__"}
    names = list(classes) or ["_background_", *sorted(labels - set(BACKGROUND))]
    values = {label: _index(label, names, files[0].parent) for label in labels}
    values |= {"_background_": 0, "__ignore__": IGNORE_INDEX}

    def draw(path: Path, content: dict[str, Any]) -> np.ndarray:
        size = (content.get("imageHeight"), content.get("imageWidth"))
        if None in size:
            raise UserError(f"{path}: has no imageHeight and imageWidth; save it in LabelMe again")
        try:
            shapes = [
                {**shape, "mask": tool.img_b64_to_arr(shape["mask"]).astype(bool)}
                if shape.get("shape_type") == "mask"  # of its AI tools, a PNG in base64
                else shape
                for shape in content["shapes"]
            ]
            drawn, _ = tool.shapes_to_label(size, shapes, values)
        except Exception as error:  # of the package, which has none of its own
            raise UserError(f"{path}: cannot be drawn ({error}); fix it in LabelMe") from error
        return np.asarray(drawn).astype(np.uint8)

    masks = {
        p.stem: lambda p=p, content=content: draw(p, content) for p, content in contents.items()
    }
    return Regions(names, masks, f"labelme {version('labelme')}")


def _index(label: str, names: Sequence[str], where: Path) -> int:
    """Return the index of a label; the background has 0 by any of its names."""
    if label.lower() in BACKGROUND:
        return 0
    if label not in names:
        raise UserError(f"{where}: label {label!r} is not in --classes {','.join(names)}; add it")
    return list(names).index(label)


def _package(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{name} is not installed; it draws the regions: pip install 'ddfp[convert]'"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a JSON file ({error}); export it again") from error
    return content if isinstance(content, dict) else {}
