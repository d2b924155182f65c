"""A contact sheet: pictures beside themselves with their labels drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from handloop.core.errors import InputError
from handloop.core.joints import BONES
from handloop.synth.picture import Picture, Segment, Visibility

_COLUMNS = 4
_COLOURS = {
    Visibility.OUTSIDE: (140, 140, 140),
    Visibility.BEHIND_OCCLUDER: (255, 40, 40),
    Visibility.BEHIND_HAND: (255, 200, 0),
    Visibility.VISIBLE: (0, 220, 90),
}
"""Of the keypoints' dots."""


def write_sheet(path: Path, pictures: Sequence[Picture]) -> None:
    """Write a PNG of pictures of one size, each beside its mask (dark outside) and keypoints.

    Dots are green where visible, yellow behind another part of the hand, red behind an object.
    """
    from PIL import Image

    if not pictures:
        raise InputError("a contact sheet needs at least one picture.")
    size = len(pictures[0].rgb)
    rows = -(-len(pictures) // _COLUMNS)
    sheet = np.full((rows * size, _COLUMNS * 2 * size, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        row, column = divmod(k, _COLUMNS)
        place = sheet[row * size : (row + 1) * size, column * 2 * size : (column + 1) * 2 * size]
        place[:, :size] = picture.rgb
        place[:, size:] = _annotated(picture)
    Image.fromarray(sheet).save(path)


def _annotated(picture: Picture) -> np.ndarray:
    from PIL import Image, ImageDraw

    dimmed = np.where((picture.segments == Segment.HAND)[..., None], picture.rgb, picture.rgb // 3)
    canvas = Image.fromarray(dimmed.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    points = [(float(x), float(y)) for x, y in picture.truth.keypoints_2d]
    for parent, child in BONES:
        draw.line([points[parent], points[child]], fill=(235, 235, 235))
    for (x, y), code in zip(points, picture.visibility, strict=True):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_COLOURS[Visibility(int(code))])
    return np.asarray(canvas)
