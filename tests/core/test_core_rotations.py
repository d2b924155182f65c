"""Rotations against scipy, matrix exponentials and derivatives taken without any of the formulas under test."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.core.rotations import (
    angle_from_sides,
    left_jacobian,
    left_jacobian_inverse,
    matrix_from_6d,
    matrix_to_6d,
    quaternion_from_matrix,
    right_jacobian,
    right_jacobian_inverse,
    skew,
    so3_exp,
    so3_log,
)

TINY = (1e-12, 1e-10, 1e-8, 1e-7, 5e-7, 9.9e-7, 2.1e-6, 1e-5, 1e-4, 1e-3)
# 0.3162 is where the code changes between series and quotient (angle^2 = 0.1).
MIDDLE = (0.01, 0.1, 0.3, 0.3162, 0.3163, 0.5, 1.0, 1.5707963, 2.0, 3.0)
NEAR_PI = tuple(math.pi - d for d in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6))
ANGLES = (0.0, *TINY, *MIDDLE, *NEAR_PI, math.pi)


def _axes() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    special = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [1, 1, 1], [1, -1, 0], [0, 1, 1e-4], [1e-5, -1e-5, 1]]
    rows = torch.cat([torch.tensor(special, dtype=torch.float64), torch.randn(120, 3, generator=generator).double()])
    return rows / rows.norm(dim=1, keepdim=True)


AXES = _axes()
GENERATORS = torch.tensor(
    [[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]],
    dtype=torch.float64,
)


def _cross_matrix(w: Tensor) -> Tensor:
    return torch.einsum("...k,kij->...ij", w.double(), GENERATORS)


def _scipy_matrices(w: Tensor) -> Tensor:
    return torch.from_numpy(Rotation.from_rotvec(w.double().numpy()).as_matrix())


def _integral_jacobian(w: Tensor) -> Tensor:
    """Left Jacobian as int_0^1 exp(s K) ds: the upper right block of exp([[K, I], [0, 0]])."""
    block = torch.zeros(*w.shape[:-1], 6, 6, dtype=torch.float64)
    block[..., :3, :3] = _cross_matrix(w)
    block[..., :3, 3:] = torch.eye(3, dtype=torch.float64)
    return torch.linalg.matrix_exp(block)[..., :3, 3:]


def _angle_between(w: Tensor, r: Tensor) -> float:
    """Largest angle of R(w)^-1 r in rad; exact for tiny angles too."""
    delta = Rotation.from_rotvec(w.double().numpy()).inv() * Rotation.from_matrix(r.double().numpy())
    return float(delta.magnitude().max())


def test_skew_is_the_cross_product() -> None:
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(2, 50, 3))
    got = (skew(torch.from_numpy(v)) @ torch.from_numpy(w)[..., None])[..., 0]
    np.testing.assert_allclose(got.numpy(), np.cross(v, w), rtol=0, atol=1e-15)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_float64_equals_scipy_and_the_matrix_exponential(angle: float) -> None:
    w = AXES * angle
    torch.testing.assert_close(so3_exp(w), _scipy_matrices(w), rtol=0, atol=2e-15)
    torch.testing.assert_close(so3_exp(w), torch.linalg.matrix_exp(_cross_matrix(w)), rtol=0, atol=5e-15)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_float32_is_within_four_ulp(angle: float) -> None:
    w = (AXES * angle).float()
    r = so3_exp(w)
    assert r.dtype == torch.float32
    torch.testing.assert_close(r.double(), _scipy_matrices(w), rtol=0, atol=5e-7)
    torch.testing.assert_close(r @ r.mT, torch.eye(3).expand_as(r), rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", TINY)
def test_exp_keeps_every_digit_of_tiny_angles(angle: float) -> None:
    """The antisymmetric part of a tiny rotation is the vector itself, to relative precision."""
    for dtype, tolerance in ((torch.float64, 4e-16), (torch.float32, 3e-7)):
        w = (AXES * angle).to(dtype)
        r = so3_exp(w).double()
        vee = torch.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], 1) / 2
        sine = w.double() * (math.sin(angle) / angle)
        assert float((vee - sine).abs().max()) <= tolerance * angle


def test_exp_beyond_pi() -> None:
    for angle in (3.5, 4.7, 6.2, 2 * math.pi, 9.0):
        w = AXES * angle
        torch.testing.assert_close(so3_exp(w), _scipy_matrices(w), rtol=0, atol=4e-15)


@pytest.mark.parametrize("angle", ANGLES[:-2])
def test_log_float64_equals_scipy(angle: float) -> None:
    r = _scipy_matrices(AXES * angle)
    expected = torch.from_numpy(Rotation.from_matrix(r.numpy()).as_rotvec())
    torch.testing.assert_close(so3_log(r), expected, rtol=1e-12, atol=3e-15)


@pytest.mark.parametrize("angle", ANGLES)
def test_round_trip_float64(angle: float) -> None:
    w = AXES * angle
    back = so3_log(so3_exp(w))
    assert _angle_between(back, _scipy_matrices(w)) <= 2e-15
    if angle < math.pi - 1e-12:
        assert float((back - w).norm(dim=1).max()) <= 1e-12 * angle


@pytest.mark.parametrize("angle", ANGLES)
def test_round_trip_float32(angle: float) -> None:
    w = (AXES * angle).float()
    back = so3_log(so3_exp(w))
    assert back.dtype == torch.float32
    error = Rotation.from_rotvec(w.double().numpy()).inv() * Rotation.from_rotvec(back.double().numpy())
    # Measured 7e-7 at most; arccos of the trace would lose 5e-4 here.
    assert float(error.magnitude().max()) <= 2e-6
    if angle < math.pi - 5e-6:
        assert float((back - w).norm(dim=1).max()) <= min(2e-6, 1e-6 * angle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e-4, 3e-5, 1e-5, 1e-6, 1e-7, 1e-9, 0.0])
def test_log_within_a_tenth_of_a_milliradian_of_pi(dtype: torch.dtype, gap: float) -> None:
    w = AXES * (math.pi - gap)
    r = _scipy_matrices(w).to(dtype)
    got = so3_log(r).double()
    rounding = 5e-7 if dtype == torch.float32 else 2e-15
    off = torch.minimum((got - w).norm(dim=1), (got + w).norm(dim=1) - 2 * gap)
    assert float(off.max()) <= 4 * rounding
    assert float(got.norm(dim=1).max()) <= math.pi + rounding


def test_log_of_half_turns_about_the_coordinate_axes() -> None:
    for i in range(3):
        r = -torch.eye(3, dtype=torch.float64)
        r[i, i] = 1
        got = so3_log(r)
        expected = torch.zeros(3, dtype=torch.float64)
        expected[i] = math.pi
        torch.testing.assert_close(got.abs(), expected, rtol=0, atol=1e-15)


def test_log_of_identity_is_exactly_zero() -> None:
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(so3_log(torch.eye(3, dtype=dtype)), torch.zeros(3, dtype=dtype))


def test_log_returns_the_short_way_round() -> None:
    axis = AXES[20:40]
    torch.testing.assert_close(so3_log(so3_exp(axis * 1.5 * math.pi)), -axis * 0.5 * math.pi, rtol=0, atol=1e-14)
    torch.testing.assert_close(so3_log(so3_exp(axis * (2 * math.pi - 1e-3))), -axis * 1e-3, rtol=0, atol=1e-14)


def test_quaternion_equals_scipy_in_each_of_its_four_branches() -> None:
    rng = np.random.default_rng(1)
    # Each component in turn dominates, so that each row of Shepperd's table is used.
    quats = np.concatenate([rng.normal(size=(40, 4)) * 0.3 + 3 * np.eye(4)[i] for i in range(4)])
    rotation = Rotation.from_quat(quats)
    expected = rotation.as_quat()[:, [3, 0, 1, 2]]
    got = quaternion_from_matrix(torch.from_numpy(rotation.as_matrix())).numpy()
    got = got * np.sign((got * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)


def test_quaternion_has_unit_length_for_matrices_with_rounding() -> None:
    r = so3_exp(torch.randn(200, 3, generator=torch.Generator().manual_seed(2)) * 2)
    noisy = r + 1e-5 * torch.randn(r.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(quaternion_from_matrix(noisy).norm(dim=1), torch.ones(200), rtol=0, atol=3e-7)


@pytest.mark.parametrize("angle", [*ANGLES, 4.0, 5.5])
def test_jacobians_equal_the_integral_of_the_exponential(angle: float) -> None:
    w = AXES * angle
    left = _integral_jacobian(w)
    torch.testing.assert_close(left_jacobian(w), left, rtol=0, atol=1e-14)
    torch.testing.assert_close(right_jacobian(w), left.mT, rtol=0, atol=1e-14)
    torch.testing.assert_close(left_jacobian_inverse(w), torch.linalg.inv(left), rtol=0, atol=2e-13)
    torch.testing.assert_close(right_jacobian_inverse(w), torch.linalg.inv(left).mT, rtol=0, atol=2e-13)


@pytest.mark.parametrize("angle", ANGLES)
def test_jacobians_float32(angle: float) -> None:
    w = (AXES * angle).float()
    left = _integral_jacobian(w)
    torch.testing.assert_close(left_jacobian(w).double(), left, rtol=0, atol=1e-6)
    torch.testing.assert_close(left_jacobian_inverse(w).double(), torch.linalg.inv(left), rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-3, 0.3162, 1.0, math.pi])
def test_jacobians_are_the_derivative_they_claim_to_be(angle: float) -> None:
    """dR = skew(J_l d) R = R skew(J_r d), with dR by automatic differentiation of the matrix exponential."""
    for w in AXES[[0, 4, 30, 31]] * angle:
        r = torch.linalg.matrix_exp(_cross_matrix(w))
        derivative = torch.autograd.functional.jacobian(lambda v: torch.linalg.matrix_exp(_cross_matrix(v)), w)
        for k in range(3):
            left = derivative[..., k] @ r.mT
            torch.testing.assert_close(left, _cross_matrix(left_jacobian(w)[:, k]), rtol=0, atol=1e-14)
            right = r.mT @ derivative[..., k]
            torch.testing.assert_close(right, _cross_matrix(right_jacobian(w)[:, k]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [0.1, 1.0, 3.0])
def test_inverse_jacobians_are_the_derivative_of_the_logarithm(angle: float) -> None:
    h = 1e-6
    for w in AXES[[4, 30, 31]] * angle:
        rotation = Rotation.from_rotvec(w.numpy())
        for k in range(3):
            step = Rotation.from_rotvec(h * np.eye(3)[k])
            left = ((step * rotation).as_rotvec() - (step.inv() * rotation).as_rotvec()) / (2 * h)
            right = ((rotation * step).as_rotvec() - (rotation * step.inv()).as_rotvec()) / (2 * h)
            np.testing.assert_allclose(left_jacobian_inverse(w)[:, k].numpy(), left, rtol=0, atol=1e-8)
            np.testing.assert_allclose(right_jacobian_inverse(w)[:, k].numpy(), right, rtol=0, atol=1e-8)


GRADIENT_POINTS = [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.31622, 0.31623, 1.0, math.pi - 1e-4, math.pi, 4.0]


@pytest.mark.parametrize("angle", GRADIENT_POINTS)
def test_exp_gradient_equals_the_matrix_exponentials(angle: float) -> None:
    for w in AXES[[0, 4, 30, 31]] * angle:
        expected = torch.autograd.functional.jacobian(lambda v: torch.linalg.matrix_exp(_cross_matrix(v)), w)
        torch.testing.assert_close(torch.autograd.functional.jacobian(so3_exp, w), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("angle", GRADIENT_POINTS)
def test_jacobian_gradients_equal_the_integrals(angle: float) -> None:
    for w in AXES[[0, 4, 30]] * angle:
        expected = torch.autograd.functional.jacobian(_integral_jacobian, w)
        torch.testing.assert_close(torch.autograd.functional.jacobian(left_jacobian, w), expected, rtol=0, atol=1e-13)
        expected = torch.autograd.functional.jacobian(lambda v: torch.linalg.inv(_integral_jacobian(v)), w)
        got = torch.autograd.functional.jacobian(left_jacobian_inverse, w)
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-12)


@pytest.mark.parametrize("angle", GRADIENT_POINTS[:-2])
def test_log_gradient_along_the_group(angle: float) -> None:
    """Moving R by skew(d) R moves its logarithm by J_l^-1 d, also at the identity and close to pi."""
    for w in AXES[[0, 4, 30, 31]] * angle:
        r = torch.linalg.matrix_exp(_cross_matrix(w))
        derivative = torch.autograd.functional.jacobian(so3_log, r)
        got = torch.einsum("cij,kij->ck", derivative, GENERATORS @ r)
        torch.testing.assert_close(got, torch.linalg.inv(_integral_jacobian(w)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_zero_are_finite_and_right_inside_a_mixed_batch(dtype: torch.dtype) -> None:
    """The unsafe branch of a where must not leak NaN into rows that do not use it."""
    w = torch.tensor([[0.0, 0, 0], [1e-12, 0, 0], [1.0, 2, 0], [0, 0, math.pi]], dtype=dtype, requires_grad=True)
    for function in (so3_exp, left_jacobian, left_jacobian_inverse, right_jacobian, right_jacobian_inverse):
        weight = torch.arange(9, dtype=dtype).reshape(3, 3)
        (gradient,) = torch.autograd.grad((function(w) * weight).sum(), w)
        assert torch.isfinite(gradient).all(), function.__name__
        # To first order each is I + c skew(w) with its own c; <weight, generator> = (2, -4, 2).
        c = {"so3_exp": 1.0, "left_jacobian": 0.5, "right_jacobian": -0.5}.get(function.__name__)
        c = c if c is not None else (-0.5 if function is left_jacobian_inverse else 0.5)
        expected = c * torch.tensor([2.0, -4.0, 2.0], dtype=dtype)
        torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient[1], expected, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(so3_log(so3_exp(w[:3])).sum(), w)
    torch.testing.assert_close(gradient[:2], torch.ones(2, 3, dtype=dtype), rtol=0, atol=1e-6)
    assert torch.isfinite(gradient).all()


def test_second_derivatives_at_zero() -> None:
    """d2 R_00 = -(dy^2 + dz^2) and d2 R_01 = dx dy at the identity."""
    zero = torch.zeros(3, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda w: so3_exp(w)[0, 0] + so3_exp(w)[0, 1], zero)
    expected = torch.tensor([[0, 0.5, 0], [0.5, -1, 0], [0, 0, -1]], dtype=torch.float64)
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-15)


def test_6d_is_the_first_two_columns() -> None:
    r = torch.arange(9.0).reshape(3, 3)
    assert matrix_to_6d(r).tolist() == [0.0, 3.0, 6.0, 1.0, 4.0, 7.0]


def test_6d_round_trip_at_all_angles() -> None:
    r = torch.cat([_scipy_matrices(AXES * angle) for angle in ANGLES])
    torch.testing.assert_close(matrix_from_6d(matrix_to_6d(r)), r, rtol=0, atol=1e-15)


def test_6d_orthonormalises_like_qr() -> None:
    """Gram-Schmidt is QR with a positive diagonal; the third column is fixed by det = +1."""
    d = np.random.default_rng(4).normal(size=(100, 6)) * 3
    got = matrix_from_6d(torch.from_numpy(d)).numpy()
    q, r = np.linalg.qr(d.reshape(100, 2, 3).swapaxes(1, 2))
    columns = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    np.testing.assert_allclose(got[..., :2], columns, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.linalg.det(got), 1.0, rtol=0, atol=1e-13)
    np.testing.assert_allclose(got @ got.swapaxes(1, 2), np.broadcast_to(np.eye(3), got.shape), rtol=0, atol=1e-13)


def test_6d_gradient() -> None:
    d = torch.randn(5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matrix_from_6d, d)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "so3_exp": (so3_exp, False),
    "so3_log": (so3_log, True),
    "quaternion_from_matrix": (quaternion_from_matrix, True),
    "left_jacobian": (left_jacobian, False),
    "left_jacobian_inverse": (left_jacobian_inverse, False),
    "matrix_to_6d": (matrix_to_6d, True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_row_alone_equals_row_in_batch_and_any_leading_shape_works(name: str) -> None:
    function, takes_matrix = FUNCTIONS[name]
    angles = torch.tensor([0, 1e-9, 1e-3, 0.3162, 0.3163, 1.0, math.pi - 1e-6, math.pi], dtype=torch.float64)
    w = AXES[20:68] * angles.repeat(6)[:, None]
    x = _scipy_matrices(w) if takes_matrix else w
    batch = function(x)
    for i in range(len(x)):
        assert torch.equal(function(x[i : i + 1])[0], batch[i])
        assert torch.equal(function(x[i]), batch[i])
    assert torch.equal(function(x.reshape(2, 3, 8, *x.shape[1:])).flatten(0, 2), batch)
    assert function(x[:0]).shape == (0, *batch.shape[1:])


def test_6d_row_alone_equals_row_in_batch() -> None:
    d = torch.randn(33, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    batch = matrix_from_6d(d)
    assert all(torch.equal(matrix_from_6d(d[i]), batch[i]) for i in range(33))
    assert torch.equal(matrix_from_6d(d.reshape(3, 11, 6)).flatten(0, 1), batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_angle_from_sides(dtype: torch.dtype) -> None:
    """All quadrants and the axes between them, as math.atan2 has them; every place of a batch rounds alike."""
    around = torch.linspace(-math.pi, math.pi, 1001, dtype=torch.float64)
    y, x = (3 * around.sin()).to(dtype), (3 * around.cos()).to(dtype)
    found = angle_from_sides(y, x, (x * x + y * y).sqrt())
    expected = [math.atan2(b, a) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-15 if dtype == torch.float64 else 5e-7, rtol=4e-16)
    for a, b in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        one = torch.tensor([b], dtype=dtype), torch.tensor([a], dtype=dtype), torch.ones(1, dtype=dtype)
        assert float(angle_from_sides(*one)) == pytest.approx(math.atan2(b, a), abs=1e-6)
    y, x = torch.randn(2, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(dtype)
    whole = angle_from_sides(y, x, (x * x + y * y).sqrt())
    for i in range(500):  # torch.atan2 rounds about one in forty of them differently in float64, one in six in float32.
        here, there = x[i : i + 1], y[i : i + 1]
        assert torch.equal(angle_from_sides(there, here, (here * here + there * there).sqrt()), whole[i : i + 1])
