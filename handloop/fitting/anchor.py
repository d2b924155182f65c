"""`Anchor`: a pull to a proposed hand, a regressor's for example, in units of the proposal's own uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.errors import InputError, check_shape
from handloop.core.rotations import right_jacobian_inverse, so3_log
from handloop.core.terms import BETAS, ROOT, ROTATIONS, PosedHand, Residual, residual

_COLUMNS = slice(0, 61)
"""Of an increment: all but the focal length."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """Gaussian around a proposal, in the right-hand canonical camera frame. Make it with `Anchor.of`.

    An inverse standard deviation of 0 is no opinion; what the proposal says there is ignored, whatever it is.
    """

    rotations: Tensor
    """(B, 16, 3, 3) A, wrist rotation and relative joint rotations, MANO order."""
    betas: Tensor
    """(B, 10)."""
    root: Tensor
    """(B, 3) wrist position, m."""
    inverse_rotation_sd: Tensor
    """(B, 16) 1/rad."""
    inverse_betas_sd: Tensor
    """(B, 10)."""
    inverse_root_sd: Tensor
    """(B, 3) of the bearings x/z and y/z and of log z."""
    name: str = "anchor"

    @classmethod
    def of(
        cls,
        rotations: Tensor,
        betas: Tensor,
        root: Tensor,
        inverse_rotation_sd: Tensor,
        inverse_betas_sd: Tensor,
        inverse_root_sd: Tensor,
        name: str = "anchor",
    ) -> Anchor:
        """Check a proposal for B hands.

        Raises:
            InputError: a wrong shape, an inverse standard deviation that is negative or not finite, or a wrist at or
                behind the camera that is to be pulled to.
        """
        check_shape("the anchor's betas", tuple(betas.shape), (None, 10))
        n = len(betas)
        check_shape("the anchor's rotations", tuple(rotations.shape), (n, 16, 3, 3))
        check_shape("the anchor's root", tuple(root.shape), (n, 3))
        parts = {
            "rotation": (rotations.flatten(2), inverse_rotation_sd, 16),
            "betas": (betas[..., None], inverse_betas_sd, 10),
            "root": (root[..., None], inverse_root_sd, 3),
        }
        for key, (proposed, inverse, count) in parts.items():
            check_shape(f"the anchor's inverse_{key}_sd", tuple(inverse.shape), (n, count))
            wrong = ~(torch.isfinite(inverse) & (inverse >= 0))
            if bool(wrong.any()):
                raise InputError(
                    f"the anchor's inverse_{key}_sd of {_hand(wrong)} is negative or not finite; "
                    "give 1/sd, and 0 for no opinion."
                )
            unknown = (inverse > 0) & ~torch.isfinite(proposed).all(-1)
            if bool(unknown.any()):
                raise InputError(
                    f"the anchor's {key} of {_hand(unknown)} is not finite; give it an inverse sd of 0 to leave it out."
                )
        behind = (inverse_root_sd > 0).any(1) & ~(root[:, 2] > 0)
        if bool(behind.any()):
            raise InputError(
                f"the anchor's wrist of {_hand(behind)} is at a depth of {float(root[behind][0, 2]):g} m, expected a "
                "positive one; give it in the camera frame."
            )
        return cls(rotations, betas, root, inverse_rotation_sd, inverse_betas_sd, inverse_root_sd, name)

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 61): log(A^T R) of the joints, betas, bearings and log depth, minus the proposal's, / sd.

        A rotation counts by at most pi / sd, and near pi off the pull is to either side of the half turn.
        """
        state, like = posed.state, posed.points
        per_turn = self.inverse_rotation_sd.to(like)
        turn = so3_log(self.rotations.to(like).mT @ state.rotations)
        per_rest = torch.cat([self.inverse_betas_sd.to(like), self.inverse_root_sd.to(like)], 1)
        rest = torch.cat([state.betas - self.betas.to(like), _sight(state.root) - _sight(self.root.to(like))], 1)
        turn = torch.where((per_turn > 0)[..., None], turn, torch.zeros_like(turn))
        rest = torch.where(per_rest > 0, rest, torch.zeros_like(rest))
        value = torch.cat([(turn * per_turn[..., None]).flatten(1), rest * per_rest], 1)
        jac = None
        if posed.points_jacobian is not None:
            jac = like.new_zeros(len(like), 61, 61)
            blocks = jac[:, ROTATIONS, ROTATIONS].unflatten(2, (16, 3)).unflatten(1, (16, 3))
            # A view of the diagonal blocks, (B, 3, 3, 16).
            blocks.diagonal(dim1=1, dim2=3).copy_(
                (right_jacobian_inverse(turn) * per_turn[..., None, None]).movedim(1, 3)
            )
            jac[:, BETAS.start : ROOT.stop, BETAS.start : ROOT.stop].diagonal(dim1=1, dim2=2).copy_(per_rest)
        return residual(value[..., None], None if jac is None else jac[:, :, None], columns=_COLUMNS)

    def sight(self) -> Tensor:
        """(B, 3) bearings x/z and y/z, and log z of the proposed wrist."""
        return _sight(self.root)

    def select(self, index: Tensor) -> Anchor:
        """See `Term.select`."""
        at = index.to(self.betas.device)
        return Anchor(
            *(self.rotations[at], self.betas[at], self.root[at]),
            *(self.inverse_rotation_sd[at], self.inverse_betas_sd[at], self.inverse_root_sd[at]),
            self.name,
        )


def _hand(wrong: Tensor) -> str:
    """The first of the hands (B, ...) with something wrong."""
    return f"hand {int(wrong.nonzero()[0, 0])}"


def _sight(root: Tensor) -> Tensor:
    """(B, 3) x/z, y/z and log z, whose derivatives by a, b, c of an increment are one."""
    x, y, z = root.unbind(1)
    # Only starts behind the camera meet the bound; the reprojection refuses them.
    z = z.clamp(min=1e-3)
    return torch.stack([x / z, y / z, z.log()], 1)
