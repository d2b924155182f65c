"""Limits learned from hands: quantiles, sides, units, the file, the embedded hand, the published ranges."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.errors import FileFormatError, InputError
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.model import Hand
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.biomechanics import PALM_NAMES, Skeleton, bone_lengths, joint_angles, palm_structure

F64 = torch.float64


@pytest.fixture(scope="module")
def hand() -> Hand:
    return embedded_hand().right


@pytest.fixture(scope="module")
def of_hand(hand: Hand) -> BiomechanicalLimits:
    return BiomechanicalLimits.from_hand(hand)


@pytest.fixture(scope="module")
def joints(hand: Hand) -> Tensor:
    """(300, 21, 3) m, the model's own poses with drawn shapes and directions."""
    g = torch.Generator().manual_seed(9)
    pose = torch.tensor(hand.poses()[::6][:300]).reshape(-1, 15, 3)
    turned = torch.cat([so3_exp(2 * torch.randn(300, 1, 3, dtype=F64, generator=g)), so3_exp(pose)], 1)
    root = torch.randn(300, 3, dtype=F64, generator=g)
    return Kinematics.from_hand(hand).points(turned, torch.randn(300, 10, dtype=F64, generator=g), root)


def outside(limits: BiomechanicalLimits, points: Tensor) -> Tensor:
    """(4,) share of the bones, curvatures, spreads and joints that are out of their limits."""
    skeleton = Skeleton.of(points)
    curvature, spread = palm_structure(skeleton, limits.reference)
    parts = (
        limits.bones.excess(bone_lengths(skeleton, limits.reference).value),
        limits.curvature.excess(curvature.value),
        limits.spread.excess(spread.value),
        limits.hulls.distance(joint_angles(skeleton).value),
    )
    return torch.stack([(part.abs() > 1e-5).double().mean() for part in parts])


def same(a: BiomechanicalLimits, b: BiomechanicalLimits) -> bool:
    pairs = [(a.bones, b.bones), (a.curvature, b.curvature), (a.spread, b.spread)]
    ranges = all(torch.equal(x.low, y.low) and torch.equal(x.high, y.high) for x, y in pairs)
    return ranges and torch.equal(a.hulls.vertices, b.hulls.vertices)


def test_without_trim_every_hand_is_inside(joints: Tensor) -> None:
    limits = BiomechanicalLimits.from_joints(joints, True, trim=0.0)
    assert limits.n_hands == 300 and limits.trim == 0 and limits.reference == 8
    assert outside(limits, joints).tolist() == [0, 0, 0, 0]


def test_trim_is_the_share_cut_off_at_each_end(joints: Tensor) -> None:
    limits = BiomechanicalLimits.from_joints(joints, True, trim=0.05)
    values = bone_lengths(Skeleton.of(joints)).value.numpy()
    np.testing.assert_allclose(limits.bones.low.numpy(), np.quantile(values, 0.05, axis=0))
    np.testing.assert_allclose(limits.bones.high.numpy(), np.quantile(values, 0.95, axis=0))
    bones, curvature, spread, angles = outside(limits, joints).tolist()
    # The reference bone is always 1.
    assert bones == pytest.approx(0.1 * 19 / 20, abs=0.01)
    assert curvature == pytest.approx(0.1, abs=0.01) and spread == pytest.approx(0.1, abs=0.01)
    assert 0.1 < angles < 0.45


def test_interval_excess_has_a_sign(of_hand: BiomechanicalLimits) -> None:
    low, high = of_hand.bones.low, of_hand.bones.high
    torch.testing.assert_close(of_hand.bones.excess(low - 0.1), torch.full((20,), -0.1, dtype=F64))
    torch.testing.assert_close(of_hand.bones.excess(high + 0.1), torch.full((20,), 0.1, dtype=F64))
    assert not of_hand.bones.excess((low + high) / 2).any()


def test_left_hands_teach_the_same(joints: Tensor) -> None:
    mirrored = joints * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    right = torch.arange(300) % 3 == 0
    mixed = torch.where(right[:, None, None], joints, mirrored)
    expected = BiomechanicalLimits.from_joints(joints, True)
    assert same(BiomechanicalLimits.from_joints(mixed.numpy(), right.numpy()), expected)
    assert same(BiomechanicalLimits.from_joints(mirrored, False), expected)


