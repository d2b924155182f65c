"""MediaPipe's results as people dump them to JSON: Tasks API, JavaScript, legacy, holistic, per frame, bare arrays.

MediaPipe itself has no file format. Keys are compared without case and underscores, so that the Python and the
JavaScript forms are one. x and y are parts of the picture, or px where they are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.arrays import array_hands
from handloop.formats.file_hands import FileHands, no_hands, with_confidence
from handloop.formats.landmarks import is_points, plain_keys, points_of, side_of
from handloop.formats.loading import json_kind, numbers

_HANDS = ("handlandmarks", "multihandlandmarks", "landmarks", "hands")
_WORLD = ("handworldlandmarks", "multihandworldlandmarks", "worldlandmarks")
_SIDES = ("handedness", "handednesses", "multihandedness", "classifications", "label", "side", "hand")
_HOLISTIC = {side + end: side == "right" for side in ("left", "right") for end in ("handlandmarks", "hand", "")}
_FRAMES = ("frames", "results", "data", "detections", "predictions")
_FRAME_NUMBER = ("frame", "frameid", "frameindex", "framenumber", "frameidx")

_MAX_HANDS = 4
"""A bare list of more hands than this is a video's frames: MediaPipe looks for two by default."""

_EXPECTED = (
    "expected OpenPose's 'people', MediaPipe's 'hand_landmarks', 'landmarks', 'multi_hand_landmarks' or "
    "'left_hand_landmarks', a list of such results per frame, mmpose's 'instances', COCO's 'annotations' with "
    "keypoints, or arrays of 21 points"
)


@dataclass(frozen=True)
class _Hand:
    """One hand of one frame."""

    points: np.ndarray
    """(21, 2|3) x, y, z."""
    side: bool | None
    """True for right."""
    label: str
    """Name within its frame."""
    from_field: bool = False
    """The side comes from the name of the field, not from a handedness label."""


@dataclass(frozen=True)
class _Frame:
    """The hands of one picture."""

    hands: tuple[_Hand, ...]
    size: tuple[float, float] | None
    number: int | None = None


def mediapipe_hands(value: object) -> FileHands:
    """The hands of a parsed JSON file.

    Raises:
        FileFormatError: nothing of the forms this file's head lists, or damaged landmarks.
    """
    if _is_numeric(value):
        return array_hands(numbers(value, "the list"))
    size = _image_size(value) if isinstance(value, dict) else None
    unwrapped = _unwrapped(value)
    if isinstance(unwrapped, list) and _is_list_of_frames(unwrapped):
        frames = [_frame(item, f"frame {i}", size) for i, item in enumerate(unwrapped)]
        return _file_hands(frames, video=True)
    return _file_hands([_frame(unwrapped, "the file", size)], video=False)


def _unwrapped(value: object) -> object:
    """The list of frames inside {"frames": [...]} or the like."""
    if isinstance(value, dict):
        fields = plain_keys(value)
        for key in _FRAMES:
            if isinstance(fields.get(key), list) and not any(k in fields for k in (*_HANDS, *_HOLISTIC)):
                return fields[key]
    return value


def _is_numeric(value: object) -> bool:
    """Whether a value is nested lists with numbers in every branch looked at."""
    for _ in range(6):
        if not isinstance(value, list) or not value:
            return False
        # Frames may hold no hand, or one and then two: such lists are read frame by frame instead.
        lengths = {len(item) if isinstance(item, list) else 0 for item in value}
        if len(lengths) > 1:
            return False
        value = value[0]
        if isinstance(value, (int, float)):
            return True
    return False


def _is_list_of_frames(value: list[object]) -> bool:
    """Whether a list holds one item per frame instead of one per hand or per point."""
    filled = [item for item in value if item not in (None, [], {})]
    if not filled or is_points(value):
        return False
    first = filled[0]
    if is_points(first):
        if isinstance(first, dict):
            return any(key in plain_keys(first) for key in (*_FRAME_NUMBER, *_WORLD)) or len(value) > _MAX_HANDS
        return len(value) > _MAX_HANDS or len(filled) < len(value)
    return True


