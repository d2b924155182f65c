"""Cameras against OpenCV, pictures made of their own coordinates, and the published formulas of other tools."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.camera import (
    Camera,
    Pytorch3dCamera,
    from_pytorch3d,
    opengl_projection,
    points_to_opengl,
    to_pytorch3d,
    translation_from_weak_perspective,
    weak_perspective_from_translation,
)
from handloop.core.errors import InputError

F64 = torch.float64
LENSES = {
    4: [-0.28, 0.07, 1.5e-3, -5e-4],
    5: [-0.25, 0.1, 1e-3, -2e-3, -0.03],
    8: [0.3, 0.1, 1e-3, -5e-4, 0.02, 0.5, 0.2, 0.01],
    12: [-0.2, 0.05, 1e-3, -5e-4, 0.01, 0.1, 0.02, 0.003, 1e-3, -2e-3, 5e-4, 1.5e-3],
}


def _points(n: int, seed: int = 0) -> Tensor:
    """(n, 21, 3) m, half a metre away, all inside a 60 degree view."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-0.12, 0.12, (n, 21, 3)) + np.array([0.05, -0.03, 0.5]))


def _camera(dist: Tensor | None = None, n: int = 2) -> Camera:
    focal = torch.tensor([[612.0, 605.5], [700.0, 690.0], [480.0, 481.0]], dtype=F64)[:n]
    princpt = torch.tensor([[321.25, 239.5], [300.0, 255.0], [200.5, 150.25]], dtype=F64)[:n]
    return Camera(focal, princpt, dist)


def _message(error: pytest.ExceptionInfo[InputError]) -> str:
    return str(error.value)


# Projection.


def test_project_by_hand() -> None:
    camera = Camera(torch.tensor([[500.0, 400.0]], dtype=F64), torch.tensor([[320.0, 240.0]], dtype=F64))
    points = torch.tensor([[[0.0, 0, 1], [0.2, -0.1, 2.0], [-0.5, 0.25, 0.5]]], dtype=F64)
    assert camera.project(points).tolist() == [[[320.0, 240.0], [370.0, 220.0], [-180.0, 440.0]]]


