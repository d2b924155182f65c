"""Skeleton, input points and words drawn onto a canvas with soft edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from handloop.core.joints import BONES

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

FINGER_COLOURS = ((214, 60, 40), (240, 165, 0), (0, 150, 90), (0, 115, 210), (175, 70, 170))
"""RGB of thumb, index, middle, ring, pinky: told apart in the usual colour blindnesses by lightness too."""

_CASING = (20, 22, 26, 215)
"""Dark edge under every stroke, so that none is lost on a picture of its own colour."""

_RING = (255, 255, 255, 255)
_MARGIN = 64
"""px beyond the canvas up to which strokes are followed."""


def finger_of(point: int) -> int:
    """0 thumb to 4 pinky for the canonical points 1 to 20."""
    return (point - 1) // 4


def draw_hand(canvas: np.ndarray, joints: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A copy of a canvas with the fitted skeleton and the input points.

    Args:
        canvas: (H, W, 3) uint8.
        joints: (21, 2) canvas px of the fitted joints, NaN for none.
        points: (21, 3) canvas px and confidence of the input points, NaN for none.
    """
    from PIL import Image, ImageDraw

    height, width = canvas.shape[:2]
    # Drawn larger and shrunk: Pillow's strokes have hard edges.
    factor = 3 if max(height, width) <= 640 else 2
    layer = Image.new("RGBA", (width * factor, height * factor))
    pen = _Pen(ImageDraw.Draw(layer), factor, max(height, width) / 512, (width, height))
    pen.skeleton(joints)
    pen.inputs(points, joints)
    strokes = layer.reduce(factor)
    out = Image.fromarray(canvas)
    out.paste(strokes, mask=strokes)
    return np.array(out)


def write_remarks(canvas: np.ndarray, remarks: Sequence[str]) -> np.ndarray:
    """A copy of a canvas with each remark on a line of its own, upper left."""
    from PIL import Image, ImageDraw, ImageFont

    if not remarks:
        return canvas
    image = Image.fromarray(canvas)
    size = max(10, round(max(canvas.shape[:2]) / 30))
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    y = size // 2
    for text in remarks:
        # Pillow's own font holds Latin letters only.
        words = text.encode("ascii", "replace").decode()
        edge = max(2, size // 7)
        draw.text((size // 2, y), words, (255, 255, 255), font, stroke_width=edge, stroke_fill=_CASING[:3])
        y += round(1.4 * size)
    return np.array(image)


class _Pen:
    """Strokes in canvas px on a layer that is `factor` times as large."""

    def __init__(self, draw: ImageDraw, factor: int, unit: float, size: tuple[int, int]) -> None:
        self._draw, self._factor, self._unit, self._size = draw, factor, max(unit, 0.4), size

    def skeleton(self, joints: np.ndarray) -> None:
        """Bones and joints; the dark casing of all comes below the colour of all."""
        lines = [(joints[a], joints[b], (*FINGER_COLOURS[finger_of(b)], 255)) for a, b in BONES]
        for start, end, _ in lines:
            self.line(start, end, 5.4, _CASING)
        for point in joints:
            self.disc(point, 4.6, _CASING)
        for start, end, colour in lines:
            self.line(start, end, 3.2, colour)
        for k, point in enumerate(joints):
            self.disc(point, 3.4, (*FINGER_COLOURS[finger_of(k)], 255) if k else (235, 235, 235, 255))

    def inputs(self, points: np.ndarray, joints: np.ndarray) -> None:
        """Rings, radius 3 to 7 px by confidence, each joined to its fitted joint where that lies outside the ring."""
        radius = 3 + 4 * np.clip(points[:, 2], 0, 1)
        for k in range(len(points)):
            away = joints[k] - points[k, :2]
            distance = float(np.hypot(away[0], away[1]))
            if np.isfinite(distance) and distance > radius[k] * self._unit:
                self.line(points[k, :2] + away / distance * radius[k] * self._unit, joints[k], 1.4, _RING)
            self.ring(points[k, :2], float(radius[k]))

    def line(self, start: np.ndarray, end: np.ndarray, width: float, colour: tuple[int, int, int, int]) -> None:
        part = _clip(start, end, self._size)
        if part is not None:
            ends = [tuple(self._at(p)) for p in part]
            self._draw.line(ends, fill=colour, width=max(1, round(width * self._unit * self._factor)))

    def disc(self, point: np.ndarray, radius: float, colour: tuple[int, int, int, int]) -> None:
        if self._near(point):
            self._draw.ellipse(self._around(point, radius), fill=colour)

    def ring(self, point: np.ndarray, radius: float) -> None:
        if self._near(point):
            line = 1.5 * self._unit * self._factor
            self._draw.ellipse(self._around(point, radius + 0.8), outline=_CASING, width=round(line * 2))
            self._draw.ellipse(self._around(point, radius), outline=_RING, width=round(line))

    def _at(self, point: np.ndarray) -> list[float]:
        # The centre of canvas pixel 0 is at (factor - 1) / 2 of the layer.
        return [float(v) for v in (point + 0.5) * self._factor - 0.5]

    def _around(self, point: np.ndarray, radius: float) -> list[float]:
        x, y = self._at(point)
        r = radius * self._unit * self._factor
        return [x - r, y - r, x + r, y + r]

    def _near(self, point: np.ndarray) -> bool:
        low, high = -_MARGIN, np.array(self._size) + _MARGIN
        return bool(((point >= low) & (point <= high)).all())  # False for NaN.


def _clip(start: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of a line near the canvas (Liang-Barsky); None for none. Pillow is slow on lines of a billion px."""
    if not (np.isfinite(start).all() and np.isfinite(end).all()):
        return None
    enter, leave = 0.0, 1.0
    way = end - start
    for axis in (0, 1):
        low, high = -_MARGIN - start[axis], size[axis] + _MARGIN - start[axis]
        if way[axis] == 0:
            if low > 0 or high < 0:
                return None
            continue
        near, far = sorted((low / way[axis], high / way[axis]))
        enter, leave = max(enter, near), min(leave, far)
    if enter > leave:
        return None
    return start + enter * way, start + leave * way
