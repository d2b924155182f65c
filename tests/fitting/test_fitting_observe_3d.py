"""Hands in 3D before a camera: where they go, what is unknown, and the way back."""

from __future__ import annotations

import torch

from handloop.fitting.observe import before_the_camera


def test_the_middle_of_the_known_points_is_a_metre_away() -> None:
    g = torch.Generator().manual_seed(0)
    joints = torch.cat([torch.randn(3, 21, 3, generator=g), torch.rand(3, 21, 1, generator=g) + 0.1], 2).double()
    joints[0, 4, 1], joints[1, 7, 3], joints[2, :, 0] = float("nan"), 0.0, float("inf")
    points, shift = before_the_camera(joints)
    known = torch.ones(3, 21, dtype=torch.bool)
    known[0, 4] = known[1, 7] = known[2] = False
    assert torch.equal(points[..., 3], torch.where(known, joints[..., 3], torch.zeros(3, 21).double()))
    assert bool(torch.isfinite(points).all())
    for row in (0, 1):
        middle = points[row, known[row], :3].mean(0)
        torch.testing.assert_close(middle, torch.tensor([0.0, 0.0, 1.0]).double())
        torch.testing.assert_close((points[row, :, :3] - shift[row])[known[row]], joints[row, known[row], :3])
    assert shift[2].tolist() == [[0.0, 0.0, 1.0]]
