"""InterHand2.6M's JSON: X_data.json (pictures) with X_camera.json and X_joint_3d.json beside it.

World coordinates in mm; x_cam = R (x_world - campos). Each hand runs from fingertips to bases with the wrist last, the
right hand first. Its 2D is the projection of its 3D. Joints that are not valid hold 1.0 and are marked missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.coco_json import INTERHAND_ORDER
from handloop.formats.loading import json_kind, numbers, read_json
from handloop.formats.picture_set import ManoSample, PictureSample, project

_Tree = dict[str, object]

SUFFIXES = ("_data.json", "_camera.json", "_joint_3d.json", "_MANO_NeuralAnnot.json")
"""Endings of the four files of one part; the last is optional."""


def is_interhand_data(value: object) -> bool:
    """Whether a JSON value is an InterHand2.6M list of pictures."""
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        return False
    first = next(iter(value["images"]), None)
    return isinstance(first, dict) and {"capture", "camera", "frame_idx"} <= set(first)


def is_interhand_companion(value: object) -> bool:
    """Whether a JSON value is InterHand2.6M's camera, joint or MANO file, which holds nothing without the pictures."""
    capture = next(iter(value.values()), None) if isinstance(value, dict) else None
    if not isinstance(capture, dict):
        return False
    frame = next(iter(capture.values()), None)
    if {"campos", "camrot"} <= set(capture) or not isinstance(frame, dict):
        return {"campos", "camrot"} <= set(capture)
    hand = frame.get("right") or frame.get("left")
    return "world_coord" in frame or (isinstance(hand, dict) and {"pose", "shape", "trans"} <= set(hand))


def interhand_samples(
    value: object, source: Path, find: Callable[[str], str], split: str = ""
) -> tuple[list[PictureSample], list[str]]:
    """The hands of a parsed X_data.json, and notes.

    Args:
        value: the parsed file.
        source: where it lies, with its companions.
        find: from a picture's name in the file to its path.
        split: which part of the data set it is.

    Raises:
        FileFormatError: another layout, or a companion is missing.
    """
    if not isinstance(value, dict) or not is_interhand_data(value):
        raise FileFormatError(f"the file holds {json_kind(value)}, expected InterHand2.6M's images and annotations.")
    stem = source.name.removesuffix(SUFFIXES[0])
    cameras, joints = (_companion(source.with_name(stem + end)) for end in SUFFIXES[1:3])
    mano_file = source.with_name(stem + SUFFIXES[3])
    mano = _companion(mano_file) if mano_file.is_file() else {}
    boxes = {a.get("image_id"): a.get("bbox") for a in value.get("annotations", []) if isinstance(a, dict)}
    samples: list[PictureSample] = []
    lost: list[str] = []
    for image in value["images"]:
        try:
            samples += _picture(image, cameras, joints, mano, boxes, (source, find, split))
        except FileFormatError as error:
            lost.append(f"{_name(image)} ({str(error).rstrip('.')})")
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            lost.append(f"{_name(image)} ({type(error).__name__} {error})")
    if lost and not samples:
        raise FileFormatError(f"no picture has both a camera and joints; the first: {lost[0]}.")
    notes = [f"{len(lost)} pictures lack a camera or joints and were left out, the first: {lost[0]}."] if lost else []
    return samples, notes


def _companion(path: Path) -> _Tree:
    if not path.is_file():
        raise FileFormatError(f"InterHand2.6M's pictures come with {path.name}, which is not beside the file.")
    try:
        value = read_json(path)
    except FileFormatError as error:
        raise FileFormatError(f"{path.name} beside it: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path.name} beside it holds {json_kind(value)}, expected captures.")
    return value


def _name(image: object) -> str:
    return str(image.get("file_name", "?")) if isinstance(image, dict) else "?"


def _picture(
    image: dict[str, object],
    cameras: _Tree,
    joints: _Tree,
    mano: _Tree,
    boxes: dict[object, object],
    where: tuple[Path, Callable[[str], str], str],
) -> list[PictureSample]:
    """The one or two hands of a picture; hands without a valid joint are left out."""
    source, find, split = where
    capture, frame, camera = str(image["capture"]), str(image["frame_idx"]), str(image["camera"])
    matrix, rotation, place = _camera(_at(cameras, capture), camera)
    annotation = _at(joints, capture, frame)
    world = numbers(annotation["world_coord"], "world_coord")
    valid = _flags(annotation["joint_valid"])
    if world.shape != (42, 3) or valid.shape != (42,):
        raise FileFormatError(f"world_coord has shape {world.shape} and joint_valid {valid.shape}, expected 42 joints")
    order = np.array(INTERHAND_ORDER)
    file_name = str(image["file_name"])
    box = boxes.get(image.get("id"))
    corner = None if box is None else numbers(box, "bbox").ravel()
    two = valid[:21].any() and valid[21:].any()
    out = []
    for is_right, at in ((True, order), (False, order + 21)):
        if not valid[at].any():
            continue
        side = "right" if is_right else "left"
        cam = np.where(valid[at, None], (world[at] / 1000 - place) @ rotation.T, np.nan)
        out.append(
            PictureSample(
                f"{PurePosixPath(file_name).with_suffix('')}:{side}",
                project(cam, matrix),
                is_right,
                find(file_name),
                (float(image["width"]), float(image["height"])),  # type: ignore[arg-type]
                matrix,
                cam,
                # With two hands the box is that of both.
                None if two or corner is None else np.concatenate([corner[:2], corner[:2] + corner[2:]]),
                split=split,
                source=str(source),
                frame=int(frame),
                mano=_mano(mano, capture, frame, side, rotation, place),
            )
        )
    return out


def _flags(value: object) -> np.ndarray:
    """(42,) bool from true and false, or 1 and 0, each perhaps in a list of its own."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise FileFormatError("joint_valid holds something other than true and false")
    return array.reshape(-1) > 0


def _at(tree: _Tree, *keys: str) -> _Tree:
    for key in keys:
        below = tree[key]
        if not isinstance(below, dict):
            raise FileFormatError(f"{key!r} is {json_kind(below)}, expected an object")
        tree = below
    return tree


def _camera(capture: _Tree, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K (3, 3), rotation (3, 3) and place (3,) m in the world."""
    focal, princpt = (numbers(_at(capture, key)[name], key) for key in ("focal", "princpt"))
    rotation, place = numbers(_at(capture, "camrot")[name], "camrot"), numbers(_at(capture, "campos")[name], "campos")
    if (focal.shape, princpt.shape, rotation.shape, place.shape) != ((2,), (2,), (3, 3), (3,)):
        raise FileFormatError("a camera needs focal 2, princpt 2, camrot 3 x 3 and campos 3 numbers")
    return np.array([[focal[0], 0, princpt[0]], [0, focal[1], princpt[1]], [0, 0, 1]]), rotation, place / 1000


def _mano(
    mano: _Tree, capture: str, frame: str, side: str, rotation: np.ndarray, place: np.ndarray
) -> ManoSample | None:
    frames = mano.get(capture)
    found = frames.get(frame) if isinstance(frames, dict) else None
    hand = found.get(side) if isinstance(found, dict) else None
    if not isinstance(hand, dict):
        return None
    pose, betas, transl = (numbers(hand[key], key).ravel() for key in ("pose", "shape", "trans"))
    if (pose.size, betas.size, transl.size) != (48, 10, 3):
        raise FileFormatError("MANO parameters need pose 48, shape 10 and trans 3 numbers")
    return ManoSample(pose, betas, transl, rotation, -rotation @ place)
