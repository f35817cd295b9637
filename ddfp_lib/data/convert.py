"""From what annotation tools export to masks of class indices in the VOC layout.

================  =================================================================================
kind              what is read
================  =================================================================================
``colours``       RGB or palette masks and a table of colours: CVAT's ``labelmap.txt``
                  (``name:r,g,b:parts:actions``), or a CSV file with lines ``name,r,g,b``
``values``        gray or palette masks whose values, of any bit depth, are the class indices;
                  with Roboflow's ``_classes.csv`` (``Pixel Value, Class``) beside them, or names
``binary``        masks of one class, drawn as 0 and 255, or with 1 bit a pixel
``label-studio``  a folder of Label Studio's PNG export, one file for each image and label
``coco``          a JSON file of COCO, drawn by pycocotools; see :mod:`ddfp_lib.data.polygons`
``labelme``       a folder of LabelMe's JSON files, drawn by labelme
================  =================================================================================

Masks in lossy formats are refused: the classes at their borders are lost.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import LOSSY, Colour, opened_image, stored_bits
from ddfp_lib.data.polygons import annotation_files, coco, labelme
from ddfp_lib.data.tables import colour_table, value_table
from ddfp_lib.data.voc import read_classes, voc_palette, write_mask
from ddfp_lib.errors import UserError
from ddfp_lib.files import write_text

KINDS = ("colours", "values", "binary", "label-studio", "coco", "labelme")

MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")

STUDIO = re.compile(r"task-(?P<task>\d+)-annotation-\d+-by-\d+-tag-(?P<label>.+)-(?P<number>\d+)")
"""How Label Studio names the file of one label of one image."""


@dataclass(frozen=True)
class Converted:
    """What a conversion has written.

    Attributes:
        kind: one of :data:`KINDS`.
        classes: names, in the order of the mask values.
        pixels: of each class, and of ignored ones last, over all masks.
        masks: paths of the masks written.
        tool: the package that drew them, with its version; empty where files were read.
    """

    kind: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    masks: list[Path]
    tool: str = ""


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
        table: colours or values of the classes; None takes the one that lies beside the masks.
        classes: names in the order of the mask values, where no table has them.

    Returns:
        What was written.

    Raises:
        UserError: no mask; a mask in a lossy format, or with a colour or value that is no class; a
            table that cannot be read; classes other than in ``root/classes.txt``; or a mask that
            would be replaced.
    """
    source, root = Path(source), Path(root)
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind {kind}: is unknown; use one of {', '.join(KINDS)}")
    tool, annotations = "", None
    if kind in (None, "coco", "labelme"):
        annotations = annotation_files(source)
        if kind is not None and (annotations is None or annotations[0] != kind):
            raise UserError(f"{source}: holds no JSON file of {kind}")
    if annotations is not None:
        kind, found = annotations
        reads = coco(found[0], classes) if kind == "coco" else labelme(found, classes)
        names, masks, tool = reads
    else:
        files = _files(source)
        table = table or _table_beside(source)
        kind = kind or _kind_of(files, table)
        if kind == "label-studio":
            names, masks = _studio(files, classes)
        else:
            names, read = _reader(kind, table, classes, root)
            masks = {_name(path): lambda path=path: read(path) for path in files}
    if not 1 < len(names) <= IGNORE_INDEX:
        raise UserError(f"{source}: has {len(names)} classes; masks hold 2 to {IGNORE_INDEX}")
    listed, folder = root / "classes.txt", root / "SegmentationClass"
    if listed.exists() and tuple(read_classes(listed)) != tuple(names):
        raise UserError(
            f"{listed}: has other classes than {table or source}: {', '.join(names)}; remove it or "
            "choose another --root"
        )
    taken = [name for name in masks if (folder / f"{name}.png").exists()]
    if taken:
        raise UserError(f"{folder / taken[0]}.png: is there already; choose another --root")
    return _write(kind, names, masks, root, tool)


def _write(
    kind: str,
    names: Sequence[str],
    masks: Mapping[str, Callable[[], np.ndarray]],
    root: Path,
    tool: str,
) -> Converted:
    """Write all masks beside their folder, then move them into it."""
    folder, partial = root / "SegmentationClass", root / ".converted.partial"
    pixels = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
    palette = voc_palette(len(names))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, read in masks.items():
            mask = read()
            pixels += np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
            write_mask(partial / f"{name}.png", torch.from_numpy(mask), palette)
        folder.mkdir(parents=True, exist_ok=True)
        for name in masks:
            (partial / f"{name}.png").rename(folder / f"{name}.png")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # goes only if nothing was written into it
            root.rmdir()
    write_text(root / "classes.txt", "\n".join(names) + "\n")
    counts = (*pixels[: len(names)].tolist(), int(pixels[IGNORE_INDEX]))
    paths = [folder / f"{name}.png" for name in masks]
    return Converted(kind, tuple(names), counts, paths, tool)


def _files(source: Path) -> list[Path]:
    """Return the mask files of an export, one of each name."""
    inner = source / "SegmentationClass"  # of CVAT, beside its table
    folder = inner if inner.is_dir() else source
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; give the folder of the exported masks")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in MASKS]
    if (source / "_classes.csv").is_file():  # Roboflow: images lie beside their masks
        files = [path for path in files if path.stem.endswith("_mask")]
    if not files:
        raise UserError(f"{folder}: holds no mask ({', '.join(MASKS)})")
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
    for name in ("_classes.csv", "labelmap.txt"):
        for folder in (source, source.parent):
            if (folder / name).is_file():
                return folder / name
    return None


