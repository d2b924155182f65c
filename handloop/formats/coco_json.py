"""COCO-style keypoint JSON: COCO-WholeBody's and Halpe's annotations and results, mmpose's conversions of hand sets.

One picture may hold several people, each with a left and a right hand of 21 points, or one annotation may be one hand.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.loading import json_kind, numbers
from handloop.formats.picture_set import PictureSample

INTERHAND_ORDER = (20, *(4 * finger + part for finger in range(5) for part in (3, 2, 1, 0)))
"""Index of each canonical point among InterHand2.6M's 21 of a hand: fingers from the tip inwards, then the wrist."""
RHD_ORDER = (0, *(4 * finger + part for finger in range(5) for part in (4, 3, 2, 1)))
"""Index of each canonical point among RHD's 21 of a hand: the wrist, then fingers from the tip inwards."""

HANDS_OF_BODY = {133: (91, 112), 134: (92, 113), 136: (94, 115)}
"""First point of the left and right hand by length of the whole body: COCO-WholeBody, mmpose's OpenPose order with a
neck, Halpe."""


def is_coco(value: object) -> bool:
    """Whether a JSON value looks like COCO annotations or results with keypoints."""
    if isinstance(value, dict):
        listed, people = value.get("images"), value.get("annotations")
        return isinstance(listed, list) and isinstance(people, list) and any(map(_has_points, people))
    return isinstance(value, list) and bool(value) and _has_points(value[0]) and "image_id" in value[0]


def _has_points(person: object) -> bool:
    keys = ("keypoints", "lefthand_kpts", "righthand_kpts")
    return isinstance(person, dict) and any(key in person for key in keys)


def coco_samples(value: object, source: Path, split: str = "") -> tuple[list[PictureSample], list[str]]:
    """The hands of a parsed file, pictures named as in the file, and notes.

    Raises:
        FileFormatError: not COCO's layout, or no annotation in it can be read.
    """
    if not is_coco(value):
        raise FileFormatError(f"the file holds {json_kind(value)}, expected COCO's images and annotations, or results.")
    people = value["annotations"] if isinstance(value, dict) else value
    images = _images(value["images"]) if isinstance(value, dict) else {}
    assert isinstance(people, list)
    counts = Counter(str(p.get("image_id")) for p in people if isinstance(p, dict))
    seen: Counter[str] = Counter()
    samples: list[PictureSample] = []
    damaged: list[str] = []
    for number, person in enumerate(people):
        try:
            if not isinstance(person, dict):
                raise FileFormatError(f"{json_kind(person)}, expected an object with keypoints")
            key = str(person.get("image_id"))
            name = _stem(images.get(key, {}), key)
            name += f":p{seen[key]}" if counts[key] > 1 else ""
            seen[key] += 1
            samples += _person(person, images.get(key, {}), name, _is_rhd(value, person), source, split)
        except (FileFormatError, OverflowError) as error:
            damaged.append(f"annotation {number}: {str(error).rstrip('.')}")
    if damaged and not samples:
        raise FileFormatError(f"no annotation could be read; {damaged[0]}.")
    notes = (
        [f"{len(damaged)} annotations could not be read and were left out, the first: {damaged[0]}."] if damaged else []
    )
    return samples, notes


def _images(values: list[object]) -> dict[str, dict[str, object]]:
    return {str(image.get("id")): image for image in values if isinstance(image, dict)}


def _stem(image: dict[str, object], key: str) -> str:
    name = str(image.get("file_name", "")).replace("\\", "/")
    return str(PurePosixPath(name).with_suffix("")) if name else key


def _is_rhd(value: object, person: dict[str, object]) -> bool:
    """mmpose's RHD keeps RHD's order, whatever its category names say."""
    info = value.get("info") if isinstance(value, dict) else None
    told = isinstance(info, dict) and str(info.get("description", "")).strip().upper() == "RHD"
    return told or "joint_cam" in person


def _person(
    person: dict[str, object], image: dict[str, object], name: str, rhd: bool, source: Path, split: str
) -> list[PictureSample]:
    """The hands of one annotation, those marked invalid and those without a labelled point left out."""
    joints = _joints(person) if rhd else None
    found = [h for h in _hands(person, image, rhd) if (h[1][:, 2] > 0).any()]
    width, height = image.get("width"), image.get("height")
    known = isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 0 and height > 0
    out = []
    for side, points, box_key in found:
        out.append(
            PictureSample(
                name if box_key == "bbox" else f"{name}:{'right' if side else 'left'}",
                points,
                side,
                str(image.get("file_name", "")),
                (float(width), float(height)) if known else None,  # type: ignore[arg-type]
                _matrix(image.get("cam_param", person.get("camera_param"))),
                joints,
                _box(person.get(box_key)),
                split=split,
                source=str(source),
            )
        )
    return out


