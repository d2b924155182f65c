"""The truth to compare with: an npz with `joints_3d`, or FreiHAND's JSON files; and which hand is which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.formats.loading import float_array, numbers, read_json, read_npz
from handloop.formats.pictures import base_stem

_MAX_METRES = 10.0
"""A hand farther than this is no hand: the file is in millimetres."""

FREIHAND_SETS = ("training", "evaluation")


@dataclass(frozen=True, eq=False)
class Truth:
    """N hands with known joints."""

    joints: Tensor
    """(N, 21, 3) float64 m, camera frame, canonical order; NaN where unknown."""
    ids: tuple[str, ...]
    """N different names: the file's own, or those that handloop gives the hands of such a file."""
    own_ids: bool
    """True where the file names its hands."""
    vertices: Tensor | None
    """(N, 778, 3) float64 m, camera frame."""
    camera: Camera | None
    """N cameras."""
    is_right: Tensor | None
    """(N,) bool."""
    is_freihand: bool
    """True for FreiHAND's files, whose joints are regressed from the mesh."""

    def __len__(self) -> int:
        return len(self.joints)


@dataclass(frozen=True)
class Pairing:
    """Which row of the results is which hand of the truth."""

    rows: Tensor
    """(N,) int64, the row of each true hand in the results; -1 for hands that are not there."""
    without_truth: int
    """Hands of the results that the truth does not know."""
    by_order: bool
    """True where the hands were paired by their order, for lack of names."""