@pytest.mark.parametrize("k", [0, *LENSES])
def test_project_equals_opencv(k: int) -> None:
    points = _points(2)
    dist = torch.tensor([LENSES[k], [0.7 * c for c in LENSES[k]]], dtype=F64) if k else None
    camera = _camera(dist)
    for i in range(2):
        lens = None if dist is None else dist[i].numpy()
        args = (np.zeros(3), np.zeros(3), camera.matrix()[i].numpy(), lens)
        expected = cv2.projectPoints(points[i].numpy(), *args)[0][:, 0]
        np.testing.assert_allclose(camera.project(points)[i].numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("k", [0, *LENSES])
def test_normalise_inverts_project(k: int) -> None:
    points = _points(2)
    dist = torch.tensor([LENSES[k], [0.7 * c for c in LENSES[k]]], dtype=F64) if k else None
    camera = _camera(dist)
    expected = points[..., :2] / points[..., 2:]
    torch.testing.assert_close(camera.normalise(camera.project(points)), expected, rtol=0, atol=1e-14)
    single = camera.normalise(camera.project(points).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)


def test_undistort_gives_the_pixels_of_a_perfect_lens() -> None:
    camera = _camera(torch.tensor([LENSES[5], LENSES[5]], dtype=F64))
    points = _points(2)
    pinhole = camera.without_distortion()
    assert pinhole.dist is None and torch.equal(pinhole.focal, camera.focal)
    expected = torch.einsum("nij,npj->npi", camera.matrix(), points)
    expected = expected[..., :2] / expected[..., 2:]
    assert float((camera.project(points) - expected).abs().max()) > 5  # The lens does something here.
    torch.testing.assert_close(camera.undistort(camera.project(points)), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(pinhole.project(points), expected, rtol=0, atol=1e-11)


def test_points_behind_the_camera_are_nan_and_harm_no_other() -> None:
    points = _points(2)
    clean = _camera().project(points)
    points[0, 3, 2], points[1, 4, 2] = -0.5, 0.0
    got = _camera().project(points)
    bad = torch.zeros(2, 21, dtype=torch.bool)
    bad[0, 3] = bad[1, 4] = True
    assert torch.isnan(got[bad]).all()
    assert torch.equal(got[~bad], clean[~bad])
    lens = torch.tensor([LENSES[8]] * 2, dtype=F64)
    assert torch.equal(torch.isnan(_camera(lens).project(points)).all(-1), bad)


def test_project_follows_the_dtype_of_the_points() -> None:
    got = _camera(torch.tensor([LENSES[5]] * 2, dtype=F64)).project(_points(2).float())
    assert got.dtype == torch.float32
    exact = _camera(torch.tensor([LENSES[5]] * 2, dtype=F64)).project(_points(2))
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=3e-4)


def test_project_gradient() -> None:
    camera = _camera(torch.tensor([LENSES[12]] * 2, dtype=F64))
    assert torch.autograd.gradcheck(camera.project, _points(2)[:, :3].clone().requires_grad_())


def test_one_camera_alone_equals_the_camera_in_a_batch() -> None:
    points = _points(3)
    camera = _camera(torch.tensor([LENSES[5], [0.0] * 5, [c / 2 for c in LENSES[5]]], dtype=F64), 3)
    uv, xy = camera.project(points), camera.normalise(camera.project(points))
    for i in range(3):
        alone = camera.select(torch.tensor([i]))
        assert torch.equal(alone.project(points[i : i + 1])[0], uv[i])
        assert torch.equal(alone.normalise(uv[i : i + 1])[0], xy[i])


# Pictures: a ramp whose values are its own coordinates says where a pixel of the new picture came from.


def _ramp(width: int, height: int) -> np.ndarray:
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    return np.stack([u, v], -1)


def _old_pixel_of(camera: Camera, changed: Camera, new_pixel: tuple[int, int]) -> np.ndarray:
    """Where `camera` sees the ray that `changed` sees at `new_pixel`."""
    ray = changed.normalise(torch.tensor([[new_pixel]], dtype=F64))
    return camera.project(torch.cat([ray, torch.ones(1, 1, 1, dtype=F64)], -1))[0, 0].numpy()


def test_crop_moves_pixels_as_slicing_an_array_does() -> None:
    camera = _camera(n=1)
    cropped = _ramp(640, 480)[50:, 100:]
    for u, v in [(0, 0), (17, 240), (300, 3)]:
        np.testing.assert_allclose(_old_pixel_of(camera, camera.crop(100, 50), (u, v)), cropped[v, u], atol=1e-10)


def test_crop_per_hand_and_mixed() -> None:
    camera = _camera()
    x0 = torch.tensor([10.0, 20.0], dtype=F64)
    assert camera.crop(x0, 5).princpt.tolist() == [[311.25, 234.5], [280.0, 250.0]]
    assert camera.crop(10, x0).princpt.tolist() == [[311.25, 229.5], [290.0, 235.0]]
    assert torch.equal(camera.crop(x0, x0).focal, camera.focal)


def test_resize_moves_pixels_as_area_averaging_does() -> None:
    camera = _camera(n=1)
    small = cv2.resize(_ramp(640, 480), (160, 120), interpolation=cv2.INTER_AREA)
    for u, v in [(0, 0), (17, 60), (159, 119)]:
        np.testing.assert_allclose(_old_pixel_of(camera, camera.resize(0.25), (u, v)), small[v, u], atol=1e-10)


def test_resize_moves_pixels_as_linear_interpolation_does() -> None:
    camera = _camera(n=1)
    large = cv2.resize(_ramp(640, 480), (1920, 1440), interpolation=cv2.INTER_LINEAR)
    for u, v in [(100, 200), (1001, 700)]:  # Away from the border, where OpenCV repeats pixels.
        np.testing.assert_allclose(_old_pixel_of(camera, camera.resize(3), (u, v)), large[v, u], atol=1e-4)


def test_resize_per_hand_keeps_the_lens() -> None:
    lens = torch.tensor([LENSES[5]] * 2, dtype=F64)
    camera = _camera(lens)
    factor = torch.tensor([0.5, 2.0], dtype=F64)
    uv = camera.project(_points(2))
    expected = (uv + 0.5) * factor[:, None, None] - 0.5
    torch.testing.assert_close(camera.resize(factor).project(_points(2)), expected, rtol=0, atol=1e-10)


def test_mirror_shows_the_mirrored_points() -> None:
    camera = _camera(n=1)
    width = torch.tensor([640.0], dtype=F64)
    mirrored = _ramp(640, 480)[:, ::-1]
    uv = camera.project(_points(1))
    seen = camera.mirror(width).project(_points(1) * torch.tensor([-1.0, 1, 1], dtype=F64))
    torch.testing.assert_close(seen[..., 0], 639 - uv[..., 0], rtol=0, atol=1e-10)
    torch.testing.assert_close(seen[..., 1], uv[..., 1], rtol=0, atol=0)
    assert mirrored[7, 100].tolist() == [639 - 100, 7]
    assert torch.equal(camera.mirror(width).mirror(width).princpt, camera.princpt)


def test_crop_resize_mirror_keep_what_is_known() -> None:
    camera = Camera(*[t.clone() for t in (_camera().focal, _camera().princpt)], known=torch.tensor([True, False]))
    width = torch.tensor([640.0, 640.0], dtype=F64)
    for changed in (camera.crop(3, 4), camera.resize(2), camera.mirror(width), camera.without_distortion()):
        assert changed.is_known().tolist() == [True, False]


# Where cameras come from.


def test_matrix_round_trip() -> None:
    k = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])
    for given in (k, torch.from_numpy(k), k.tolist(), k.astype(np.float32)):
        camera = Camera.from_matrix(given)
        assert len(camera) == 1 and camera.focal.dtype == F64
        np.testing.assert_array_equal(camera.matrix()[0].numpy(), k)
    several = np.stack([k, k + np.diag([5.0, 7.0, 0])])
    for n in (None, 2):
        np.testing.assert_array_equal(Camera.from_matrix(several, n).matrix().numpy(), several)
    np.testing.assert_array_equal(Camera.from_matrix(k, 3).matrix().numpy(), np.stack([k] * 3))
    assert Camera.from_matrix(k, 3).is_known().all()


