"""Couplings of a finger's joints: rows, published numbers, and zeros found again in poses made for the purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from handloop.hand.load import embedded_hand
from handloop.hand.model import Hand
from handloop.priors.anatomy import JointLimits, anatomical_ranges
from handloop.priors.couplings import DIP, HINGES, MCP, PIP, JointCouplings

F64 = torch.float64
THUMB_MCP, THUMB_IP = 13, 14


def hand_with(angles_deg: np.ndarray) -> Hand:
    """The embedded hand with other poses: (n, 15, 3) anatomical angles in degrees."""
    hand = embedded_hand().right
    axes = JointLimits.from_hand(hand).axes.numpy()
    local = Rotation.from_euler("XYZ", angles_deg.reshape(-1, 3), degrees=True).as_matrix().reshape(-1, 15, 3, 3)
    poses = Rotation.from_matrix((axes @ local @ axes.transpose(0, 2, 1)).reshape(-1, 3, 3)).as_rotvec()
    poses = poses.reshape(-1, 45)
    return replace(hand, hands_mean=np.zeros(45), hands_components=np.eye(45), hands_coeffs=poses)


def couplings_of(hand: Hand) -> JointCouplings:
    return JointCouplings.from_hand(hand, JointLimits.from_hand(hand))


def test_rows_are_the_joints_they_say() -> None:
    """MANO's order: index, middle, pinky, ring, thumb, each from the knuckle out."""
    assert [MCP, PIP, DIP] == [[0, 3, 9, 6], [1, 4, 10, 7], [2, 5, 11, 8]]
    assert HINGES == [1, 2, 4, 5, 7, 8, 10, 11, THUMB_MCP, THUMB_IP]


def test_zeros_come_from_the_models_own_poses() -> None:
    rng = np.random.default_rng(0)
    angles = np.zeros((400, 15, 3))
    pip = rng.uniform(0, 90, (400, 4))
    shift = np.array([-12.0, 3.0, 0.0, 8.0])
    angles[:, PIP, 0] = pip
    angles[:, DIP, 0] = 2 / 3 * pip + shift + rng.normal(0, 1, (400, 4))
    angles[:, MCP, 0] = rng.uniform(0, 100, (400, 4))
    bent = angles[:, MCP, 0] > 70
    middle = np.array([-9.0, 4.0, 0.0, 1.0])
    angles[:, MCP, 1] = np.where(bent, middle + rng.uniform([-1, -1, -1, -12], [1, 1, 1, 12], (400, 4)), 15.0)
    angles[0:10, THUMB_IP, 0] = -32.0
    found = couplings_of(hand_with(angles))
    np.testing.assert_allclose(found.dip_offset.rad2deg().numpy(), shift, atol=0.3)
    # 5 degrees to either side of where the bent knuckles are, unless their own range is wider.
    expected = np.stack([middle - 5, middle + 5], 1)
    expected[3] = [-11, 13]
    np.testing.assert_allclose(found.closed_spread.rad2deg().numpy(), expected, atol=0.5)
    np.testing.assert_allclose(found.open_spread.rad2deg().numpy(), [[-25, 25]] * 4, atol=1e-9)
    straight = np.zeros(15)
    straight[THUMB_IP] = -12.0
    np.testing.assert_allclose(found.straight.rad2deg().numpy(), straight, atol=1e-6)


def test_published_numbers_where_a_model_has_no_poses() -> None:
    hand = replace(embedded_hand().right, hands_coeffs=np.zeros((0, 45)))
    found = couplings_of(hand)
    assert found.dip_per_pip == pytest.approx(2 / 3) and found.closed_at == pytest.approx(np.deg2rad(70))
    assert bool((found.dip_offset == 0).all() & (found.straight == 0).all())
    np.testing.assert_allclose(found.closed_spread.rad2deg().numpy(), [[-5, 5]] * 4)


def test_a_few_bent_poses_do_not_move_the_closed_range() -> None:
    angles = np.zeros((100, 15, 3))
    angles[:19, MCP[0], :2] = [80.0, -10.0]
    angles[:20, MCP[1], :2] = [80.0, -10.0]
    found = couplings_of(hand_with(angles)).closed_spread.rad2deg().numpy()
    np.testing.assert_allclose(found[:2], [[-5, 5], [-15, -5]], atol=1e-6)


def test_the_embedded_hand() -> None:
    found = couplings_of(embedded_hand().right)
    width = (found.closed_spread[:, 1] - found.closed_spread[:, 0]).rad2deg()
    assert bool(((width >= 10 - 1e-9) & (width < 20)).all())
    assert bool((found.dip_offset.rad2deg().abs() < 10).all())
    ranges = np.rad2deg(anatomical_ranges())
    np.testing.assert_allclose(ranges[PIP, 0], [[-8, 115]] * 4)
    np.testing.assert_allclose(ranges[THUMB_IP], [[-20, 80], [-8, 8], [-8, 8]])


def test_to_follows_dtype() -> None:
    found = couplings_of(embedded_hand().right)
    single = found.to(torch.zeros(0))
    tensors = (single.axes, single.dip_offset, single.open_spread, single.closed_spread, single.straight)
    assert {t.dtype for t in tensors} == {torch.float32}
    assert found.to(torch.zeros(0, dtype=F64)).axes.dtype == F64
