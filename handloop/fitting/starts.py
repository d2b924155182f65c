"""Where fits begin: the palm's orientation in closed form, both depth flips, times a few poses.

The wrist and the four finger knuckles are nearly a rigid plane. Seen from afar (scaled orthography) the image of a
plane fixes its rotation up to a flip in depth, in closed form: with A the 2x2 map from plane to image and A = U S V^T,
the scale is s_1, the cosine of the tilt s_2 / s_1, and the flip is the sign of the depth along V's second column
(cf. Collins and Bartoli, "Infinitesimal plane-based pose estimation", IJCV 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.joints import PALM_POINTS
from handloop.core.rotations import so3_exp
from handloop.core.terms import HandState
from handloop.hand.kinematics import Kinematics
from handloop.priors.anatomy import JointLimits, rotations_from_angles

# Flexion in degrees of (finger MCP, PIP, DIP) and (thumb CMC, MCP, IP): authored, spread over what hands do.
_SEEDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "flat": ((3, 3, 2), (0, 0, 0)),
    "half": ((30, 40, 20), (5, 15, 20)),
    "curled": ((65, 85, 45), (10, 30, 40)),
    "hook": ((10, 80, 45), (5, 20, 30)),
    "bent": ((70, 15, 5), (10, 10, 10)),
}


def seed_poses(limits: JointLimits, mean_pose: Tensor) -> Tensor:
    """(S, 15, 3, 3) joint rotations to start from: the prior's mean first, then authored flexions."""
    seeds = [so3_exp(mean_pose.to(torch.float64).reshape(15, 3))]
    for fingers, thumb in _SEEDS.values():
        flexion = np.deg2rad([*fingers * 4, *thumb])
        angles = torch.zeros(15, 3, dtype=torch.float64)
        angles[:, 0] = torch.tensor(flexion)
        angles = angles.clamp(limits.low, limits.high)
        seeds.append(rotations_from_angles(angles[None], limits.axes)[0])
    return torch.stack(seeds)


@dataclass(frozen=True, eq=False)
class Views:
    """What the starts need of the input, one row per hand, right-hand canonical."""

    rays: Tensor
    """(B, 21, 2) undistorted x/z, y/z of the keypoints."""
    weight: Tensor
    """(B, 21) confidence, 0 for missing points."""


def closed_form_starts(kinematics: Kinematics, seeds: Tensor, views: Views) -> HandState:
    """2 S starts per hand: both flips of each of the S seed poses, hands outermost: (B * 2 S) states.

    With fewer than three palm points visible, all visible points are taken as lying in the plane that fits the seed
    pose's points best.
    """
    s, b = len(seeds), len(views.rays)
    like = views.rays
    seeds = seeds.to(like)
    eye = torch.eye(3, dtype=like.dtype, device=like.device)
    rotations = torch.cat([eye.expand(s, 1, 3, 3), seeds], 1)
    zeros = like.new_zeros(s, 10)
    model = kinematics.points(rotations, zeros, like.new_zeros(s, 3))
    palm = torch.zeros(21, dtype=like.dtype, device=like.device)
    palm[list(PALM_POINTS)] = 1.0
    on_palm = ((views.weight > 0) & (palm > 0)).sum(1) >= 3
    weight = views.weight * torch.where(on_palm[:, None], palm, torch.ones_like(palm))
    # Hands in rows, seeds in columns.
    weight = weight[:, None].expand(b, s, 21).reshape(b * s, 21)
    rays = views.rays[:, None].expand(b, s, 21, 2).reshape(b * s, 21, 2)
    points = model[None].expand(b, s, 21, 3).reshape(b * s, 21, 3)
    rotation, root = _plane_pose(points, rays, weight)
    fingers = seeds[None, :, None].expand(b, s, 2, 15, 3, 3).reshape(-1, 15, 3, 3)
    all_rotations = torch.cat([rotation.reshape(-1, 1, 3, 3), fingers], 1)
    n = b * s * 2
    return HandState(all_rotations, like.new_zeros(n, 10), root.reshape(n, 3), like.new_zeros(n))


