"""The depth at which a mesh cuts into itself, against trimesh's rays and distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from handloop.core.errors import InputError
from handloop.evaluation.penetration import self_penetration
from handloop.hand.load import embedded_hand
from handloop.hand.mesh import skin
from handloop.hand.model import Hand

F64 = torch.float64


def posed(hand: Hand, pose: np.ndarray) -> torch.Tensor:
    zeros = torch.zeros(len(pose), 3, dtype=F64)
    return skin(hand, zeros, torch.tensor(pose), torch.zeros(len(pose), 10, dtype=F64), zeros)[0]


def closed(hand: Hand, mesh: np.ndarray, joint: int) -> trimesh.Trimesh:
    """A finger from a joint to its tip, its one hole closed; no part of it neighbours another finger's."""
    mine = np.isin(hand.weights.argmax(1), [joint, joint + 1])
    part = trimesh.Trimesh(mesh, hand.faces[mine[hand.faces].sum(1) >= 2], process=False)
    rim = part.edges[trimesh.grouping.group_rows(part.edges_sorted, require_count=1)]
    lid = np.column_stack([rim[:, ::-1], np.full(len(rim), len(mesh))])
    part = trimesh.Trimesh(np.vstack([mesh, mesh[rim[:, 0]].mean(0)]), np.vstack([part.faces, lid]), process=False)
    assert part.is_watertight and part.is_volume
    return part


@pytest.mark.parametrize("is_right", [True, False])
def test_an_open_hand_cuts_nothing(is_right: bool) -> None:
    hand = embedded_hand().side(is_right)
    for beta in (0.0, 2.0, -2.0):
        shape = torch.full((1, 10), beta, dtype=F64)
        zeros = torch.zeros(1, 3, dtype=F64)
        mesh = skin(hand, zeros, torch.zeros(1, 45, dtype=F64), shape, zeros)[0]
        assert float(self_penetration(hand, mesh)) == 0


def test_two_fingers_pushed_together_are_as_deep_as_trimesh_finds() -> None:
    """The end of the middle finger is carried into that of the index finger, by more and more."""
    hand = embedded_hand().right
    index, middle = (np.isin(hand.weights.argmax(1), ids) for ids in ([2, 3], [5, 6]))
    towards = hand.v_template[index].mean(0) - hand.v_template[middle].mean(0)
    found, expected = [], []
    for share in (0.2, 0.5, 0.6, 0.7):
        mesh = hand.v_template.copy()
        mesh[middle] += share * towards
        found.append(1000 * float(self_penetration(hand, torch.tensor(mesh)[None])))
        depth = 0.0
        for own, other in ((middle, 2), (index, 5)):
            part = closed(hand, mesh, other)
            inside = mesh[own][part.contains(mesh[own])]
            if len(inside):
                depth = max(depth, float(trimesh.proximity.closest_point_naive(part, inside)[1].max()))
        expected.append(1000 * depth)
    assert found[0] == expected[0] == 0 and expected[1] > 0.5 and expected[3] > 4
    # Points between the vertices go deeper than they do, by the mesh's coarseness at most.
    assert np.all(np.array(found) >= np.array(expected) - 0.3)
    assert np.all(np.array(found) <= np.array(expected) + 2)


def test_both_sides_agree_and_hands_are_independent() -> None:
    pair = embedded_hand()
    pose = pair.right.poses()[:12]
    mirrored = pose.reshape(-1, 15, 3) * [1.0, -1.0, -1.0]
    right = self_penetration(pair.right, posed(pair.right, pose))
    left = self_penetration(pair.left, posed(pair.left, mirrored.reshape(-1, 45)))
    torch.testing.assert_close(right, left, atol=1e-9, rtol=1e-6)
    assert 0 < int((right > 0).sum()) < 12
    assert torch.equal(self_penetration(pair.right, posed(pair.right, pose)[4:5]), right[4:5])


def test_a_mesh_that_is_not_finite_gets_nan_and_another_shape_is_refused() -> None:
    hand = embedded_hand().right
    meshes = torch.tensor(hand.v_template).repeat(2, 1, 1)
    meshes[1, 5] = float("nan")
    assert torch.isnan(self_penetration(hand, meshes)).tolist() == [False, True]
    with pytest.raises(InputError, match="vertices"):
        self_penetration(hand, meshes[:, :700])
