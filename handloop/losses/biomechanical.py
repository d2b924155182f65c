"""The biomechanical losses of BMC (Spurr et al., ECCV 2020) on predicted 3D hands.

They need no labels: a prediction pays where its bone lengths, its palm or its joint angles leave what
`BiomechanicalLimits` allows. With 2D labels only they mostly cure depth (the paper: half the depth error on FreiHAND);
with full 3D labels they add little.

Every function takes points (B, 21, 3) in canonical order with any origin (and, unless the limits are in metres, in any
unit) and returns one value per hand (B,): the mean over the quantities whose points are all visible, 0 where there are
none. Gradients are finite for all finite points, straight fingers and coincident points included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.biomechanics import Measured, Skeleton, bone_lengths, joint_angles, palm_structure

AngleMetric = Literal["paper", "euclidean"]
"""How far a (flexion, abduction) pair is outside its hull: "paper" is the L1 distance of cosines and sines to the
nearest point of an edge (at most 2 per angle and half-turn-safe), "euclidean" the plain distance in rad."""


@dataclass(frozen=True)
class BiomechanicalWeights:
    """Weights of the three losses, those of Spurr et al. beside 2D and 3D losses of weight 1 to 5."""

    bone_length: float = 0.1
    palm: float = 0.1
    joint_angle: float = 0.01


def bone_length_loss(points: Tensor, limits: BiomechanicalLimits, visible: Tensor | None = None) -> Tensor:
    """L_BL: mean distance of the 20 bone lengths from their ranges, in units of the limits' reference bone.

    Args:
        points: (B, 21, 3).
        limits: the ranges.
        visible: (B, 21) bool, points to believe; None for all.

    Returns:
        (B,).
    """
    return _bone_length(Skeleton.of(points, True, visible), limits)


def palm_loss(
    points: Tensor, limits: BiomechanicalLimits, is_right: Tensor | bool = True, visible: Tensor | None = None
) -> Tensor:
    """L_RB: mean distance of the palm's 4 curvatures from their ranges plus that of its 4 angular distances (rad).

    Args:
        points: (B, 21, 3).
        limits: the ranges.
        is_right: (B,) bool, or one for all: curvature has a sign.
        visible: (B, 21) bool, points to believe; None for all.

    Returns:
        (B,).
    """
    return _palm(Skeleton.of(points, is_right, visible), limits)


def joint_angle_loss(
    points: Tensor,
    limits: BiomechanicalLimits,
    is_right: Tensor | bool = True,
    visible: Tensor | None = None,
    metric: AngleMetric = "paper",
) -> Tensor:
    """L_A: mean distance of the 15 (flexion, abduction) pairs from their hulls.

    Args:
        points: (B, 21, 3).
        limits: the hulls.
        is_right: (B,) bool, or one for all: flexion has a sign.
        visible: (B, 21) bool, points to believe; None for all.
        metric: see `AngleMetric`.

    Returns:
        (B,).

    Raises:
        InputError: an unknown metric.
    """
    return _joint_angle(Skeleton.of(points, is_right, visible), limits, metric)


def biomechanical_loss(
    points: Tensor,
    limits: BiomechanicalLimits,
    is_right: Tensor | bool = True,
    visible: Tensor | None = None,
    weights: BiomechanicalWeights = BiomechanicalWeights(),
    metric: AngleMetric = "paper",
) -> Tensor:
    """(B,) the weighted sum of the three losses; arguments as there."""
    skeleton = Skeleton.of(points, is_right, visible)
    return (
        weights.bone_length * _bone_length(skeleton, limits)
        + weights.palm * _palm(skeleton, limits)
        + weights.joint_angle * _joint_angle(skeleton, limits, metric)
    )


def _bone_length(skeleton: Skeleton, limits: BiomechanicalLimits) -> Tensor:
    measured = bone_lengths(skeleton, limits.reference)
    return _mean(limits.bones.excess(measured.value).abs(), measured)


def _palm(skeleton: Skeleton, limits: BiomechanicalLimits) -> Tensor:
    curvature, spread = palm_structure(skeleton, limits.reference)
    bent = _mean(limits.curvature.excess(curvature.value).abs(), curvature)
    return bent + _mean(limits.spread.excess(spread.value).abs(), spread)


def _joint_angle(skeleton: Skeleton, limits: BiomechanicalLimits, metric: AngleMetric) -> Tensor:
    if metric not in ("paper", "euclidean"):
        raise InputError(f'the metric {metric!r} is unknown, expected "paper" or "euclidean".')
    measured = joint_angles(skeleton)
    hulls = limits.hulls.to(measured.value)
    distance = hulls.paper_distance(measured.value) if metric == "paper" else hulls.distance(measured.value)
    return _mean(distance, measured)


def _mean(distance: Tensor, measured: Measured) -> Tensor:
    """Mean over what exists."""
    kept = torch.where(measured.valid, distance, torch.zeros_like(distance))
    return kept.sum(-1) / measured.valid.sum(-1).clamp(min=1)