_Hand = tuple[bool | None, np.ndarray, str]
"""Side, (21, 3) points, and the key of the hand's box; "bbox" for annotations that are one hand."""


def _hands(person: dict[str, object], image: dict[str, object], rhd: bool) -> list[_Hand]:
    sides = (("left", False), ("right", True))
    if any(f"{word}hand_kpts" in person for word, _ in sides):
        return [
            (is_right, _points(person[f"{word}hand_kpts"], f"{word}hand_kpts", None), f"{word}hand_box")
            for word, is_right in sides
            if person.get(f"{word}hand_kpts") and person.get(f"{word}hand_valid", True)
        ]
    if "keypoints" not in person:
        return []
    points = _points(person["keypoints"], "keypoints", person.get("keypoint_scores"))
    if rhd and len(points) == 21:
        points = points[list(RHD_ORDER)]
    if len(points) == 21:
        return [(_side(person, image), points, "bbox")]
    return [(side, hand, "") for side, hand in split_points(points)]


def split_points(points: np.ndarray) -> list[tuple[bool | None, np.ndarray]]:
    """The hands among (n, 3) points: side (None unknown) and (21, 3) points each.

    n is 21 for one hand, 42 for InterHand2.6M's two, 133, 134 or 136 for whole bodies; others (17, a body) hold none.
    """
    n = len(points)
    if n == 21:
        return [(None, points)]
    if n == 42:
        order = list(INTERHAND_ORDER)
        return [(True, points[:21][order]), (False, points[21:][order])]
    if n in HANDS_OF_BODY:
        left, right = HANDS_OF_BODY[n]
        return [(False, points[left : left + 21]), (True, points[right : right + 21])]
    return []


def _points(value: object, what: str, scores: object) -> np.ndarray:
    """(n, 3) x, y, confidence from flat triplets, or rows of two (then with `scores`) or three."""
    array = numbers(value, what)
    if array.ndim == 1 and array.size % 3 == 0:
        array = array.reshape(-1, 3)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise FileFormatError(f"{what} has shape {array.shape}, expected x, y, visibility for each point")
    if array.shape[1] == 2:
        conf = np.ones(len(array)) if scores is None else numbers(scores, "keypoint_scores").ravel()
        if len(conf) != len(array):
            raise FileFormatError(f"keypoint_scores holds {len(conf)} values for {len(array)} points")
        return np.concatenate([array, conf[:, None]], 1)
    # COCO's visibility: 0 not labelled, 1 labelled but hidden, 2 visible; hands use 0 and 1 or a score.
    return np.concatenate([array[:, :2], np.clip(array[:, 2:], 0, 1)], 1)


def _side(person: dict[str, object], image: dict[str, object]) -> bool | None:
    kind = person.get("hand_type")
    if kind in ("left", "right"):
        return kind == "right"
    # CMU's hands are named by their side, and mmpose's conversion of them keeps it nowhere else.
    if "head_size" in person:
        return side_of_name(str(image.get("file_name", "")))
    return None


def side_of_name(file_name: str) -> bool | None:
    """The side of CMU's picture names: ..._l.jpg and ..._r.jpg."""
    return {"_l": False, "_r": True}.get(PurePosixPath(file_name).stem[-2:])


def _matrix(value: object) -> np.ndarray | None:
    if not isinstance(value, dict) or "focal" not in value or "princpt" not in value:
        return None
    focal, princpt = numbers(value["focal"], "focal"), numbers(value["princpt"], "princpt")
    if focal.shape != (2,) or princpt.shape != (2,):
        raise FileFormatError("the camera's focal and princpt must be two numbers each")
    return np.array([[focal[0], 0, princpt[0]], [0, focal[1], princpt[1]], [0, 0, 1]])


def _box(value: object) -> np.ndarray | None:
    if value is None:
        return None
    box = numbers(value, "the box").ravel()
    if box.shape != (4,) or not (box[2:] > 0).all():
        return None
    return np.concatenate([box[:2], box[:2] + box[2:]])


def _joints(person: dict[str, object]) -> np.ndarray | None:
    """mmpose's RHD: mm in the camera's frame."""
    if "joint_cam" not in person:
        return None
    joints = numbers(person["joint_cam"], "joint_cam")
    if joints.shape != (21, 3):
        raise FileFormatError(f"joint_cam has shape {joints.shape}, expected (21, 3)")
    return joints[list(RHD_ORDER)] / 1000
