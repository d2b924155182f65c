"""Which part of a picture a drawing shows, and how its pixels and the picture's relate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from handloop.core.camera import Camera

EXPAND = 1.6
"""A crop's longer side is that of the hand's box times this, unless the picture ends before."""

_LEAST = 0.15
"""Skin reaches this far beyond the joints' box, in its longer sides: a crop that leaves the picture ends there."""

_SMALLEST = 12.0
"""px: a smaller box than this is taken as this large, so that a single point does not fill the drawing."""

_LARGEST = 1e7
"""px: points further out than this are taken for nonsense. Beyond it single pixels can't be told apart any more."""


Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """A rectangle of the picture and the canvas it is drawn on."""

    left: float
    """px of the picture, the left *edge* of the first column: -0.5 is the picture's own edge."""
    top: float
    """px, the upper edge of the first row."""
    scale: tuple[float, float]
    """Canvas px per px of the picture, along x and y; equal but for rounding the canvas to whole pixels."""
    size: tuple[int, int]
    """Canvas width and height in px."""

    def points(self, uv_px: np.ndarray) -> np.ndarray:
        """(n, 2) picture px to canvas px."""
        corner = np.array([self.left, self.top])
        return np.asarray((uv_px - corner) * np.array(self.scale) - 0.5)

    def camera(self, camera: Camera) -> Camera:
        """The picture's camera as the canvas's: lens coefficients act on normalised coordinates and stay."""
        scale = camera.princpt.new_tensor(self.scale)
        corner = camera.princpt.new_tensor([self.left, self.top])
        return replace(camera, focal=camera.focal * scale, princpt=(camera.princpt - corner) * scale - 0.5)

    def canvas(self, picture: np.ndarray | None, plain: Colour, beside: Colour) -> np.ndarray:
        """(H, W, 3) uint8: this part of the picture, `beside` where it ends, or `plain` where there is no picture."""
        from PIL import Image

        width, height = self.size
        out = np.empty((height, width, 3), dtype=np.uint8)
        out[:] = plain if picture is None else beside
        if picture is None:
            return out
        rows, columns = picture.shape[:2]
        # The canvas pixels that lie wholly inside the picture; its edges are at -0.5 and length - 0.5.
        corner = np.array([self.left, self.top])
        first = np.ceil((-0.5 - corner) * self.scale - 1e-6).clip(0, self.size)
        last = np.floor((np.array([columns, rows]) - 0.5 - corner) * self.scale + 1e-6).clip(0, self.size)
        (x0, y0), (x1, y1) = first.astype(int).tolist(), last.astype(int).tolist()
        if x1 <= x0 or y1 <= y0:
            return out
        # Pillow counts from the edge of the first pixel, hence the half.
        box = (
            max(x0 / self.scale[0] + self.left + 0.5, 0.0),
            max(y0 / self.scale[1] + self.top + 0.5, 0.0),
            min(x1 / self.scale[0] + self.left + 0.5, float(columns)),
            min(y1 / self.scale[1] + self.top + 0.5, float(rows)),
        )
        # Cut out first: resizing takes its source as a whole where it is not contiguous.
        cut = (int(box[0]), int(box[1]), min(int(np.ceil(box[2])), columns), min(int(np.ceil(box[3])), rows))
        part = Image.fromarray(np.ascontiguousarray(picture[cut[1] : cut[3], cut[0] : cut[2]]))
        box = (box[0] - cut[0], box[1] - cut[1], box[2] - cut[0], box[3] - cut[1])
        part = part.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        out[y0:y1, x0:x1] = np.asarray(part)
        return out


def whole_frame(width: int, height: int, size: int) -> Frame:
    """All of a picture, shrunk where its longer side exceeds `size` px."""
    factor = min(1.0, size / max(width, height))
    canvas = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Frame(-0.5, -0.5, (canvas[0] / width, canvas[1] / height), canvas)


def crop_frame(seen: np.ndarray, fitted: np.ndarray, size: int, picture: tuple[int, int] | None = None) -> Frame:
    """The surroundings of a hand, the longer side `size` px.

    Args:
        seen: (n, 2) px, input points that are not missing.
        fitted: (m, 2) px, fitted points; they widen the crop unless they lie far from the input.
        size: px.
        picture: width and height of the picture, if there is one: what little of a crop lies outside is left away.
    """
    seen, fitted = _sane(seen), _sane(fitted)
    if not len(seen) and not len(fitted):
        if picture is not None:
            return whole_frame(*picture, size)
        return Frame(-0.5, -0.5, (1.0, 1.0), (size, size))
    low, high = _box(seen if len(seen) else fitted)
    if len(seen) and len(fitted):
        both = np.minimum(low, fitted.min(0)), np.maximum(high, fitted.max(0))
        # A fit that went astray would otherwise shrink the hand to a speck.
        if (both[1] - both[0]).max() <= 2.5 * max((high - low).max(), _SMALLEST):
            low, high = both
    middle, side = (low + high) / 2, max((high - low).max(), _SMALLEST)
    # A hand edge-on is a line for its joints but not for its skin.
    span = np.maximum(high - low, 0.4 * side) + (EXPAND - 1) * side
    start, end = middle - span / 2, middle + span / 2
    if picture is not None:
        least = np.maximum(high - low, 0.4 * side) / 2 + _LEAST * side
        start = np.maximum(start, np.minimum(-0.5, middle - least))
        end = np.minimum(end, np.maximum(np.array(picture) - 0.5, middle + least))
    span = end - start
    factor = size / span.max()
    canvas = np.maximum(np.round(span * factor), 1).astype(int)
    scale = canvas / span
    (left, top), (sx, sy), (width, height) = start.tolist(), scale.tolist(), canvas.tolist()
    return Frame(left, top, (sx, sy), (width, height))


def _sane(points: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(points[(np.abs(points) < _LARGEST).all(1)])


def _box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the box of the points, those far away from most others left out."""
    distance = np.abs(points - np.median(points, 0)).max(1)
    # In hands the furthest point is two to three times as far from the middle as the median one.
    kept = points[distance <= max(8 * float(np.median(distance)), _SMALLEST)]
    return kept.min(0), kept.max(0)
