"""Keypoints in a camera of the hand's own: it looks at the middle of the hand's box, with the fingers up.

A network then need not learn what a place in the picture or a turn of the camera does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How far along the hand each point is; their pull on the image decides which way is up.
ALONG = (-1.0, -0.7, -0.4, -0.2, 0.0, *(0.0, 0.3, 0.4, 0.5) * 4)
STRAY = 6.0
"""Points this many times as far from the middle as the median one do not count (as in `Keypoints.box`)."""
FARTHEST = 4.0
"""Where stray points are put, in units of the scale: a network needs no more to see that they are stray."""


@dataclass(frozen=True, eq=False)
class HandView:
    """B hands, each in its own camera of unit focal length."""

    points: Tensor
    """(B, 21, 2) image coordinates in units of `scale`, 0 where missing."""
    seen: Tensor
    """(B, 21) confidence, 0 for missing points."""
    scale: Tensor
    """(B,) root mean square distance of the points from the middle: the hand's angular size."""
    turn: Tensor
    """(B, 3, 3) from this camera's frame to the given one."""

    @classmethod
    def of(cls, rays: Tensor, conf: Tensor) -> HandView:
        """From rays (B, 21, 2) x/z, y/z and confidences (B, 21)."""
        seen = torch.where(torch.isfinite(rays).all(-1), conf, torch.zeros_like(conf))
        there = seen > 0
        rays = torch.where(there[..., None], rays, torch.zeros_like(rays))
        near = _without_strays(rays, there)
        look = look_at(_box_middle(rays, near))
        rotated = torch.cat([rays, torch.ones_like(rays[..., :1])], 2) @ look
        flat = rotated[..., :2] / rotated[..., 2:].clamp(min=0.05)
        count = near.sum(1).clamp(min=1)
        square = torch.where(near, flat.square().sum(-1), torch.zeros_like(conf))
        scale = (square.sum(1) / count).sqrt().clamp(min=1e-6)
        flat = flat / scale[:, None, None]
        far = flat.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        flat = flat * (FARTHEST / far).clamp(max=1.0)
        flat = torch.where(there[..., None], flat, torch.zeros_like(flat))
        roll = _fingers_up(flat, near)
        turn = look @ _about_z(roll).mT
        return cls((roll[:, None] @ flat[..., None])[..., 0], seen, scale, turn)


def look_at(middle: Tensor) -> Tensor:
    """(B, 3, 3) the least rotations that take the optical axis to the rays through (B, 2) x/z, y/z."""
    x, y, z = torch.nn.functional.normalize(torch.cat([middle, torch.ones_like(middle[:, :1])], 1), dim=1).unbind(1)
    k = 1 / (1 + z)
    entries = [1 - x * x * k, -x * y * k, x, -x * y * k, 1 - y * y * k, y, -x, -y, z]
    return torch.stack(entries, 1).reshape(-1, 3, 3)


def _without_strays(rays: Tensor, there: Tensor) -> Tensor:
    nan = torch.full_like(rays, float("nan"))
    middle = torch.where(there[..., None], rays, nan).nanmedian(1, keepdim=True).values
    away = (rays - middle).norm(dim=-1)
    usual = torch.where(there, away, nan[..., 0]).nanmedian(1, keepdim=True).values
    return there & ~((away > STRAY * usual) & (usual > 0))


def _box_middle(rays: Tensor, near: Tensor) -> Tensor:
    big = torch.finfo(rays.dtype).max
    low = torch.where(near[..., None], rays, torch.full_like(rays, big)).amin(1)
    high = torch.where(near[..., None], rays, torch.full_like(rays, -big)).amax(1)
    return torch.where(near.any(1)[:, None], (low + high) / 2, torch.zeros_like(low))


def fingers_direction(points: Tensor, weight: Tensor) -> Tensor:
    """(B, 2) where the fingers of hands point in a picture, the longer the more clearly they do.

    Args:
        points: (B, 21, 2), in any unit.
        weight: (B, 21) how much each counts.
    """
    along = torch.tensor(ALONG).to(points)
    mean = (weight * along).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return ((weight * (along - mean))[..., None] * points).sum(1)


def _fingers_up(points: Tensor, near: Tensor) -> Tensor:
    """(B, 2, 2) turns in the picture that point the hand's mean direction up (-y)."""
    pull = fingers_direction(points, near.to(points))
    length = pull.norm(dim=1, keepdim=True)
    down = torch.tensor([0.0, -1.0]).to(points).expand_as(pull)
    return upward(torch.where(length > 1e-6, pull / length.clamp(min=1e-6), down))


def upward(direction: Tensor) -> Tensor:
    """(B, 2, 2) turns that take unit directions (B, 2) of a picture to its top (-y)."""
    a, b = direction.unbind(1)
    return torch.stack([-b, a, -a, -b], 1).reshape(-1, 2, 2)


def _about_z(roll: Tensor) -> Tensor:
    out = torch.zeros(len(roll), 3, 3, dtype=roll.dtype, device=roll.device)
    out[:, :2, :2] = roll
    out[:, 2, 2] = 1
    return out
