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
from ddfp_lib.data.labels import index_labels
from ddfp_lib.errors import UserError

Masks = dict[str, Callable[[], np.ndarray]]
"""By name of the image: what draws its mask, uint8 (H, W)."""


class Regions(NamedTuple):
    """What annotation files hold.

    Attributes:
        names: names of the classes, in the order of the mask values.
        masks: what draws the mask of each image, by the image's name.
        tool: the package that draws them, with its version.
        count: number of regions.
        empty: regions that drew no pixel, in words; complete once all masks are drawn.
        notices: what a user should know, a line each.
    """

    names: list[str]
    masks: Masks
    tool: str
    count: int
    empty: list[str]
    notices: tuple[str, ...] = ()

    def drawn(self, source: Path) -> tuple[str, ...]:
        """Return the notices, when all masks are drawn.

        Raises:
            UserError: no region drew a pixel.
        """
        if not self.empty:
            return self.notices
        line = f"{len(self.empty)} regions drew no pixel; the first is {self.empty[0]}"
        advice = "coordinates have to be pixels within the image"
        if len(self.empty) == self.count:
            raise UserError(f"{source}: all {line}; {advice}")
        return (*self.notices, f"{line}; {advice}")


NO_REGION = (
    "has no outline and no run lengths (segmentation), from which masks are drawn; export them"
)


def annotation_files(source: Path) -> tuple[str, list[Path]] | None:
    """Return the kind of JSON annotations, ``coco`` or ``labelme``, and their files; or None.

    Args:
        source: a COCO file; or a folder that holds one, itself or in ``annotations``; or a folder
            of LabelMe's files.

    Raises:
        UserError: a JSON file that cannot be read, several COCO files, or one with boxes alone.
    """
    if source.suffix.lower() == ".json":
        files = [source]
    else:
        files = sorted(source.glob("*.json")) or sorted((source / "annotations").glob("*.json"))
    found: dict[str, list[Path]] = {"coco": [], "labelme": [], "boxes": []}
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
    boxes = found.pop("boxes")
    if boxes and (boxes == [source] or not any(found.values())):
        first = _read(boxes[0])["annotations"][0].get("id")
        raise UserError(f"{boxes[0]}: annotation {first} {NO_REGION}")
    return next(((kind, paths) for kind, paths in found.items() if paths), None)


def _kind(content: dict[str, Any]) -> str | None:
    """Return whose annotations of regions a JSON file holds."""
    if "shapes" in content:
        return "labelme"
    entries = content.get("annotations")
    if not isinstance(entries, list) or "images" not in content or "categories" not in content:
        return None  # captions, and what other tools call annotations
    keys = [entry.keys() for entry in entries if isinstance(entry, dict)]
    if not keys or any("segmentation" in each for each in keys):
        return "coco"
    # entries of panoptic files have segments_info instead
    return "boxes" if all("bbox" in each for each in keys) else None


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
        labels = {entry["id"]: str.strip(entry["name"]) for entry in categories}
        used = {entry["category_id"] for entry in entries}
        unknown = used - labels.keys()
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
    sizes = {image["id"]: _size(path, image) for image in images}
    for entry in entries:
        if entry["image_id"] in sizes:
            _check_region(path, entry, sizes[entry["image_id"]])
    groups = {entry.get("supercategory") for entry in categories}
    kept = [e["id"] for e in categories if e["id"] in used or e["name"] not in groups]
    names, places = index_labels(
        [labels[number] for number in kept],
        classes,
        "background",
        path,
        {labels[number] for number in used},
    )
    empty = [
        f"annotation {entry.get('id')}, whose image {entry['image_id']} is not in the file"
        for entry in entries
        if entry["image_id"] not in sizes
    ]

    def draw(image: dict[str, Any]) -> np.ndarray:
        mask = np.zeros(sizes[image["id"]], dtype=np.uint8)
        # not by the regions' numbers: some files start their numbers again in each image
        try:
            regions = [(data.annToMask(entry) > 0, entry) for entry in data.imgToAnns[image["id"]]]
        except Exception as error:  # of the package, which has none of its own
            raise UserError(f"{path}: {image['file_name']} cannot be drawn ({error})") from error
        for region, entry in sorted(
            regions, key=lambda pair: (not pair[1].get("iscrowd"), -pair[0].sum())
        ):
            mask[region] = places[labels[entry["category_id"]]]
            if not region.any():
                empty.append(f"annotation {entry.get('id')} of {image['file_name']}")
        return mask

    crowds = sum(bool(entry.get("iscrowd")) for entry in entries)
    notice = f"{crowds} of {len(entries)} regions are marked iscrowd: drawn as their class"
    by = f"pycocotools {version('pycocotools')}"
    return Regions(names, masks, by, len(entries), empty, (notice,) if crowds else ())


def _size(path: Path, image: dict[str, Any]) -> tuple[int, int]:
    """Return (height, width) of an image of a COCO file."""
    size = image.get("height"), image.get("width")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(
            f"{path}: image {image['file_name']} has no height and width in pixels; add them, or "
            "export it again"
        )
    return size


def _check_region(path: Path, entry: dict[str, Any], size: tuple[int, int]) -> None:
    """Refuse a region of a COCO file that cannot be drawn into an image of this (height, width)."""
    region, who = entry.get("segmentation"), f"{path}: annotation {entry.get('id')}"
    if not region:
        raise UserError(f"{who} {NO_REGION}")
    if isinstance(region, list):
        for outline in region:
            if not isinstance(outline, list) or len(outline) < 6 or len(outline) % 2:
                raise UserError(
                    f"{who} has an outline that is not a list x, y, x, y, ... of three points or "
                    "more; correct it, or delete the annotation"
                )
        return
    stored = region.get("size") if isinstance(region, dict) else None
    if not isinstance(stored, list) or tuple(stored) != size:
        raise UserError(
            f"{who} has run lengths of size {stored} (height, width), its image {list(size)}; "
            "export it again"
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
    ordered = sorted(labels, key=str.strip)
    names, values = index_labels(ordered, classes, "_background_", files[0].parent)
    values |= {"_background_": 0, "__ignore__": IGNORE_INDEX}
    empty: list[str] = []

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
            one = dict.fromkeys(values, 1)
            regions = [tool.shapes_to_label(size, [shape], one)[0] > 0 for shape in shapes]
        except Exception as error:  # of the package, which has none of its own
            raise UserError(f"{path}: cannot be drawn ({error}); fix it in LabelMe") from error
        mask = np.zeros(size, dtype=np.uint8)
        for number, (shape, region) in enumerate(zip(shapes, regions, strict=True), start=1):
            mask[region] = values[shape["label"]]
            if not region.any():
                empty.append(f"shape {number} ({shape['label']}) of {path.name}")
        return mask

    masks = {
        p.stem: lambda p=p, content=content: draw(p, content) for p, content in contents.items()
    }
    count = sum(len(content["shapes"]) for content in contents.values())
    return Regions(names, masks, f"labelme {version('labelme')}", count, empty)


def _package(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{name} is not installed; it draws the regions: run 'uv pip install --python "
            ".venv/bin/python -r requirements-convert.lock' in the folder of the repository, or in "
            "an environment of your own pip install 'ddfp[convert]'"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a JSON file ({error}); export it again") from error
    return content if isinstance(content, dict) else {}