def _frame(value: object, what: str, size: tuple[float, float] | None) -> _Frame:
    """The hands of one picture."""
    if value is None or value == [] or value == {}:
        if what == "the file" and value != []:
            raise FileFormatError(f"the file holds {json_kind(value)}; {_EXPECTED}.")
        return _Frame((), size)
    if isinstance(value, list):
        return _Frame(_hand_list([value] if is_points(value) else value, None, what), size)
    if not isinstance(value, dict):
        raise FileFormatError(f"{what} is {json_kind(value)}; {_EXPECTED}.")
    fields = plain_keys(value)
    size = _image_size(value) or size
    number = next((fields[key] for key in _FRAME_NUMBER if type(fields.get(key)) is int), None)
    return _Frame(_hands_of_result(value, fields, what), size, number if isinstance(number, int) else None)


def _hands_of_result(value: dict[str, object], fields: dict[str, object], what: str) -> tuple[_Hand, ...]:
    by_side = [(key, fields[key]) for key in _HOLISTIC if key in fields]
    if by_side:
        return _holistic(by_side, what)
    if is_points(value):
        return _hand_list([value], None, what)
    key = next((key for key in _HANDS if key in fields), None)
    if key is None:
        if any(key in fields for key in _WORLD):
            raise FileFormatError(f"{what} holds world landmarks only (metres about the hand); give the 2D ones too.")
        raise FileFormatError(f"{what} holds {json_kind(value)}; {_EXPECTED}.")
    hands = fields[key]
    if hands is None:
        return ()
    if not isinstance(hands, list):
        raise FileFormatError(f"{what}.{key} is {json_kind(hands)}, expected a list of hands.")
    sides = next((fields[s] for s in _SIDES if s in fields), None)
    return _hand_list([hands] if is_points(hands) else hands, sides, what)


def _hand_list(hands: Sequence[object], sides: object, what: str) -> tuple[_Hand, ...]:
    """Hands with their handedness, which stands beside them or inside each."""
    if isinstance(sides, list) and len(sides) != len(hands) and len(hands) > 0:
        # JavaScript's handednesses may come as one list for one hand.
        if len(hands) > 1 or len(sides) == 0:
            raise FileFormatError(f"{what} holds {len(hands)} hands but {len(sides)} sides (handedness).")
        sides = [sides]
    out = []
    for i, hand in enumerate(hands):
        name = f"{what}, hand {i}"
        given = sides[i] if isinstance(sides, list) else sides
        side = side_of(given) if given is not None else side_of(hand) if isinstance(hand, dict) else None
        out.append(_Hand(points_of(hand, name), side, f":h{i}" if len(hands) > 1 else ""))
    return tuple(out)


def _holistic(by_side: list[tuple[str, object]], what: str) -> tuple[_Hand, ...]:
    out = []
    for key, given in by_side:
        # The JavaScript form and pbtxt hold a list of one hand, or of none.
        hand = given[0] if isinstance(given, list) and given and not is_points(given) else given
        if hand is None or hand == [] or hand == {}:
            continue
        right = _HOLISTIC[key]
        out.append(_Hand(points_of(hand, f"{what}.{key}"), right, ":right" if right else ":left", True))
    return tuple(out)


def _image_size(value: dict[str, object]) -> tuple[float, float] | None:
    fields = plain_keys(value)
    for pair in (("width", "height"), ("imagewidth", "imageheight"), ("framewidth", "frameheight")):
        width, height = (fields.get(key) for key in pair)
        if isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 1 and height > 1:
            return float(width), float(height)
    size = fields.get("imagesize")
    if isinstance(size, list) and len(size) == 2 and all(isinstance(v, (int, float)) and v > 1 for v in size):
        return float(size[0]), float(size[1])
    return None


def _file_hands(frames: list[_Frame], video: bool) -> FileHands:
    rows = [(i, frame, hand) for i, frame in enumerate(frames) for hand in frame.hands]
    if not rows:
        return no_hands("mediapipe")
    numbers_ = [frame.number if frame.number is not None else i for i, frame, _ in rows]
    repeated = len({frame.number for frame in frames}) < len(frames)
    names = [i for i, _, _ in rows] if repeated else numbers_
    depth = np.stack([h.points[:, 2] if h.points.shape[1] == 3 else np.full(21, np.nan) for _, _, h in rows])
    return FileHands(
        "mediapipe",
        with_confidence(np.stack([hand.points[:, :2] for _, _, hand in rows])),
        tuple((f":{name:06d}" if video else "") + h.label for name, (_, _, h) in zip(names, rows, strict=True)),
        tuple(hand.side for _, _, hand in rows),
        side_labels=not any(hand.from_field for _, _, hand in rows),
        depth=depth,
        frames=np.array(numbers_, dtype=np.int64) if video else None,
        image_size=np.array([frame.size or (np.nan, np.nan) for _, frame, _ in rows]),
    )
