"""Losses on a network's 3D points and on their projections.

Every function returns one value per hand (B,): the mean over its points that are labelled, 0 where there are none.
"""

from __future__ import annotations

import torch
from torch import Tensor


def points_loss(predicted: Tensor, true: Tensor, weight: Tensor | None = None, squared: bool = False) -> Tensor:
    """Mean L1 distance per coordinate of points (B, P, 3), each side relative to its own point 0, in their unit.

    Args:
        predicted, true: (B, P, 3).
        weight: (B, P), 0 for points without a label, whose coordinates do not matter; None for all. A hand whose wrist
            has none gives 0.
        squared: mean squared distance instead.
    """
    if weight is not None:
        true = torch.where(weight[..., None] > 0, true, torch.zeros_like(true))
    difference = (predicted - predicted[:, :1]) - (true - true[:, :1])
    error = (difference.square() if squared else difference.abs()).mean(2)
    if weight is None:
        return error.mean(1)
    return _mean(error, weight * (weight[:, :1] > 0))


def reprojection_loss(predicted: Tensor, seen: Tensor, weight: Tensor, scale: Tensor, cap: float) -> Tensor:
    """Mean L1 distance per coordinate of projections (B, P, 2), in units of each hand's scale, saturating at `cap`.

    Args:
        predicted, seen: (B, P, 2), in any unit.
        weight: (B, P) confidence, 0 for missing points, whose coordinates do not matter.
        scale: (B,) in the same unit, say half the hand's box.
        cap: distances beyond count as this much and pull no more: a detector's gross errors.
    """
    error = (
        (predicted - torch.where(weight[..., None] > 0, seen, torch.zeros_like(seen))) / scale[:, None, None]
    ).abs()
    return _mean(error.clamp(max=cap).mean(2), weight)


def vertices_loss(predicted: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """Mean L1 distance per coordinate of meshes (B, V, 3), each side relative to its own mean, in their unit.

    Args:
        predicted, true: (B, V, 3).
        valid: (B,) bool, hands with a label; others give 0.
    """
    true = torch.where(valid[:, None, None], true, torch.zeros_like(true))
    error = ((predicted - predicted.mean(1, keepdim=True)) - (true - true.mean(1, keepdim=True))).abs().mean((1, 2))
    return torch.where(valid, error, torch.zeros_like(error))


def _mean(error: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum(1)
    kept = torch.where(weight > 0, error, torch.zeros_like(error))
    return (kept * weight).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
