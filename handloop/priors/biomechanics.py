"""Bone lengths, palm structure and joint angles of 21 points, as in BMC (Spurr et al., ECCV 2020).

Nothing here knows a hand model: it measures any 21 points in canonical order, labelled, predicted or fitted. With
b_1..b_5 the root bones from the wrist to the base joints of thumb, index, middle, ring and little finger:

* palm normals n_i = unit(b_(i+1) x b_i), out of the back of a right hand; edge normals e_1 = n_1, e_5 = n_4,
  e_i = unit(n_(i-1) + n_i);
* curvature c_i = (e_(i+1) - e_i) . (b_(i+1) - b_i) / |b_(i+1) - b_i|^2 and angular distance (here: spread)
  phi_i = angle(b_i, b_(i+1)), i = 1..4;
* a base joint's frame: z along its root bone, x out of the palm, y = z x x towards the thumb. The next joint's frame is
  the same, turned by the smallest rotation that takes z to the bone between them. In the frame of its joint, a bone u
  has the flexion atan2(u_x, u_z), positive into the palm, and the abduction atan2(u_y, hypot(u_x, u_z)), positive
  towards the thumb.

These signs are a right hand's; left hands are mirrored first. Published code takes acos of dot products and the axis
z x u, whose gradients break down where a finger is straight; the arc tangent of half the angle and the transport
x' = x - (u . x) (z + u) / (1 + z . u) are smooth there.

Where a quantity does not exist (a bone without length has no direction, a finger folded back onto itself no transported
frame) its value is finite, its gradient zero and its `valid` false.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.errors import check_shape
from handloop.core.joints import BONES, JOINT_NAMES
from handloop.core.rotations import angle_from_sides

REFERENCE_BONE = 8
"""Wrist to middle knuckle, by which lengths are divided (Spurr et al.; other works take the index finger's)."""

ANGLE_POINTS = tuple(p for p in range(1, 21) if p % 4)
"""The 15 canonical points with an angle: thumb CMC, MCP, IP, index MCP, PIP, DIP, ..."""

ANGLE_NAMES = tuple(JOINT_NAMES[p] for p in ANGLE_POINTS)
BONE_NAMES = tuple(f"{JOINT_NAMES[a]}-{JOINT_NAMES[b]}" for a, b in BONES)
PALM_NAMES = ("thumb-index", "index-middle", "middle-ring", "ring-pinky")

ROOTS = slice(0, 20, 4)
"""The 5 root bones among the 20."""

EDGE_PAIRS = ((0, 0, 1, 2, 3), (0, 1, 2, 3, 3))
"""Palm normals whose mean is the edge normal at each root bone."""

FRAME_PAIRS = ((0, 1, 1, 2, 3), (0, 1, 2, 3, 3))
"""Palm normals whose mean is the back of each finger's base joint: thumb, index and little have one of their own."""

# A bone shorter than this share of the hand's longest has no direction (0.1 mm on an adult), neither has the normal of
# two root bones with a smaller sine between them (0.06 degrees), nor flexion a bone that close to the abduction axis.
_MIN_SHARE = 1e-3
# 1 + cos of the bend at which a finger lies folded back on itself (within 0.8 degrees): float32 needs that much.
_MIN_FOLD = 1e-4
# Squared lengths below are zero; above, float32 still divides by them.
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Measured:
    """Quantities and whether they exist."""

    value: Tensor
    """(..., n) or, for angles, (..., n, 2); finite where the points are, zero where not valid."""
    valid: Tensor
    """(..., n) bool."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The bones of hands in the right-hand frame. Build with `Skeleton.of`."""

    bones: Tensor
    """(..., 20, 3) child minus parent, in the points' unit; order of `core.joints.BONES`."""
    lengths: Tensor
    """(..., 20)."""
    units: Tensor
    """(..., 20, 3) directions; zero where not `solid`."""
    seen: Tensor
    """(..., 20) bool, both ends visible."""
    solid: Tensor
    """(..., 20) bool, seen and long enough to have a direction."""
    shortest: Tensor
    """(...) what counts as long enough, no gradient."""

    @classmethod
    def of(cls, points: Tensor, is_right: Tensor | bool = True, visible: Tensor | None = None) -> Skeleton:
        """Cut points (..., 21, 3) of any length unit and origin into bones.

        Args:
            points: canonical order; what stands at invisible points does not matter, not even NaN.
            is_right: (...) bool, or one for all; left hands are mirrored (x negated).
            visible: (..., 21) bool; None for all.

        Raises:
            InputError: another shape.
        """
        batch = tuple(points.shape[:-2])
        check_shape("points", tuple(points.shape), (*batch, 21, 3))
        if visible is None:
            seen = torch.ones(*batch, 20, dtype=torch.bool, device=points.device)
        else:
            check_shape("visible", tuple(visible.shape), (*batch, 21))
            visible = visible.to(points.device, torch.bool)
            points = torch.where(visible[..., None], points, torch.zeros_like(points))
            seen = visible[..., [b for _, b in BONES]] & visible[..., [a for a, _ in BONES]]
        if not isinstance(is_right, bool):
            check_shape("is_right", tuple(is_right.shape), batch)
            right = is_right.to(points.device, torch.bool)[..., None]
            x = torch.where(right, points[..., 0], -points[..., 0])
            points = torch.cat([x[..., None], points[..., 1:]], -1)
        elif not is_right:
            points = points * points.new_tensor([-1.0, 1.0, 1.0])
        bones = points[..., [b for _, b in BONES], :] - points[..., [a for a, _ in BONES], :]
        lengths = norm(bones)
        shortest = _MIN_SHARE * _kept(lengths, seen).amax(-1).detach()
        solid = seen & (lengths > shortest[..., None])
        return cls(bones, lengths, divide(bones, lengths, solid), seen, solid, shortest)

    def scale(self, reference: int | None) -> tuple[Tensor, Tensor]:
        """(...) length of the reference bone and whether it has one; ones where `reference` is None."""
        if reference is None:
            one = torch.ones_like(self.lengths[..., 0])
            return one, one > 0
        solid = self.solid[..., reference]
        return torch.where(solid, self.lengths[..., reference], torch.ones_like(self.lengths[..., 0])), solid


@dataclass(frozen=True, eq=False)
class Normals:
    """Mean directions of pairs of palm normals."""

    sums: Tensor
    """(..., 5) norm of the sum of the two."""
    units: Tensor
    """(..., 5, 3)."""
    valid: Tensor
    """(..., 5) bool."""


@dataclass(frozen=True, eq=False)
class Palm:
    """The normals of the palm."""

    sines: Tensor
    """(..., 4) between neighbouring root bones."""
    normals: Tensor
    """(..., 4, 3) n_i, out of the back of the hand."""
    valid: Tensor
    """(..., 4) bool."""

    @classmethod
    def of(cls, skeleton: Skeleton) -> Palm:
        """From the root bones."""
        units, solid = skeleton.units[..., ROOTS, :], skeleton.solid[..., ROOTS]
        cross = torch.linalg.cross(units[..., 1:, :], units[..., :-1, :])
        sines = norm(cross)
        valid = solid[..., 1:] & solid[..., :-1] & (sines > _MIN_SHARE)
        return cls(sines, divide(cross, sines, valid), valid)

    def mean(self, pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> Normals:
        """The mean direction of two normals for each of five root bones."""
        first, second = (list(p) for p in pairs)
        total = self.normals[..., first, :] + self.normals[..., second, :]
        sums = norm(total)
        valid = self.valid[..., first] & self.valid[..., second] & (sums > _MIN_SHARE)
        return Normals(sums, divide(total, sums, valid), valid)


def bone_lengths(skeleton: Skeleton, reference: int | None = REFERENCE_BONE) -> Measured:
    """(..., 20) lengths in units of the reference bone, or in the points' unit where that is None."""
    scale, known = skeleton.scale(reference)
    valid = skeleton.seen & known[..., None]
    return Measured(_kept(skeleton.lengths / scale[..., None], valid), valid)


def palm_structure(skeleton: Skeleton, reference: int | None = REFERENCE_BONE) -> tuple[Measured, Measured]:
    """Curvature (..., 4), per unit of the reference bone's length, and spread (..., 4), rad, of neighbours' root bones.

    Spurr et al. 2020, L_RB.
    """
    scale, known = skeleton.scale(reference)
    palm = Palm.of(skeleton)
    edges = palm.mean(EDGE_PAIRS)
    across, bend = skeleton.bones[..., ROOTS, :].diff(dim=-2), edges.units.diff(dim=-2)
    sq = across.square().sum(-1)
    valid = edges.valid[..., 1:] & edges.valid[..., :-1] & known[..., None]
    valid = valid & (sq > skeleton.shortest[..., None].square())
    curvature = (bend * across).sum(-1) / torch.where(valid, sq, torch.ones_like(sq)) * scale[..., None]
    units, solid = skeleton.units[..., ROOTS, :], skeleton.solid[..., ROOTS]
    both = solid[..., 1:] & solid[..., :-1]
    cosine = (units[..., 1:, :] * units[..., :-1, :]).sum(-1)
    spread = angle_from_sides(palm.sines, cosine, torch.ones_like(cosine))
    return Measured(_kept(curvature, valid), valid), Measured(_kept(spread, both), both)


@dataclass(frozen=True, eq=False)
class JointFrames:
    """The frames of one joint of each finger (base, middle or end) and the bone that leaves it."""

    x: Tensor
    """(..., 5, 3) out of the palm."""
    y: Tensor
    """(..., 5, 3) towards the thumb."""
    z: Tensor
    """(..., 5, 3) along the bone that ends here."""
    bone: Tensor
    """(..., 5, 3) direction u of the bone that starts here."""
    parts: Tensor
    """(..., 5, 3) u in the frame."""
    radius: Tensor
    """(..., 5) of u around y, hypot(u_x, u_z); never zero."""
    fold: Tensor
    """(..., 5) 1 + z . u; never zero."""
    valid: Tensor
    """(..., 5) bool, the angles here exist."""


def joint_frames(skeleton: Skeleton, backs: Normals) -> tuple[JointFrames, JointFrames, JointFrames]:
    """Frames of the base, middle and end joints; `backs` are the means of `FRAME_PAIRS`."""
    units = skeleton.units.unflatten(-2, (5, 4))
    solid = skeleton.solid.unflatten(-1, (5, 4))
    x, framed = -backs.units, backs.valid & solid[..., 0]
    levels = []
    for level in range(3):
        z, bone = units[..., level, :], units[..., level + 1, :]
        y = torch.linalg.cross(z, x)
        parts = torch.stack([(bone * axis).sum(-1) for axis in (x, y, z)], -1)
        sq = parts[..., 0].square() + parts[..., 2].square()
        exists = framed & solid[..., level + 1]
        valid = exists & (sq > _MIN_SHARE**2)
        fold = 1 + parts[..., 2]
        unfolded = exists & (fold > _MIN_FOLD)
        fold = torch.where(unfolded, fold, torch.ones_like(fold))
        radius = torch.where(valid, sq, torch.ones_like(sq)).sqrt()
        levels.append(JointFrames(x, y, z, bone, parts, radius, fold, valid))
        x, framed = x - (parts[..., 0] / fold)[..., None] * (z + bone), unfolded
    return levels[0], levels[1], levels[2]


def joint_angles(skeleton: Skeleton) -> Measured:
    """(..., 15, 2) flexion and abduction, rad, at `ANGLE_POINTS` (Spurr et al. 2020, L_A)."""
    levels = joint_frames(skeleton, Palm.of(skeleton).mean(FRAME_PAIRS))
    values = []
    for at in levels:
        u_x, u_y, u_z = at.parts.unbind(-1)
        flexion, abduction = (
            angle_from_sides(u_x, u_z, at.radius),
            angle_from_sides(u_y, at.radius, torch.ones_like(u_y)),
        )
        values.append(torch.stack([flexion, abduction], -1))
    valid = torch.stack([at.valid for at in levels], -1).flatten(-2)
    value = torch.stack(values, -2).flatten(-3, -2)
    return Measured(torch.where(valid[..., None], value, torch.zeros_like(value)), valid)


def norm(v: Tensor) -> Tensor:
    """Length along the last axis; gradient zero at zero."""
    sq = v.square().sum(-1)
    there = sq > _TINY
    return torch.where(there, torch.where(there, sq, torch.ones_like(sq)).sqrt(), torch.zeros_like(sq))


def divide(v: Tensor, length: Tensor, valid: Tensor) -> Tensor:
    """v / length where valid, else zeros without gradient."""
    unit = v / torch.where(valid, length, torch.ones_like(length))[..., None]
    return torch.where(valid[..., None], unit, torch.zeros_like(unit))


def _kept(value: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, value, torch.zeros_like(value))
