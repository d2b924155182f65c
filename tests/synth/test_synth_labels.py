"""Labels against a second way of computing them: smplx's formula for the hand, Moeller and Trumbore for its picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.hand.mesh import skin
from handloop.hand.model import N_FACES, HandPair
from handloop.synth.body import Arm, Body
from handloop.synth.occluders import Occluder
from handloop.synth.picture import Picture, Segment, Truth, Visibility, project
from handloop.synth.render import Renderer, _Parts
from handloop.synth.sampling import place, wrist_rotation

ARM = Arm(length=0.25, bare=0.1, sleeve=0.0, girth=1.0, flexion=0.3, deviation=0.1)


def first_hit(vertices: np.ndarray, faces: np.ndarray, ray: np.ndarray) -> tuple[float, int]:
    """Depth along (x/z, y/z, 1) from the origin and triangle, by Moeller and Trumbore's formula; (inf, -1) for none."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    e1, e2 = b - a, c - a
    p = np.cross(ray, e2)
    det = (e1 * p).sum(1)
    safe = np.where(np.abs(det) < 1e-15, 1.0, det)
    u = -(a * p).sum(1) / safe
    q = np.cross(-a, e1)
    v = (q * ray).sum(1) / safe
    t = (e2 * q).sum(1) / safe
    hit = (np.abs(det) >= 1e-15) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    if not hit.any():
        return np.inf, -1
    best = int(np.where(hit, t, np.inf).argmin())
    return float(t[best]), best


def test_keypoints_are_the_posed_hand_in_the_camera(pictures: list[Picture], pair: HandPair) -> None:
    for picture in pictures:
        truth = picture.truth
        hand = pair.side(truth.is_right)
        given = [torch.tensor(a)[None] for a in (truth.global_orient, truth.hand_pose, truth.betas, truth.transl)]
        vertices, joints = (t[0].numpy() for t in skin(hand, *given))
        points = np.concatenate([joints, vertices[hand.tip_ids]])[list(CANONICAL_FROM_MANO)]
        np.testing.assert_allclose(truth.keypoints_3d, points, atol=1e-9)
        np.testing.assert_allclose(truth.vertices, vertices, atol=1e-9)
        homogeneous = points @ truth.K.T
        assert np.abs(homogeneous[:, :2] / homogeneous[:, 2:] - truth.keypoints_2d).max() < 0.05
        assert points[:, 2].min() > 0


def test_mask_and_depth_are_what_rays_meet(renderer: Renderer, pictures: list[Picture]) -> None:
    generator = np.random.default_rng(0)
    seen = set()
    for picture in pictures[:8]:
        truth = picture.truth
        groups = [np.argwhere(picture.depth >= 0), np.argwhere(picture.mask), np.argwhere(picture.segments >= 2)]
        for v, u in np.concatenate([group[generator.choice(len(group), 30)] for group in groups if len(group)]):
            ray = np.array([(u - truth.K[0, 2]) / truth.K[0, 0], (v - truth.K[1, 2]) / truth.K[1, 1], 1.0])
            depth, _ = first_hit(truth.vertices, renderer.pair.side(truth.is_right).faces, ray)
            segment = Segment(int(picture.segments[v, u]))
            seen.add(segment)
            assert picture.mask[v, u] == (segment == Segment.HAND)
            if segment == Segment.HAND:
                assert abs(picture.depth[v, u] - depth) < 1e-4
            elif segment == Segment.BACKGROUND:
                assert depth == np.inf and picture.depth[v, u] == 0
            else:  # The forearm or an object hides the hand, if there is one behind it.
                assert 0 < picture.depth[v, u] < depth
            if segment == Segment.OCCLUDER:
                assert picture.depth[v, u] < truth.vertices[:, 2].min()
    assert seen == set(Segment)