def test_from_matrix_copies() -> None:
    k = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])
    camera = Camera.from_matrix(k)
    k[:] = -1
    assert camera.focal.tolist() == [[600, 610]] and camera.princpt.tolist() == [[320, 240]]


def test_field_of_view_spans_the_picture_edge_to_edge() -> None:
    size = torch.tensor([[640.0, 480.0], [1920.0, 1080.0]], dtype=F64)
    camera = Camera.from_fov(70.0, size)
    # Pixel areas reach half a pixel beyond their centres.
    edges = torch.stack([torch.full((2,), -0.5, dtype=F64), size[:, 0] - 0.5], 1)
    x = camera.normalise(torch.stack([edges, torch.zeros(2, 2, dtype=F64)], -1))[..., 0]
    expected = math.tan(math.radians(35.0))
    np.testing.assert_allclose(x.numpy(), [[-expected, expected]] * 2, rtol=0, atol=1e-12)
    assert camera.princpt.tolist() == [[319.5, 239.5], [959.5, 539.5]]
    assert torch.equal(camera.focal[:, 0], camera.focal[:, 1]) and bool(camera.is_known().all())


def test_assumed_focal_with_and_without_the_image_size() -> None:
    nan = float("nan")
    size = torch.tensor([[640.0, 480.0], [nan, nan], [640.0, nan]], dtype=F64)
    box = torch.tensor([[10.0, 10, 60, 110], [100.0, 200, 300, 260], [5.0, 5, 5, 5]], dtype=F64)
    camera = Camera.assumed(size, box)
    assert camera.focal.tolist() == [[800.0, 800.0], [800.0, 800.0], [4.0, 4.0]]
    assert camera.princpt.tolist() == [[319.5, 239.5], [200.0, 230.0], [5.0, 5.0]]
    assert camera.is_known().tolist() == [False] * 3
    # 53.13 degrees across the diagonal, whatever the size.
    corner = torch.tensor([[-0.5, -0.5]], dtype=F64)[None]
    half = torch.atan(camera.select(torch.tensor([0])).normalise(corner).norm())
    assert math.degrees(2 * float(half)) == pytest.approx(53.1301, abs=1e-4)


def test_assumed_camera_of_a_hand_depends_on_that_hand_alone() -> None:
    rng = np.random.default_rng(3)
    size = torch.from_numpy(rng.uniform(100, 2000, (5, 2)))
    size[::2] = float("nan")
    low = rng.uniform(0, 300, (5, 2))
    box = torch.from_numpy(np.concatenate([low, low + rng.uniform(5, 200, (5, 2))], 1))
    batch = Camera.assumed(size, box)
    for i in range(5):
        alone = Camera.assumed(size[i : i + 1], box[i : i + 1])
        assert torch.equal(alone.focal[0], batch.focal[i]) and torch.equal(alone.princpt[0], batch.princpt[i])


