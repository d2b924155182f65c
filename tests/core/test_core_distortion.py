"""The lens model against OpenCV and automatic differentiation."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.distortion import DISTORTION_LENGTHS, _distort, distort, undistort

# k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4, every coefficient non-zero so that none can be dropped or swapped unseen.
LENSES = {
    4: [-0.28, 0.07, 1.5e-3, -5e-4],
    5: [-0.35, 0.15, 1e-3, -2e-3, -0.03],
    8: [0.3, 0.1, 1e-3, -5e-4, 0.02, 0.5, 0.2, 0.01],
    12: [-0.2, 0.05, 1e-3, -5e-4, 0.01, 0.1, 0.02, 0.003, 1e-3, -2e-3, 5e-4, 1.5e-3],
}


def _lens(k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(LENSES[k], dtype=dtype)


def _points(n: int, reach: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-reach, reach, (n, 2)))


def _opencv_undistort(xy: np.ndarray, dist: np.ndarray) -> np.ndarray:
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-14)
    if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4.
        return cv2.undistortPointsIter(xy[:, None], np.eye(3), dist, None, None, criteria)[:, 0]
    return cv2.undistortPoints(xy[:, None], np.eye(3), dist, criteria=criteria)[:, 0]


def test_every_length_has_a_lens_here() -> None:
    assert tuple(LENSES) == DISTORTION_LENGTHS


@pytest.mark.parametrize("k", LENSES)
def test_distort_equals_opencv(k: int) -> None:
    xy = _points(500, 1.2)
    rays = np.concatenate([xy.numpy(), np.ones((500, 1))], 1)
    expected = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), _lens(k).numpy())[0][:, 0]
    np.testing.assert_allclose(distort(xy, _lens(k)).numpy(), expected, rtol=0, atol=2e-15)


@pytest.mark.parametrize("k", LENSES)
def test_undistort_equals_opencv_inside_the_picture(k: int) -> None:
    distorted = distort(_points(500, 0.6), _lens(k))
    expected = _opencv_undistort(distorted.numpy(), _lens(k).numpy())
    np.testing.assert_allclose(undistort(distorted, _lens(k)).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", LENSES)
def test_undistort_inverts_distort(k: int) -> None:
    xy = _points(2000, 0.9)
    torch.testing.assert_close(undistort(distort(xy, _lens(k)), _lens(k)), xy, rtol=0, atol=4e-15)
    back = undistort(distort(xy, _lens(k)).float(), _lens(k, torch.float32))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back.double(), xy, rtol=0, atol=1e-6)


def test_undistort_close_to_the_fold() -> None:
    """r (1 - 0.3 r^2) turns round at r = 1 / sqrt(0.9); up to 99 percent of it the point comes back."""
    fold = 1 / np.sqrt(0.9)
    radius = torch.linspace(0, 0.99 * fold, 200, dtype=torch.float64)
    turn = torch.linspace(0, 20, 200, dtype=torch.float64)
    xy = torch.stack([radius * turn.cos(), radius * turn.sin()], 1)
    lens = torch.tensor([-0.3, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(undistort(distort(xy, lens), lens), xy, rtol=0, atol=1e-12)


def test_undistort_where_no_answer_exists_stays_finite() -> None:
    """With k1 = -0.3 no point lands farther out than 0.703."""
    lens = torch.tensor([-0.3, 0, 0, 0], dtype=torch.float64)
    outside = torch.tensor([[0.75, 0.0], [3.0, -4.0], [0.5, 0.5], [50.0, 50.0]], dtype=torch.float64)
    result = undistort(outside, lens)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(distort(result[2], lens), outside[2], rtol=0, atol=0.01)


@pytest.mark.parametrize("k", LENSES)
def test_jacobian_equals_automatic_differentiation(k: int) -> None:
    xy = torch.cat([_points(50, 1.0), torch.zeros(1, 2, dtype=torch.float64)]).requires_grad_()
    out, jacobian = _distort(xy, _lens(k))
    rows = [torch.autograd.grad(out[:, i].sum(), xy, retain_graph=True)[0] for i in range(2)]
    torch.testing.assert_close(jacobian, torch.stack(rows, 1), rtol=0, atol=2e-15)


@pytest.mark.parametrize("k", LENSES)
def test_undistort_gradient_is_the_inverse_jacobian(k: int) -> None:
    """Implicit function theorem, at the centre too."""
    ideal = torch.cat([torch.zeros(1, 2, dtype=torch.float64), _points(20, 0.7)])
    distorted = distort(ideal, _lens(k)).requires_grad_()
    back = undistort(distorted, _lens(k))
    rows = [torch.autograd.grad(back[:, i].sum(), distorted, retain_graph=True)[0] for i in range(2)]
    forward = torch.stack([torch.autograd.functional.jacobian(lambda p: distort(p, _lens(k)), p) for p in ideal])
    torch.testing.assert_close(torch.stack(rows, 1), torch.linalg.inv(forward), rtol=0, atol=1e-11)


def test_absent_coefficients_are_zero() -> None:
    xy = _points(20, 1.0)
    for k in (4, 5, 8):
        padded = torch.cat([_lens(k), torch.zeros(12 - k, dtype=torch.float64)])
        assert torch.equal(distort(xy, _lens(k)), distort(xy, padded))
    assert torch.equal(distort(xy, torch.zeros(4, dtype=torch.float64)), xy)
    assert torch.equal(undistort(xy, torch.zeros(5, dtype=torch.float64)), xy)


def test_each_hand_has_its_own_lens_and_none_depends_on_the_others() -> None:
    xy = _points(3 * 21, 0.8).reshape(3, 21, 2)
    dist = torch.stack([_lens(5), torch.zeros(5, dtype=torch.float64), 0.5 * _lens(5)])[:, None]
    for function in (distort, undistort):
        batch = function(xy, dist)
        for i in range(3):
            assert torch.equal(function(xy[i], dist[i, 0]), batch[i])
            assert torch.equal(function(xy[i, 7], dist[i, 0]), batch[i, 7])
