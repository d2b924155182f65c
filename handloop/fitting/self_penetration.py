"""Self-penetration, SMPLify's E_sp (Bogo et al., ECCV 2016), for the hand.

    E_sp(pose; betas) = weight * sum over incompatible spheres i, j of exp(-|C_i - C_j|^2 / (s_i^2 + s_j^2))

with sphere centres C(pose, betas) and s = WIDTH * radius(betas): the overlap of two isotropic Gaussians. As in the
paper it acts on the pose alone: the betas place the spheres, but a hand is not made thinner to end a collision.
As least squares each pair is one residual r = sqrt(2 weight) exp(-|C_i - C_j|^2 / (2 (s_i^2 + s_j^2))), so that
1/2 r^2 is the pair's energy and a Gauss-Newton step is defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.joints import MANO_PARENTS
from handloop.core.products import bmm
from handloop.core.tables import matrix
from handloop.core.terms import POSE, PosedHand, Residual
from handloop.priors.spheres import HandSpheres

WIDTH = 1 / 2
"""Standard deviation of a sphere's Gaussian in radii. The paper's is 1/3, with a weight of 1000 for bodies: two spheres
of 8 mm then cost 0.04 half squared sigmas 4 mm deep in each other, and 320 at 12 mm. At 1/2 and a weight of 100 they
cost 0.03 when they touch, 1.1 at 4 mm and 61 at 12 mm: keypoints can be weighed against that."""

CLOSEST = 128
"""Pairs counted per hand, those that overlap most."""

_ABOVE = [[0.0] * 16 for _ in range(16)]
for _joint, _parent in enumerate(MANO_PARENTS):
    if _parent >= 0:
        _ABOVE[_joint] = [float(k == _joint) or above for k, above in enumerate(_ABOVE[_parent])]
"""(16, 16) with 1 where column k is a finger joint that turns row's part."""


@dataclass(frozen=True, eq=False)
class SelfPenetration:
    """E_sp over the pairs that overlap most."""

    spheres: HandSpheres
    weight: float
    """Energy of two spheres in one place, in half squared sigmas."""
    name: str = "self_penetration"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, CLOSEST) residuals; their Jacobian by the finger rotations. The wrist moves all spheres alike."""
        n, spheres = len(posed.state), self.spheres
        # torch multiplies a lone matrix by another routine, with other rounding, than a batch of two.
        rows = torch.arange(n, device=spheres.part.device) if n != 1 else [0, 0]
        at = spheres.posed(posed.state.rotations[rows], posed.state.betas[rows])
        first, second = spheres.pairs.unbind(1)
        variance = (WIDTH * at.radii).square()
        # Hands last: to gather pairs is then to copy rows, five times faster here.
        x, y, z = (place[first] - place[second] for place in at.centres.permute(2, 1, 0).contiguous())
        spread = variance.T.contiguous()
        exponent = (x * x + y * y + z * z) / (spread[first] + spread[second])
        exponent, chosen = exponent.T.contiguous().topk(min(CLOSEST, len(first)), largest=False)
        value = (2 * self.weight) ** 0.5 * (-0.5 * exponent).exp()
        energy = 0.5 * value.square().sum(1)
        if not posed.wants_jacobian:
            return Residual(energy[:n], value[:n], None, POSE)
        # A rotation d of joint k moves a sphere C below it by (G_k d) x (C - x_k), so |C_i - C_j|^2 / 2 with only C_i
        # below k by (G_k d) . (C_i x u - x_k x u), u = C_i - C_j; with only C_j below it, by the opposite, because
        # C_i x u = C_j x u; with both, by nothing.
        start, end = (at.centres.gather(1, ids[chosen][..., None].expand(-1, -1, 3)) for ids in (first, second))
        u = start - end
        moment = torch.linalg.cross(start, u)
        turns, joints = at.world[:, 1:], at.joints[:, 1:]
        lever = -torch.linalg.cross(turns, joints[..., None].expand_as(turns), dim=-2)
        frames = torch.cat([turns, lever], 2).movedim(1, 2).flatten(2)
        moved = bmm(torch.cat([moment, u], 2), frames)
        factor = -value / (variance.gather(1, first[chosen]) + variance.gather(1, second[chosen]))
        sides = self._sides()[chosen] * factor[..., None]
        jac = (moved.unflatten(2, (15, 3)) * sides[..., None]).flatten(2)
        return Residual(energy[:n], value[:n], jac[:n], POSE)

    def _sides(self) -> Tensor:
        """(P, 15) for each finger joint: 1 where only a pair's first sphere hangs on it, -1 only its second, else 0."""
        above = matrix(_ABOVE, self.spheres.offset)[:, 1:]
        first, second = self.spheres.part[self.spheres.pairs].unbind(1)
        return above[first] - above[second]

    def select(self, index: Tensor) -> SelfPenetration:
        """See `Term.select`: the same for every hand."""
        return self