def point_starts(kinematics: Kinematics, seeds: Tensor, xyz: Tensor, weight: Tensor) -> HandState:
    """2 S starts per hand from 3D points (B, 21, 3) m with weights (B, 21).

    The rigid motion that lays each seed pose on all known points, and the one that lays its palm on the known palm
    points (Kabsch 1976).
    """
    s, b = len(seeds), len(xyz)
    seeds = seeds.to(xyz)
    eye = torch.eye(3, dtype=xyz.dtype, device=xyz.device)
    rotations = torch.cat([eye.expand(s, 1, 3, 3), seeds], 1)
    model = kinematics.points(rotations, xyz.new_zeros(s, 10), xyz.new_zeros(s, 3))
    palm = torch.zeros(21, dtype=xyz.dtype, device=xyz.device)
    palm[list(PALM_POINTS)] = 1.0
    on_palm = weight * palm
    on_palm = torch.where((on_palm > 0).sum(1, keepdim=True) >= 3, on_palm, weight)
    both = torch.stack([weight, on_palm], 1)[:, None].expand(b, s, 2, 21).reshape(-1, 21, 1)
    target = xyz[:, None, None].expand(b, s, 2, 21, 3).reshape(-1, 21, 3)
    source = model[None, :, None].expand(b, s, 2, 21, 3).reshape(-1, 21, 3)
    total = both.sum(1, keepdim=True).clamp(min=1e-12)
    to, of = (target * both).sum(1, keepdim=True) / total, (source * both).sum(1, keepdim=True) / total
    u, _, vt = torch.linalg.svd(((target - to) * both).mT @ (source - of))
    sign = torch.ones_like(u[:, 0])
    sign[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[:, None]) @ vt
    root = (to - of @ rotation.mT)[:, 0]
    fingers = seeds[None, :, None].expand(b, s, 2, 15, 3, 3).reshape(-1, 15, 3, 3)
    return HandState(
        torch.cat([rotation[:, None], fingers], 1), xyz.new_zeros(len(root), 10), root, xyz.new_zeros(len(root))
    )


def _plane_pose(points: Tensor, rays: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation (N, 2, 3, 3) and wrist position (N, 2, 3) of points (N, 21, 3) seen along rays (N, 21, 2).

    The two flips along axis 1; the model's wrist is at its origin.
    """
    total = weight.sum(1).clamp(min=1e-9)[:, None]
    middle = (points * weight[..., None]).sum(1) / total
    centre = (rays * weight[..., None]).sum(1) / total
    # A virtual camera that looks along the mean ray sees the hand as scaled orthography does.
    turn = _look_at(centre)
    directions = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)
    seen = directions @ turn
    image = seen[..., :2] / seen[..., 2:].clamp(min=1e-2)
    image = image - (image * weight[..., None]).sum(1, keepdim=True) / total[..., None]
    local = points - middle[:, None]
    scatter = (local * weight[..., None]).mT @ local
    axes = torch.linalg.eigh(scatter).eigenvectors[..., [2, 1, 0]]
    flip = torch.linalg.det(axes).sign()
    axes = torch.cat([axes[..., :2], axes[..., 2:] * flip[:, None, None]], -1)
    plane = (local @ axes)[..., :2]
    gram = (plane * weight[..., None]).mT @ plane
    ridge = 1e-6 * torch.diagonal(gram, dim1=1, dim2=2).sum(1).clamp(min=1e-9)
    eye = torch.eye(2, dtype=rays.dtype, device=rays.device)
    a = torch.linalg.solve(gram + ridge[:, None, None] * eye, (plane * weight[..., None]).mT @ image).mT
    _, scale, vt = torch.linalg.svd(a)
    s1 = scale[:, 0].clamp(min=1e-3)
    tilt = (1 - (scale[:, 1] / s1).square()).clamp(min=0).sqrt()
    top = a / s1[:, None, None]
    # Rounding and noise leave the first singular value at 1 and the second anywhere below.
    both = []
    for sign in (1.0, -1.0):
        third = (sign * tilt)[:, None] * vt[:, 1]
        columns = torch.cat([top, third[:, None]], 1)
        r1 = torch.nn.functional.normalize(columns[..., 0], dim=-1)
        r2 = columns[..., 1] - (columns[..., 1] * r1).sum(-1, keepdim=True) * r1
        r2 = torch.nn.functional.normalize(r2, dim=-1)
        both.append(torch.stack([r1, r2, torch.linalg.cross(r1, r2)], -1) @ axes.mT)
    rotation = torch.stack(both, 1)
    # One point, or all in one place, say nothing about the orientation; the model's own is as good as any.
    blank = torch.linalg.det(rotation) < 0.5
    rotation = torch.where(blank[..., None, None], torch.eye(3).to(rays), rotation)
    depth = 1 / s1
    ahead = torch.stack([torch.zeros_like(depth), torch.zeros_like(depth), depth], -1)
    root = ahead[:, None] - (rotation @ middle[:, None, :, None])[..., 0]
    root = (turn[:, None] @ root[..., None])[..., 0]
    # A wrist nearer than this cannot be in front of the camera with the rest of the hand.
    lift = (0.05 / root[..., 2]).clamp(min=1.0)
    root = torch.where(
        (root[..., 2:] > 0),
        root * lift[..., None],
        torch.cat([root[..., :2], depth[:, None, None].expand(-1, 2, 1)], -1),
    )
    return turn[:, None] @ rotation, root


def _look_at(centre: Tensor) -> Tensor:
    """(N, 3, 3) rotations whose third column is the ray through normalised points (N, 2)."""
    z = torch.nn.functional.normalize(torch.cat([centre, torch.ones_like(centre[:, :1])], 1), dim=1)
    right = torch.tensor([1.0, 0.0, 0.0], dtype=z.dtype, device=z.device)
    y = torch.nn.functional.normalize(torch.linalg.cross(z, right.expand_as(z)), dim=1)
    return torch.stack([torch.linalg.cross(y, z), y, z], -1)
