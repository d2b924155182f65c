"""SMPLify's E_a (Bogo et al. 2016) for hands: the further a hinge bends backwards, the more steeply it costs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from handloop.core.tables import matrix
from handloop.core.terms import PosedHand, Residual
from handloop.priors.anatomy import anatomical_angles, angles_and_jacobian
from handloop.priors.couplings import HINGES, JointCouplings

PUBLISHED_WEIGHT = 2**0.5 * 3.17
"""E_a as SMPLify's code has it beside a pose prior of weight one, which one in sigmas is: 3.17^2 exp(-flexion)^2 is
1/2 r^2 with this weight. SPIN's 15.2^2 beside 4.78^2 is the same."""

# Beyond it the exponential goes on as its tangent; the published form reaches pi at most.
_LARGEST_EXPONENT = 4.0


@dataclass(frozen=True, eq=False)
class HingeExtension:
    """w exp(-k flexion) at every hinge: PIP and DIP of the long fingers, MCP and IP of the thumb.

    The paper's exp(-flexion) as an energy is w = sqrt(2), k = 1/2; its code squares it, which is k = 1. As published it
    also pushes a straight finger to bend; a larger k leaves bent fingers alone. Flexion is the anatomical angle, not
    a component of an axis-angle vector, from where the hinge is straight.
    """

    couplings: JointCouplings
    weight: float = PUBLISHED_WEIGHT
    """w, the residual of a straight hinge, sigmas."""
    sharpness: float = 1.0
    """k, 1/rad."""
    name: str = "hyperextension"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 15), 0 for joints that are no hinges."""
        rule = self.couplings.to(posed.points)
        weight = matrix([[self.weight * (joint in HINGES) for joint in range(15)]], rule.straight)[0]
        rotations, by_rotation = posed.state.rotations[:, 1:], None
        if not posed.wants_jacobian:
            angles = anatomical_angles(rotations, rule.axes)
        else:
            angles, by_rotation = angles_and_jacobian(rotations, rule.axes)
        exponent = self.sharpness * (rule.straight - angles[..., 0])
        grown = weight * exponent.clamp(max=_LARGEST_EXPONENT).exp()
        value = grown * (1 + (exponent - _LARGEST_EXPONENT).clamp(min=0))
        jac = None
        if by_rotation is not None:
            jac = -self.sharpness * (grown[..., None] * by_rotation[..., 0, :])[:, :, None]
        return Residual(0.5 * value.square().sum(1), value, jac)

    def select(self, index: Tensor) -> HingeExtension:
        """See `Term.select`: the same for every hand."""
        return self
