"""The mesh is drawn where the camera puts it: compared with filling its projected triangles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from handloop.core.camera import Camera
from handloop.view.raycast import _Rays, shade_mesh

CANVAS = (320, 240)
LENSES = [None, [-0.3, 0.1, 0.002, -0.001, 0.0], [0.2, -0.05, 0.0, 0.003, 0.01, 0.1, 0.0, 0.0]]


def _camera(dist=None, focal=400.0):
    lens = None if dist is None else torch.tensor([dist]).double()
    return Camera(torch.tensor([[focal, focal * 1.05]]).double(), torch.tensor([[150.3, 118.9]]).double(), lens)


def _cover(vertices, faces, camera, colour=(200, 200, 200)):
    out = np.zeros((CANVAS[1], CANVAS[0]))
    shaded = shade_mesh(vertices, faces, camera, CANVAS, colour)
    if shaded is not None:
        h, w = shaded.cover.shape
        out[shaded.y0 : shaded.y0 + h, shaded.x0 : shaded.x0 + w] = shaded.cover
    return out


def _filled(vertices, faces, camera, factor=8):
    """The share of each pixel under the projected triangles, from a picture `factor` times as large."""
    px = camera.project(torch.from_numpy(vertices)[None])[0].numpy()
    large = Image.new("L", (CANVAS[0] * factor, CANVAS[1] * factor))
    draw = ImageDraw.Draw(large)
    for face in faces:
        draw.polygon([tuple(p) for p in (px[face] + 0.5) * factor - 0.5], fill=255)
    return np.asarray(large, dtype=float).reshape(CANVAS[1], factor, CANVAS[0], factor).mean((1, 3)) / 255


@pytest.mark.parametrize("dist", LENSES)
@pytest.mark.parametrize("place", [(0.0, 0.0, 0.4), (0.1, -0.07, 0.35), (-0.16, 0.05, 0.45)])
def test_cover_equals_the_projected_triangles(blob, dist, place):
    camera = _camera(dist)
    vertices = blob.template + place
    drawn, filled = _cover(vertices, blob.faces, camera), _filled(vertices, blob.faces, camera)
    assert filled.sum() > 2000
    # Nine rays against 64 samples of a pixel; Pillow fills a polygon's edge pixels too, 1/8 px each side.
    assert np.abs(drawn - filled).max() < 0.4
    assert abs(drawn.sum() / filled.sum() - 1) < 0.006


def test_distortion_moves_the_mesh(blob):
    vertices = blob.template + np.array([0.16, 0.1, 0.45])
    bent, straight = (_cover(vertices, blob.faces, _camera(d)) for d in (LENSES[1], None))
    assert np.abs(bent - straight).sum() > 100


@pytest.mark.parametrize("dist", LENSES[1:])
def test_rays_between_the_grid_are_exact_to_a_twentieth_of_a_pixel(dist):
    camera = _camera(dist, focal=170.0)  # 87 degrees across.
    x, y = np.random.default_rng(0).uniform(0, [[319], [239]], (2, 5000))
    rays = _Rays(camera, 0, 0, *CANVAS).at(x, y)
    back = camera.project(torch.from_numpy(np.column_stack([rays, np.ones(len(rays))]))[None])[0].numpy()
    assert np.abs(back - np.column_stack([x, y])).max() < 0.05


@pytest.mark.parametrize("distance", [0.5, 50.0, 1e5, 1e9])
def test_the_distance_does_not_matter_when_the_picture_is_the_same(blob, distance):
    # At a distance every view is orthographic, so all but the first agree to a pixel's edge.
    drawn = _cover(blob.template + np.array([0, 0, distance]), blob.faces, _camera(focal=800 * distance))
    reference = _cover(blob.template + np.array([0, 0, 50.0]), blob.faces, _camera(focal=800 * 50.0))
    assert abs(drawn.sum() / reference.sum() - 1) < (0.1 if distance < 1 else 2e-3)


def test_what_is_not_before_the_camera_is_left_out(blob):
    camera = _camera()
    assert shade_mesh(blob.template - [0, 0, 0.5], blob.faces, camera, CANVAS, (9, 9, 9)) is None
    assert shade_mesh(blob.template * np.nan, blob.faces, camera, CANVAS, (9, 9, 9)) is None
    assert shade_mesh(blob.template * 0, blob.faces, camera, CANVAS, (9, 9, 9)) is None
    assert shade_mesh(blob.template + np.array([50, 0, 0.5]), blob.faces, camera, CANVAS, (9, 9, 9)) is None
    assert np.isfinite(_cover(blob.template, blob.faces, camera)).all()  # The camera is inside.
    holed = blob.template + np.array([0, 0, 0.5])
    holed[7] = np.nan
    assert _cover(holed, blob.faces, camera).sum() > 1000


def test_outward_faces_are_light_and_inward_ones_dark(blob):
    vertices = blob.template + np.array([0, 0, 0.5])
    light = shade_mesh(vertices, blob.faces, _camera(), CANVAS, (200, 200, 200))
    dark = shade_mesh(vertices, blob.faces[:, ::-1], _camera(), CANVAS, (200, 200, 200))
    assert light.colour[light.cover == 1].mean() > 1.8 * dark.colour[dark.cover == 1].mean()


def test_the_nearer_surface_hides_the_farther_one():
    near = np.array([[-0.02, -0.02, 0.4], [-0.02, 0.02, 0.4], [0.02, -0.02, 0.4]])
    far = np.array([[-0.1, -0.1, 0.6], [0.1, -0.1, 0.6], [-0.1, 0.1, 0.6]])
    # The near triangle shows its outside, the far one its inside.
    shaded = shade_mesh(np.vstack([near, far]), np.array([[0, 1, 2], [3, 4, 5]]), _camera(), CANVAS, (200, 200, 200))
    at = np.array([150, 118]) + np.array([-6, -6]) - [shaded.x0, shaded.y0]
    assert shaded.colour[at[1], at[0]].mean() > 120
    assert 20 < shaded.colour[5, 5].mean() < 90
