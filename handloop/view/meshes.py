"""Fitted hands as OBJ and GLB files, in metres, with trimesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from handloop.core.errors import InputError
from handloop.core.results import FitResult
from handloop.view.names import file_names
from handloop.view.selection import CHUNK, check_rows, vertices_of


@dataclass(frozen=True)
class MeshExport:
    """What was written."""

    paths: tuple[Path, ...]
    """The files."""
    skipped: tuple[str, ...]
    """Ids of the hands without a finite fit, which are in no file."""


def write_obj(
    result: FitResult,
    faces_right: np.ndarray,
    faces_left: np.ndarray,
    folder: str | Path,
    indices: Sequence[int] | None = None,
    y_up: bool = False,
) -> MeshExport:
    """One OBJ per hand, named by its id, vertices in the model's order.

    Args:
        result: the fits.
        faces_right, faces_left: (F, 3) vertex ids of each side's mesh, outward by the right-hand rule. Where left is
            the mirrored right model its faces are `faces_right[:, [0, 2, 1]]`.
        folder: made if missing.
        indices: rows of the result, all where None.
        y_up: False keeps the camera's OpenCV axes (x right, y down, z forward); True writes (x, -y, -z), as viewers
            expect.
    """
    rows = check_rows(result, indices)
    target = _make(folder)
    names = file_names(result.keypoints.ids)
    paths: list[Path] = []
    skipped: list[str] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        for row, vertices in zip(part, vertices_of(result, part), strict=True):
            if not _usable(vertices):
                skipped.append(result.keypoints.ids[row])
                continue
            path = target / f"{names[row]}.obj"
            axes = "x right, y up, z backward" if y_up else "x right, y down, z forward (OpenCV camera)"
            header = f"# handloop, {_side(result, row)} hand, metres, {axes}\n"
            path.write_text(header + _obj(_turn(vertices, y_up), _faces(result, row, faces_right, faces_left)))
            paths.append(path)
    return MeshExport(tuple(paths), tuple(skipped))


def write_glb(
    result: FitResult,
    faces_right: np.ndarray,
    faces_left: np.ndarray,
    folder: str | Path,
    indices: Sequence[int] | None = None,
    y_up: bool = True,
    per: Literal["picture", "hand"] = "picture",
) -> MeshExport:
    """GLB files with one node per hand, named by its id.

    With `per="picture"` the hands of a picture (or of one frame of a video) share a file, as long as they share a
    camera: hands fitted with a camera guessed for each have no common space, and get a file each. So do hands of which
    no picture or frame is known.

    Args:
        result, faces_right, faces_left, folder, indices: as for `write_obj`.
        y_up: True writes (x, -y, -z), glTF's axes; False the camera's OpenCV axes.
        per: "picture" or "hand".
    """
    import trimesh

    if per not in ("picture", "hand"):
        raise InputError(f"GLB files per {per!r} were asked for, expected 'picture' or 'hand'.")
    rows = check_rows(result, indices)
    target = _make(folder)
    groups = _groups(result, rows) if per == "picture" else {result.keypoints.ids[row]: [row] for row in rows}
    paths: list[Path] = []
    skipped: list[str] = []
    for name, (label, members) in zip(file_names(list(groups)), groups.items(), strict=True):
        scene: Any = trimesh.Scene()
        for row, vertices in zip(members, vertices_of(result, members), strict=True):
            id_ = result.keypoints.ids[row]
            if not _usable(vertices):
                skipped.append(id_)
                continue
            faces = _faces(result, row, faces_right, faces_left)
            mesh = trimesh.Trimesh(_turn(vertices, y_up), faces, process=False)
            mesh.visual = _skin(bool(result.keypoints.is_right[row]))
            mesh.metadata = {"id": id_, "side": _side(result, row), "units": "m"}
            scene.add_geometry(mesh, node_name=id_, geom_name=id_)
        if scene.geometry:
            scene.metadata = {"hands_of": label, "axes": "x right, y up" if y_up else "x right, y down (OpenCV)"}
            path = target / f"{name}.glb"
            path.write_bytes(scene.export(file_type="glb", include_normals=True))
            paths.append(path)
    return MeshExport(tuple(paths), tuple(skipped))


def _groups(result: FitResult, rows: Sequence[int]) -> dict[str, list[int]]:
    """Rows by the name of what they share, in order."""
    kp, camera = result.keypoints, result.camera
    found: dict[tuple[object, ...], list[int]] = {}
    for row in rows:
        frame, picture = int(kp.frame[row]), kp.image[row]
        origin = picture or (kp.source[row] if frame >= 0 else "")
        lens = () if camera.dist is None else tuple(camera.dist[row].tolist())
        view = (*camera.focal[row].tolist(), *camera.princpt[row].tolist(), *lens)
        found.setdefault((origin, frame, view) if origin else (row,), []).append(row)
    labels: dict[str, list[int]] = {}
    for key, members in found.items():
        label = kp.ids[members[0]]
        if len(key) == 3:
            label = Path(str(key[0])).stem + (f"_{key[1]}" if key[1] != -1 else "")
        while label in labels:  # Pictures of one name in several folders, or of several cameras.
            label += f"_{kp.ids[members[0]]}"
        labels[label] = members
    return labels


def _make(folder: str | Path) -> Path:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return target


def _usable(vertices: np.ndarray) -> bool:
    return bool(len(vertices)) and bool(np.isfinite(vertices).all())


def _turn(vertices: np.ndarray, y_up: bool) -> np.ndarray:
    # Half a turn about x: no mirror, so the winding stays.
    return vertices * [1.0, -1.0, -1.0] if y_up else vertices


def _faces(result: FitResult, row: int, faces_right: np.ndarray, faces_left: np.ndarray) -> np.ndarray:
    faces = faces_right if bool(result.keypoints.is_right[row]) else faces_left
    return np.asarray(faces, dtype=np.int64)


def _side(result: FitResult, row: int) -> str:
    return "right" if bool(result.keypoints.is_right[row]) else "left"


def _obj(vertices: np.ndarray, faces: np.ndarray) -> str:
    # A micrometre at a metre's distance; trimesh would write a material file beside each mesh.
    lines = [f"v {x:.7f} {y:.7f} {z:.7f}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"


def _skin(is_right: bool) -> Any:
    import trimesh.visual

    # Half of trimesh is typed and half is not.
    visual: Any = trimesh.visual
    colour = [0.62, 0.70, 0.84, 1.0] if is_right else [0.86, 0.72, 0.58, 1.0]
    # Two-sided, because the wrist is open.
    material = visual.material.PBRMaterial(
        baseColorFactor=colour, metallicFactor=0.0, roughnessFactor=0.7, doubleSided=True
    )
    return visual.TextureVisuals(material=material)
