"""HandParams: each conversion against scipy, numpy least squares or the formula of the tool it serves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import ortho_group
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.params import HandParams

F64 = torch.float64
COMPONENTS = torch.from_numpy(ortho_group.rvs(45, random_state=0))
MEAN = torch.from_numpy(np.random.default_rng(1).normal(size=45) * 0.3)


def _hands(n: int = 5, dtype: torch.dtype = F64) -> HandParams:
    """Random hands; the first is flat, the second has joints turned by almost pi."""
    rng = np.random.default_rng(0)
    pose = rng.normal(size=(n, 16, 3)) * 0.7
    pose[0] = 0
    pose[1] *= (np.pi - 1e-4) / np.linalg.norm(pose[1], axis=-1, keepdims=True)
    arrays = (pose[:, 0], pose[:, 1:].reshape(n, 45), rng.normal(size=(n, 10)), rng.normal(size=(n, 3)))
    return HandParams(*(torch.from_numpy(a).to(dtype) for a in arrays))


def _axis_angles(hands: HandParams) -> np.ndarray:
    return torch.cat([hands.global_orient, hands.hand_pose], 1).reshape(-1, 3).double().numpy()


def test_zeros() -> None:
    hands = HandParams.zeros(3, torch.float32)
    assert [tuple(t.shape) for t in hands.tensors()] == [(3, 3), (3, 45), (3, 10), (3, 3)]
    assert all(t.dtype == torch.float32 and not t.any() for t in hands.tensors())
    assert len(hands) == 3 and HandParams.zeros(1).betas.dtype == F64
    assert torch.equal(hands.rotation_matrices(), torch.eye(3).expand(3, 16, 3, 3))


def test_tensors_to_and_select_keep_the_order_of_the_fields() -> None:
    hands = _hands()
    assert [t is f for t, f in zip(hands.tensors(), vars(hands).values(), strict=True)] == [True] * 4
    single = hands.to(torch.float32)
    for got, expected in zip(single.tensors(), hands.tensors(), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-7, atol=1e-9)
    for index in (torch.tensor([4, 0]), torch.tensor([False, True, False, False, True])):
        for got, expected in zip(hands.select(index).tensors(), hands.tensors(), strict=True):
            assert torch.equal(got, expected[index])


def test_rotation_matrices_equal_scipy() -> None:
    hands = _hands()
    got = hands.rotation_matrices()
    assert got.shape == (5, 16, 3, 3)
    expected = Rotation.from_rotvec(_axis_angles(hands)).as_matrix().reshape(5, 16, 3, 3)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-15)


def test_from_rotation_matrices_round_trip() -> None:
    hands = _hands()
    matrices = torch.from_numpy(Rotation.from_rotvec(_axis_angles(hands)).as_matrix().reshape(5, 16, 3, 3))
    back = HandParams.from_rotation_matrices(matrices, hands.betas, hands.transl)
    for got, expected in zip(back.tensors(), hands.tensors(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_6d_is_two_columns_per_joint_and_comes_back() -> None:
    hands = _hands()
    six = hands.rotations_6d()
    matrices = Rotation.from_rotvec(_axis_angles(hands)).as_matrix()
    expected = np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], -1).reshape(5, 16, 6)
    np.testing.assert_allclose(six.numpy(), expected, rtol=0, atol=2e-15)
    # What a network puts out has neither unit length nor right angles.
    raw = torch.cat([2 * six[..., :3], 0.5 * six[..., 3:] - 0.3 * six[..., :3]], -1)
    for given in (six, raw):
        back = HandParams.from_6d(given, hands.betas, hands.transl)
        for got, wanted in zip(back.tensors(), hands.tensors(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-14)


def test_float32_conversions_stay_within_two_microradians() -> None:
    hands = _hands()
    single = hands.to(torch.float32)
    for back in (
        HandParams.from_rotation_matrices(single.rotation_matrices(), single.betas, single.transl),
        HandParams.from_6d(single.rotations_6d(), single.betas, single.transl),
    ):
        error = Rotation.from_rotvec(_axis_angles(hands)).inv() * Rotation.from_rotvec(_axis_angles(back))
        assert float(error.magnitude().max()) <= 2e-6


def test_mirroring_turns_every_rotation_into_s_r_s() -> None:
    hands = _hands()
    mirrored = hands.mirrored()
    s = np.diag([-1.0, 1.0, 1.0])
    for axis_angle, other in zip(_axis_angles(hands), _axis_angles(mirrored), strict=True):
        expected = s @ Rotation.from_rotvec(axis_angle).as_matrix() @ s
        np.testing.assert_allclose(Rotation.from_rotvec(other).as_matrix(), expected, rtol=0, atol=2e-15)
    np.testing.assert_array_equal(mirrored.transl.numpy(), hands.transl.numpy() @ s)
    assert torch.equal(mirrored.betas, hands.betas)
    for got, expected in zip(mirrored.mirrored().tensors(), hands.tensors(), strict=True):
        assert torch.equal(got, expected)


def test_mean_relative_both_ways() -> None:
    """smplx with flat_hand_mean=False poses the hand with `hand_pose + pose_mean`."""
    hands = _hands()
    relative = hands.pose_relative_to(MEAN)
    np.testing.assert_allclose((relative + MEAN).numpy(), hands.hand_pose.numpy(), rtol=0, atol=1e-15)
    given = torch.from_numpy(np.random.default_rng(2).normal(size=(5, 45)))
    absolute = HandParams.from_mean_relative(hands.global_orient, given, hands.betas, hands.transl, MEAN)
    np.testing.assert_array_equal(absolute.hand_pose.numpy(), given.numpy() + MEAN.numpy())
    assert torch.equal(absolute.global_orient, hands.global_orient) and torch.equal(absolute.transl, hands.transl)
    # The flat hand is minus the mean; the mean hand is zero.
    np.testing.assert_array_equal(hands.pose_relative_to(MEAN)[0].numpy(), -MEAN.numpy())


@pytest.mark.parametrize("n", [1, 6, 44, 45])
def test_pca_is_the_least_squares_solution(n: int) -> None:
    hands = _hands()
    residual = (hands.hand_pose - MEAN).numpy().T
    expected = np.linalg.lstsq(COMPONENTS[:n].numpy().T, residual, rcond=None)[0].T
    got = hands.pca(COMPONENTS, MEAN, n)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [1, 6, 45])
def test_pca_round_trip(n: int) -> None:
    hands = _hands()
    coefficients = torch.from_numpy(np.random.default_rng(3).normal(size=(5, n)))
    built = HandParams.from_pca(hands.global_orient, coefficients, hands.betas, hands.transl, COMPONENTS, MEAN)
    # smplx: hand_pose = einsum('bi,ij->bj', coefficients, components) + mean.
    expected = np.einsum("bi,ij->bj", coefficients.numpy(), COMPONENTS[:n].numpy()) + MEAN.numpy()
    np.testing.assert_allclose(built.hand_pose.numpy(), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(built.pca(COMPONENTS, MEAN, n), coefficients, rtol=0, atol=1e-13)
    assert torch.equal(built.betas, hands.betas) and torch.equal(built.transl, hands.transl)
    whole = HandParams.from_pca(
        hands.global_orient, hands.pca(COMPONENTS, MEAN), hands.betas, hands.transl, COMPONENTS, MEAN
    )
    torch.testing.assert_close(whole.hand_pose, hands.hand_pose, rtol=0, atol=1e-13)


def test_pca_takes_truncated_components_as_smplx_keeps_them() -> None:
    hands = _hands()
    assert torch.equal(hands.pca(COMPONENTS[:6], MEAN, 6), hands.pca(COMPONENTS, MEAN, 6))


def test_conversions_follow_the_dtype_of_the_pose() -> None:
    single = _hands(dtype=torch.float32)
    assert single.pca(COMPONENTS, MEAN, 6).dtype == torch.float32
    assert single.pose_relative_to(MEAN).dtype == torch.float32
    assert single.mirrored().hand_pose.dtype == torch.float32


def test_a_hand_alone_equals_the_hand_in_a_batch() -> None:
    hands = _hands(9)
    outputs: list[Callable[[HandParams], Tensor]] = [
        HandParams.rotation_matrices,
        HandParams.rotations_6d,
        lambda h: HandParams.from_6d(h.rotations_6d(), h.betas, h.transl).hand_pose,
        lambda h: h.mirrored().hand_pose,
        lambda h: h.pose_relative_to(MEAN),
    ]
    for function in outputs:
        batch = function(hands)
        for i in range(9):
            assert torch.equal(function(hands.select(torch.tensor([i])))[0], batch[i])


def test_gradient_passes_the_flat_hand() -> None:
    pose = torch.zeros(2, 45, dtype=F64, requires_grad=True)
    hands = HandParams(torch.zeros(2, 3, dtype=F64), pose, torch.zeros(2, 10), torch.zeros(2, 3))
    back = HandParams.from_6d(hands.rotations_6d(), hands.betas, hands.transl)
    weight = torch.arange(90, dtype=F64).reshape(2, 45)
    (gradient,) = torch.autograd.grad((back.hand_pose * weight).sum(), pose)
    torch.testing.assert_close(gradient, weight, rtol=0, atol=1e-12)


def _fields(**changes: tuple[int, ...]) -> list[Tensor]:
    shapes = {"global_orient": (2, 3), "hand_pose": (2, 45), "betas": (2, 10), "transl": (2, 3)} | changes
    return [torch.zeros(shape) for shape in shapes.values()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"global_orient": (2, 4)}, "global_orient has shape (2, 4), expected (2, 3)."),
        ({"hand_pose": (2, 48)}, "hand_pose has shape (2, 48), expected (2, 45)."),
        ({"hand_pose": (2, 15, 3)}, "hand_pose has shape (2, 15, 3), expected (2, 45)."),
        ({"betas": (3, 10)}, "betas has shape (3, 10), expected (2, 10)."),
        ({"betas": (10,)}, "betas has shape (10,), expected (2, 10)."),
        ({"transl": (2, 1, 3)}, "transl has shape (2, 1, 3), expected (2, 3)."),
    ],
)
def test_wrong_shapes(changes: dict[str, tuple[int, ...]], expected: str) -> None:
    with pytest.raises(InputError) as error:
        HandParams(*_fields(**changes))
    assert str(error.value) == expected


def test_wrong_shapes_in_conversions() -> None:
    hands = _hands(2)
    g, b, t = hands.global_orient, hands.betas, hands.transl
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: HandParams.from_rotation_matrices(torch.zeros(2, 15, 3, 3), b, t),
            "rotations has shape (2, 15, 3, 3), expected (N, 16, 3, 3).",
        ),
        (lambda: HandParams.from_6d(torch.zeros(2, 96), b, t), "rotations has shape (2, 96), expected (N, 16, 6)."),
        (lambda: hands.pose_relative_to(MEAN[None]), "hands_mean has shape (1, 45), expected (45)."),
        (
            lambda: HandParams.from_mean_relative(g, hands.hand_pose, b, t, MEAN[:3]),
            "hands_mean has shape (3,), expected (45).",
        ),
        (lambda: hands.pca(COMPONENTS, MEAN, 0), "0 PCA components were asked for, expected 1 to 45."),
        (lambda: hands.pca(COMPONENTS, MEAN, 46), "46 PCA components were asked for, expected 1 to 45."),
        (lambda: hands.pca(COMPONENTS[:6], MEAN), "hands_components[:45] has shape (6, 45), expected (45, 45)."),
        (
            lambda: HandParams.from_pca(g, torch.zeros(2, 0), b, t, COMPONENTS, MEAN),
            "0 PCA coefficients were given, expected 1 to 45.",
        ),
        (
            lambda: HandParams.from_pca(g, torch.zeros(2, 46), b, t, COMPONENTS, MEAN),
            "46 PCA coefficients were given, expected 1 to 45.",
        ),
        (
            lambda: HandParams.from_pca(g, torch.zeros(2, 7, dtype=F64), b, t, COMPONENTS[:6], MEAN),
            "hands_components[:7] has shape (6, 45), expected (7, 45).",
        ),
        (
            lambda: HandParams.from_pca(g, torch.zeros(2, 6, dtype=F64), b, t, COMPONENTS, torch.zeros(1)),
            "hands_mean has shape (1,), expected (45).",
        ),
    ]
    for call, expected in cases:
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == expected
