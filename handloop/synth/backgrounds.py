"""What lies behind the hand: plain or noisy colour, or a piece of a user's picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handloop.core.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FROM_FOLDER = 0.85
"""Share of the pictures with a background from the folder, where there is one."""


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
    # Clouds of several sizes, from blotches to grain, as in a room out of focus.
    total = np.zeros((size, size, 3), np.float32)
    for cells in (2, 4, 8, 16, 48):
        weight = generator.uniform(0, 1) / np.sqrt(cells)
        grid = generator.normal(0, 1, (cells, cells, 1)) + 0.6 * generator.normal(0, 1, (cells, cells, 3))
        total += weight * _enlarged(grid.astype(np.float32), size)
    contrast = generator.uniform(0.05, 0.4)
    return np.clip(plain + contrast * total, 0, 1)


def _plain(generator: np.random.Generator, size: int) -> np.ndarray:
    """One colour, brighter to one side."""
    grey = generator.uniform(0.05, 0.97)
    colour = np.clip(grey + generator.normal(0, 0.13, 3), 0, 1)
    slope = generator.normal(0, 0.12, 2)
    ramp = np.linspace(-0.5, 0.5, size)
    shade = 1 + slope[0] * ramp[:, None] + slope[1] * ramp
    return np.clip(shade[..., None] * colour, 0, 1).astype(np.float32)


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
    return np.einsum("yi,ijc,xj->yxc", weights, grid, weights, optimize=True)


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
