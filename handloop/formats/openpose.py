"""OpenPose's JSON (`--write_json`): people with 63 numbers per hand, version 1.0 to 1.3, or 60 in BODY_135's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.file_hands import FileHands
from handloop.formats.loading import json_kind, numbers, read_json

# Body point that is the hand's wrist in BODY_25 (poseParameters.cpp), by side; COCO's 18 points agree.
_BODY_WRIST = {"left": 7, "right": 4}


def read_openpose(path: Path) -> FileHands:
    """The hands of one file.

    Raises:
        FileFormatError: not OpenPose's JSON, or damaged numbers.
    """
    return openpose_hands(read_json(path))


def is_openpose(value: object) -> bool:
    """Whether a JSON value looks like OpenPose's."""
    return isinstance(value, dict) and "people" in value


def openpose_hands(value: object) -> FileHands:
    """The hands of a parsed file; see `read_openpose`."""
    if not isinstance(value, dict) or not isinstance(value.get("people"), list):
        raise FileFormatError(f"the file holds {json_kind(value)}, expected OpenPose's object with a list 'people'.")
    people: list[object] = value["people"]
    arrays: list[np.ndarray] = []
    labels: list[str] = []
    sides: list[bool] = []
    short = False
    for number, person in enumerate(people):
        if not isinstance(person, dict):
            raise FileFormatError(f"people[{number}] is {json_kind(person)}, expected an object with keypoints.")
        for side in ("left", "right"):
            key = f"hand_{side}_keypoints_2d"
            # Version 1.0 wrote the keys without the dimension.
            given = person.get(key, person.get(f"hand_{side}_keypoints"))
            if given is None or (isinstance(given, list) and not given):
                continue
            flat = numbers(given, f"people[{number}].{key}")
            if flat.size == 60:
                short = True
                flat = np.concatenate([_body_wrist(person, number, side), flat.ravel()])
            if flat.ndim != 1 or flat.size != 63:
                raise FileFormatError(
                    f"people[{number}].{key} holds {flat.size} numbers, expected 63 (21 points as x, y, confidence)."
                )
            arrays.append(flat.reshape(21, 3))
            labels.append(f":p{number}:{side}" if len(people) > 1 else f":{side}")
            sides.append(side == "right")
    points = np.stack(arrays) if arrays else np.zeros((0, 21, 3))
    notes = ("hands of 20 points were completed with the body's wrist.",) if short else ()
    return FileHands("openpose", points, tuple(labels), tuple(sides), notes=notes)


def _body_wrist(person: dict[str, object], number: int, side: str) -> np.ndarray:
    """(3,) x, y, confidence of the body's wrist; zeros, that is missing, without a body."""
    given = person.get("pose_keypoints_2d", person.get("pose_keypoints"))
    if given is None or (isinstance(given, list) and not given):
        return np.zeros(3)
    body = numbers(given, f"people[{number}].pose_keypoints_2d").ravel()
    at = 3 * _BODY_WRIST[side]
    return body[at : at + 3] if body.size >= at + 3 else np.zeros(3)