def test_select_by_numbers_and_by_mask() -> None:
    lens = torch.tensor([LENSES[4], [0.0] * 4, [1e-3] * 4], dtype=F64)
    base = _camera(lens, 3)
    camera = Camera(base.focal, base.princpt, lens, torch.tensor([True, False, True]))
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        rows = index.nonzero()[:, 0].tolist() if index.dtype == torch.bool else index.tolist()
        chosen = camera.select(index)
        assert chosen.dist is not None
        assert chosen.focal.tolist() == [base.focal[i].tolist() for i in rows]
        assert chosen.princpt.tolist() == [base.princpt[i].tolist() for i in rows]
        assert chosen.dist.tolist() == [lens[i].tolist() for i in rows]
    assert camera.select(torch.tensor([1])).is_known().tolist() == [False]
    assert _camera().select(torch.tensor([1])).dist is None


# Weak perspective.


def _weak(n: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(5)
    weak = np.concatenate([rng.uniform(0.5, 1.5, (n, 1)), rng.uniform(-0.2, 0.2, (n, 2))], 1)
    arrays = (weak, rng.uniform(400, 6000, n), rng.uniform(0, 1000, (n, 2)), rng.uniform(50, 400, n))
    size = rng.uniform(200, 2000, (n, 2))
    return (*(torch.from_numpy(a) for a in arrays), torch.from_numpy(size))  # type: ignore[return-value]


def test_weak_perspective_equals_hamers_published_formula() -> None:
    """tz = 2 f / (b s), tx = 2 (cx - W/2) / (b s) + tx', and the same for y (HaMeR, `cam_crop_to_full`)."""
    weak, focal, center, box, size = _weak()
    bs = box * weak[:, 0] + 1e-9
    tx = 2 * (center[:, 0] - size[:, 0] / 2) / bs + weak[:, 1]
    ty = 2 * (center[:, 1] - size[:, 1] / 2) / bs + weak[:, 2]
    expected = torch.stack([tx, ty, 2 * focal / bs], 1)
    got = translation_from_weak_perspective(weak, focal, center, box, size / 2)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_weak_perspective_keeps_the_picture() -> None:
    """A point of the hand at its own depth zero lands where u = centre + b/2 s (x + tx) says."""
    weak, focal, center, box, size = _weak()
    transl = translation_from_weak_perspective(weak, focal, center, box, size / 2)
    flat = torch.from_numpy(np.random.default_rng(6).uniform(-0.1, 0.1, (50, 21, 3))) * torch.tensor([1.0, 1, 0])
    uv = Camera(focal[:, None].repeat(1, 2), size / 2).project(flat + transl[:, None])
    crop = weak[:, None, :1] * (flat[..., :2] + weak[:, None, 1:])
    torch.testing.assert_close(uv, center[:, None] + box[:, None, None] / 2 * crop, rtol=0, atol=1e-9)


def test_weak_perspective_round_trip() -> None:
    weak, focal, center, box, size = _weak()
    transl = translation_from_weak_perspective(weak, focal, center, box, size / 2)
    back = weak_perspective_from_translation(transl, focal, center, box, size / 2)
    torch.testing.assert_close(back, weak, rtol=0, atol=1e-13)


# OpenGL and pytorch3d.

SIZES = torch.tensor([[640.0, 480.0], [480.0, 640.0], [512.0, 512.0]], dtype=F64)


def test_opengl_points_turn_half_a_turn_about_x() -> None:
    points = _points(1)
    got = points_to_opengl(points)
    assert got[0, 0].tolist() == [points[0, 0, 0], -points[0, 0, 1], -points[0, 0, 2]]
    assert torch.equal(points_to_opengl(got), points)
    assert points_to_opengl(points.float()).dtype == torch.float32


def test_opengl_projection_lands_on_the_same_pixels() -> None:
    camera, points = _camera(n=3), _points(3)
    matrix = opengl_projection(camera, SIZES, 0.1, 10.0)
    homogeneous = torch.cat([points_to_opengl(points), torch.ones(3, 21, 1, dtype=F64)], -1)
    clip = torch.einsum("nij,npj->npi", matrix, homogeneous)
    ndc = clip[..., :3] / clip[..., 3:]
    # Window coordinates: x right from the left edge, y up from the bottom edge, pixel centres at halves.
    width, height = SIZES[:, None].unbind(-1)
    u = (ndc[..., 0] + 1) / 2 * width - 0.5
    v = (1 - ndc[..., 1]) / 2 * height - 0.5
    torch.testing.assert_close(torch.stack([u, v], -1), camera.project(points), rtol=0, atol=1e-10)


def test_opengl_projection_equals_gluperspective_for_a_centred_camera() -> None:
    size, near, far = torch.tensor([[800.0, 600.0]], dtype=F64), 0.2, 5.0
    camera = Camera.from_fov(60.0, size)
    fovy = 2 * math.atan(600 / 800 * math.tan(math.radians(30)))
    f = 1 / math.tan(fovy / 2)
    expected = torch.tensor(
        [
            [f / (800 / 600), 0, 0, 0],
            [0, f, 0, 0],
            [0, 0, (far + near) / (near - far), 2 * far * near / (near - far)],
            [0, 0, -1, 0],
        ],
        dtype=F64,
    )
    torch.testing.assert_close(opengl_projection(camera, size, near, far)[0], expected, rtol=0, atol=1e-14)
    for depth, ndc in ((near, -1.0), (far, 1.0)):
        clip = expected @ torch.tensor([0, 0, -depth, 1], dtype=F64)
        assert float(clip[2] / clip[3]) == pytest.approx(ndc, abs=1e-14)


def test_pytorch3d_by_hand() -> None:
    """480 px high, so 240 px are one NDC unit; the middle of the picture is the pixel corner (320, 240)."""
    camera = Camera(
        torch.tensor([[480.0, 360.0]], dtype=F64),
        torch.tensor([[319.5 + 24, 239.5 - 12]], dtype=F64),
    )
    got = to_pytorch3d(camera, SIZES[:1])
    assert got.focal_length.tolist() == [[2.0, 1.5]]
    np.testing.assert_allclose(got.principal_point.numpy(), [[-0.1, 0.05]], rtol=0, atol=1e-15)
    assert got.R.tolist() == [[[-1, 0, 0], [0, -1, 0], [0, 0, 1]]] and got.T.tolist() == [[0, 0, 0]]


def test_pytorch3d_lands_on_the_same_pixels() -> None:
    """Its documented chain: view = X R + T; ndc = f xy / z + p; screen = W/2 - s/2 ndc with s the shorter side."""
    camera, points = _camera(n=3), _points(3)
    p3d = to_pytorch3d(camera, SIZES)
    view = points @ p3d.R + p3d.T[:, None]
    ndc = p3d.focal_length[:, None] * view[..., :2] / view[..., 2:] + p3d.principal_point[:, None]
    short = SIZES.min(1).values[:, None, None]
    screen = SIZES[:, None] / 2 - short / 2 * ndc
    torch.testing.assert_close(screen - 0.5, camera.project(points), rtol=0, atol=1e-10)


def test_pytorch3d_round_trip() -> None:
    camera = _camera(n=3)
    back = from_pytorch3d(to_pytorch3d(camera, SIZES), SIZES)
    torch.testing.assert_close(back.focal, camera.focal, rtol=0, atol=1e-12)
    torch.testing.assert_close(back.princpt, camera.princpt, rtol=0, atol=1e-12)


def test_pytorch3d_with_extrinsics_is_refused() -> None:
    p3d = to_pytorch3d(_camera(n=3), SIZES)
    moved = Pytorch3dCamera(p3d.R, p3d.T + 0.1, p3d.focal_length, p3d.principal_point)
    turned = Pytorch3dCamera(torch.eye(3, dtype=F64).expand(3, 3, 3), p3d.T, p3d.focal_length, p3d.principal_point)
    for camera in (moved, turned):
        with pytest.raises(InputError) as error:
            from_pytorch3d(camera, SIZES)
        expected = "the pytorch3d camera has extrinsics; express the points in its view frame first."
        assert _message(error) == expected


def test_a_lens_is_never_dropped_in_silence() -> None:
    camera = _camera(torch.tensor([LENSES[5]] * 2, dtype=F64))
    calls = {
        "remove the lens distortion before mirroring a camera.": lambda: camera.mirror(SIZES[:2, 0]),
        "remove the lens distortion before converting a camera to OpenGL.": lambda: opengl_projection(
            camera, SIZES[:2], 0.1, 10.0
        ),
        "remove the lens distortion before converting a camera to pytorch3d.": lambda: to_pytorch3d(camera, SIZES[:2]),
    }
    for expected, call in calls.items():
        with pytest.raises(InputError) as error:
            call()
        assert _message(error) == expected


# Errors, word for word.

LAST_ROW = "K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; its last row is not 0 0 1 (transposed?)."
SKEW = "K has a skew entry, which this camera model lacks; rectify the picture or set it to 0."
NOT_POSITIVE = "the camera holds a focal length that is not positive or a value that is not finite."
K = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])


