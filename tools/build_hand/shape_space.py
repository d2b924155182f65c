"""Ten shape directions, one population standard deviation each, and the joint regressor that follows them exactly."""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

from tools.build_hand.skeleton import FINGERS, PARENTS, THUMB, Array, Skeleton

Scales = tuple[float, float, float]
"""Relative change across (lateral), in depth (dorsal) and along a bone."""


@dataclass(frozen=True)
class Direction:
    """One shape direction as relative changes of the palm and of single bones."""

    name: str
    palm: Scales = (0.0, 0.0, 0.0)
    bones: dict[str, tuple[Scales, Scales, Scales]] = field(default_factory=dict)
    """For each finger its three bones, proximal to distal."""
    thumb_base: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Shift of the thumb's CMC beyond the palm's own change: (distal, dorsal, radial) mm."""


def _along(change: float) -> Scales:
    return (0.0, 0.0, change)


def _every(bones: tuple[Scales, Scales, Scales], names: tuple[str, ...]) -> dict[str, tuple[Scales, Scales, Scales]]:
    return dict.fromkeys(names, bones)


LONG_FINGERS = ("index", "middle", "ring", "pinky")
SIZE = 0.061

# 0: pooled hand length, ANSUR II. 1 and 9: hand length against palm length (correlation 0.79 to 0.84, ANSUR II). 2:
# hand breadth given length: 5.0 % times sqrt(1 - 0.58^2). 3 and 8: wrist and hand circumferences vary by 5 % (ANSUR
# II). 4 to 7: ratios of bone lengths, about 4 % per bone in all (Buryanov & Kotiuk 2010 after taking out size); 5:
# 2D:4D has an sd near 0.033.
DIRECTIONS: tuple[Direction, ...] = (
    Direction("size", (SIZE, SIZE, SIZE), _every(3 * ((SIZE, SIZE, SIZE),), FINGERS)),
    Direction(
        "finger length",
        _along(-0.02),
        _every((_along(0.03), _along(0.03), _along(0.03)), LONG_FINGERS)
        | _every((_along(0.0), _along(0.02), _along(0.02)), ("thumb",)),
    ),
    Direction("palm width", (0.041, 0.0, 0.0)),
    Direction("thickness", (0.0, 0.05, 0.0), _every(3 * ((0.0, 0.05, 0.0),), FINGERS)),
    Direction("thumb length", bones=_every((_along(0.04), _along(0.04), _along(0.04)), ("thumb",))),
    Direction(
        "index against ring",
        bones=_every((_along(0.0165), _along(0.0165), _along(0.0165)), ("index",))
        | _every((_along(-0.0165), _along(-0.0165), _along(-0.0165)), ("ring",)),
    ),
    Direction("little finger", bones=_every((_along(0.045), _along(0.045), _along(0.045)), ("pinky",))),
    Direction(
        "proximal against distal",
        bones=_every((_along(0.022), _along(-0.03), _along(-0.03)), LONG_FINGERS)
        | _every((_along(0.0), _along(0.025), _along(-0.03)), ("thumb",)),
    ),
    Direction(
        "finger girth",
        bones=_every(3 * ((0.055, 0.055, 0.0),), LONG_FINGERS)
        | _every(((0.0, 0.0, 0.0), (0.055, 0.055, 0.0), (0.055, 0.055, 0.0)), ("thumb",)),
    ),
    Direction("palm length and thumb base", _along(0.015), thumb_base=(-2.2, -0.5, 1.2)),
)


def shape_directions(vertices: Array, weights: Array, skeleton: Skeleton) -> tuple[Array, Array]:
    """Motion of vertices (n, 3, 10) and joints (16, 3, 10) in mm: the derivative of skinning with scaled bones."""
    by_vertex, by_joint = [], []
    for direction in DIRECTIONS:
        stretch = np.zeros((16, 3, 3))
        for joint in range(16):
            finger, bone = divmod(joint - 1, 3)
            rest = ((0.0, 0.0, 0.0),) * 3
            scales = direction.palm if joint == 0 else direction.bones.get(FINGERS[finger], rest)[bone]
            axes = skeleton.axes[joint]
            stretch[joint] = axes @ np.diag(scales) @ axes.T
        moved = np.zeros((16, 3))
        for joint in range(1, 16):
            parent = PARENTS[joint]
            moved[joint] = moved[parent] + stretch[parent] @ (skeleton.joints[joint] - skeleton.joints[parent])
            if joint == 3 * THUMB + 1:
                distal, dorsal, radial = direction.thumb_base
                moved[joint] += np.array([-distal, dorsal, radial])
        offset = vertices[:, None] - skeleton.joints
        by_vertex.append(np.einsum("vj,vja->va", weights, moved + np.einsum("jab,vjb->vja", stretch, offset)))
        by_joint.append(moved)
    return np.stack(by_vertex, axis=2), np.stack(by_joint, axis=2)


def _local_vertices(joint: int, vertices: Array, weights: Array, skeleton: Skeleton) -> Array:
    """Indices of the vertices a joint is regressed from: the nearest ones that its own bones move."""
    own = weights[:, joint] > 0.02
    if joint > 0:
        own |= weights[:, PARENTS[joint]] > 0.02
    distance = np.linalg.norm(vertices - skeleton.joints[joint], axis=1) + np.where(own, 0.0, 1e3)
    return np.sort(np.argsort(distance, kind="stable")[: 60 if joint in (0, 13) else 40])


def joint_regressor(
    vertices: Array, weights: Array, skeleton: Skeleton, by_vertex: Array, by_joint: Array
) -> tuple[Array, Array]:
    """Non-negative local regressor (16, n), exact on the template, and the shape motion made exact for it too.

    A non-negative regressor can't follow a joint between a growing and a shrinking bone to the last tenth of a
    millimetre: every vertex around it moves to the same side. The remainder is taken out of the skin by one smooth bump
    per joint.
    """
    regressor = np.zeros((16, len(vertices)))
    for joint in range(16):
        rows = _local_vertices(joint, vertices, weights, skeleton)
        exact = np.concatenate([vertices[rows].T - skeleton.joints[joint][:, None], np.ones((1, len(rows)))])
        wanted = np.array([0.0, 0.0, 0.0, 1.0])
        motion = by_vertex[rows].reshape(len(rows), -1).T
        # Heavy rows for position and sum, medium rows for the shape motion, light rows to spread the weight.
        system = np.concatenate([100.0 * exact, 20.0 * motion, np.eye(len(rows))])
        right = np.concatenate([100.0 * wanted, 20.0 * by_joint[joint].ravel(), np.zeros(len(rows))])
        solution, _ = nnls(system, right, maxiter=2000)
        used = solution > 1e-6
        solution[~used] = 0.0
        for _ in range(3):
            solution[used] += np.linalg.pinv(exact[:, used]) @ (wanted - exact @ solution)
        if (solution < 0).any():
            raise ValueError(f"joint {joint} lies outside the hull of its vertices")
        regressor[joint, rows] = solution
    bumps = np.exp(-0.5 * (np.linalg.norm(vertices[:, None] - skeleton.joints, axis=2) / 11.0) ** 2)
    fingers = np.stack([weights[:, 3 * f + 1 : 3 * f + 4].sum(axis=1) for f in range(len(FINGERS))], axis=1)
    bumps[:, 1:] *= np.repeat(fingers > 0, 3, axis=1)
    remainder = by_joint - np.einsum("jv,vck->jck", regressor, by_vertex)
    correction = np.linalg.solve(regressor @ bumps, remainder.reshape(16, -1)).reshape(16, 3, -1)
    return regressor, by_vertex + np.einsum("vj,jck->vck", bumps, correction)
