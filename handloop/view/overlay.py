"""The fitted hand drawn over the picture it was found in: shaded mesh, fitted skeleton, input points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from handloop.core.camera import Camera
from handloop.core.errors import InputError, check_shape
from handloop.core.results import FitResult
from handloop.view.frame import Frame, crop_frame, whole_frame
from handloop.view.names import file_names
from handloop.view.pictures import Picture, load_picture
from handloop.view.raycast import shade_mesh
from handloop.view.selection import CHUNK, check_rows, vertices_of
from handloop.view.strokes import draw_hand, write_remarks

MESH_COLOURS = {True: (176, 196, 226), False: (232, 200, 168)}
"""RGB of the mesh by `is_right`: bluish right hands, sandy left hands, pale so that the skeleton stands out."""

MESH_OPACITY = 0.72
"""How much of the picture the mesh hides: enough to read its relief, little enough to judge the fit beneath."""

PLAIN, BESIDE = (234, 236, 240), (112, 115, 120)
"""RGB of the canvas where there is no picture, and outside the picture's edges."""


def draw_overlay(
    picture: np.ndarray | None,
    vertices: np.ndarray,
    faces: np.ndarray,
    joints_px: np.ndarray,
    keypoints: np.ndarray,
    camera: Camera,
    is_right: bool,
    size: int = 512,
    whole_picture: bool = False,
    remark: str = "",
) -> np.ndarray:
    """Draw one hand. Never fails on numbers: what is not finite or not in view is left out, and a sentence says so.

    The mesh is cast along the camera's own rays, lens distortion included, so it lies where the pixels it explains lie.
    The skeleton is coloured by finger; rings are the input points, larger where more confident, none where missing;
    a thin line joins each to its fitted point.

    Args:
        picture: (H, W, 3) uint8 RGB, or None for a plain canvas.
        vertices: (V, 3) m, camera frame; NaN or (0, 3) where there is no fit.
        faces: (F, 3) vertex ids of this side's mesh, outward by the right-hand rule.
        joints_px: (21, 2) px, the fitted joints in the picture; NaN where there is no fit.
        keypoints: (21, 3) px and confidence, the input; confidence 0 is missing.
        camera: one row, of the whole picture.
        is_right: the hand's side: tints the mesh.
        size: px, the longer side of the drawing (at most that, for a whole picture).
        whole_picture: all of the picture in place of a crop of 1.6 times the hand's box.
        remark: a few words to write into the drawing.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: wrong shapes.
    """
    check_shape("vertices", vertices.shape, (None, 3))
    check_shape("faces", faces.shape, (None, 3))
    check_shape("joints_px", joints_px.shape, (21, 2))
    check_shape("keypoints", keypoints.shape, (21, 3))
    if len(camera) != 1:
        raise InputError(f"{len(camera)} cameras were given, expected the one of this hand.")
    if size < 16:
        raise InputError(f"a drawing of {size} px was asked for, expected 16 or more.")
    points, fitted = keypoints.astype(np.float64), joints_px.astype(np.float64)
    seen = np.isfinite(points).all(1) & (points[:, 2] > 0)
    points = np.where(seen[:, None], points, np.nan)
    extent = None if picture is None else (picture.shape[1], picture.shape[0])
    if whole_picture and extent is not None:
        frame = whole_frame(*extent, size)
    else:
        frame = crop_frame(points[seen, :2], fitted, size, extent)
    canvas = frame.canvas(picture, PLAIN, BESIDE)
    has_fit = bool(np.isfinite(vertices).any())
    if has_fit:
        _lay_mesh(canvas, vertices, faces, frame.camera(_on_cpu(camera)), is_right)
    on_canvas = np.column_stack([frame.points(points[:, :2]), points[:, 2]])
    canvas = draw_hand(canvas, frame.points(fitted), on_canvas)
    return write_remarks(canvas, _remarks(frame, picture, points, fitted, has_fit, remark))