def _changed(row: int, column: int, value: float) -> np.ndarray:
    k = K.copy()
    k[row, column] = value
    return k


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (K.T, LAST_ROW),
        (K * 2, LAST_ROW),
        (_changed(2, 2, float("nan")), LAST_ROW),
        (_changed(0, 1, 2.0), SKEW),
        (_changed(0, 1, -2.0), SKEW),
        (_changed(1, 0, 2.0), SKEW),
        (_changed(0, 1, float("nan")), SKEW),
        (_changed(0, 0, -600.0), NOT_POSITIVE),
        (_changed(1, 1, 0.0), NOT_POSITIVE),
        (_changed(0, 2, float("nan")), NOT_POSITIVE),
        (_changed(0, 0, float("inf")), NOT_POSITIVE),
        (K[:2], "K has shape (2, 3), expected (N, 3, 3)."),
        (np.zeros((4, 3, 4)), "K has shape (4, 3, 4), expected (N, 3, 3)."),
    ],
)
def test_bad_matrices(k: np.ndarray, expected: str) -> None:
    with pytest.raises(InputError) as error:
        Camera.from_matrix(k)
    assert _message(error) == expected


def test_one_bad_matrix_among_many_is_found() -> None:
    with pytest.raises(InputError) as error:
        Camera.from_matrix(np.stack([K, K, _changed(0, 1, 3.0)]))
    assert _message(error) == SKEW