def read_truth(path: str | os.PathLike[str], vertices: bool = True) -> Truth:
    """True joints from an npz, or from FreiHAND's JSON files.

    An npz holds `joints_3d` (N, 21, 3) m in the camera frame, NaN where unknown, and optionally `id` (N), `is_right`,
    `K` (3, 3) or (N, 3, 3), `dist`, `vertices` (N, 778, 3) m. FreiHAND's files are named by `training_xyz.json` or by
    their folder; `training_K.json` and `training_verts.json` beside it are used where they are.

    Args:
        path: a file, or FreiHAND's folder.
        vertices: False leaves out the meshes, which are large.

    Raises:
        InputError: there is no such file.
        FileFormatError: a file of another kind, shape or unit.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / f"{name}_xyz.json" for name in FREIHAND_SETS if (file / f"{name}_xyz.json").is_file()]
        if len(found) != 1:
            raise InputError(
                f"{file} holds {len(found)} of training_xyz.json and evaluation_xyz.json, expected one; name the file."
            )
        file = found[0]
    if not file.exists():
        raise InputError(f"{file} does not exist; name an npz with joints_3d, or FreiHAND's training_xyz.json.")
    if file.suffix.lower() == ".json":
        return _read_freihand(file, vertices)
    try:
        return _read_npz(file, vertices)
    except InputError as error:
        raise FileFormatError(f"{file}: {error}") from error


def pair_hands(truth: Truth, ids: Sequence[str] | None, n_results: int) -> Pairing:
    """Find each true hand among the results.

    By name where both sides have names: the truth file's own, or, where it has none, the ones that `handloop fit`
    gives to the hands of that very file. Else by order.

    Args:
        truth: N hands.
        ids: names of the results' hands, None where they have none.
        n_results: how many hands the results hold.

    Raises:
        InputError: no name in common, or by order and the counts differ.
    """
    known = set(truth.ids)
    if ids is not None and (truth.own_ids or (len(ids) and known.issuperset(ids))):
        place = {name: row for row, name in enumerate(ids)}
        rows = torch.tensor([place.get(name, -1) for name in truth.ids], dtype=torch.int64)
        common = int((rows >= 0).sum())
        if not common and len(ids) and len(truth):
            raise InputError(
                f"the truth and the results have no id in common ({truth.ids[0]!r} there, {ids[0]!r} here); "
                "make them the same, or remove id from the truth to compare in order."
            )
        return Pairing(rows, n_results - common, by_order=False)
    if n_results != len(truth):
        raise InputError(
            f"the truth has {len(truth)} hands without names in common with the {n_results} of the results, and "
            "different numbers cannot be paired by order; give the truth an id per hand."
        )
    return Pairing(torch.arange(len(truth)), 0, by_order=True)


def _read_npz(path: Path, with_vertices: bool) -> Truth:
    data = read_npz(path)
    if "joints_3d" not in data:
        found = ", ".join(sorted(data)[:12]) or "nothing"
        raise FileFormatError(f"the npz has no 'joints_3d' (N, 21, 3) in m; it holds {found}.")
    joints = _points(float_array(data["joints_3d"], "joints_3d"), 21, "joints_3d")
    n = len(joints)
    names = None if "id" not in data else tuple(str(v) for v in np.atleast_1d(data["id"]).tolist())
    if names is not None and (len(names) != n or len(set(names)) != n):
        raise FileFormatError(f"id holds {len(set(names))} different names, expected {n}.")
    stem = base_stem(path.name)
    mesh = None
    if with_vertices and "vertices" in data:
        mesh = _points(float_array(data["vertices"], "vertices"), 778, "vertices", n)
    return Truth(
        torch.from_numpy(joints),
        names if names is not None else tuple(f"{stem}:{i:06d}" for i in range(n)) if n > 1 else (stem,) * n,
        names is not None,
        None if mesh is None else torch.from_numpy(mesh),
        None if "K" not in data else _camera(float_array(data["K"], "K"), data.get("dist"), n),
        None if "is_right" not in data else _sides(float_array(data["is_right"], "is_right"), n),
        is_freihand=False,
    )


def _read_freihand(path: Path, with_vertices: bool) -> Truth:
    name = path.name.removesuffix("_xyz.json")
    if name == path.name:
        raise InputError(
            f"{path}: FreiHAND's true joints are called training_xyz.json or evaluation_xyz.json; name such a file."
        )
    joints = _freihand_array(path, 21)
    n = len(joints)
    k_file, mesh_file = (path.with_name(f"{name}_{part}.json") for part in ("K", "verts"))
    camera = None
    if k_file.is_file():
        matrix = _freihand_array(k_file, 3)
        if len(matrix) != n:
            raise FileFormatError(f"{k_file}: it holds {len(matrix)} cameras for {n} hands.")
        camera = _camera(matrix, None, n)
    mesh = None
    if with_vertices and mesh_file.is_file():
        mesh = torch.from_numpy(_freihand_array(mesh_file, 778))
        if len(mesh) != n:
            raise FileFormatError(f"{mesh_file}: it holds {len(mesh)} meshes for {n} hands.")
    # Pictures are called so; training pictures beyond the first 32,560 repeat the same hands.
    ids = tuple(f"{i:08d}" for i in range(n))
    sides = torch.ones(n, dtype=torch.bool)
    return Truth(torch.from_numpy(joints), ids, False, mesh, camera, sides, is_freihand=True)


def _freihand_array(path: Path, rows: int) -> np.ndarray:
    try:
        return _points(numbers(read_json(path), "the list"), rows, "the list")
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _points(array: np.ndarray, points: int, what: str, n: int | None = None) -> np.ndarray:
    """(N, points, 3) checked for its shape and, but for cameras, its unit."""
    if array.ndim != 3 or array.shape[1:] != (points, 3) or (n is not None and len(array) != n):
        raise FileFormatError(f"{what} has shape {array.shape}, expected ({'N' if n is None else n}, {points}, 3).")
    finite = np.abs(array[np.isfinite(array)])
    if points > 3 and finite.size and finite.max() > _MAX_METRES:
        raise FileFormatError(
            f"{what} reaches {finite.max():.4g}, expected metres in the camera frame; "
            "divide by 1000 if these are millimetres."
        )
    return array


def _camera(matrix: np.ndarray, dist: np.ndarray | None, n: int) -> Camera:
    camera = Camera.from_matrix(matrix, n)
    if dist is None:
        return camera
    lens = torch.from_numpy(float_array(dist, "dist"))
    return Camera(camera.focal, camera.princpt, lens.expand(n, -1).clone() if lens.ndim == 1 else lens)


def _sides(array: np.ndarray, n: int) -> Tensor:
    if array.shape not in ((), (n,)) or not np.isin(array, (0.0, 1.0)).all():
        raise FileFormatError(f"is_right has shape {array.shape}, expected one or {n} times true or false.")
    return torch.from_numpy(array.astype(bool)).expand(n).clone()
