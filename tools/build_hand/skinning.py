"""Skinning weights from positions along the bones, and pose blend shapes that keep bent fingers from collapsing."""

import numpy as np

from tools.build_hand.lbs import joint_transforms, pose_feature, rotation_matrices
from tools.build_hand.skeleton import FINGERS, THUMB, Array, Indices, Skeleton
from tools.build_hand.surface import HandSurface

# Half widths (mm) of the zones in which a bone hands over to the next, at the finger's three joints. About one radius
# each.
ZONES_FINGER = (11.0, 7.5, 6.5)
ZONES_THUMB = (17.0, 9.0, 7.5)
PALMAR_WIDENING = 0.45


def _step(value: Array) -> Array:
    """Smooth step from 0 at -1 to 1 at +1."""
    t = np.clip((value + 1.0) / 2.0, 0.0, 1.0)
    return np.asarray(t * t * t * (t * (6 * t - 15) + 10))


def _membership(vertices: Array, skeleton: Skeleton, surface: HandSurface) -> Array:
    """(n, 5) how much a vertex belongs to each finger rather than to its neighbours; webs are shared."""
    reach = np.zeros((len(vertices), len(FINGERS)))
    for finger, sweep in enumerate(surface.fingers):
        local = sweep.local(vertices)
        reach[:, finger] = np.linalg.norm(local[:, :2], axis=1) + np.abs(local[:, 2] - np.maximum(local[:, 2], -15.0))
    result = np.zeros_like(reach)
    four = [FINGERS.index(name) for name in ("index", "middle", "ring", "pinky")]
    for finger in four:
        others = np.min(np.delete(reach, (finger, THUMB), axis=1), axis=1)
        # Wide where the palm and the webs join neighbours, narrow on the free part of the finger.
        along = surface.fingers[finger].local(vertices)[:, 2] / skeleton.lengths[3 * finger + 1]
        width = np.interp(along, (0.45, 0.65), (12.0, 5.0))
        # Within 20 mm of the axis, so that the thumb isn't taken for a part of the index finger.
        result[:, finger] = _step((others - reach[:, finger]) / width) * (1.0 - _step((reach[:, finger] - 22.0) / 4.0))
    distance = np.full(len(vertices), np.inf)
    for joint in (3 * THUMB + 1, 3 * THUMB + 2):
        bone = skeleton.axes[joint, :, 2]
        offset = vertices - skeleton.joints[joint]
        along = np.clip(offset @ bone, 0.0, None)
        distance = np.minimum(distance, np.linalg.norm(offset - along[:, None] * bone, axis=1))
    # The first web fades from the thumb's metacarpal (skin at 12 mm) to the index finger's over nearly three
    # centimetres.
    result[:, THUMB] = 1.0 - _step((distance - 24.0) / 14.0)
    return result


def _share_webs(weights: Array, faces: Indices) -> Array:
    """Even out edges that run from one finger straight to another, so that a web follows both.

    Vertices that a middle phalanx already moves are left alone: from there on a finger is free.
    """
    owner = np.where(weights[:, 0] > 0.5, -1, (weights[:, 1:].argmax(axis=1)) // 3)
    free = np.stack([weights[:, 3 * f + 2 : 3 * f + 4].sum(axis=1) for f in range(THUMB)], axis=1).max(axis=1) > 0
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    a, b = edges.T
    crossing = (owner[a] != owner[b]) & (np.minimum(owner[a], owner[b]) >= 0) & ~free[a] & ~free[b]
    edges = edges[crossing]
    result = weights.copy()
    for vertex in np.unique(edges):
        others = edges[(edges == vertex).any(axis=1)].sum(axis=1) - vertex
        result[vertex] = 0.75 * weights[vertex] + 0.25 * weights[others].mean(axis=0)
    return result


def skinning_weights(vertices: Array, faces: Indices, skeleton: Skeleton, surface: HandSurface) -> Array:
    """(n, 16) non-negative, rows sum to 1."""
    member = _membership(vertices, skeleton, surface)
    weights = np.zeros((len(vertices), 16))
    for finger in range(len(FINGERS)):
        zones = ZONES_THUMB if finger == THUMB else ZONES_FINGER
        handed = member[:, finger]
        for bone in range(3):
            joint = 3 * finger + 1 + bone
            local = (vertices - skeleton.joints[joint]) @ skeleton.axes[joint]
            centre = np.zeros(len(vertices))
            if bone == 0:
                # The palm's skin folds at the creases distal of the MCP; at the CMC the mound follows a little later.
                centre = 2.0 + 7.0 * np.clip(-local[:, 1] / 10.0, -0.2, 1.0)
            # On the palmar side the skin is pushed together: a wider zone spreads it over the fold.
            zone = zones[bone] * (1.0 + PALMAR_WIDENING * np.clip(-local[:, 1] / 8.0, 0.0, 1.0))
            onward = handed * _step((local[:, 2] - centre) / zone)
            if bone > 0:
                weights[:, joint - 1] = handed - onward
            handed = onward
        weights[:, 3 * finger + 3] = handed
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    weights /= total
    # A trace of a neighbour on a finger's flank would tie the two together: only true web vertices are shared.
    share = np.stack([weights[:, 3 * f + 1 : 3 * f + 4].sum(axis=1) for f in range(len(FINGERS))], axis=1)
    trace = (share < 0.06) & (share.max(axis=1, keepdims=True) > 0.7)
    weights[:, 1:] *= 1.0 - np.repeat(trace, 3, axis=1)
    own = np.maximum(share.max(axis=1, keepdims=True), 0.1)
    weights[:, 1:] *= np.where(trace.any(axis=1, keepdims=True), share.sum(axis=1, keepdims=True) / own, 1.0)
    weights[:, 0] = 1.0 - weights.sum(axis=1)
    weights = _share_webs(weights, faces)
    weights[weights < 0.002] = 0.0
    weights[:, 0] = 0.0
    weights = np.round(weights, 5)
    weights[:, 0] = 1.0 - weights.sum(axis=1)
    # A vertex beyond the webs is its finger's alone; a remainder of rounding would tie it to the palm.
    tiny = weights[:, 0] < 1e-4
    largest = weights.argmax(axis=1)
    weights[tiny, largest[tiny]] += weights[tiny, 0]
    weights[tiny, 0] = 0.0
    return weights


def _quaternions(rotations: Array) -> Array:
    """Matrices (..., 3, 3) to unit quaternions (..., 4), scalar first, by the eigenvector of Bar-Itzhack's matrix."""
    m = rotations
    k = np.zeros((*m.shape[:-2], 4, 4))
    k[..., 0, 0] = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    for i in range(3):
        j, h = (i + 1) % 3, (i + 2) % 3
        k[..., i + 1, i + 1] = m[..., i, i] - m[..., j, j] - m[..., h, h]
        k[..., 0, i + 1] = k[..., i + 1, 0] = m[..., h, j] - m[..., j, h]
        k[..., i + 1, j + 1] = k[..., j + 1, i + 1] = m[..., i, j] + m[..., j, i]
    return np.asarray(np.linalg.eigh(k)[1][..., -1])


def _product(p: Array, q: Array) -> Array:
    scalar = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(axis=-1, keepdims=True)
    return np.concatenate(
        [scalar, p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])], -1
    )