def test_skew_of_rounding_size_is_accepted() -> None:
    assert Camera.from_matrix(_changed(0, 1, 1e-5)).matrix()[0, 0, 1] == 0


def test_wrong_number_of_matrices() -> None:
    with pytest.raises(InputError) as error:
        Camera.from_matrix(np.stack([K, K]), 3)
    assert _message(error) == "K has shape (2, 3, 3), expected (3, 3, 3)."


@pytest.mark.parametrize(
    ("shape", "given"), [((2, 6), "(2, 6)"), ((2, 14), "(2, 14)"), ((3, 5), "(3, 5)"), ((2,), "(2,)"), ((2, 1, 5),) * 2]
)
def test_bad_distortion_shapes(shape: tuple[int, ...], given: object) -> None:
    with pytest.raises(InputError) as error:
        _camera(torch.zeros(shape, dtype=F64))
    assert _message(error) == (
        f"distortion coefficients have shape {given}, expected (2, k) with k one of (4, 5, 8, 12) "
        "in OpenCV's order k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4."
    )


def test_other_bad_fields() -> None:
    focal, princpt = torch.full((2, 2), 500.0, dtype=F64), torch.zeros(2, 2, dtype=F64)
    cases = [
        ((focal[:, :1], princpt), "camera focal has shape (2, 1), expected (2, 2)."),
        ((focal, princpt[:1]), "camera princpt has shape (1, 2), expected (2, 2)."),
        (
            (focal, princpt, torch.full((2, 5), float("nan"))),
            "the camera holds a distortion coefficient that is not finite.",
        ),
        ((focal, princpt, None, torch.ones(3, dtype=torch.bool)), "camera known has shape (3,), expected (2)."),
    ]
    for args, expected in cases:
        with pytest.raises(InputError) as error:
            Camera(*args)
        assert _message(error) == expected


@pytest.mark.parametrize("degrees", [0.0, 1.0, 179.0, -60.0, float("nan"), 1.2e9])
def test_bad_field_of_view(degrees: float) -> None:
    with pytest.raises(InputError) as error:
        Camera.from_fov(degrees, SIZES)
    assert _message(error) == f"a field of view of {degrees} degrees was given, expected 1 to 179."


def test_field_of_view_without_the_image_size() -> None:
    size = SIZES.clone()
    size[1, 0] = float("nan")
    with pytest.raises(InputError) as error:
        Camera.from_fov(60.0, size)
    assert _message(error) == ("a field of view needs the image size, which is unknown here: give --image-size W H.")
