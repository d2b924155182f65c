"""mmpose's prediction files: instances of 21 hand points, or of whole bodies, per picture or per frame of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.coco_json import HANDS_OF_BODY, split_points
from handloop.formats.file_hands import FileHands, no_hands
from handloop.formats.loading import json_kind, numbers, read_json


def read_mmpose(path: Path) -> FileHands:
    """The hands of one file.

    Raises:
        FileFormatError: not mmpose's layout, damaged numbers, or no hands among the points.
    """
    value = read_json(path)
    if not is_mmpose(value):
        raise FileFormatError(f"the file holds {json_kind(value)}, expected mmpose's instances with keypoints.")
    return mmpose_hands(value)


def is_mmpose(value: object) -> bool:
    """Whether a JSON value looks like mmpose's predictions."""
    if isinstance(value, dict):
        return "instance_info" in value or "instances" in value or _holds_scores(value.get("predictions"))
    return _holds_scores(value)


def _holds_scores(value: object) -> bool:
    """Whether a list leads to instances with `keypoint_scores`, or to frames with `instances`."""
    for _ in range(3):
        if isinstance(value, list):
            value = next((item for item in value if item), None)
    return isinstance(value, dict) and ("keypoint_scores" in value or "instances" in value)


def mmpose_hands(value: object) -> FileHands:
    """The hands of a parsed file; see `read_mmpose`."""
    if isinstance(value, dict):
        value = next((value[k] for k in ("instance_info", "instances", "predictions") if k in value), None)
    items = _flat(value)
    video = any("instances" in item for item in items)
    frames = [(_number(item, i), _flat(item.get("instances", []))) for i, item in enumerate(items)] if video else []
    points: list[np.ndarray] = []
    labels: list[str] = []
    sides: list[bool | None] = []
    numbers_of: list[int] = []
    lengths: set[int] = set()
    for number, instances in frames or [(-1, items)]:
        for i, instance in enumerate(instances):
            body = _instance(instance, f"instance {i}" + (f" of frame {number}" if video else ""))
            lengths.add(len(body))
            for side, hand in split_points(body):
                points.append(hand)
                sides.append(side)
                numbers_of.append(number)
                who = f":p{i}" if len(instances) > 1 else ""
                word = "" if side is None else ":right" if side else ":left"
                labels.append((f":{number:06d}" if video else "") + who + word)
    if not points:
        if lengths:
            wanted = ", ".join(str(n) for n in (21, 42, *HANDS_OF_BODY))
            raise FileFormatError(
                f"the instances have {', '.join(map(str, sorted(lengths)))} points, among which no hands are known; "
                f"expected {wanted}."
            )
        return no_hands("table")
    frame = np.array(numbers_of) if video else None
    return FileHands("table", np.stack(points), tuple(labels), tuple(sides), frames=frame)


def _flat(value: object) -> list[dict[str, object]]:
    """The objects of a list, or of a list of lists (the inferencer's batches)."""
    if not isinstance(value, list):
        raise FileFormatError(f"mmpose's instances are {json_kind(value)}, expected a list.")
    items = [inner for item in value for inner in (item if isinstance(item, list) else [item])]
    for item in items:
        if not isinstance(item, dict):
            raise FileFormatError(f"an instance is {json_kind(item)}, expected an object with keypoints.")
    return items


def _number(item: dict[str, object], place: int) -> int:
    number = item.get("frame_id", place)
    return number if isinstance(number, int) else place


def _instance(instance: dict[str, object], what: str) -> np.ndarray:
    """(n, 3) x, y, score."""
    array = numbers(instance.get("keypoints"), f"keypoints of {what}")
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise FileFormatError(f"keypoints of {what} have shape {array.shape}, expected (n, 2).")
    scores = instance.get("keypoint_scores")
    conf = np.ones(len(array)) if scores is None else numbers(scores, f"keypoint_scores of {what}").ravel()
    if len(conf) != len(array):
        raise FileFormatError(f"keypoint_scores of {what} hold {len(conf)} values for {len(array)} points.")
    return np.concatenate([array[:, :2], conf[:, None]], 1)
