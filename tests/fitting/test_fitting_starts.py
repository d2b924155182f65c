"""Closed-form starts: exact where the theory is exact, finite everywhere, in the promised order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.joints import PALM_POINTS
from handloop.core.rotations import so3_exp, so3_log
from handloop.fitting.problem import FitModel
from handloop.fitting.starts import Views, closed_form_starts, seed_poses

F64 = torch.float64
PALM = list(PALM_POINTS)


@pytest.fixture(scope="module")
def flat_palm(model: FitModel) -> FitModel:
    """The model with wrist and knuckles moved into one plane, on which the closed form is exact."""
    from dataclasses import replace

    kinematics = model.kinematics
    ids = [0, 1, 4, 10, 7]
    palm = kinematics.joints[ids].numpy()
    middle = palm.mean(0)
    normal = np.linalg.svd(palm - middle)[2][2]
    joints = kinematics.joints.clone()
    joints[ids] -= torch.tensor(np.outer((palm - middle) @ normal, normal))
    return replace(model, kinematics=replace(kinematics, joints=joints))


def palm_of(model: FitModel, rotation: Tensor) -> Tensor:
    """(N, 5, 3) palm points of the mean hand, wrist at the origin, turned by (N, 3, 3)."""
    n = len(rotation)
    rotations = torch.cat([rotation[:, None], torch.eye(3, dtype=F64).expand(n, 15, 3, 3)], 1)
    return model.kinematics.points(rotations, torch.zeros(n, 10, dtype=F64), torch.zeros(n, 3, dtype=F64))[:, PALM]


def test_a_noiseless_weak_perspective_palm_is_recovered_up_to_the_flip(
    flat_palm: FitModel, synthetic: Callable[..., Any]
) -> None:
    n = 60
    truth = synthetic(n, 3).state.rotations[:, 0]
    local = palm_of(flat_palm, truth)
    depth = 0.5 + torch.arange(n, dtype=F64) / n
    rays = torch.full((n, 21, 2), 1e6, dtype=F64)
    # Scaled orthography about the palm's middle, which is seen straight ahead.
    rays[:, PALM] = (local - local.mean(1, keepdim=True))[..., :2] / depth[:, None, None]
    weight = torch.zeros(n, 21, dtype=F64)
    weight[:, PALM] = 1.0
    starts = closed_form_starts(flat_palm.kinematics, flat_palm.seeds[:1], Views(rays, weight))
    found = starts.rotations[:, 0].reshape(n, 2, 3, 3)
    torch.testing.assert_close(found.mT @ found, torch.eye(3, dtype=F64).expand(n, 2, 3, 3), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(n, 2, dtype=F64), atol=1e-9, rtol=0.0)
    angle = so3_log(found.mT @ truth[:, None]).norm(dim=-1)
    # Where the palm faces the camera, rounding of 1e-6 (the ridge) in the cosine of the tilt is 1e-3 in the tilt.
    assert float(angle.amin(1).max()) < 5e-3 and float(angle.amin(1).median()) < 1e-4
    # Both flips show the same picture, and the depth is the one that was put in.
    for flip in (0, 1):
        again = palm_of(flat_palm, found[:, flip])
        shown = (again - again.mean(1, keepdim=True))[..., :2] / depth[:, None, None]
        torch.testing.assert_close(shown, rays[:, PALM], atol=1e-5, rtol=0.0)
        middle = again.mean(1) + starts.root.reshape(n, 2, 3)[:, flip]
        torch.testing.assert_close(middle[:, 2], depth, rtol=1e-4, atol=0.0)
        assert float(middle[:, :2].abs().max()) < 1e-9
    assert float(so3_log(found[:, 0].mT @ found[:, 1]).norm(dim=-1).median()) > 0.3


def test_real_views_start_near_the_truth(model: FitModel, synthetic: Callable[..., Any]) -> None:
    """With full perspective, unknown shape and pose, the better flip is within 30 degrees for most hands."""
    hands = synthetic(200, 4)
    rays = (hands.uv - hands.camera.princpt[:, None]) / hands.camera.focal[:, None]
    starts = closed_form_starts(model.kinematics, model.seeds[:1], Views(rays, torch.ones(200, 21, dtype=F64)))
    found = starts.rotations[:, 0].reshape(200, 2, 3, 3)
    angle = so3_log(found.mT @ hands.state.rotations[:, :1]).norm(dim=-1).amin(1)
    assert float((angle < np.deg2rad(30)).double().mean()) > 0.9
    depth = starts.root.reshape(200, 2, 3)[:, 0, 2] / hands.state.root[:, 2]
    assert float(depth.quantile(0.05)) > 0.7 and float(depth.quantile(0.95)) < 1.5


def test_shapes_and_order(model: FitModel, synthetic: Callable[..., Any]) -> None:
    """Hands outermost, then seeds, then flips: each hand's starts are those it gets alone."""
    hands = synthetic(7, 5)
    rays = (hands.uv - hands.camera.princpt[:, None]) / hands.camera.focal[:, None]
    weight = torch.ones(7, 21, dtype=F64)
    seeds = model.seeds[:4]
    starts = closed_form_starts(model.kinematics, seeds, Views(rays, weight))
    assert starts.rotations.shape == (7 * 8, 16, 3, 3) and starts.root.shape == (7 * 8, 3)
    assert starts.betas.shape == (56, 10) and starts.log_focal.shape == (56,)
    assert bool((starts.betas == 0).all() & (starts.log_focal == 0).all() & (starts.root[:, 2] > 0).all())
    fingers = starts.rotations[:, 1:].reshape(7, 4, 2, 15, 3, 3)
    assert torch.equal(fingers, seeds[None, :, None].expand(7, 4, 2, 15, 3, 3))
    for i in range(7):
        alone = closed_form_starts(model.kinematics, seeds, Views(rays[i : i + 1], weight[i : i + 1]))
        assert torch.equal(alone.rotations, starts.rotations[8 * i : 8 * i + 8])
        assert torch.equal(alone.root, starts.root[8 * i : 8 * i + 8])
    one = closed_form_starts(model.kinematics, seeds[2:3], Views(rays, weight))
    torch.testing.assert_close(one.root.reshape(7, 2, 3), starts.root.reshape(7, 4, 2, 3)[:, 2], atol=1e-9, rtol=0.0)