def write_overlays(
    result: FitResult,
    faces_right: np.ndarray,
    faces_left: np.ndarray,
    folder: str | Path,
    indices: Sequence[int] | None = None,
    max_size: int = 512,
    suffix: str = ".png",
) -> list[Path]:
    """Draw hands of a result, one file per hand, named by its id (see `view.names.file_names`).

    A picture that several hands share is read once. Where one cannot be read the hand is drawn on a plain canvas, and
    the drawing says why.

    Args:
        result: the fits; `result.keypoints.image` names the pictures.
        faces_right, faces_left: (F, 3) vertex ids of each side's mesh, outward. Where left is the mirrored right model
            its faces are `faces_right[:, [0, 2, 1]]`.
        folder: made if missing.
        indices: rows of the result, all where None.
        max_size: px, the longer side of each drawing.
        suffix: ".png" or ".jpg" (a fifth of the size).

    Returns:
        The files, in the order of `indices`.
    """
    if suffix not in (".png", ".jpg"):
        raise InputError(f"overlays of kind {suffix!r} were asked for, expected .png or .jpg.")
    rows = check_rows(result, indices)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Named among all hands, so that a file's name does not depend on which others are drawn.
    names = file_names(result.keypoints.ids)
    paths = [target / (names[row] + suffix) for row in rows]
    # By picture, so that one at a time is in memory and each is read once.
    order = sorted(range(len(rows)), key=lambda k: (result.keypoints.image[rows[k]], k))
    key: tuple[str, tuple[float, float]] | None = None
    picture = Picture(None, "")
    for start in range(0, len(order), CHUNK):
        part = order[start : start + CHUNK]
        vertices = vertices_of(result, [rows[k] for k in part])
        for mesh, k in zip(vertices, part, strict=True):
            row = rows[k]
            width, height = result.keypoints.image_size[row].tolist()
            wanted = (result.keypoints.image[row], (width, height))
            if key is None or repr(key) != repr(wanted):  # NaN sizes are equal here, unlike as numbers.
                key, picture = wanted, load_picture(*wanted)
            faces = faces_right if bool(result.keypoints.is_right[row]) else faces_left
            _save(_draw_row(result, row, mesh, faces, picture, max_size), paths[k])
    return paths


def _draw_row(
    result: FitResult, row: int, vertices: np.ndarray, faces: np.ndarray, picture: Picture, size: int
) -> np.ndarray:
    points = torch.cat([result.keypoints.xy[row], result.keypoints.conf[row, :, None]], 1).numpy()
    fitted = result.keypoints_2d_fit[row].detach().cpu().double().numpy()
    camera = result.camera.select(torch.tensor([row], device=result.camera.focal.device))
    is_right = bool(result.keypoints.is_right[row])
    return draw_overlay(picture.pixels, vertices, faces, fitted, points, camera, is_right, size, remark=picture.remark)


def _lay_mesh(canvas: np.ndarray, vertices: np.ndarray, faces: np.ndarray, camera: Camera, is_right: bool) -> None:
    """Blend the mesh into the canvas, in place."""
    shaded = shade_mesh(vertices, faces, camera, (canvas.shape[1], canvas.shape[0]), MESH_COLOURS[is_right])
    if shaded is None:
        return
    height, width = shaded.cover.shape
    part = canvas[shaded.y0 : shaded.y0 + height, shaded.x0 : shaded.x0 + width]
    blended = part * (1 - MESH_OPACITY * shaded.cover[..., None]) + MESH_OPACITY * shaded.colour
    part[:] = np.round(blended).clip(0, 255).astype(np.uint8)


def _remarks(
    frame: Frame, picture: np.ndarray | None, points: np.ndarray, fitted: np.ndarray, has_fit: bool, remark: str
) -> list[str]:
    """What the drawing does not show, in a few words each."""
    out = [remark] if remark else []
    seen = np.isfinite(points).all(1)
    size = np.array(frame.size)
    if not has_fit:
        out.append("no fit")
    elif not ((frame.points(fitted) > -0.5) & (frame.points(fitted) < size - 0.5)).all(1).any():
        out.append("the fit lies outside this view")
    if not seen.any():
        out.append("no input points")
        return out
    at = frame.points(points[seen, :2])
    beyond = int((~((at > -0.5) & (at < size - 0.5)).all(1)).sum())
    if beyond:
        out.append(f"{beyond} input point{'s lie' if beyond > 1 else ' lies'} outside this view")
    if picture is not None:
        edge = np.array([picture.shape[1], picture.shape[0]]) - 0.5
        if not ((points[seen, :2] > -0.5) & (points[seen, :2] < edge)).all(1).any():
            out.append("the hand lies outside the picture")
    return out


def _save(drawing: np.ndarray, path: Path) -> None:
    from PIL import Image

    image = Image.fromarray(drawing)
    if path.suffix == ".jpg":
        image.save(path, quality=86, subsampling=0)
    else:
        # A quarter of the default's time for a tenth more bytes.
        image.save(path, compress_level=2)


def _on_cpu(camera: Camera) -> Camera:
    return Camera(
        camera.focal.detach().cpu().double(),
        camera.princpt.detach().cpu().double(),
        None if camera.dist is None else camera.dist.detach().cpu().double(),
        None,
    )
