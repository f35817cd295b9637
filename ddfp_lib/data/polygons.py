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
from typing import Any

import numpy as np

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.errors import UserError

Masks = dict[str, Callable[[], np.ndarray]]
"""By name of the image: what draws its mask, uint8 (H, W)."""

BACKGROUND = ("_background_", "background")
"""Names that tools give to class 0."""


def annotation_files(source: Path) -> tuple[str, list[Path]] | None:
    """Return the kind of JSON annotations, ``coco`` or ``labelme``, and their files; or None.

    Args:
        source: a COCO file; or a folder that holds one, or files of LabelMe.

    Raises:
        UserError: a JSON file that cannot be read.
    """
    files = [source] if source.suffix == ".json" else sorted(source.glob("*.json"))
    kinds = {"coco": "annotations", "labelme": "shapes"}
    for path in files:
        content = _read(path)
        for kind, key in kinds.items():
            if key in content:
                return kind, [path] if kind == "coco" else files
    return None


def coco(path: Path, classes: Sequence[str]) -> tuple[list[str], Masks, str]:
    """Read the regions of a COCO file.

    Class 0 is ``background``; the categories follow in the order of their numbers. Where regions
    overlap, the smaller one is on top. Crowds are ignored.

    Args:
        path: of the JSON file.
        classes: names in the order of the indices; empty for the order above.

    Returns:
        Names of the classes, the masks, and the package that draws them.

    Raises:
        UserError: the package is not installed, or an annotation cannot be drawn.
    """
    tool = _package("pycocotools.coco", "pycocotools")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        data = tool.COCO(str(path))
    categories = sorted(data.dataset.get("categories", []), key=lambda entry: entry["id"])
    used = {entry["category_id"] for entry in data.dataset["annotations"]}
    groups = {entry.get("supercategory") for entry in categories}
    kept = [e for e in categories if e["id"] in used or e["name"] not in groups]
    names = list(classes) or [
        "background",
        *(e["name"] for e in kept if e["name"].lower() not in BACKGROUND),
    ]
    index = {e["id"]: _index(e["name"], names, path) for e in categories if e["id"] in used}

    def draw(image: dict[str, Any]) -> np.ndarray:
        mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        entries = data.loadAnns(data.getAnnIds(imgIds=[image["id"]]))
        try:
            regions = [(data.annToMask(entry) > 0, entry) for entry in entries]
        except Exception as error:  # of the package, which has none of its own
            raise UserError(f"{path}: {image['file_name']} cannot be drawn ({error})") from error
        for region, entry in sorted(regions, key=lambda pair: -pair[0].sum()):
            mask[region] = IGNORE_INDEX if entry.get("iscrowd") else index[entry["category_id"]]
        return mask

    images = data.dataset["images"]
    masks = {Path(image["file_name"]).stem: lambda image=image: draw(image) for image in images}
    if len(masks) < len(images):
        raise UserError(f"{path}: two images have the same name; rename one")
    return names, masks, f"pycocotools {version('pycocotools')}"


def labelme(files: Sequence[Path], classes: Sequence[str]) -> tuple[list[str], Masks, str]:
    """Read the regions of LabelMe's files, one for each image.

    Class 0 is ``_background_``; the labels follow in alphabetical order. A later region is on top
    of an earlier one, as in LabelMe. ``__ignore__`` is ignored.

    Args:
        files: JSON files.
        classes: names in the order of the indices; empty for the order above.

    Returns:
        Names of the classes, the masks, and the package that draws them.

    Raises:
        UserError: the package is not installed, or a file cannot be drawn.
    """
    tool = _package("labelme.utils", "labelme")
    contents = {path: _read(path) for path in files}
    labels = {shape["label"] for content in contents.values() for shape in content["shapes"]}
    labels -= {"__ignore__"}
    names = list(classes) or ["_background_", *sorted(labels - set(BACKGROUND))]
    values = {label: _index(label, names, files[0].parent) for label in labels}
    values |= {"_background_": 0, "__ignore__": IGNORE_INDEX}

    def draw(path: Path, content: dict[str, Any]) -> np.ndarray:
        size = (content.get("imageHeight"), content.get("imageWidth"))
        if None in size:
            raise UserError(f"{path}: has no imageHeight and imageWidth; save it in LabelMe again")
        if any(shape.get("shape_type") == "mask" for shape in content["shapes"]):
            raise UserError(f"{path}: has a shape of type mask; only outlines are converted")
        try:
            drawn, _ = tool.shapes_to_label(size, content["shapes"], values)
        except Exception as error:  # of the package, which has none of its own
            raise UserError(f"{path}: cannot be drawn ({error}); fix it in LabelMe") from error
        return np.asarray(drawn).astype(np.uint8)

    masks = {
        p.stem: lambda p=p, content=content: draw(p, content) for p, content in contents.items()
    }
    return names, masks, f"labelme {version('labelme')}"


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
        raise UserError(f"{path}: is no JSON file ({error}); export it again") from error
    return content if isinstance(content, dict) else {}
