"""Boxes of hands in pictures, for networks that look at pictures: JSON or npz.

JSON: a list of {"image": "a.jpg", "box": [x0, y0, x1, y1], "is_right": true}, in px; "id" may name the hand.
npz: image (N,) texts, box (N, 4), is_right (N,), and perhaps id (N,).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.formats.loading import read_json, read_npz
from handloop.formats.naming import unique_ids
from handloop.formats.options import Problem, ReadOptions, ReadResult
from handloop.formats.pictures import picture_size


def read_boxes(path: Path, folders: Sequence[Path], options: ReadOptions) -> tuple[ReadResult, Tensor]:
    """Hands without keypoints, one per box.

    Args:
        path: the file.
        folders: where the pictures lie; beside the file, too.
        options: `side` for hands whose side the file does not say, or against what it says.

    Returns:
        The hands whose pictures exist, as `read_keypoints` gives them, and their (N, 4) px boxes.

    Raises:
        InputError: the file cannot be used; the message names it.
    """
    try:
        images, box, right, ids = _from_npz(path) if path.suffix == ".npz" else _from_json(path)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    extent = box[:, 2:] - box[:, :2]
    if len(box) and not bool((np.isfinite(box).all(1) & (extent > 0).all(1)).all()):
        raise FileFormatError(f"{path}: a box has no extent, expected x0, y0, x1, y1 in px with x0 < x1 and y0 < y1.")
    if options.side is not None:
        right = [options.side == "right"] * len(images)
    if None in right:
        raise InputError(f"{path}: it does not say which side the hands are; add is_right, or give --hand.")
    places = [_find(name, [*folders, path.parent]) for name in images]
    sizes = [None if place is None else picture_size(str(place)) for place in places]
    good = [i for i, size in enumerate(sizes) if size is not None]
    problems = tuple(
        Problem(name, "there is no such picture, or it cannot be read; name its folder as an input.")
        for name, size in zip(images, sizes, strict=True)
        if size is None
    )
    if not good:
        raise InputError(f"{path}: none of its {len(images)} pictures can be read; name their folder as an input.")
    n = len(good)
    keypoints = Keypoints.from_arrays(
        np.zeros((n, 21, 3)),
        np.array([right[i] is True for i in good], dtype=bool),
        np.array([sizes[i] for i in good], dtype=np.float64),
        unique_ids([ids[i] for i in good]),
        str(path),
        None,
        [str(places[i]) for i in good],
    )
    read = ReadResult(keypoints, None, None, problems, (), (), 1, 0, 0)
    return read, torch.from_numpy(box[good])


_Boxes = tuple[list[str], np.ndarray, list[bool | None], list[str]]


def _from_json(path: Path) -> _Boxes:
    value = read_json(path)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise FileFormatError('the JSON is no list of {"image": "a.jpg", "box": [x0, y0, x1, y1], "is_right": true}.')
    images, boxes, right, ids = [], [], [], []
    for number, entry in enumerate(value):
        image, box, side = entry.get("image"), entry.get("box"), entry.get("is_right")
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
        if not isinstance(image, str) or not numbers or not (side is None or isinstance(side, bool)):
            raise FileFormatError(
                f'entry {number} is not {{"image": "a.jpg", "box": [x0, y0, x1, y1], "is_right": true}}.'
            )
        images.append(image)
        boxes.append(box)
        right.append(side)
        ids.append(str(entry.get("id", Path(image).stem)))
    return images, np.array(boxes, dtype=np.float64).reshape(-1, 4), right, ids


def _from_npz(path: Path) -> _Boxes:
    data = read_npz(path)
    if "image" not in data or "box" not in data:
        raise FileFormatError("the npz has no 'image' (N,) and 'box' (N, 4) in px.")
    images = [str(name) for name in np.ravel(data["image"]).tolist()]
    n, box = len(images), data["box"]
    if box.shape != (n, 4) or box.dtype.kind not in "fiu":
        raise FileFormatError(f"box has shape {box.shape} and {box.dtype}, expected ({n}, 4) numbers.")
    right: list[bool | None] = [None] * n
    if "is_right" in data:
        sides = np.ravel(data["is_right"])
        if len(sides) != n or not np.isin(sides, (0, 1)).all():
            raise FileFormatError(f"is_right has shape {data['is_right'].shape}, expected ({n},) of true and false.")
        right = [bool(side) for side in sides.tolist()]
    ids = [Path(name).stem for name in images]
    if "id" in data:
        ids = [str(name) for name in np.ravel(data["id"]).tolist()]
        if len(ids) != n:
            raise FileFormatError(f"id has {len(ids)} entries for {n} pictures.")
    return images, box.astype(np.float64), right, ids


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    """A picture as named, in one of the folders, or as it stands."""
    for place in [*(folder / name for folder in folders), Path(name)]:
        try:
            if place.is_file():
                return place
        except (OSError, ValueError):  # Names from files can be too long or hold a zero byte.
            continue
    return None
