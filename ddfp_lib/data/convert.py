"""Convert exports of annotation tools to masks of class indices in the VOC layout.

================  =================================================================================
kind              what is read
================  =================================================================================
``colours``       RGB or palette masks and a table of colors: ``labelmap.txt`` of CVAT and
                  Datumaro (``name:r,g,b:parts:actions``), lines ``name,r,g,b`` or ``r g b name``
``values``        gray or palette masks, of any bit depth, and a table of values: lines
                  ``value,name``, such as Roboflow's ``_classes.csv``; or masks of class indices and
                  the names of the classes
``binary``        masks of one class, drawn as 0 and 255, or with 1 bit a pixel
``label-studio``  a folder of Label Studio's PNG export, one file for each image and label
``coco``          a JSON file of COCO, drawn by pycocotools; see :mod:`ddfp_lib.data.polygons`
``labelme``       a folder of LabelMe's JSON files, drawn by labelme
================  =================================================================================

Masks in lossy formats are refused: the classes at their borders are lost.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.exported import (
    by_colour,
    by_value,
    check_depths,
    check_palettes,
    opened_mask,
    stored_values,
)
from ddfp_lib.data.polygons import annotation_files, coco, labelme
from ddfp_lib.data.studio import STUDIO, studio
from ddfp_lib.data.tables import colour_table, is_value_table, value_table
from ddfp_lib.data.voc import AUG_MASKS, read_classes, refuse_table, voc_palette, write_mask
from ddfp_lib.data.voc import MASKS as FOLDER
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text

KINDS = ("colours", "values", "binary", "label-studio", "coco", "labelme")

MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Converted:
    """What a conversion has written.

    Attributes:
        kind: one of :data:`KINDS`.
        classes: names, in the order of the mask values.
        pixels: number of pixels of each class, then of ignored pixels, over all masks.
        masks: paths of the masks written.
        tool: the package that drew them, with its version; empty where files were read.
        notices: what a user should know, a line each.
    """

    kind: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    masks: list[Path]
    tool: str = ""
    notices: tuple[str, ...] = ()


def convert(
    source: Path,
    root: Path,
    *,
    kind: str | None = None,
    table: Path | None = None,
    classes: Sequence[str] = (),
) -> Converted:
    """Write ``root/SegmentationClass/NAME.png`` and ``root/classes.txt``, all or nothing.

    Args:
        source: folder of the exported masks, or of JSON files, or a JSON file.
        root: folder of the data set in the VOC layout; its images are not touched.
        kind: one of :data:`KINDS`; None to see by the files.
        table: colors or values of the classes; None takes the one next to the masks.
        classes: names in the order of the mask values, where no table has them.

    Returns:
        What was written.

    Raises:
        UserError: no mask; a mask in a lossy format, of several pages, or with a color or value
            that is not a class; a table that cannot be read; classes other than in
            ``root/classes.txt``; a mask that would be replaced, or not be read because there is
            a ``SegmentationClassAug``.
    """
    source, root = Path(source), Path(root)
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind}: is unknown; use one of {', '.join(KINDS)}")
    regions, annotations = None, None
    if kind in (None, "coco", "labelme"):
        annotations = annotation_files(source)
        if kind is not None and (annotations is None or annotations[0] != kind):
            raise UserError(f"{source}: holds no JSON file of {kind}")
    if annotations is not None:
        kind, found = annotations
        regions = coco(found[0], classes) if kind == "coco" else labelme(found, classes)
        names, masks = regions.names, regions.masks
    else:
        files = _files(source)
        table = table or _table_beside(source)
        asked, kind = kind, kind or _kind_of(files, table)
        if kind == "label-studio":
            names, masks = studio(files, classes, stored_values)
        else:
            names, read = _reader(kind, table, classes, root)
            if kind == "values":
                check_depths(files)
                if asked is None:
                    check_palettes(files, len(names), named=table is not None)
            masks = {_name(path): lambda path=path: read(path) for path in files}
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--classes {','.join(names)}: has {twice!r} twice; delete one of them")
    if not 1 < len(names) <= IGNORE_INDEX:
        listed = ", ".join(names[:5]) or "none"
        raise UserError(
            f"{source}: classes are {listed}, {len(names)} in all; masks hold 2 to {IGNORE_INDEX}"
        )
    listed, folder = root / "classes.txt", root / FOLDER
    refuse_table(listed, names)  # it would not be read
    if (root / AUG_MASKS).is_dir():
        raise UserError(
            f"{root / AUG_MASKS}: exists and would be read instead of the new {FOLDER}; rename it, "
            "or choose another --root"
        )
    if listed.exists() and tuple(read_classes(listed)) != tuple(names):
        raise UserError(
            f"{listed}: has other classes than {table or source}: {', '.join(names)}; remove it or "
            "choose another --root"
        )
    taken = [name for name in masks if (folder / f"{name}.png").exists()]
    if taken:
        raise UserError(f"{folder / taken[0]}.png: already exists; choose another --root")
    pixels = _write(names, masks, root, lambda: regions and regions.drawn(source))
    paths = [folder / f"{name}.png" for name in masks]
    tool, notices = (regions.tool, regions.drawn(source)) if regions else ("", ())
    return Converted(kind, tuple(names), pixels, paths, tool, notices)


def _write(
    names: Sequence[str],
    masks: Mapping[str, Callable[[], np.ndarray]],
    root: Path,
    check: Callable[[], object],
) -> tuple[int, ...]:
    """Write all masks next to their folder, check, then move them; return the classes' pixels."""
    folder, partial = root / FOLDER, root / ".converted.partial"
    pixels = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
    palette = voc_palette(len(names))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, read in masks.items():
            mask = read()
            pixels += np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
            write_mask(partial / f"{name}.png", torch.from_numpy(mask), palette)
        check()
        folder.mkdir(parents=True, exist_ok=True)
        for name in masks:
            (partial / f"{name}.png").rename(folder / f"{name}.png")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # goes only if nothing was written into it
            root.rmdir()
    write_text(root / "classes.txt", "\n".join(names) + "\n")
    return (*pixels[: len(names)].tolist(), int(pixels[IGNORE_INDEX]))