def test_units(joints: Tensor) -> None:
    relative = BiomechanicalLimits.from_joints(joints, True)
    millimetres = BiomechanicalLimits.from_joints(1000 * joints, True)
    torch.testing.assert_close(millimetres.bones.high, relative.bones.high)
    torch.testing.assert_close(millimetres.curvature.high, relative.curvature.high)
    metres = BiomechanicalLimits.from_joints(joints, True, reference=None)
    assert 0.06 < float(metres.bones.low[8]) < float(metres.bones.high[8]) < 0.13
    # Metres bind the size, too.
    assert outside(metres, 1.3 * joints)[0] > 0.3 > outside(relative, 1.3 * joints)[0]
    with pytest.raises(
        InputError, match=r"^the middle of the palm is \d+\.?\d* long, expected about 0.1: limits without"
    ):
        BiomechanicalLimits.from_joints(1000 * joints, True, reference=None)


def test_unusable_hands_are_left_out(joints: Tensor) -> None:
    bad = joints.clone()
    bad[:10, 3] = float("nan")
    bad[10:15] = 0
    bad[15:20, 7] = bad[15:20, 6]
    limits = BiomechanicalLimits.from_joints(bad, True)
    assert limits.n_hands == 280 and same(limits, BiomechanicalLimits.from_joints(joints[20:], True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"joints": torch.ones(80, 21, 3)},
            "limits need at least 60 complete hands; 80 were given, 0 of them usable.",
        ),
        ({"joints": torch.ones(80, 16, 3)}, "joints has shape (80, 16, 3), expected (N, 21, 3)."),
        ({"trim": 0.3}, "trim is 0.3, expected a share between 0 and 0.2."),
        ({"trim": -0.1}, "trim is -0.1, expected a share between 0 and 0.2."),
        ({"is_right": torch.ones(3, dtype=torch.bool)}, "is_right has shape (3,), expected (300)."),
    ],
)
def test_errors(joints: Tensor, change: dict[str, object], message: str) -> None:
    arguments = {"joints": joints, "is_right": True, "trim": 0.005} | change
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        BiomechanicalLimits.from_joints(**arguments)  # type: ignore[arg-type]


def test_too_few_hands(joints: Tensor) -> None:
    message = "limits need at least 60 complete hands; 59 were given, 59 of them usable."
    with pytest.raises(InputError, match=f"^{message}$"):
        BiomechanicalLimits.from_joints(joints[:59], True)


# A model's own limits.


def test_a_models_hands_are_inside_its_limits(of_hand: BiomechanicalLimits, joints: Tensor) -> None:
    bones, curvature, spread, angles = outside(of_hand, joints).tolist()
    assert max(bones, curvature, spread) < 0.03 and angles < 0.02


def test_a_models_limits_hold_anatomys(of_hand: BiomechanicalLimits) -> None:
    polygons = [np.rad2deg(p) for p in of_hand.hulls.polygons()]
    low, high = (np.array([f(p[:, 0]) for p in polygons]).reshape(5, 3) for f in (np.min, np.max))
    # MCP, PIP and DIP of the four fingers: textbook flexion 90, 100 to 110, 80 to 90.
    assert (high[1:] > [88, 100, 80]).all() and (high[1:] < [115, 135, 110]).all()
    assert (low[1:] < 0).all() and (low[1:] > -45).all()
    # A bent finger cannot be spread: the hull is no box.
    index = polygons[3]
    assert np.ptp(index[index[:, 0] > 85, 1]) < 0.7 * np.ptp(index[:, 1])


def test_a_models_limits_are_the_same_each_time_and_for_both_sides(hand: Hand) -> None:
    few = hand.hands_coeffs[:100]
    right = BiomechanicalLimits.from_hand(replace(hand, hands_coeffs=few))
    assert same(BiomechanicalLimits.from_hand(replace(hand, hands_coeffs=few)), right)
    left = BiomechanicalLimits.from_hand(replace(embedded_hand().left, hands_coeffs=few))
    for a, b in ((left.bones, right.bones), (left.curvature, right.curvature), (left.spread, right.spread)):
        torch.testing.assert_close(a.high, b.high)
    other = BiomechanicalLimits.from_hand(replace(hand, hands_coeffs=few), generator=torch.Generator().manual_seed(1))
    assert not same(other, right)


