"""Closed-form derivatives of the biomechanical quantities, pushed forward from those of the bones.

Every function takes `by` (B, 20, 3, P), the derivative of the bones by any P parameters, and returns (B, n, P). What is
not valid has a zero derivative, as in `handloop.priors.biomechanics`.

The derivative of a direction u = b / |b| is du = (db - u (u . db)) / |b|. A joint's frame turns with z, plus a spin
s = y . dx about it: dx = -(x . dz) z + s y and dy = -(y . dz) z - s x. At the base joint the spin follows from the palm
normal; along the finger, transport from z to u changes it by the area that the two directions sweep:
s' = s - (z x u) . (dz + du) / (1 + z . u).
"""

from __future__ import annotations

import torch
from torch import Tensor

from handloop.priors.biomechanics import (
    EDGE_PAIRS,
    FRAME_PAIRS,
    REFERENCE_BONE,
    ROOTS,
    Normals,
    Palm,
    Skeleton,
    bone_lengths,
    divide,
    joint_frames,
    palm_structure,
)


def bone_lengths_jacobian(skeleton: Skeleton, by: Tensor, reference: int | None = REFERENCE_BONE) -> Tensor:
    """(B, 20, P) derivative of `bone_lengths`."""
    # Bones too short for the other quantities still have a length that changes.
    direction = divide(skeleton.bones, skeleton.lengths, skeleton.lengths > 0)
    along = _dot(direction, by)
    measured = bone_lengths(skeleton, reference)
    if reference is not None:
        along = along - measured.value[..., None] * along[:, reference, None]
    scale, _ = skeleton.scale(reference)
    return _kept(along / scale[:, None, None], measured.valid)


def palm_structure_jacobian(
    skeleton: Skeleton, by: Tensor, reference: int | None = REFERENCE_BONE
) -> tuple[Tensor, Tensor]:
    """(B, 4, P) each, derivatives of the curvature and the spread of `palm_structure`."""
    roots = skeleton.units[:, ROOTS]
    turned = _units_jacobian(skeleton, by)[:, ROOTS]
    curvature, spread = palm_structure(skeleton, reference)
    palm = Palm.of(skeleton)
    edges = palm.mean(EDGE_PAIRS)
    across, bend = skeleton.bones[:, ROOTS].diff(dim=1), edges.units.diff(dim=1)
    sq = across.square().sum(-1)
    # c = scale (de . db) / |db|^2, de and db here the differences between neighbours.
    scale, _ = skeleton.scale(reference)
    factor = scale[:, None] / torch.where(curvature.valid, sq, torch.ones_like(sq))
    d_across = by[:, ROOTS].diff(dim=1)
    d_bend = _normals_jacobian(palm, edges, EDGE_PAIRS, _palm_jacobian(palm, roots, turned)).diff(dim=1)
    pull = factor[..., None] * bend - 2 * (curvature.value * factor / scale[:, None])[..., None] * across
    d_curvature = _dot(pull, d_across) + _dot(factor[..., None] * across, d_bend)
    if reference is not None:
        relative = _dot(skeleton.units[:, reference], by[:, reference]) / scale[:, None]
        d_curvature = d_curvature + curvature.value[..., None] * relative[:, None]
    # phi changes as the two directions part within their common plane.
    after, before = roots[:, 1:], roots[:, :-1]
    cosine = (after * before).sum(-1, keepdim=True)
    apart = palm.sines > 0
    d_spread = -_dot(divide(after - cosine * before, palm.sines, apart), turned[:, :-1])
    d_spread = d_spread - _dot(divide(before - cosine * after, palm.sines, apart), turned[:, 1:])
    return _kept(d_curvature, curvature.valid), _kept(d_spread, spread.valid)


def joint_angles_jacobian(skeleton: Skeleton, by: Tensor) -> Tensor:
    """(B, 15, 2, P) derivative of `joint_angles`."""
    turned = _units_jacobian(skeleton, by)
    palm = Palm.of(skeleton)
    backs = palm.mean(FRAME_PAIRS)
    d_palm = _palm_jacobian(palm, skeleton.units[:, ROOTS], turned[:, ROOTS])
    d_backs = _normals_jacobian(palm, backs, FRAME_PAIRS, d_palm)
    turned = turned.unflatten(1, (5, 4))
    levels = joint_frames(skeleton, backs)
    spin = -_dot(levels[0].y, d_backs)
    out = []
    for level, at in enumerate(levels):
        dz, du = turned[:, :, level], turned[:, :, level + 1]
        u_x, u_y, u_z = (part[..., None] for part in at.parts.unbind(-1))
        # d(u . x) and so on: the bone's own turn, the frame's tilt with z, and its spin about z.
        d_x = _dot(at.x, du) - u_z * _dot(at.x, dz) + spin * u_y
        d_y = _dot(at.y, du) - u_z * _dot(at.y, dz) - spin * u_x
        d_z = _dot(at.z, du) + _dot(at.bone, dz)
        radius = at.radius[..., None]
        angles = torch.stack([(u_z * d_x - u_x * d_z) / radius.square(), d_y / radius], 2)
        out.append(torch.where(at.valid[:, :, None, None], angles, torch.zeros_like(angles)))
        spin = spin - _dot(torch.linalg.cross(at.z, at.bone), dz + du) / at.fold[..., None]
    return torch.stack(out, 2).flatten(1, 2)


def _units_jacobian(skeleton: Skeleton, by: Tensor) -> Tensor:
    """(B, 20, 3, P) derivative of the bones' directions."""
    inverse = skeleton.solid / torch.where(skeleton.solid, skeleton.lengths, torch.ones_like(skeleton.lengths))
    return _perpendicular(by, skeleton.units) * inverse[..., None, None]


def _palm_jacobian(palm: Palm, roots: Tensor, turned: Tensor) -> Tensor:
    """(B, 4, 3, P) derivative of the palm normals."""
    crossed = _cross(turned[:, 1:], roots[:, :-1]) - _cross(turned[:, :-1], roots[:, 1:])
    inverse = palm.valid / torch.where(palm.valid, palm.sines, torch.ones_like(palm.sines))
    return _perpendicular(crossed, palm.normals) * inverse[..., None, None]


def _normals_jacobian(palm: Palm, means: Normals, pairs: tuple[tuple[int, ...], ...], d_palm: Tensor) -> Tensor:
    """(B, 5, 3, P) derivative of the mean normals."""
    total = d_palm[:, list(pairs[0])] + d_palm[:, list(pairs[1])]
    inverse = means.valid / torch.where(means.valid, means.sums, torch.ones_like(means.sums))
    return _perpendicular(total, means.units) * inverse[..., None, None]


def _perpendicular(d: Tensor, unit: Tensor) -> Tensor:
    """The part of d (..., 3, P) square to unit (..., 3)."""
    return d - unit[..., None] * _dot(unit, d)[..., None, :]


def _dot(v: Tensor, d: Tensor) -> Tensor:
    """(..., 3) with (..., 3, P) to (..., P), summed in a fixed order whatever the batch."""
    return v[..., 0:1] * d[..., 0, :] + v[..., 1:2] * d[..., 1, :] + v[..., 2:3] * d[..., 2, :]


def _cross(d: Tensor, v: Tensor) -> Tensor:
    """Columns of d (..., 3, P) times v (..., 3)."""
    return torch.linalg.cross(d, v[..., None].expand_as(d), dim=-2)


def _kept(jacobian: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid[..., None], jacobian, torch.zeros_like(jacobian))
