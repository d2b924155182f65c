"""Loading the pictures that hands were found in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION_TAG = 0x0112
_SWAPS_SIDES = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class Picture:
    """One picture, or the reason why there is none."""

    pixels: np.ndarray | None
    """(H, W, 3) uint8 RGB; None where it could not be read."""
    remark: str
    """What the viewer of a drawing should know: "" where all is well."""


def load_picture(path: str, image_size: tuple[float, float]) -> Picture:
    """Read a picture as RGB in the frame the keypoints were found in. Never raises: a drawing can do without it.

    A camera's EXIF orientation is honoured, as OpenCV's `imread` and with it most detectors do, unless only the picture
    as stored has the size the keypoints' file names. A picture of another resolution but the same proportions is
    resized to that size.

    Args:
        path: the file; "" for none.
        image_size: width and height in px that the keypoints refer to, NaN where unknown.
    """
    from PIL import Image, UnidentifiedImageError

    if not path:
        return Picture(None, "")
    try:
        with Image.open(path) as file:
            picture, remark = _match_size(file, image_size)
            return Picture(np.asarray(picture.convert("RGB")), remark)
    except FileNotFoundError:
        return Picture(None, "picture not found")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        # Pillow reports damaged files with all of these.
        return Picture(None, "picture not readable")


def _match_size(file: Image, image_size: tuple[float, float]) -> tuple[Image, str]:
    from PIL import ImageOps

    swaps = file.getexif().get(_ORIENTATION_TAG, 1) in _SWAPS_SIDES
    # NaN (unknown) compares unequal to everything, and the orientation is then honoured.
    as_stored = swaps and file.size == image_size and file.size[0] != file.size[1]
    picture = file if as_stored else ImageOps.exif_transpose(file)
    width, height = image_size
    if not (width > 0 and height > 0) or picture.size == image_size:
        return picture, ""
    if abs(picture.size[0] * height - picture.size[1] * width) <= 0.01 * width * picture.size[1]:
        return picture.resize((round(width), round(height))), ""
    return picture, f"picture is {picture.size[0]}x{picture.size[1]} px, the points are for {width:g}x{height:g}"
