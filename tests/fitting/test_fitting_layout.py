"""Learning what a source means by its points, from 3D and from 2D; fits under a layout; `fit_joints`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import handloop
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.rotations import so3_exp
from handloop.evaluation.alignment import similarity
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.learn_layout_2d import learn_from_keypoints
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand

F64 = torch.float64
PAIR = embedded_hand()
FOCAL = 600.0
K = np.array([[FOCAL, 0, 320], [0, FOCAL, 240], [0, 0, 1]])


def offsets_of_a_source() -> Tensor:
    """A wrist 25 mm distal, a thumb base 12 mm off, knuckles a few mm: what real sources do."""
    offsets = torch.zeros(21, 3, dtype=F64)
    offsets[0] = torch.tensor([-0.025, 0.004, 0.0])
    offsets[1] = torch.tensor([0.006, 0.004, -0.010])
    offsets[5] = torch.tensor([0.003, -0.004, 0.0])
    return offsets


def hands(n: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """(n, 21, 3) m, points of the source, and (n, 21, 2) px; `spread` narrows the views."""
    g = torch.Generator().manual_seed(seed)
    kinematics = Kinematics.from_hand(PAIR.right).with_offsets(offsets_of_a_source())
    poses = torch.tensor(PAIR.right.poses())[torch.randint(2000, (n,), generator=g)]
    turn = spread * 1.5 * torch.randn(n, 3, dtype=F64, generator=g)
    facing = so3_exp(torch.tensor([1.4, 0.3, 0.2], dtype=F64))
    rotations = torch.cat([(facing @ so3_exp(turn))[:, None], so3_exp(poses.reshape(n, 15, 3))], 1)
    betas = torch.randn(n, 10, dtype=F64, generator=g)
    betas[:, 0] *= 0.5
    root = torch.cat([0.05 * torch.randn(n, 2, generator=g), 0.5 + 0.2 * torch.rand(n, 1, generator=g)], 1).double()
    points = kinematics.points(rotations, betas, root)
    return points, FOCAL * points[..., :2] / points[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64)


def pa(points: Tensor, truth: Tensor) -> Tensor:
    """(N,) mm."""
    return 1000 * (similarity(points, truth).apply(points) - truth).norm(dim=-1).mean(1)


def test_a_layout_is_learned_from_3d() -> None:
    points, _ = hands(200, 1)
    learned = learn_from_joints(PAIR.right, points, torch.ones(200, dtype=torch.bool), "made up")
    assert learned.error_mm[0] > 2.5 and learned.error_mm[-1] < 1.25
    unseen, _ = hands(100, 2)
    plain = handloop.fit_joints(unseen, hand=PAIR)
    used = handloop.fit_joints(unseen, hand=PAIR, layout=learned.layout)
    before = float((plain.keypoints_3d - unseen).norm(dim=-1).mean())
    after = float((used.keypoints_3d - unseen).norm(dim=-1).mean())
    assert after < 0.0012 and after < before / 2.5
    # The model's own wrist lies where it was: the layout, not the hand, moved.
    wrist = (used.joints[:, 0] - used.keypoints_3d[:, 0]).norm(dim=-1)
    assert 0.018 < float(wrist.mean()) < 0.032


def test_left_hands_teach_the_same_layout() -> None:
    points, _ = hands(60, 3)
    mirrored = points * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    right = learn_from_joints(PAIR.right, points, torch.ones(60, dtype=torch.bool), "r", rounds=4)
    left = learn_from_joints(PAIR.right, mirrored, torch.zeros(60, dtype=torch.bool), "l", rounds=4)
    assert float((right.layout.offsets - left.layout.offsets).abs().max()) < 1e-5


def test_too_few_hands_are_refused() -> None:
    points, uv = hands(10, 4)
    with pytest.raises(InputError, match="10 hands were given; a layout needs at least 20"):
        learn_from_joints(PAIR.right, points, torch.ones(10, dtype=torch.bool), "x")
    with pytest.raises(InputError, match="10 hands were given; a layout from 2D alone needs at least 200"):
        learn_from_keypoints(PAIR.right, Keypoints.from_arrays(uv), Camera.from_matrix(K, 10), "x")


def test_a_layout_is_learned_from_2d_where_views_are_many() -> None:
    _, uv = hands(300, 5)
    found = learn_from_keypoints(PAIR.right, Keypoints.from_arrays(uv), Camera.from_matrix(K, 300), "made up")
    assert found.refused == "" and found.energy[-1] < 0.45 * found.energy[0]
    assert all(b < a for a, b in zip(found.energy, found.energy[1:], strict=False))
    truth = offsets_of_a_source()
    assert float((found.layout.offsets[0] - truth[0]).norm()) < 0.4 * float(truth[0].norm())
    unseen, seen = hands(150, 6)
    plain = handloop.fit(seen, K=K, hand=PAIR)
    used = handloop.fit(seen, K=K, hand=PAIR, layout=found.layout)
    assert float(pa(used.keypoints_3d, unseen).mean()) < 0.8 * float(pa(plain.keypoints_3d, unseen).mean())


def test_a_source_that_means_the_models_points_needs_no_layout() -> None:
    kinematics = Kinematics.from_hand(PAIR.right)
    g = torch.Generator().manual_seed(7)
    poses = torch.tensor(PAIR.right.poses())[torch.randint(2000, (250,), generator=g)]
    turn = so3_exp(1.5 * torch.randn(250, 3, dtype=F64, generator=g))
    rotations = torch.cat([turn[:, None], so3_exp(poses.reshape(250, 15, 3))], 1)
    root = torch.tensor([[0.0, 0.0, 0.6]], dtype=F64).repeat(250, 1)
    points = kinematics.points(rotations, torch.zeros(250, 10, dtype=F64), root)
    uv = FOCAL * points[..., :2] / points[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64)
    found = learn_from_keypoints(PAIR.right, Keypoints.from_arrays(uv), Camera.from_matrix(K, 250), "same")
    assert found.refused.startswith("a layout would lower the mean energy by only") and found.layout.is_identity()


def test_joints_in_any_frame_and_of_either_side_come_back() -> None:
    g = torch.Generator().manual_seed(8)
    kinematics = Kinematics.from_hand(PAIR.right)
    poses = torch.tensor(PAIR.right.poses())[torch.randint(2000, (40,), generator=g)]
    turn = so3_exp(2 * torch.randn(40, 3, dtype=F64, generator=g))
    rotations = torch.cat([turn[:, None], so3_exp(poses.reshape(40, 15, 3))], 1)
    root = 3 * torch.randn(40, 3, dtype=F64, generator=g)
    joints = kinematics.points(rotations, torch.randn(40, 10, dtype=F64, generator=g), root)
    is_right = torch.arange(40) % 2 == 0
    sign = torch.where(is_right, 1.0, -1.0).double()
    joints = joints * torch.stack([sign, torch.ones(40), torch.ones(40)], 1).double()[:, None]
    joints[3, 7] = float("nan")
    recipe = handloop.Recipe(noise_mm=0.5)
    result = handloop.fit_joints(joints, is_right=is_right, hand=PAIR, recipe=recipe)
    away = (result.joints - joints).norm(dim=-1)
    assert bool(result.fitted().all()) and float(away.nanmean()) < 5e-4
    vertices = result.vertices()
    tips = vertices[:, [744, 320, 443, 554, 671]]
    assert float((tips - result.joints[:, [4, 8, 12, 16, 20]]).abs().max()) < 1e-6
    assert bool(torch.isnan(result.rms_px).all()) and result.summary()["rms_px_median"] is None


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [((2, 20, 3), 1.0, r"joints have shape \(2, 20, 3\), expected"), ((2, 21, 3), 1000.0, "expected metres")],
)
def test_joints_of_wrong_shape_or_unit_are_refused(shape: tuple[int, ...], scale: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        handloop.fit_joints(scale * 0.1 * np.random.default_rng(0).normal(size=shape), hand=PAIR)


@pytest.mark.real
def test_fpha_with_its_layout(real_data: Path) -> None:
    """Learned from two people's 3D or 2D, measured on the third: the trial's bars for a known layout."""
    data = np.load(real_data / "keypoints_3d" / "fpha.npz")
    rng = np.random.default_rng(20261120)
    camera = Camera.from_matrix(data["K"])

    def sample(people: list[int], n: int) -> Tensor:
        rows = rng.choice(np.flatnonzero(np.isin(data["subject"], people)), n, replace=False)
        return torch.tensor(data["joints_cam_mm_x100"][rows] / 1e5)

    taught, measured = sample([1, 2], 500), sample([3], 500)
    from_3d = learn_from_joints(PAIR.right, taught, torch.ones(500, dtype=torch.bool), "fpha").layout
    many = camera.select(torch.zeros(500, dtype=torch.int64))
    from_2d = learn_from_keypoints(PAIR.right, Keypoints.from_arrays(many.project(taught)), many, "fpha")
    assert from_2d.refused == ""
    seen = many.project(measured)
    error = {
        name: pa(handloop.fit(seen, K=data["K"], hand=PAIR, layout=layout).keypoints_3d, measured)
        for name, layout in (("3d", from_3d), ("2d", from_2d.layout), ("none", KeypointLayout.identity()))
    }
    assert float(error["3d"].mean()) < 6.3
    assert float(error["2d"].mean()) < float(error["3d"].mean()) + 0.7
    assert float(error["3d"].mean()) < 0.8 * float(error["none"].mean())