def test_a_model_without_poses_has_anatomical_limits(hand: Hand) -> None:
    limits = BiomechanicalLimits.from_hand(replace(hand, hands_coeffs=np.zeros((0, 45))))
    polygons = [np.rad2deg(p) for p in limits.hulls.polygons()]
    assert all(60 < np.ptp(p[:, 0]) < 140 for p in polygons)


# The file.


def test_save_and_load_are_exact(of_hand: BiomechanicalLimits, joints: Tensor, tmp_path: Path) -> None:
    for limits in (of_hand, BiomechanicalLimits.from_joints(joints, True, 0.01, None)):
        limits.save(tmp_path / "limits.json")
        again = BiomechanicalLimits.load(tmp_path / "limits.json")
        assert same(again, limits)
        assert (again.reference, again.n_hands, again.trim) == (limits.reference, limits.n_hands, limits.trim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "not a JSON file; expected what handloop limits writes."),
        ({"format": "something"}, "not a file of biomechanical limits; expected what handloop limits writes."),
        ({"version": 2}, "version 2 of the format, this handloop reads 1."),
        ({"curvature": {}}, "'thumb-index' is missing; write the file again with handloop limits."),
        (
            {"spread_rad": {name: [2, 1] for name in PALM_NAMES}},
            "damaged (a range is not a pair (low, high) of numbers); write the file again with handloop limits.",
        ),
        (
            {"flexion_abduction_rad": {"thumb_cmc": [[0, 0]]}},
            "'thumb_mcp' is missing; write the file again with handloop limits.",
        ),
    ],
)
def test_files_that_are_none(
    of_hand: BiomechanicalLimits, tmp_path: Path, change: dict[str, object] | None, message: str
) -> None:
    path = tmp_path / "limits.json"
    of_hand.save(path)
    path.write_text("no" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileFormatError, match=f"^{re.escape(f'{path}: {message}')}$"):
        BiomechanicalLimits.load(path)


def test_file_that_is_not_there(of_hand: BiomechanicalLimits, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"cannot be read \(No such file or directory\)\.$"):
        BiomechanicalLimits.load(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)\.$"):
        of_hand.save(tmp_path / "none" / "limits.json")


# Published ranges (RHD and GANerated, by Hand-BMC-pytorch).


@pytest.mark.real
def test_published_ranges_have_our_units_and_order(real_data: Path, of_hand: BiomechanicalLimits) -> None:
    def published(name: str) -> tuple[np.ndarray, np.ndarray]:
        names = (f"{name}_min.npy", f"{name}_max.npy")
        low, high = (np.load(real_data / "reference/bmc" / n, allow_pickle=False) for n in names)
        return low.astype(np.float64), high.astype(np.float64)

    for key, ours, slack in (
        ("bone_len", of_hand.bones, 0.1),
        ("PHI", of_hand.spread, np.deg2rad(6)),
        ("curvatures", of_hand.curvature, 0.05),
    ):
        low, high = published(key)
        assert low.shape == tuple(ours.low.shape)
        # Those are the extremes of two synthetic sets with their own idea of a joint; the embedded hand's ranges lie
        # within them, widened a little, and run up and down in the same order.
        middle, theirs = ((ours.low + ours.high) / 2).numpy(), (low + high) / 2
        assert (middle > low - slack).all() and (middle < high + slack).all()
        assert np.corrcoef(middle, theirs)[0, 1] > 0.9
    bones = published("bone_len")
    np.testing.assert_allclose(bones[0][8], 1, atol=1e-6)


@pytest.mark.real
def test_labelled_hands_of_one_person(real_data: Path, of_hand: BiomechanicalLimits) -> None:
    ge = np.load(real_data / "keypoints_3d/ge2019.npz")
    limits = BiomechanicalLimits.from_joints(ge["joints_cam_mm"] / 1000, ge["is_right"])
    polygons = np.array([[p.min(0), p.max(0)] for p in limits.hulls.polygons()])
    degrees = np.rad2deg(polygons).reshape(5, 3, 2, 2)
    # The signs: fingers curl to positive angles.
    assert (degrees[1:, :, 1, 0] > 50).all() and (degrees[1:, 1:, 0, 0] > -25).all()
    assert limits.n_hands == len(ge["is_right"])
