"""What joints of a finger do together, as terms: a DIP follows its PIP, and a bent MCP does not spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.tables import index
from handloop.core.terms import POSE, PosedHand, Residual, residual
from handloop.priors.anatomy import anatomical_angles, angles_and_jacobian
from handloop.priors.couplings import DIP, MCP, PIP, JointCouplings

_DEG_PER_RAD = 180 / torch.pi


@dataclass(frozen=True, eq=False)
class FlexionCoupling:
    """The DIP of each long finger flexes by a share of its PIP's flexion, up to an offset."""

    couplings: JointCouplings
    sigma_deg: float
    """Standard deviation of a DIP; people keep to the rule within 6 to 14 degrees (Roda-Sales et al. 2022)."""
    name: str = "flexion_coupling"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 4) (flexion of DIP - share x flexion of PIP - offset) / sigma, index to pinky."""
        rule, scale = self.couplings.to(posed.points), _DEG_PER_RAD / self.sigma_deg
        angles, by_rotation = _angles(posed, PIP + DIP, rule.axes)
        pip, dip = angles[..., 0].split(4, 1)
        value = (dip - rule.dip_per_pip * pip - rule.dip_offset) * scale
        if by_rotation is None:
            return residual(value[..., None], None, columns=POSE)
        by_pip, by_dip = (by_rotation[..., 0, :] * scale).split(4, 1)
        jac = _by_pose({tuple(PIP): -rule.dip_per_pip * by_pip, tuple(DIP): by_dip})
        return residual(value[..., None], jac[:, :, None], columns=POSE)

    def select(self, index: Tensor) -> FlexionCoupling:
        """See `Term.select`: the rule is the same for every hand."""
        return self


@dataclass(frozen=True, eq=False)
class Spread:
    """The range of each MCP's abduction closes as the joint flexes; quadratic outside of it.

    Outside the range of an unflexed joint the limits count, too.
    """

    couplings: JointCouplings
    sigma_deg: float
    """Standard deviation of an excess."""
    name: str = "spread"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 4) excesses / sigma, index to pinky."""
        rule, scale = self.couplings.to(posed.points), _DEG_PER_RAD / self.sigma_deg
        angles, by_rotation = _angles(posed, MCP, rule.axes)
        flexion, abduction = angles[..., 0], angles[..., 1]
        closed = (flexion / rule.closed_at).clamp(0, 1)[..., None]
        low, high = (rule.open_spread + (rule.closed_spread - rule.open_spread) * closed).unbind(-1)
        above, below = (abduction - high).clamp(min=0), (low - abduction).clamp(min=0)
        value = (above - below) * scale
        if by_rotation is None:
            return residual(value[..., None], None, columns=POSE)
        closing = ((flexion > 0) & (flexion < rule.closed_at))[..., None] / rule.closed_at
        low_rate, high_rate = ((rule.closed_spread - rule.open_spread) * closing).unbind(-1)
        outside = (value != 0).to(value)
        rate = torch.where(above > 0, high_rate, low_rate) * outside
        by_angles = by_rotation[..., 1, :] * outside[..., None] - by_rotation[..., 0, :] * rate[..., None]
        jac = _by_pose({tuple(MCP): by_angles * scale})
        return residual(value[..., None], jac[:, :, None], columns=POSE)

    def select(self, index: Tensor) -> Spread:
        """See `Term.select`: the ranges are the same for every hand."""
        return self


def _angles(posed: PosedHand, rows: list[int], axes: Tensor) -> tuple[Tensor, Tensor | None]:
    """(B, n, 3) angles of some finger joints, and (B, n, 3, 3) by their rotations where a Jacobian is wanted."""
    at = index(rows, axes.device)
    rotations, axes = posed.state.rotations[:, 1:].index_select(1, at), axes.index_select(0, at)
    if not posed.wants_jacobian:
        return anatomical_angles(rotations, axes), None
    return angles_and_jacobian(rotations, axes)


def _by_pose(parts: dict[tuple[int, ...], Tensor]) -> Tensor:
    """(B, 4, 45) of (B, 4, 3), each finger's derivative by one of its joints, named by their rows."""
    some = next(iter(parts.values()))
    jac = some.new_zeros(len(some), 4, 15, 3)
    for rows, part in parts.items():
        for finger, row in enumerate(rows):
            jac[:, finger, row] = part[:, finger]
    return jac.flatten(2)