def test_depth_at_fingertip_vertices(renderer: Renderer, pair: HandPair) -> None:
    """With the principal point moved so that a tip vertex falls on a pixel's centre, the pixel's depth is the vertex's.

    A little aside, because a ray precisely through a vertex can slip between its triangles.
    """
    found = 0
    plain = Renderer(pair, replace(renderer.options, occluders=0.0, hand="right"))
    for index in range(12):
        truth = plain.render(index).truth
        params = (truth.global_orient, truth.hand_pose, truth.betas, truth.transl)
        for tip in pair.right.tip_ids:
            at = project(truth.K, truth.vertices[tip : tip + 1])[0]
            K = truth.K.copy()
            K[:2, 2] += [48.002, 48.001] - at
            moved = place(pair.right, params, K)
            ray = np.append((np.array([48, 48]) - K[:2, 2]) / [K[0, 0], K[1, 1]], 1.0)
            depth, face = first_hit(moved.vertices, pair.right.faces, ray)
            if face < 0 or tip not in pair.right.faces[face]:
                continue  # Something lies before the tip.
            a, b, c = moved.vertices[pair.right.faces[(pair.right.faces == tip).any(1)]].transpose(1, 0, 2)
            normals = np.cross(b - a, c - a)
            if (normals @ ray > -0.2 * np.linalg.norm(normals, axis=1)).any():
                continue  # The tip looks away from the camera, or it lies on the outline.
            picture = plain.render_truth(moved, index)
            if picture.segments[48, 48] == Segment.HAND:
                assert abs(picture.depth[48, 48] - moved.vertices[tip, 2]) < 1e-4
                assert abs(depth - moved.vertices[tip, 2]) < 1e-4
                found += 1
    assert found >= 5


def test_forearm_closes_the_mesh(pair: HandPair) -> None:
    for hand in (pair.right, pair.left):
        body = Body.of(hand)
        faces = body.faces
        assert (faces[:N_FACES] == hand.faces).all()
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        directed = {tuple(edge) for edge in edges.tolist()}
        assert len(directed) == len(edges)  # No edge twice in one direction: consistently outward.
        assert all((b, a) in directed for a, b in directed)  # No opening is left.
        vertices = body.vertices(hand.v_template, np.eye(3), ARM)
        a, b, c = vertices[faces].transpose(1, 0, 2)
        assert np.einsum("nc,nc->", a, np.cross(b, c)) / 6 > 3e-4  # m^3: positive where faces look outward.
        # The arm goes away from the fingers.
        fingers = hand.v_template[hand.tip_ids].mean(0) - hand.joints_rest[0]
        assert (vertices[-1] - hand.joints_rest[0]) @ fingers < 0
        assert 0.15 < np.linalg.norm(vertices[-1] - hand.joints_rest[0]) < 0.3


def test_forearm_in_mask(pair: HandPair, renderer: Renderer, pictures: list[Picture]) -> None:
    joined = Renderer(pair, replace(renderer.options, forearm_in_mask=True))
    both = joined.render(0)
    assert (pictures[0].segments == Segment.FOREARM).any()
    expected = (pictures[0].segments == Segment.HAND) | (pictures[0].segments == Segment.FOREARM)
    np.testing.assert_array_equal(both.mask, expected)
    np.testing.assert_array_equal(both.rgb, pictures[0].rgb)


def bends_as_a_right_hand(points: np.ndarray) -> bool:
    """(index - wrist) x (little - wrist) looks out of a right hand's palm; flexed fingers and thumb lie there."""
    across = np.cross(points[5] - points[0], points[17] - points[0])
    tips = points[[4, 8, 12, 16, 20]] - points[0]
    return bool((tips @ across).mean() > 0)


def test_sides_are_anatomical(pair: HandPair, renderer: Renderer) -> None:
    """A fist shows its side: fingers bend to the palm. The picture of a left hand is the mirror image of a right's."""
    fist = renderer._hands.poses.mean.copy()
    K = np.array([[200.0, 0, 47.5], [0, 200.0, 47.5], [0, 0, 1]])
    orient, transl = np.array([0.3, 1.2, -0.4]), np.array([-0.05, 0.01, 0.5])
    right = place(pair.right, (orient, fist, np.zeros(10), transl), K)
    turn = np.array([1.0, -1.0, -1.0])
    left = place(pair.left, (orient * turn, fist * np.tile(turn, 15), np.zeros(10), transl * [-1, 1, 1]), K)
    assert bends_as_a_right_hand(right.keypoints_3d)
    assert not bends_as_a_right_hand(left.keypoints_3d)
    bare = Renderer(pair, replace(renderer.options, occluders=0.0))
    seen = [bare.render_truth(truth, 0) for truth in (right, left)]
    mirrored = seen[1].mask[:, ::-1]
    assert seen[0].mask.sum() > 500
    assert (seen[0].mask != mirrored).mean() < 0.002
    both = seen[0].mask & mirrored
    assert np.abs(seen[0].depth - seen[1].depth[:, ::-1])[both].max() < 1e-4


