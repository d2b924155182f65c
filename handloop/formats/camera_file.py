"""Camera files: K and distortion from JSON, OpenCV's and ROS's YAML, npz or npy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from handloop.core.camera import Camera
from handloop.core.distortion import DISTORTION_LENGTHS
from handloop.core.errors import FileFormatError, InputError
from handloop.formats.landmarks import plain
from handloop.formats.loading import (
    check_file,
    float_array,
    json_kind,
    numbers,
    read_json,
    read_npy,
    read_npz,
    read_text,
)

_MATRIX = ("k", "cameramatrix", "intrinsicmatrix", "intrinsics", "intrinsic", "mtx", "matrix")
_DIST = ("dist", "distortioncoefficients", "distcoeffs", "distortion", "d", "distcoefs")
_FOCAL = ("focal", "focallength", "f")
_MIDDLE = ("princpt", "principalpoint")
_MODEL = ("distortionmodel", "cameramodel", "model")

_LEAST_FOCAL = 10.0
"""A focal length below this many px is a normalised one, or one in mm."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.?(?:nan|inf)", re.IGNORECASE)

_EXPECTED = "expected K as 3 x 3 numbers (K, camera_matrix) or fx, fy, cx, cy, in px"


def read_camera(path: str | Path) -> Camera:
    """One camera (one row) from a file.

    Accepts {"K": 3 x 3, "dist": [...]}, a bare 3 x 3 list, {fx, fy, cx, cy}, OpenCV's FileStorage in JSON or YAML,
    ROS's camera_info YAML, and npz or npy files with K.

    Raises:
        FileFormatError: unreadable, no camera in it, or values that are no pinhole camera with OpenCV's distortion.
    """
    path = Path(path)
    try:
        return _camera(_fields(path))
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _fields(path: Path) -> dict[str, object]:
    """The file's values under plain keys (lower case, letters and digits)."""
    check_file(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        return {plain(k): float_array(v, k) for k, v in read_npz(path).items() if v.dtype.kind in "iuf"}
    if start.startswith(b"\x93NUMPY"):
        return {"k": read_npy(path)}
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        value = read_json(path)
        if isinstance(value, list):
            return {"k": numbers(value, "the list")}
        if isinstance(value, dict):
            return {plain(k): _json_value(v, str(k)) for k, v in value.items()}
        raise FileFormatError(f"the file holds {json_kind(value)}; {_EXPECTED}.")
    if start.lstrip().startswith(b"<"):
        raise FileFormatError("XML is not read; write the camera as YAML or JSON.")
    return {plain(k): v for k, v in parse_simple_yaml(read_text(path)).items()}


def _json_value(value: object, key: str) -> object:
    """Arrays for lists and for OpenCV's {"rows", "cols", "data"}; other values as they are."""
    if isinstance(value, dict) and "data" in value:
        flat = numbers(value["data"], key)
        rows, cols = value.get("rows"), value.get("cols")
        if isinstance(rows, int) and isinstance(cols, int) and rows * cols == flat.size:
            return flat.reshape(rows, cols)
        return flat
    if isinstance(value, list) and plain(key) in (*_MATRIX, *_DIST, *_FOCAL, *_MIDDLE):
        return numbers(value, key)
    return value


def parse_simple_yaml(text: str) -> dict[str, object]:
    """Top-level keys of the YAML that OpenCV and ROS write: numbers, texts, and lists or `data: [...]` as flat arrays.

    This is no YAML parser: anything deeper is ignored.
    """
    out: dict[str, object] = {}
    blocks = re.split(r"^(?=[A-Za-z_])", text, flags=re.MULTILINE)
    for block in blocks:
        key, colon, rest = block.partition(":")
        if not colon or not re.fullmatch(r"\w+", key.strip()):
            continue
        lines = [re.sub(r"\s#.*$", "", line) for line in rest.splitlines()]
        body = "\n".join(line for line in lines if line.strip() not in ("---", "...")).strip()
        data = re.search(r"\bdata\s*:\s*(\[[^\]]*\]|.*)", body, re.DOTALL)
        listing = data.group(1) if data else body
        if data or listing.startswith(("[", "- ", "-\n")):
            found = re.sub(r"^\s*-\s", " ", listing, flags=re.MULTILINE)
            found = re.sub(r"^\s*-\s", " ", found, flags=re.MULTILINE)
            out[key.strip()] = np.array([_yaml_number(n) for n in _NUMBER.findall(found)])
        elif _NUMBER.fullmatch(body):
            out[key.strip()] = _yaml_number(body)
        else:
            out[key.strip()] = body
    return out


def _yaml_number(text: str) -> float:
    return float(text.lower().replace(".nan", "nan").replace(".inf", "inf"))


def _camera(fields: dict[str, object]) -> Camera:
    model = next((fields[k] for k in _MODEL if isinstance(fields.get(k), str)), "")
    if re.search("fish|equidistant|kannala|omni", str(model), re.IGNORECASE):
        name = str(model)[:40]
        raise FileFormatError(f"the lens model is {name!r}, expected OpenCV's pinhole; undistort the pictures.")
    given = next((fields[k] for k in _MATRIX if k in fields), None)
    matrix = _from_matrix(given) if given is not None else _from_numbers(fields)
    camera = Camera.from_matrix(matrix)
    if float(camera.focal.min()) < _LEAST_FOCAL:
        raise FileFormatError(f"the focal length is {float(camera.focal.min()):.4g}, expected px: normalised or in mm?")
    dist = _distortion(next((fields[k] for k in _DIST if k in fields), None))
    if dist is None:
        return camera
    return Camera(camera.focal, camera.princpt, torch.from_numpy(dist)[None])


def _from_matrix(given: object) -> np.ndarray:
    if isinstance(given, dict):
        # {"intrinsics": {"fx": ...}}.
        return _from_numbers({plain(k): v for k, v in given.items()})
    if not isinstance(given, np.ndarray):
        raise FileFormatError(f"K is {json_kind(given)}, {_EXPECTED}.")
    if given.shape not in ((9,), (3, 3), (1, 3, 3)):
        raise FileFormatError(f"K has shape {given.shape}, expected one 3 x 3 matrix; several belong into an npz.")
    return given.reshape(3, 3)


def _from_numbers(fields: dict[str, object]) -> np.ndarray:
    focal = _pair(fields, ("fx", "fy"), _FOCAL)
    middle = _pair(fields, ("cx", "cy"), _MIDDLE)
    if focal is None or middle is None:
        found = ", ".join(list(fields)[:8]) or "nothing"
        raise FileFormatError(f"the file holds no camera; it holds {found}, {_EXPECTED}.")
    return np.array([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1]])


