"""The biomechanical limits of BMC (Spurr et al., ECCV 2020) as terms of a fit: soft ranges in units of sigma.

Their losses are distances outside a range; here a residual is that distance over the standard deviation of an excess:
zero inside, quadratic outside. A fit runs in the right-hand frame, so no side is asked for. Jacobians are closed form:
quantities by bones, bones by `PosedHand.points_jacobian`.

A MANO hand's bones and palm depend on its shape alone; `BoneLengths` and `PalmStructure` are limits on the betas, and
`JointAngles` the one on the pose that the boxes of `fitting.terms.Limits` cannot express: the joint range of flexion
and abduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.joints import BONES
from handloop.core.products import bmm
from handloop.core.terms import PosedHand, Residual, residual
from handloop.priors.biomechanical_limits import BiomechanicalLimits, Interval
from handloop.priors.biomechanics import Measured, Skeleton, bone_lengths, joint_angles, palm_structure
from handloop.priors.biomechanics_jacobian import (
    bone_lengths_jacobian,
    joint_angles_jacobian,
    palm_structure_jacobian,
)

_COLUMNS = slice(0, 61)
"""Of an increment: all but the focal length."""


@dataclass(frozen=True, eq=False)
class BoneLengths:
    """L_BL: bone lengths within their ranges."""

    limits: BiomechanicalLimits
    sigma: float = 0.02
    """Standard deviation of an excess, in reference bones: what a scatter of 2 mm in each joint makes of it. For limits
    in metres give metres."""
    name: str = "bone_lengths"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 20) excesses / sigma."""
        skeleton = Skeleton.of(posed.points)
        excess = _excess(self.limits.bones, bone_lengths(skeleton, self.limits.reference))
        jac = None
        if posed.points_jacobian is not None:
            jac = bone_lengths_jacobian(skeleton, _by_increment(posed.points_jacobian), self.limits.reference)
        return _soft([excess / self.sigma], jac if jac is None else [jac / self.sigma])

    def select(self, index: Tensor) -> BoneLengths:
        """See `Term.select`: the same for every hand."""
        return self


@dataclass(frozen=True, eq=False)
class PalmStructure:
    """L_RB: curvature and spread of the palm within their ranges."""

    limits: BiomechanicalLimits
    sigma_curvature: float = 0.25
    """Standard deviation of an excess, per reference bone: what a scatter of 2 mm in each joint makes of the curvature
    between fingers of the embedded hand (0.02 at the thumb). For limits in metres give 1/m."""
    sigma_spread_deg: float = 1.5
    """Standard deviation of an excess: the same scatter makes 1 degree between fingers and 3 at the thumb."""
    name: str = "palm_structure"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 8) excesses / sigma: 4 curvatures, 4 spreads."""
        skeleton = Skeleton.of(posed.points)
        reference, per_rad = self.limits.reference, 180 / (torch.pi * self.sigma_spread_deg)
        curvature, spread = palm_structure(skeleton, reference)
        values = [
            _excess(self.limits.curvature, curvature) / self.sigma_curvature,
            _excess(self.limits.spread, spread) * per_rad,
        ]
        if not posed.wants_jacobian:
            return _soft(values, None)
        bent, spread_by = palm_structure_jacobian(skeleton, _by_increment(posed.points_jacobian), reference)
        return _soft(values, [bent / self.sigma_curvature, spread_by * per_rad])

    def select(self, index: Tensor) -> PalmStructure:
        """See `Term.select`: the same for every hand."""
        return self


@dataclass(frozen=True, eq=False)
class JointAngles:
    """L_A: flexion and abduction of each joint within its convex hull, by Euclidean distance.

    The paper's distance of cosines and sines has kinks that least squares cannot use; near a hull the two agree to
    within the factor of an L1 norm.
    """

    limits: BiomechanicalLimits
    sigma_deg: float = 4.0
    """Standard deviation of an excess, as soft as the joint limits of the standard recipe."""
    name: str = "joint_angles"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 30): per joint, the two angles minus the nearest pair in the hull, / sigma."""
        skeleton = Skeleton.of(posed.points)
        angles = joint_angles(skeleton)
        hulls, per_rad = self.limits.hulls.to(angles.value), 180 / (torch.pi * self.sigma_deg)
        exists = angles.valid[..., None]
        if not posed.wants_jacobian:
            excess = hulls.excess(angles.value)
            return residual(torch.where(exists, excess, torch.zeros_like(excess)) * per_rad, None)
        excess, by_angles = hulls.excess_and_jacobian(angles.value)
        by = joint_angles_jacobian(skeleton, _by_increment(posed.points_jacobian))
        jac = bmm(by_angles.flatten(0, 1) * per_rad, by.flatten(0, 1)).unflatten(0, by.shape[:2])
        return residual(torch.where(exists, excess, torch.zeros_like(excess)) * per_rad, jac, columns=_COLUMNS)

    def select(self, index: Tensor) -> JointAngles:
        """See `Term.select`: the same for every hand."""
        return self


def biomechanical_terms(limits: BiomechanicalLimits) -> tuple[BoneLengths, PalmStructure, JointAngles]:
    """All three with their standard sigmas, for `Recipe.extra_terms`."""
    return BoneLengths(limits), PalmStructure(limits), JointAngles(limits)


def _by_increment(points_jacobian: Tensor | None) -> Tensor:
    """(B, 20, 3, 61) derivative of the bones, of a posed hand that wants Jacobians."""
    assert points_jacobian is not None
    return points_jacobian[:, [b for _, b in BONES]] - points_jacobian[:, [a for a, _ in BONES]]


def _excess(interval: Interval, measured: Measured) -> Tensor:
    """Excess of what exists: the zero that stands for the rest may be outside its range."""
    return torch.where(measured.valid, interval.excess(measured.value), torch.zeros_like(measured.value))


def _soft(excess: Sequence[Tensor], jacobian: Sequence[Tensor] | None) -> Residual:
    """Residuals (B, n) each with their Jacobians (B, n, 61), which count outside the range only."""
    value = torch.cat(list(excess), 1)
    jac = None
    if jacobian is not None:
        jac = torch.where((value != 0)[..., None], torch.cat(list(jacobian), 1), value.new_zeros(()))[:, :, None]
    return residual(value[..., None], jac, columns=_COLUMNS)
