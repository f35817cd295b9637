"""Reading exported mask files: by colors or by the stored values."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.base import opened_image
from ddfp_lib.data.palettes import Painted, looks_renumbered, renumbered
from ddfp_lib.data.stored import Colour, check_values_kept, palette_colours, stored_bits
from ddfp_lib.data.voc import VOID_COLOUR, voc_palette
from ddfp_lib.errors import UserError


def check_depths(files: Sequence[Path]) -> None:
    """Refuse masks of 1 bit a pixel beside deeper ones: white may be class 1 or 255 in them."""
    depths: dict[int, Path] = {}
    for path in files:
        with opened_mask(path) as image:
            if image.mode == "1" and image.getextrema()[1]:
                depths[1] = path
            elif image.mode in ("1", "L"):
                depths.setdefault(stored_bits(image) if image.mode == "L" else 8, path)
    if 1 in depths and len(depths) > 1:
        other = next(path for bits, path in depths.items() if bits != 1)
        raise UserError(
            f"{depths[1]}: has 1 bit a pixel, {other.name} has more: white may be class 1 or 255, "
            "which means ignored; save all with 8 bits"
        )


def check_palettes(files: Sequence[Path], classes: int, *, named: bool) -> None:
    """Refuse palette masks whose values an optimizer of PNG files may have changed.

    Args:
        files: paths of the masks.
        classes: number of classes.
        named: a table names the values, so that unusual ones are meant.
    """
    painted: list[tuple[Path, Painted]] = []
    for path in files:
        with opened_mask(path) as image:
            if image.mode == "P":
                painted.append((path, palette_colours(image, np.unique(image))))
    usual = dict(enumerate(voc_palette(classes))) | {IGNORE_INDEX: VOID_COLOUR}
    advice = "give the colors of the classes with --table, or --kind values if the values are right"
    if wrong := renumbered(painted, usual, {}):
        raise UserError(f"{wrong}; {advice}")
    if not named and (strange := looks_renumbered(painted, usual)):
        raise UserError(f"{strange} {advice.capitalize()}")


def by_colour(path: Path, places: Mapping[Colour, int], table: Path) -> np.ndarray:
    """Read a mask by its colors: uint8 (H, W)."""
    with opened_mask(path) as image:
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
                f"{path}: color {colour}, at row {y}, column {x}, is not in {table}; add it, or "
                "export the masks again without smoothed borders"
            )
        indices.append(places[colour])
    return np.array(indices, dtype=np.uint8)[inverse].reshape(codes.shape)


def by_value(path: Path, places: Mapping[int, int]) -> np.ndarray:
    """Read a mask by its values: uint8 (H, W)."""
    values = stored_values(path)
    found, inverse = np.unique(values, return_inverse=True)
    strange = [value for value in found.tolist() if value not in places]
    if strange:
        y, x = np.argwhere(values == strange[0])[0].tolist()
        known = ", ".join(map(str, places)) if len(places) < 12 else f"{len(places)} others"
        raise UserError(
            f"{path}: value {strange[0]}, at row {y}, column {x}, is not a class ({known}); "
            "give --table values.csv with lines value,name"
        )
    indices = np.array([places[value] for value in found.tolist()], dtype=np.uint8)
    return indices[inverse].reshape(values.shape)


def stored_values(path: Path) -> np.ndarray:
    """Read the stored values of a gray or palette mask, as they are in the file: int64 (H, W)."""
    with opened_mask(path) as image:
        bits = stored_bits(image) if image.mode == "L" else 8
        if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
            raise UserError(f"{path}: holds colors ({image.mode}), not values; give --table")
        values = np.asarray(image).astype(np.int64)
    scale = 255 // (2**bits - 1)  # Pillow stretches 2 and 4 bits to 0..255
    return values // scale


@contextmanager
def opened_mask(path: Path) -> Iterator[Image.Image]:
    """Open a mask file, unless its compression is lossy or it has several pages."""
    with opened_image(path) as image:
        check_values_kept(path, image)
        yield image
