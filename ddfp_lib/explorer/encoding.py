"""Arrays as text for a page: base64 of their bytes, and short decimal numbers."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def packed(values: Tensor | np.ndarray, dtype: str) -> str:
    """Return an array's little-endian bytes in row-major order as base64.

    Args:
        values: any shape.
        dtype: ``u1``, ``i2`` or ``f4``; a value that it cannot hold is an error.

    Raises:
        ValueError: a value does not fit the dtype.
    """
    array = np.asarray(values)
    small = array.astype(np.dtype(dtype).newbyteorder("<"))
    if dtype != "f4" and not np.array_equal(small, array):
        raise ValueError(f"values from {array.min()} to {array.max()} do not fit {dtype}")
    return base64.b64encode(small.tobytes()).decode()


def unpacked(text: str, dtype: str) -> np.ndarray:
    """Return what :func:`packed` encoded, flat."""
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<"))


def rounded(values: Any, digits: int) -> Any:
    """Return (nested lists of) numbers, rounded to some decimal places."""
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [rounded(value, digits) for value in values]
    return round(values, digits)


def data_url(image: Tensor, quality: int | None = None) -> str:
    """Return an image as a data URL.

    Args:
        image: uint8 (3, H, W), red, green and blue.
        quality: quality of a JPEG, 1 (worst) to 95 (best); None makes a PNG, without loss.
    """
    stored = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if quality is None:
        picture.save(stored, format="png", optimize=True)
    else:
        picture.save(stored, format="jpeg", quality=quality)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stored.getvalue()).decode()}"
