"""The npz a script would write (`keypoints_2d`, K, ...), and the `results.npz` handloop itself writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from handloop.core.camera import Camera
from handloop.core.distortion import DISTORTION_LENGTHS
from handloop.core.errors import FileFormatError, InputError
from handloop.formats.file_hands import FileHands, no_hands, with_confidence
from handloop.formats.loading import float_array, read_npz

_Arrays = dict[str, np.ndarray]

# A hand farther than this is no hand: the file is in millimetres.
_MAX_METRES = 10.0


def read_contract(path: Path) -> FileHands:
    """The hands of one npz: `keypoints_2d` (N, 21, 2|3) px and optional is_right, K, dist, image_size, id, joints_3d.

    Raises:
        FileFormatError: damaged, the key is missing, or an array has another shape or unit.
    """
    data = read_npz(path)
    if "keypoints_2d" not in data:
        found = ", ".join(sorted(data)[:12]) or "nothing"
        raise FileFormatError(f"the npz has no 'keypoints_2d' (N, 21, 2 or 3) in px; it holds {found}.")
    points = float_array(data["keypoints_2d"], "keypoints_2d")
    if points.shape[-2:] in ((21, 2), (21, 3)) and points.ndim == 2:
        points = points[None]
    if points.ndim != 3 or points.shape[1] != 21 or points.shape[2] not in (2, 3):
        raise FileFormatError(f"keypoints_2d has shape {points.shape}, expected (N, 21, 2) or (N, 21, 3).")
    n = len(points)
    if n == 0:
        return no_hands("table")
    ids = _texts(data, "id", n)
    matrix = _matrix(data, n)
    return FileHands(
        "table",
        with_confidence(points) if points.shape[2] == 2 else points,
        _unique(ids) if ids else tuple(f":{i:06d}" for i in range(n)) if n > 1 else ("",),
        _sides(data, n),
        own_ids=ids is not None,
        frames=_frames(data, n),
        image_size=_per_hand(data, "image_size", n, (2,)),
        images=_texts(data, "image", n),
        sources=_texts(data, "source", n),
        matrix=matrix,
        dist=None if matrix is None else _dist(data, n),
        truth=_truth(data, n),
        notes=("distortion without K was ignored.",) if matrix is None and "dist" in data else (),
    )


def _per_hand(data: _Arrays, key: str, n: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """(n, *shape) from that shape for all hands or one per hand."""
    if key not in data:
        return None
    array = float_array(data[key], key)
    if array.shape not in (shape, (1, *shape), (n, *shape)):
        raise FileFormatError(f"{key} has shape {array.shape}, expected {shape} or {(n, *shape)}.")
    return np.broadcast_to(array, (n, *shape)).copy()


def _sides(data: _Arrays, n: int) -> tuple[bool | None, ...]:
    given = _per_hand(data, "is_right", n, ())
    if given is None:
        return (None,) * n
    if not np.isin(given, (0.0, 1.0)).all():
        raise FileFormatError("is_right holds values other than true and false (1 and 0).")
    return tuple(bool(v) for v in given)


def _frames(data: _Arrays, n: int) -> np.ndarray:
    given = _per_hand(data, "frame", n, ())
    if given is None:
        return np.full(n, -1, dtype=np.int64)
    if not (np.isfinite(given).all() and (np.abs(given) < 2**53).all()):
        raise FileFormatError("frame holds values that are not whole numbers.")
    return given.astype(np.int64)


def _texts(data: _Arrays, key: str, n: int) -> tuple[str, ...] | None:
    if key not in data:
        return None
    array = np.atleast_1d(data[key])
    if array.dtype.kind not in "USiuf":
        raise FileFormatError(f"{key} holds {array.dtype} values, expected {n} texts.")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.shape == (1,) and key != "id":
        array = np.broadcast_to(array, (n,))
    if array.shape != (n,):
        raise FileFormatError(f"{key} has shape {array.shape}, expected ({n},).")
    return tuple(str(v) for v in array.tolist())


def _unique(ids: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise FileFormatError(f"the id {twice!r} occurs more than once; ids must be different.")
    return ids


def _matrix(data: _Arrays, n: int) -> np.ndarray | None:
    """(n, 3, 3) from K, or from the focal_length and princpt that handloop writes; NaN rows where it was assumed."""
    k = _per_hand(data, "K", n, (3, 3))
    if k is None:
        focal = _per_hand(data, "focal_length", n, (2,))
        princpt = _per_hand(data, "princpt", n, (2,))
        if focal is None or princpt is None:
            return None
        k = np.zeros((n, 3, 3))
        k[:, 0, 0], k[:, 1, 1], k[:, :2, 2], k[:, 2, 2] = focal[:, 0], focal[:, 1], princpt, 1.0
    known = _per_hand(data, "camera_known", n, ())
    given = np.ones(n, dtype=bool) if known is None else known != 0
    if not given.any():
        return None
    try:
        Camera.from_matrix(k[given], int(given.sum()))
    except InputError as error:
        raise FileFormatError(f"the camera cannot be used: {error}") from error
    k[~given] = np.nan
    return k


def _dist(data: _Arrays, n: int) -> np.ndarray | None:
    key = "dist" if "dist" in data else "distortion"
    if key not in data:
        return None
    array = float_array(data[key], key)
    # OpenCV writes one row or one column for one camera.
    if array.ndim == 2 and array.shape[0] != n and 1 in array.shape:
        array = array.ravel()
    if array.ndim not in (1, 2) or array.shape[-1] not in DISTORTION_LENGTHS or not np.isfinite(array).all():
        raise FileFormatError(
            f"{key} has shape {array.shape}, expected (k,) or ({n}, k) finite numbers, k one of {DISTORTION_LENGTHS}."
        )
    if array.ndim == 2 and len(array) not in (1, n):
        raise FileFormatError(f"{key} has shape {array.shape}, expected one row or {n}.")
    return np.broadcast_to(array, (n, array.shape[-1])).copy()


def _truth(data: _Arrays, n: int) -> np.ndarray | None:
    truth = _per_hand(data, "joints_3d", n, (21, 3))
    if truth is None:
        return None
    finite = truth[np.isfinite(truth)]
    if finite.size and np.abs(finite).max() > _MAX_METRES:
        raise FileFormatError(
            f"joints_3d reaches {np.abs(finite).max():.4g}, expected metres in the camera frame; "
            "divide by 1000 if these are millimetres."
        )
    depth = truth[..., 2]
    if np.isfinite(depth).any() and bool((depth[np.isfinite(depth)] < 0).all()):
        raise FileFormatError(
            "joints_3d lies behind the camera (all z < 0), expected x right, y down, z forward; "
            "change the sign of y and z if these are OpenGL's axes."
        )
    return truth