def test_drawn_hands_bend_to_their_own_palm(pictures: list[Picture]) -> None:
    agree = [bends_as_a_right_hand(p.truth.keypoints_3d) == p.truth.is_right for p in pictures]
    assert np.mean(agree) > 0.9
    assert 5 < sum(p.truth.is_right for p in pictures) < 25


def _flat(pair: HandPair) -> Truth:
    """A flat right hand seen from its back or palm, 0.5 m away."""
    K = np.array([[200.0, 0, 47.5], [0, 200.0, 47.5], [0, 0, 1]])
    joints = pair.right.joints_rest
    normal = np.cross(joints[1] - joints[0], joints[7] - joints[0])
    axis = np.cross(normal / np.linalg.norm(normal), [0, 0, 1.0])
    angle = np.arcsin(np.linalg.norm(axis))
    orient = axis / max(float(np.linalg.norm(axis)), 1e-12) * angle
    return place(pair.right, (orient, np.zeros(45), np.zeros(10), np.array([0, 0, 0.5]) - joints[4]), K)


def test_visibility_flags(pair: HandPair) -> None:
    truth = _flat(pair)
    body = Body.of(pair.right)
    clear = _Parts(body, truth, ARM, []).visibility(truth, 96)
    inside = ((truth.keypoints_2d > 0) & (truth.keypoints_2d < 95)).all(1)
    assert (clear[inside] == Visibility.VISIBLE).all() and inside.sum() > 15
    # A square before the index fingertip only, halfway to the camera.
    tip = truth.keypoints_3d[8] / 2
    corners = tip + 0.004 * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    square = Occluder(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.ones(3))
    hidden = _Parts(body, truth, ARM, [square]).visibility(truth, 96)
    assert hidden[8] == Visibility.BEHIND_OCCLUDER
    far = np.linalg.norm(truth.keypoints_2d - truth.keypoints_2d[8], axis=1) > 8
    np.testing.assert_array_equal(hidden[far], clear[far])
    # A camera that sees the lower half only.
    K = truth.K.copy()
    K[1, 2] -= truth.keypoints_2d[8, 1] + 5
    low = place(pair.right, (truth.global_orient, truth.hand_pose, truth.betas, truth.transl), K)
    assert _Parts(body, low, ARM, []).visibility(low, 96)[8] == Visibility.OUTSIDE


@pytest.mark.parametrize("index", range(8))
def test_hidden_behind_the_hand_agrees_with_counting_surfaces(
    renderer: Renderer, pictures: list[Picture], index: int
) -> None:
    """A keypoint is hidden by the hand where its ray has left the skin (met a surface from inside) before it."""
    truth = pictures[index].truth
    body = Body.of(renderer.pair.side(truth.is_right))
    parts = _Parts(body, truth, ARM, [])
    codes = parts.visibility(truth, 10_000)
    vertices = body.vertices(truth.vertices, wrist_rotation(truth), ARM)
    for point, code in zip(truth.keypoints_3d, codes, strict=True):
        if code == Visibility.OUTSIDE:
            continue
        ray = point / point[2]
        a, b, c = vertices[body.faces].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        t = (normal * a).sum(1) / (normal @ ray)
        at = t[:, None] * ray
        inside = np.ones(len(t), bool)
        for p, q in ((a, b), (b, c), (c, a)):
            inside &= (np.cross(q - p, at - p) * normal).sum(1) >= 0
        exits = t[inside & (t > 0) & (normal @ ray > 0)]
        if np.abs(exits - point[2]).min(initial=1.0) < 0.002:
            continue  # On the surface itself: either answer is right.
        assert (code == Visibility.BEHIND_HAND) == bool((exits < point[2] - 0.0015).any())