VISIBLE = {
    "two palm points": [0, 5],
    "two palm points and fingers": [0, 5, 6, 7, 8, 4],
    "one point": [8],
    "nothing": [],
    "three palm points": [0, 9, 17],
    "fingertips": [4, 8, 12, 16, 20],
    "one finger": [5, 6, 7, 8],
}


@pytest.mark.parametrize("name", VISIBLE)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_starts_are_finite_with_few_points(
    name: str, dtype: torch.dtype, model: FitModel, synthetic: Callable[..., Any]
) -> None:
    hands = synthetic(20, 6)
    rays = ((hands.uv - hands.camera.princpt[:, None]) / hands.camera.focal[:, None]).to(dtype)
    weight = torch.zeros(20, 21, dtype=dtype)
    weight[:, VISIBLE[name]] = 0.7
    from handloop.hand.kinematics import Kinematics
    from handloop.hand.load import embedded_hand

    kinematics = Kinematics.from_hand(embedded_hand().right, dtype)
    starts = closed_form_starts(kinematics, model.seeds, Views(rays, weight))
    for value in vars(starts).values():
        assert bool(torch.isfinite(value).all())
    assert bool((starts.root[:, 2] > 0).all())
    tolerance = 1e-9 if dtype == F64 else 1e-4
    eye = torch.eye(3, dtype=dtype).expand(len(starts), 16, 3, 3)
    torch.testing.assert_close(starts.rotations.mT @ starts.rotations, eye, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("kind", ["coincident", "line", "far", "huge"])
def test_starts_are_finite_for_odd_pictures(kind: str, model: FitModel) -> None:
    rays = {
        "coincident": torch.full((2, 21, 2), 0.1, dtype=F64),
        "line": torch.linspace(0, 0.2, 21, dtype=F64)[None, :, None].expand(2, 21, 2).clone(),
        "far": 50 + torch.rand(2, 21, 2, dtype=F64, generator=torch.Generator().manual_seed(0)),
        "huge": 1e9 * torch.randn(2, 21, 2, dtype=F64, generator=torch.Generator().manual_seed(0)),
    }[kind]
    starts = closed_form_starts(model.kinematics, model.seeds, Views(rays, torch.ones(2, 21, dtype=F64)))
    for value in vars(starts).values():
        assert bool(torch.isfinite(value).all())
    assert bool((starts.root[:, 2] > 0).all())


def test_missing_points_do_not_matter(model: FitModel, synthetic: Callable[..., Any]) -> None:
    hands = synthetic(5, 7)
    rays = (hands.uv - hands.camera.princpt[:, None]) / hands.camera.focal[:, None]
    weight = torch.ones(5, 21, dtype=F64)
    weight[:, [3, 9]] = 0
    moved = rays.clone()
    moved[:, [3, 9]] = 12.0
    a, b = (closed_form_starts(model.kinematics, model.seeds, Views(r, weight)) for r in (rays, moved))
    assert torch.equal(a.rotations, b.rotations) and torch.equal(a.root, b.root)


def test_seed_poses(model: FitModel) -> None:
    """The prior's mean first, then poses inside the limits, all different."""
    seeds = seed_poses(model.limits, model.pose_prior.mean)
    torch.testing.assert_close(seeds[0], so3_exp(model.pose_prior.mean.reshape(15, 3)))
    from handloop.priors.anatomy import anatomical_angles

    excess = model.limits.excess(anatomical_angles(seeds[1:], model.limits.axes))
    assert float(excess.abs().max()) < 1e-9
    gaps = [float((a - b).abs().max()) for i, a in enumerate(seeds) for b in seeds[:i]]
    assert len(seeds) == 6 and min(gaps) > 0.1
