"""Anatomical axes, angles and limits: geometry, signs, round trips, derivatives."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.core.errors import ModelError
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import CHAINS, Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.model import Hand
from handloop.priors.anatomy import (
    JointLimits,
    anatomical_angles,
    anatomical_axes,
    angles_and_jacobian,
    angles_of,
    rotations_from_angles,
)

F64 = torch.float64


@pytest.fixture(scope="module")
def hand() -> Hand:
    return embedded_hand().right


@pytest.fixture(scope="module")
def axes(hand: Hand) -> Tensor:
    return torch.tensor(anatomical_axes(hand))


@pytest.fixture(scope="module")
def limits(hand: Hand) -> JointLimits:
    return JointLimits.from_hand(hand)


def hard_rotations(n: int = 100) -> Tensor:
    """(n, 15, 3, 3): ordinary, zero, nearly zero, and near pi."""
    g = torch.Generator().manual_seed(4)
    w = 0.6 * torch.randn(n, 15, 3, dtype=F64, generator=g)
    axis = torch.nn.functional.normalize(torch.randn(n, 15, 3, dtype=F64, generator=g), dim=-1)
    w[:10] = 0
    w[10:20] *= 1e-9
    w[20:40] = (torch.pi - 1e-3) * axis[20:40]
    return so3_exp(w)


def test_axes_are_right_handed_frames_along_the_bones(hand: Hand, axes: Tensor) -> None:
    eye = torch.eye(3, dtype=F64).expand(15, 3, 3)
    torch.testing.assert_close(axes.mT @ axes, eye, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(15, dtype=F64))
    joints, tips = hand.joints_rest, hand.v_template[hand.tip_ids]
    for finger, chain in enumerate(CHAINS):
        for depth, joint in enumerate(chain):
            end = tips[finger] if depth == 2 else joints[chain[depth + 1]]
            bone = (end - joints[joint]) / np.linalg.norm(end - joints[joint])
            np.testing.assert_allclose(axes[joint - 1, :, 2].numpy(), bone, atol=1e-12)


def test_d_points_out_of_the_back_of_the_hand(hand: Hand, axes: Tensor) -> None:
    joints = hand.joints_rest
    dorsal = np.cross(joints[7] - joints[0], joints[1] - joints[0])
    for chain in CHAINS[1:]:
        for joint in chain:
            assert axes[joint - 1, :, 1].numpy() @ dorsal > 0.5 * np.linalg.norm(dorsal)


@pytest.mark.parametrize("finger", range(5))
@pytest.mark.parametrize("depth", range(3))
def test_positive_flexion_brings_the_fingertip_towards_the_palm(
    hand: Hand, axes: Tensor, finger: int, depth: int
) -> None:
    joint = CHAINS[finger][depth]
    angles = torch.zeros(2, 15, 3, dtype=F64)
    angles[1, joint - 1, 0] = np.deg2rad(20)
    rotations = torch.cat([torch.eye(3, dtype=F64).expand(2, 1, 3, 3), rotations_from_angles(angles, axes)], 1)
    kinematics = Kinematics.from_hand(hand)
    points = kinematics.points(rotations, torch.zeros(2, 10, dtype=F64), torch.zeros(2, 3, dtype=F64))
    moved = (points[1] - points[0])[4 + 4 * finger].numpy()
    joints = hand.joints_rest
    dorsal = np.cross(joints[7] - joints[0], joints[1] - joints[0])
    if finger == 0:
        # The thumb flexes across the palm: away from its own nail's side, which faces out and up.
        dorsal = axes[joint - 1, :, 1].numpy()
    assert moved @ dorsal < -0.3 * np.linalg.norm(moved) * np.linalg.norm(dorsal)


def test_signs_of_abduction_and_twist(axes: Tensor) -> None:
    """Right-handed turns about d and b: abduction moves b towards f, twist moves f towards d."""
    angles = torch.zeros(2, 15, 3, dtype=F64)
    angles[0, :, 1] = 0.1
    angles[1, :, 2] = 0.1
    turned = rotations_from_angles(angles, axes) @ axes
    f, d, b = axes.unbind(-1)
    torch.testing.assert_close((turned[0, :, :, 2] * f).sum(-1), torch.full((15,), 0.1, dtype=F64).sin())
    torch.testing.assert_close((turned[1, :, :, 0] * d).sum(-1), torch.full((15,), 0.1, dtype=F64).sin())
    torch.testing.assert_close(turned[1, :, :, 2], b)


def test_rotations_are_the_product_of_three_turns(axes: Tensor) -> None:
    g = torch.Generator().manual_seed(1)
    angles = torch.randn(6, 15, 3, dtype=F64, generator=g)
    ours = rotations_from_angles(angles, axes).numpy()
    f, d, b = (axes[..., i].numpy() for i in range(3))
    for i in range(6):
        for j in range(15):
            flexion, abduction, twist = angles[i, j].numpy()
            turns = [Rotation.from_rotvec(v * a) for v, a in ((f[j], flexion), (d[j], abduction), (b[j], twist))]
            np.testing.assert_allclose(ours[i, j], (turns[0] * turns[1] * turns[2]).as_matrix(), atol=1e-12)


def test_angles_are_intrinsic_euler_angles(axes: Tensor) -> None:
    rotations = hard_rotations()
    ours = anatomical_angles(rotations, axes)
    local = (axes.mT @ rotations @ axes).numpy().reshape(-1, 3, 3)
    scipy = Rotation.from_matrix(local).as_euler("XYZ").reshape(100, 15, 3)
    gap = np.abs(np.angle(np.exp(1j * (ours.numpy() - scipy))))
    # Beside the poles of the Euler angles small errors of the matrix are magnified.
    clear = np.abs(ours[..., 1].numpy()) < 1.5
    assert gap[clear].max() < 1e-9 and clear.mean() > 0.95
    torch.testing.assert_close(angles_of(axes.mT @ rotations @ axes), ours)


def test_round_trip(axes: Tensor) -> None:
    g = torch.Generator().manual_seed(2)
    angles = (2 * torch.rand(100, 15, 3, dtype=F64, generator=g) - 1) * torch.tensor([3.1, 1.5, 3.1], dtype=F64)
    angles[:5] = 0
    back = anatomical_angles(rotations_from_angles(angles, axes), axes)
    torch.testing.assert_close(back, angles, atol=1e-12, rtol=0.0)
    rotations = hard_rotations()
    again = rotations_from_angles(anatomical_angles(rotations, axes), axes)
    torch.testing.assert_close(again, rotations, atol=1e-12, rtol=0.0)


def test_jacobian_of_the_angles(axes: Tensor) -> None:
    rotations = hard_rotations()
    angles, jac = angles_and_jacobian(rotations, axes)
    assert torch.equal(angles, anatomical_angles(rotations, axes)) and bool(torch.isfinite(jac).all())
    delta = torch.zeros(100, 15, 3, dtype=F64, requires_grad=True)
    moved = anatomical_angles(rotations @ so3_exp(delta), axes)
    rows = [torch.autograd.grad(moved[..., i].sum(), delta, retain_graph=True)[0] for i in range(3)]
    expected = torch.stack(rows, -2)
    # Within 3 degrees of the pole the derivative is bounded on purpose.
    clear = angles[..., 1].cos() > 0.05
    assert float(clear.double().mean()) > 0.9
    scale = expected[clear].abs().amax((-1, -2), keepdim=True)
    assert float(((jac[clear] - expected[clear]).abs() / scale).max()) < 1e-6
    step = 1e-6
    for i in range(3):
        e = torch.zeros(3, dtype=F64)
        e[i] = step
        forth, back = (anatomical_angles(rotations @ so3_exp(v), axes) for v in (e, -e))
        gap = torch.remainder(forth - back + torch.pi, 2 * torch.pi) - torch.pi  # Flexion may pass pi.
        numeric = gap[clear] / (2 * step)
        assert float(((jac[clear][..., i] - numeric).abs() / scale[..., 0]).max()) < 1e-6


def test_jacobian_is_finite_at_the_pole(axes: Tensor) -> None:
    angles = torch.zeros(3, 15, 3, dtype=F64)
    angles[:, :, 1] = torch.tensor([torch.pi / 2, -torch.pi / 2, torch.pi / 2 - 1e-9], dtype=F64)[:, None]
    values, jac = angles_and_jacobian(rotations_from_angles(angles, axes), axes)
    assert bool(torch.isfinite(values).all()) and bool(torch.isfinite(jac).all())


def test_limits_hold_for_the_models_own_poses(hand: Hand, limits: JointLimits) -> None:
    poses = torch.tensor(hand.poses())
    angles = anatomical_angles(so3_exp(poses.reshape(-1, 15, 3)), limits.axes)
    inside = (limits.excess(angles) == 0).double()
    assert float(inside.mean((0,)).min()) >= 0.95, "each angle of each joint"
    # Whole hands: at most a degree outside anywhere.
    worst = limits.excess(angles).abs().amax((1, 2))
    assert float((worst < np.deg2rad(1)).double().mean()) >= 0.95


def test_limits_hold_the_published_ranges(hand: Hand, limits: JointLimits) -> None:
    """Finger joints: straight and 80 degrees of flexion are inside, 40 degrees backward and 140 forward are not."""
    for chain in CHAINS[1:]:
        for joint in chain:
            low, high = (np.rad2deg(float(t[joint - 1, 0])) for t in (limits.low, limits.high))
            assert -40 < low <= -8 + 1e-9 and 80 < high < 140
    bare = JointLimits.from_hand(replace(hand, hands_coeffs=np.zeros((0, 45))))
    np.testing.assert_allclose(np.rad2deg(bare.high[[0, 3, 9, 6], 0].numpy()), 95, atol=1e-9)
    np.testing.assert_allclose(np.rad2deg(bare.low[[1, 4, 10, 7], 0].numpy()), -8, atol=1e-9)
    assert bool((limits.low <= bare.low).all()) and bool((limits.high >= bare.high).all())
    assert bool((limits.low < 0).all()) and bool((limits.high > 0).all())


def test_excess_is_the_signed_distance_outside(limits: JointLimits) -> None:
    g = torch.Generator().manual_seed(3)
    angles = 2 * torch.randn(20, 15, 3, dtype=F64, generator=g)
    ours = limits.excess(angles).numpy()
    low, high = limits.low.numpy(), limits.high.numpy()
    for index, angle in np.ndenumerate(angles.numpy()):
        lo, hi = low[index[1:]], high[index[1:]]
        expected = angle - hi if angle > hi else angle - lo if angle < lo else 0.0
        assert ours[index] == pytest.approx(expected, abs=1e-15)
    middle = (limits.low + limits.high) / 2
    assert bool((limits.excess(middle[None]) == 0).all())
    assert bool((limits.excess(limits.low[None]) == 0).all()) and bool((limits.excess(limits.high[None]) == 0).all())


def test_excess_has_no_gradient_inside(limits: JointLimits) -> None:
    angles = ((limits.low + limits.high) / 2)[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(limits.excess(angles).square().sum(), angles)
    assert bool((gradient == 0).all())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(axes: Tensor, limits: JointLimits, dtype: torch.dtype) -> None:
    rotations, frame = hard_rotations().to(dtype), axes.to(dtype)
    angles, jac = angles_and_jacobian(rotations, frame)
    excess = limits.excess(angles)
    for at in (torch.tensor([41]), torch.tensor([99, 0, 63]), torch.arange(99, -1, -1), torch.arange(3, 40)):
        some, some_jac = angles_and_jacobian(rotations[at], frame)
        assert torch.equal(some, angles[at]) and torch.equal(some_jac, jac[at])
        assert torch.equal(limits.excess(some), excess[at])


def test_float32_and_device_follow_the_input(limits: JointLimits) -> None:
    single = limits.to(torch.zeros(0))
    assert {t.dtype for t in (single.axes, single.low, single.high)} == {torch.float32}
    assert limits.excess(torch.zeros(1, 15, 3)).dtype == torch.float32


def test_left_hands_are_refused() -> None:
    left = embedded_hand().left
    expected = f"{left.name} is a left hand; anatomical axes are defined for the right-hand canonical frame."
    with pytest.raises(ModelError, match=f"^{re.escape(expected)}$"):
        anatomical_axes(left)
    with pytest.raises(ModelError, match="is a left hand"):
        JointLimits.from_hand(left)