def dual_quaternion_skin(vertices: Array, weights: Array, world: Array, position: Array, joints: Array) -> Array:
    """Posed vertices (n_poses, n, 3) by dual quaternion skinning, which keeps the volume of bent joints."""
    shift = position - np.einsum("pjab,jb->pja", world, joints)
    real = _quaternions(world)
    # Signs follow the parent chain: every joint's quaternion on the side of the wrist's.
    real *= np.where((real * real[:, :1]).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    dual = 0.5 * _product(np.concatenate([np.zeros_like(shift[..., :1]), shift], axis=-1), real)
    blended_real = np.einsum("vj,pjk->pvk", weights, real)
    blended_dual = np.einsum("vj,pjk->pvk", weights, dual)
    norm = np.linalg.norm(blended_real, axis=-1, keepdims=True)
    q, d = blended_real / norm, blended_dual / norm
    conjugate = q * np.array([1.0, -1.0, -1.0, -1.0])
    v = np.broadcast_to(vertices, (len(q), *vertices.shape))
    rotated = v + 2 * np.cross(q[..., 1:], np.cross(q[..., 1:], v) + q[..., :1] * v)
    return np.asarray(rotated + 2 * _product(d, conjugate)[..., 1:])


def pose_blend_shapes(vertices: Array, weights: Array, joints: Array, poses: Array, ridge: float) -> Array:
    """(n, 3, 135): ridge regression on vec(R - I) of the difference between dual quaternion and linear skinning.

    A vertex listens only to the joints of the fingers that move it. ``ridge`` is in units of the number of poses.
    """
    rotations = rotation_matrices(np.concatenate([np.zeros((len(poses), 3)), poses], axis=1).reshape(-1, 16, 3))
    world, position = joint_transforms(rotations, joints)
    feature = pose_feature(rotations)
    result = np.zeros((len(vertices), 3, 135))
    moved_by = np.stack([weights[:, 3 * f + 1 : 3 * f + 4].max(axis=1) > 0 for f in range(len(FINGERS))], axis=1)
    for pattern in np.unique(moved_by, axis=0):
        if not pattern.any():
            continue
        rows = np.flatnonzero((moved_by == pattern).all(axis=1))
        columns = np.flatnonzero(np.repeat(pattern, 27))
        target = dual_quaternion_skin(vertices[rows], weights[rows], world, position, joints)
        blend = np.einsum("vj,pjab->pvab", weights[rows], world)
        shift = np.einsum("vj,pja->pva", weights[rows], position - np.einsum("pjab,jb->pja", world, joints))
        wanted = np.linalg.solve(blend, (target - shift)[..., None])[..., 0] - vertices[rows]
        x = feature[:, columns]
        gram = x.T @ x + ridge * len(poses) * np.eye(len(columns))
        solution = np.linalg.solve(gram, x.T @ wanted.reshape(len(poses), -1))
        result[np.ix_(rows, np.arange(3), columns)] = solution.T.reshape(len(rows), 3, len(columns))
    return result
