"""Proposals: shapes, matching rows to keypoints, and carrying a place from one camera to another."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal, in_other_camera, rotation_between

F64 = torch.float64


def camera(focal: float, centre: tuple[float, float], n: int = 1, dist: torch.Tensor | None = None) -> Camera:
    return Camera(torch.full((n, 2), focal, dtype=F64), torch.tensor(centre, dtype=F64).repeat(n, 1), dist)


def three(ids: tuple[str, ...] | None) -> Proposal:
    params = HandParams.zeros(3)
    params.betas[:, 0] = torch.arange(3.0)
    return Proposal.without_opinion(params, torch.tensor([True, False, True]), camera(500, (0, 0), 3), ids)


def test_without_opinion_is_nan_everywhere() -> None:
    p = three(None)
    for sd in (p.rotations_sd, p.betas_sd, p.bearing_sd, p.log_depth_sd):
        assert bool(sd.isnan().all())


def test_rows_are_matched_by_name_else_by_order() -> None:
    sides = torch.tensor([True, True])
    found = three(("a", "b", "c")).rows_for(("c", "a"), sides)
    assert found.params.betas[:, 0].tolist() == [2, 0] and found.ids == ("c", "a")
    order = three(None).rows_for(("x", "y", "z"), torch.tensor([True, False, True]))
    assert order.params.betas[:, 0].tolist() == [0, 1, 2]
    other_names = three(("a", "b", "c")).rows_for(("x", "y", "z"), torch.tensor([True, False, True]))
    assert other_names.params.betas[:, 0].tolist() == [0, 1, 2]


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 hands for 2 sets of keypoints, and 1 of them share an id \(none is"):
        three(("a", "b", "c")).rows_for(("a", "x"), torch.tensor([True, True]))
    with pytest.raises(InputError, match="3 hands for 3 sets of keypoints, and 1 of them"):
        three(("a", "b", "c")).rows_for(("a", "x", "y"), torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match="the start's hand for 'y' is a left hand and its keypoints are not"):
        three(None).rows_for(("x", "y", "z"), torch.ones(3, dtype=torch.bool))


def test_wrong_shapes_are_refused() -> None:
    p = three(None)
    with pytest.raises(InputError, match="rotations_sd has shape"):
        Proposal(p.params, p.is_right, p.camera, p.betas_sd, p.betas_sd, p.bearing_sd, p.log_depth_sd)
    with pytest.raises(InputError, match="3 hands but 1 cameras"):
        Proposal.without_opinion(p.params, p.is_right, camera(500, (0, 0)))
    with pytest.raises(InputError, match="3 hands but 2 ids"):
        three(("a", "b"))


def test_a_wrist_keeps_its_pixel_and_its_size() -> None:
    """By hand: f 5000 at 25 m is f 500 at 2.5 m; 100 px right of the middle is x = 100 / 500 * 2.5 m there."""
    root = torch.tensor([[0.5, 0.0, 25.0]], dtype=F64)
    _, moved = in_other_camera(torch.eye(3, dtype=F64)[None], root, camera(5000, (320, 240)), camera(500, (320, 240)))
    torch.testing.assert_close(moved, torch.tensor([[0.5, 0.0, 2.5]], dtype=F64))
    _, moved = in_other_camera(torch.eye(3, dtype=F64)[None], root, camera(5000, (320, 240)), camera(500, (300, 240)))
    torch.testing.assert_close(moved, torch.tensor([[0.6, 0.0, 2.5]], dtype=F64))


def test_a_hand_looks_the_same_in_the_other_camera() -> None:
    """Off the axis a picture is stretched a little along the radius; without the turn the hand would be sheared."""
    g = torch.Generator().manual_seed(0)
    points = 0.02 * torch.randn(20, 21, 3, dtype=F64, generator=g)
    points[:, 0] = 0
    root = torch.tensor([[1.5, -1.0, 20.0]], dtype=F64) + 0.2 * torch.randn(20, 3, dtype=F64, generator=g)
    turn = torch.tensor(Rotation.random(20, random_state=1).as_matrix())
    one = camera(5000, (640, 360), 20)
    other = camera(900, (600, 380), 20, torch.tensor([[-0.1, 0.02, 0.001, 0.0]], dtype=F64).repeat(20, 1))
    turned, moved = in_other_camera(turn, root, one, other)
    before = one.project(points @ turn.mT + root[:, None])
    after = other.project(points @ turned.mT + moved[:, None])
    plain = other.project(points @ turn.mT + moved[:, None])
    torch.testing.assert_close(after[:, 0], before[:, 0])
    size = (before - before[:, :1]).norm(dim=-1).mean()
    error = (after - before).norm(dim=-1).mean() / size
    assert float(error) < 0.12
    assert float(error) < 0.6 * float((plain - before).norm(dim=-1).mean() / size)


def test_the_same_camera_changes_nothing() -> None:
    turn = torch.tensor(Rotation.random(5, random_state=2).as_matrix())
    root = torch.tensor([[0.3, -0.2, 0.6]], dtype=F64).repeat(5, 1)
    turned, moved = in_other_camera(turn, root, camera(800, (320, 240), 5), camera(800, (320, 240), 5))
    torch.testing.assert_close(turned, turn, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved, root, rtol=0, atol=1e-12)


def test_rotation_between_is_the_least_one() -> None:
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]], dtype=F64)
    b = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    found = Rotation.from_matrix(rotation_between(a, b).numpy()).as_rotvec()
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[0, 0, math.pi / 2], [0, 0, 0]], dtype=F64))
