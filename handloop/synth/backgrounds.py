"""What lies behind the hand: plain or noisy colour, or a piece of a user's picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handloop.core.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FROM_FOLDER = 0.85
"""Share of the pictures with a background from the folder, where there is one."""
_FINEST = 48
"""Cells across a picture of the finest clouds."""


def find_backgrounds(folder: Path) -> tuple[Path, ...]:
    """All pictures below a folder, sorted by name.

    Raises:
        InputError: no folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one with background pictures.")
    found = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))
    if not found:
        raise InputError(f"{folder} holds no picture ({', '.join(SUFFIXES)}); name a folder with backgrounds.")
    return found


def draw_background(generator: np.random.Generator, size: int, pictures: Sequence[Path]) -> np.ndarray:
    """(size, size, 3) float32, sRGB 0..1.

    Raises:
        InputError: the chosen picture cannot be read.
    """
    kind = generator.random()
    if pictures and kind < _FROM_FOLDER:
        return _piece(generator, size, pictures[int(generator.integers(len(pictures)))])
    plain = _plain(generator, size)
    if generator.random() < 0.3:
        return plain
    # Clouds of several sizes, as in a room out of focus.
    total = np.zeros((_FINEST, _FINEST, 3), np.float32)
    for cells in (3, 6, 12, 24, _FINEST):
        weight = generator.uniform(0, 1) / np.sqrt(cells)
        grey, colour = generator.standard_normal((cells, cells, 1)), generator.standard_normal((cells, cells, 3))
        total += np.float32(weight) * _enlarged((grey + 0.3 * colour).astype(np.float32), _FINEST)
    contrast = np.float32(generator.uniform(0.05, 0.45))
    return np.clip(plain + contrast * _enlarged(total, size), 0, 1)


def _plain(generator: np.random.Generator, size: int) -> np.ndarray:
    """One colour, brighter to one side."""
    grey = generator.uniform(0.05, 0.97)
    # Most walls and tables are nearly grey.
    colour = np.clip(grey + generator.exponential(0.08) * generator.standard_normal(3), 0, 1)
    slope = generator.normal(0, 0.12, 2)
    ramp = np.linspace(-0.5, 0.5, size)
    shade = (1 + slope[0] * ramp[:, None] + slope[1] * ramp).astype(np.float32)
    return np.clip(shade[..., None] * colour.astype(np.float32), 0, 1)


def _enlarged(grid: np.ndarray, size: int) -> np.ndarray:
    """(n, n, 3) to (size, size, 3), smoothly."""
    n = len(grid)
    at = np.linspace(0, n - 1, size)
    base = np.minimum(at.astype(int), n - 2)
    t = at - base
    t = t * t * (3 - 2 * t)
    weights = np.zeros((size, n), np.float32)
    rows = np.arange(size)
    weights[rows, base] = 1 - t
    weights[rows, base + 1] = t
    tall = (weights @ grid.reshape(n, -1)).reshape(size, n, 3)
    return weights @ tall


def _piece(generator: np.random.Generator, size: int, path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            # JPEG decodes to a smaller size at a fraction of the time.
            file.draft("RGB", (2 * size, 2 * size))
            picture = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"the background {path} cannot be read; repair or remove it.") from error
    side = min(picture.size) * generator.uniform(0.5, 1.0)
    x, y = (generator.uniform(0, extent - side) for extent in picture.size)
    cut = picture.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    values = np.asarray(cut, np.float32) / 255
    if generator.random() < 0.5:
        values = values[:, ::-1]
    return np.ascontiguousarray(values * np.float32(generator.uniform(0.7, 1.15))).clip(0, 1)