def _pair(fields: dict[str, object], names: tuple[str, str], together: tuple[str, ...]) -> tuple[float, float] | None:
    """Two numbers from two fields, or from one field that holds one or two."""
    first, second = fields.get(names[0]), fields.get(names[1])
    if first is None and second is None:
        first = second = next((fields[k] for k in together if k in fields), None)
        if isinstance(first, np.ndarray) and first.size == 2:
            first, second = first.ravel().tolist()
    if first is None and second is None:
        return None
    return _px(first, names[0]), _px(second, names[1])


def _px(value: object, name: str) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise FileFormatError(f"{name} is {json_kind(value)}, expected a number in px.")
    return float(value)


def _distortion(given: object) -> np.ndarray | None:
    """(k,) coefficients; None for none, or zeros only."""
    if given is None or (isinstance(given, np.ndarray) and given.size == 0):
        return None
    if not isinstance(given, np.ndarray):
        raise FileFormatError(f"the distortion is {json_kind(given)}, expected a list of {DISTORTION_LENGTHS} numbers.")
    flat = given.ravel()
    if flat.size == 14 and not flat[12:].any():
        # OpenCV's full model with an untilted sensor.
        flat = flat[:12]
    if flat.size not in DISTORTION_LENGTHS or not np.isfinite(flat).all():
        raise FileFormatError(
            f"the distortion has {flat.size} coefficients, expected {DISTORTION_LENGTHS} finite ones in OpenCV's order."
        )
    return flat.astype(np.float64) if flat.any() else None
