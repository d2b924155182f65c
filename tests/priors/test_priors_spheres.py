"""Spheres of a hand: on the rest mesh, with the shape, with the joints, and which of them may not overlap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from handloop.core.errors import ModelError
from handloop.core.joints import MANO_PARENTS
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand, mirror_hand
from handloop.hand.model import Hand
from handloop.priors.spheres import HandSpheres, hand_spheres

F64 = torch.float64
THUMB_METACARPAL = 13


@pytest.fixture(scope="module")
def hand() -> Hand:
    return embedded_hand().right


@pytest.fixture(scope="module")
def spheres(hand: Hand) -> HandSpheres:
    return hand_spheres(hand)


def rest(spheres: HandSpheres, betas: Tensor) -> Tensor:
    """(B, S, 3) centres at rest, by plain sums."""
    joints = spheres.joints + torch.einsum("jcb,nb->njc", spheres.joints_dirs, betas)
    arms = spheres.offset + torch.einsum("scb,nb->nsc", spheres.offset_dirs, betas)
    return joints[:, spheres.part] + arms


def test_spheres_fill_the_rest_mesh(hand: Hand, spheres: HandSpheres) -> None:
    """Every centre lies inside the flesh, and the nearest skin about a radius away (trimesh's rays and distances)."""
    mesh = trimesh.Trimesh(hand.v_template, hand.faces, process=False)
    edge = mesh.edges[trimesh.grouping.group_rows(mesh.edges_sorted, require_count=1)]
    lid = np.column_stack([edge[:, ::-1], np.full(len(edge), 778)])
    wrist = hand.v_template[edge[:, 0]].mean(0)
    whole = trimesh.Trimesh(np.vstack([hand.v_template, wrist]), np.vstack([hand.faces, lid]), process=False)
    assert whole.is_watertight
    centres = rest(spheres, torch.zeros(1, 10, dtype=F64))[0].numpy()
    assert whole.contains(centres).all()
    distance = trimesh.proximity.closest_point_naive(mesh, centres)[1]
    ratio = spheres.radius.numpy() / distance
    slim = ~np.isin(spheres.part.numpy(), [0, THUMB_METACARPAL])
    assert ratio.min() > 0.98 and ratio.max() < 1.35
    assert np.quantile(ratio[slim], 0.9) < 1.2
    assert spheres.radius.min() > 0.004 and spheres.radius.max() < 0.025


def test_spheres_reach_the_fingertips_and_leave_no_gap(hand: Hand, spheres: HandSpheres) -> None:
    centres, radius = rest(spheres, torch.zeros(1, 10, dtype=F64))[0].numpy(), spheres.radius.numpy()
    for finger, joint in enumerate((15, 3, 6, 12, 9)):
        chain = np.flatnonzero(np.isin(spheres.part.numpy(), [joint - 2, joint - 1, joint]))
        gap = np.linalg.norm(np.diff(centres[chain], axis=0), axis=1)
        assert (gap < 1.2 * radius[chain][1:]).all()
        tip = np.linalg.norm(hand.v_template[hand.tip_ids[finger]] - centres[chain[-1]])
        assert abs(tip - radius[chain[-1]]) < 0.002


def test_a_beta_that_scales_the_hand_scales_its_spheres(hand: Hand) -> None:
    grown = hand.shapedirs.copy()
    grown[..., 3] = 0.1 * hand.v_template
    spheres = hand_spheres(replace(hand, shapedirs=grown))
    betas = torch.zeros(2, 10, dtype=F64)
    betas[1, 3] = 1.5
    radii, centres = spheres.radii(betas), rest(spheres, betas)
    torch.testing.assert_close(radii[0], spheres.radius)
    torch.testing.assert_close(radii[1], 1.15 * spheres.radius)
    torch.testing.assert_close(centres[1], 1.15 * centres[0])


def test_spheres_follow_the_shape(hand: Hand, spheres: HandSpheres) -> None:
    """Spheres moved by the betas against spheres fitted anew to the mesh of those betas."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        betas = rng.normal(size=10)
        new = hand_spheres(replace(hand, v_template=hand.v_template + hand.shapedirs @ betas))
        row = torch.tensor(betas)[None]
        moved, radii = rest(spheres, row)[0], spheres.radii(row)[0]
        zero = torch.zeros(1, 10, dtype=F64)
        assert float((radii - new.radius).abs().mean()) < 0.0002
        assert float((radii - spheres.radius).abs().mean()) > 2 * float((radii - new.radius).abs().mean())
        assert float((moved - rest(new, zero)[0]).norm(dim=1).mean()) < 0.001


def test_radii_stay_positive_for_absurd_shapes(spheres: HandSpheres) -> None:
    assert float(spheres.radii(torch.full((1, 10), -1000.0, dtype=F64)).min()) > 0


def test_spheres_are_rigid_with_their_joints(hand: Hand, spheres: HandSpheres) -> None:
    g = torch.Generator().manual_seed(0)
    rotations = so3_exp(torch.randn(5, 16, 3, dtype=F64, generator=g))
    betas = torch.randn(5, 10, dtype=F64, generator=g)
    at = spheres.posed(rotations, betas)
    kinematics = Kinematics.from_hand(hand)
    torch.testing.assert_close(at.world, kinematics.frames(rotations))
    points = kinematics.points(rotations, betas, torch.zeros(5, 3, dtype=F64))
    torch.testing.assert_close(at.joints[:, [0, 13, 1, 6, 12]], points[:, [0, 1, 5, 11, 15]])
    arm = spheres.offset + torch.einsum("scb,nb->nsc", spheres.offset_dirs, betas)
    back = torch.einsum("nsji,nsj->nsi", at.world[:, spheres.part], at.centres - at.joints[:, spheres.part])
    torch.testing.assert_close(back, arm)


def test_the_other_side_is_the_mirror_image(hand: Hand, spheres: HandSpheres) -> None:
    left = hand_spheres(mirror_hand(hand))
    torch.testing.assert_close(left.radius, spheres.radius)
    torch.testing.assert_close(left.radius_dirs, spheres.radius_dirs)
    torch.testing.assert_close(left.offset, spheres.offset * torch.tensor([-1.0, 1.0, 1.0], dtype=F64))
    assert torch.equal(left.pairs, spheres.pairs)


def test_incompatible_pairs(spheres: HandSpheres) -> None:
    part, pairs = spheres.part.numpy(), spheres.pairs.numpy()
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)
    listed = {(int(i), int(j)) for i, j in pairs}
    shapes = torch.cat([torch.zeros(1, 10), 2 * torch.eye(10), -2 * torch.eye(10)]).to(F64)
    centres, radii = rest(spheres, shapes).numpy(), spheres.radii(shapes).numpy()
    for i in range(len(part)):
        for j in range(i + 1, len(part)):
            a, b = int(part[i]), int(part[j])
            related = a == b or MANO_PARENTS[a] == b or MANO_PARENTS[b] == a
            gap = np.linalg.norm(centres[:, i] - centres[:, j], axis=1) - radii[:, i] - radii[:, j]
            assert ((i, j) in listed) == (not related and bool((gap >= 0).all()))
    parts = {(int(part[i]), int(part[j])) for i, j in pairs} | {(int(part[j]), int(part[i])) for i, j in pairs}
    # A fingertip may meet its own base and the palm; a finger base is part of the palm's flesh.
    assert {(3, 1), (3, 0), (2, 5), (15, 0), (15, 1), (9, 12)} <= parts
    assert not parts & {(1, 0), (13, 0), (2, 1), (15, 14)}


def test_conversion_and_cache(hand: Hand, spheres: HandSpheres) -> None:
    assert hand_spheres(hand) is spheres
    single = spheres.to(torch.zeros(0))
    assert single.offset.dtype == single.radius_dirs.dtype == torch.float32 and single.part.dtype == torch.int64
    eye = torch.eye(3).expand(2, 16, 3, 3)
    assert single.posed(eye, torch.zeros(2, 10)).centres.dtype == torch.float32


def test_a_mesh_turned_inside_out_is_refused(hand: Hand) -> None:
    with pytest.raises(ModelError, match="does not close around joint 13"):
        hand_spheres(replace(hand, faces=hand.faces[:, ::-1].copy()))
