"""One hand of MediaPipe's landmarks, in any of the forms they are dumped in."""

from __future__ import annotations

import re

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.loading import json_kind, numbers

_HOLDERS = ("landmark", "landmarks", "keypoints")
"""Fields that hold one hand's points."""
_SIDE_KEYS = ("categoryname", "label", "handedness", "displayname", "hand", "side", "classification", "categories")
"""Fields that hold a side, or lead to one."""


def plain(key: object) -> str:
    """A key without case, underscores and dashes, so that hand_landmarks and handLandmarks are one."""
    return re.sub(r"[^a-z0-9]", "", str(key).lower())


def plain_keys(value: dict[str, object]) -> dict[str, object]:
    """A dict under plain keys."""
    return {plain(key): item for key, item in value.items()}


def is_points(value: object) -> bool:
    """Whether a value is one hand: a list of {x, y} or of [x, y, ...] or of 42 or 63 numbers, or an object with one."""
    if isinstance(value, dict):
        fields = plain_keys(value)
        return any(is_points(fields[key]) for key in _HOLDERS if key in fields)
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    if isinstance(first, dict):
        return "x" in first and "y" in first
    if isinstance(first, list):
        return bool(first) and all(v is None or isinstance(v, (int, float)) for v in first) and len(first) <= 5
    return isinstance(first, (int, float)) and len(value) in (42, 63)


def points_of(value: object, what: str) -> np.ndarray:
    """(21, 2|3) x, y and, where there is one, z.

    Raises:
        FileFormatError: another number of points, or something other than numbers.
    """
    while isinstance(value, dict):
        fields = plain_keys(value)
        value = next((fields[key] for key in _HOLDERS if key in fields and is_points(fields[key])), None)
    if not isinstance(value, list):
        raise FileFormatError(f"{what} is {json_kind(value)}, expected 21 landmarks.")
    if value and isinstance(value[0], dict):
        value = [_row(point, f"{what}[{i}]") for i, point in enumerate(value)]
    array = numbers(value, what)
    if array.shape in ((42,), (63,)):
        array = array.reshape(21, -1)
    if array.ndim != 2 or len(array) != 21 or array.shape[1] < 2:
        raise FileFormatError(f"{what} holds {len(array)} points of shape {array.shape}, expected 21 with x and y.")
    # Further columns are visibility and presence, which MediaPipe leaves unset for hands.
    return array[:, :3]


def _row(point: object, what: str) -> list[object]:
    if not isinstance(point, dict) or "x" not in point or "y" not in point:
        raise FileFormatError(f"{what} is {json_kind(point)}, expected an object with x and y.")
    return [point["x"], point["y"], point.get("z")]


def side_of(value: object, depth: int = 0) -> bool | None:
    """True for right, False for left, None where nothing says so; reads texts, categories and lists of them."""
    if isinstance(value, str):
        return {"right": True, "r": True, "left": False, "l": False}.get(value.strip().lower())
    if depth > 4:
        return None
    if isinstance(value, list):
        return side_of(value[0], depth + 1) if value else None
    if isinstance(value, dict):
        fields = plain_keys(value)
        for key in _SIDE_KEYS:
            side = side_of(fields[key], depth + 1) if key in fields else None
            if side is not None:
                return side
    return None