def _kind_of(files: Sequence[Path], table: Path | None) -> str:
    """Return the kind of an export by its first mask and its table."""
    if all(STUDIO.fullmatch(path.stem) for path in files):
        return "label-studio"
    if table is not None:
        return "values" if table.name == "_classes.csv" else "colours"
    values: set[int] = set()
    for path in files:
        with _opened(path) as image:
            if image.mode not in ("1", "L", "P", "I;16", "I"):
                raise UserError(
                    f"{path}: holds colours ({image.mode}); give the table that says which class "
                    "each colour is, as --table labelmap.txt"
                )
        values |= set(np.unique(_values(path)).tolist())
    return "binary" if values <= {0, 255} and len(values) == 2 else "values"


def _reader(
    kind: str, table: Path | None, classes: Sequence[str], root: Path
) -> tuple[list[str], Callable[[Path], np.ndarray]]:
    """Return the names of the classes, and what reads a mask as their indices."""
    if kind == "colours":
        if table is None:
            raise UserError("--kind colours: needs the table of colours, as --table labelmap.txt")
        names, places = colour_table(table)
        return names, lambda path: _by_colour(path, places, table)
    if table is not None and table.suffix == ".csv":
        names = value_table(table)
    elif classes:
        names = list(classes)
    elif (root / "classes.txt").is_file():
        names = read_classes(root / "classes.txt")
    else:
        raise UserError(
            "the masks do not name their classes: give --classes background,thing in the order of "
            "their values"
        )
    if kind == "binary" and len(names) != 2:
        raise UserError(f"--classes {','.join(names)}: masks of 0 and 255 have two classes")
    return names, lambda path: _by_value(path, len(names), binary=kind == "binary")


def _by_colour(path: Path, places: Mapping[Colour, int], table: Path) -> np.ndarray:
    """Read a mask by its colours: uint8 (H, W)."""
    with _opened(path) as image:
        if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{path}: has transparent pixels; export it without transparency")
        pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    found, inverse = np.unique(codes, return_inverse=True)
    indices = []
    for code in found.tolist():
        colour = (code >> 16, code >> 8 & 255, code & 255)
        if colour not in places:
            y, x = np.argwhere(codes == code)[0].tolist()
            raise UserError(
                f"{path}: colour {colour}, at row {y}, column {x}, is not in {table}; add it, or "
                "export the masks again without smoothed borders"
            )
        indices.append(places[colour])
    return np.array(indices, dtype=np.uint8)[inverse].reshape(codes.shape)


def _by_value(path: Path, classes: int, *, binary: bool = False) -> np.ndarray:
    """Read a mask by its values: uint8 (H, W)."""
    values = _values(path)
    if binary:
        values = np.where(values == 255, 1, values)
    strange = values[(values >= classes) & (values != IGNORE_INDEX)]
    if len(strange):
        raise UserError(f"{path}: value {strange[0]} is no class (0..{classes - 1})")
    return values.astype(np.uint8)


def _values(path: Path) -> np.ndarray:
    """Read the stored values of a gray or palette mask, as they are in the file: int64 (H, W)."""
    with _opened(path) as image:
        bits = stored_bits(image) if image.mode == "L" else 8
        if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
            raise UserError(f"{path}: holds colours ({image.mode}), not values; give --table")
        values = np.asarray(image).astype(np.int64)
        if image.mode == "1":
            return values * 255  # black and white
    scale = 255 // (2**bits - 1)  # Pillow stretches 2 and 4 bits to 0..255
    return values // scale


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a mask file, unless its format is lossy."""
    with opened_image(path) as image:
        if image.format in LOSSY:
            raise UserError(
                f"{path}: a mask in a lossy format ({image.format}) has lost its borders; export "
                "the masks as PNG"
            )
        yield image


def _studio(
    files: Sequence[Path], classes: Sequence[str]
) -> tuple[list[str], dict[str, Callable[[], np.ndarray]]]:
    """Return classes and masks of Label Studio's export; ``background`` is where no label is."""
    parts: dict[str, list[tuple[str, Path]]] = {}
    for path in files:
        match = STUDIO.fullmatch(path.stem)
        if match is None:
            raise UserError(f"{path}: is not named as Label Studio names masks")
        parts.setdefault(f"task-{match['task']}", []).append((match["label"], path))
    labels = sorted({label for found in parts.values() for label, _ in found})
    names = list(classes) or ["background", *labels]
    missing = [label for label in labels if label not in names]
    if missing:
        raise UserError(f"--classes: lacks the label {missing[0]!r} of the export; add it")

    def read(found: list[tuple[str, Path]]) -> np.ndarray:
        mask: np.ndarray | None = None
        for label, path in found:
            region = _values(path) > 0
            if mask is None:
                mask = np.zeros(region.shape, dtype=np.uint8)
            if region.shape != mask.shape:
                raise UserError(f"{path}: has another size than the other labels of its image")
            index = names.index(label)
            if (mask[region & (mask != index)] != 0).any():
                raise UserError(
                    f"{path}: overlaps another label of its image; a pixel has one class: correct "
                    "the regions in Label Studio"
                )
            mask[region] = index
        return mask

    return names, {task: lambda found=found: read(found) for task, found in parts.items()}