def _files(source: Path) -> list[Path]:
    """Return the mask files of an export, one of each name."""
    inner = source / "SegmentationClass"  # of CVAT, next to its table
    folder = inner if inner.is_dir() else source
    if source.is_file():
        raise UserError(f"{source}: is not a JSON file of COCO or LabelMe; give that, or a folder")
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; give the folder of the exported masks")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in MASKS]
    if (source / "_classes.csv").is_file():  # Roboflow: images are next to their masks
        files = [path for path in files if path.stem.endswith("_mask")]
    if not files:
        below = next((p for p in sorted(folder.rglob("*")) if p.suffix.lower() in MASKS), None)
        hint = f"; {below} is in a subfolder: give that" if below else ""
        if any(path.suffix == ".xml" for path in folder.rglob("*.xml")):
            hint = "; XML files are not read: export masks instead, in CVAT 'Segmentation mask'"
        raise UserError(
            f"{folder}: holds no mask ({', '.join(MASKS)}), and no JSON file of COCO or LabelMe"
            f"{hint}"
        )
    seen: dict[str, Path] = {}
    for path in files:
        name = path.stem if STUDIO.fullmatch(path.stem) else _name(path)
        if name in seen:
            raise UserError(f"{path}: {seen[name].name} is a mask of {name!r} too; keep one")
        seen[name] = path
    return files


def _name(path: Path) -> str:
    """Return the name of the image that a mask belongs to."""
    return path.stem.removesuffix("_mask")


def _table_beside(source: Path) -> Path | None:
    for name in ("_classes.csv", "labelmap.txt", "label_colors.txt"):
        for folder in (source, source.parent):
            if (folder / name).is_file():
                return folder / name
    return None


def _kind_of(files: Sequence[Path], table: Path | None) -> str:
    """Return the kind of an export by its first mask and its table."""
    if all(STUDIO.fullmatch(path.stem) for path in files):
        return "label-studio"
    if table is not None:
        return "values" if is_value_table(table) else "colours"
    values: set[int] = set()
    for path in files:
        with opened_mask(path) as image:
            if image.mode not in ("1", "L", "P", "I;16", "I"):
                raise UserError(
                    f"{path}: holds colors ({image.mode}); give the table that says which class "
                    "each color is, for example --table labelmap.txt"
                )
            white = 255 if image.mode == "1" else 1
        values |= {white * value for value in np.unique(stored_values(path)).tolist()}
    return "binary" if values <= {0, 255} and len(values) == 2 else "values"


def _reader(
    kind: str, table: Path | None, classes: Sequence[str], root: Path
) -> tuple[list[str], Callable[[Path], np.ndarray]]:
    """Return the names of the classes, and what reads a mask as their indices."""
    if kind == "colours":
        if table is None:
            raise UserError(
                "--kind colours: needs the table of colors, for example --table labelmap.txt"
            )
        names, places = colour_table(table)
        return names, lambda path: by_colour(path, places, table)
    places: Mapping[int, int] | None = None
    if table is not None and is_value_table(table):
        names, places = value_table(table)
    elif classes:
        names = list(classes)
    elif (root / "classes.txt").is_file():
        names = read_classes(root / "classes.txt")
    else:
        raise UserError(
            "the masks do not name their classes: give --classes background,thing in the order of "
            "their values, or --table values.csv with lines value,name"
        )
    if kind == "binary" and len(names) != 2:
        raise UserError(f"--classes {','.join(names)}: masks of 0 and 255 have two classes")
    if places is None:
        places = {value: value for value in (*range(len(names)), IGNORE_INDEX)}
    if kind == "binary":
        places = {0: 0, 1: 1, 255: 1}
    return names, lambda path: by_value(path, places)
