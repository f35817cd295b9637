"""How the pixels of an image file are stored, and whether a mask's values are its class indices.

Nothing is decoded here: what Pillow knows of an opened file is enough.
"""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ddfp_lib.errors import UserError

Colour = tuple[int, int, int]

CONVERT = "ddfp data convert"
"""The command that makes masks of class indices from most of what is refused here."""

ORIENTATION = 0x0112
"""Tag of EXIF and TIFF that says how a picture is to be turned; 1 is upright."""

LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
"""Pillow's names of file formats that change pixel values, or may."""


def check_values_kept(path: Path, image: Image.Image) -> None:
    """Refuse an opened mask whose file has not kept every value, or is more than one mask.

    Raises:
        UserError: a format or a compression that changes values, by content; several pages; a TIFF
            that Pillow turns when it reads it; or floating-point numbers.
    """
    compression = str(image.info.get("compression", ""))
    if image.format in LOSSY or "jpeg" in compression or compression == "webp":
        raise UserError(
            f"{path}: lossy compression ({image.format}) has changed the classes at borders; "
            "export the masks again as PNG"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise UserError(f"{path}: a mask of {image.n_frames} pages; save one page as PNG")
    if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
        raise UserError(
            f"{path}: a mask that is stored turned (tag orientation), and would be turned when it "
            "is read; save it as PNG, as its image is stored"
        )
    if image.mode == "F":
        raise UserError(f"{path}: holds floating-point numbers; save whole numbers")


def check_mask(path: Path, image: Image.Image) -> None:
    """Refuse an opened mask whose pixel values are not exactly the class indices.

    The content counts, not the suffix. Nothing is decoded.

    Raises:
        UserError: as :func:`check_values_kept`; colors instead of indices, more than 8 bits, or
            gray of fewer bits or inverted, which Pillow scales when it reads it.
    """
    check_values_kept(path, image)
    if image.mode == "1" or (image.mode == "L" and stored_mode(image) != "L"):
        raise UserError(
            f"{path}: the gray mask is not stored with 8 bits per pixel, so its values change when "
            f"it is read; write the class indices as 8-bit gray, or run '{CONVERT}'"
        )
    if image.mode[0] == "I":
        raise UserError(
            f"{path}: a mask of more than 8 bits ({image.mode}); save the class indices as 8-bit "
            f"gray, or run '{CONVERT}'"
        )
    if image.mode not in ("P", "L"):
        raise UserError(
            f"{path}: a mask of mode {image.mode} holds colors, not class indices; save it as a "
            f"palette or 8-bit gray PNG whose pixel values are the classes, or run '{CONVERT}' "
            "with the table of colors"
        )


def stored_mode(image: Image.Image) -> str:
    """Return how the pixels of an opened image are stored, such as ``L`` or ``RGB;16B``."""
    if not getattr(image, "tile", None):
        return image.mode
    how = image.tile[0][3]
    if isinstance(how, tuple):
        how = how[0] if how else None
    # codecs without a raw mode (GIF, run lengths of BMP) store what they decode to
    return how if isinstance(how, str) and how[:1] in "1LPRCI" else image.mode


def stored_bits(image: Image.Image) -> int:
    """Return the bits of a pixel in the file of an opened palette or gray image."""
    bits = stored_mode(image).partition(";")[2]
    return int(bits) if bits.isdigit() else 8


def palette_colours(image: Image.Image, values: Iterable[int]) -> dict[int, Colour]:
    """Return the color that each of these values has in an opened palette image."""
    palette = image.getpalette("RGB")
    palette += [0] * (768 - len(palette))  # values beyond a short palette show black
    return {int(value): tuple(palette[3 * value : 3 * value + 3]) for value in values}
