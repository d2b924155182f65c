"""Gradient and Gauss-Newton matrix of many hands' energies, put together from fingers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.products import bmm
from handloop.core.structured import ROW_RESIDUAL, ROW_WIDTH, PointTerm, QuadraticTerm
from handloop.core.terms import N_PARAMS, POSE, HandState, PointsModel, PosedHand, Residual, Term
from handloop.hand.kinematics import CHAINS

SIZE = 64
"""Unknowns of a system: the 62 of an increment and two idle ones. LAPACK chooses its inner loops by where each matrix
starts in memory, and 62 x 62 float32 numbers do not fill whole cache lines: 64 x 64 do, and none is rounded by its
place in the batch."""


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Energy, gradient and Gauss-Newton matrix at a state, by the increments of `HandState.retract_pose`.

    The finger joints' own axis-angles make the pose prior's part a constant matrix. Parameters that are not free, and
    the idle ones, have a zero gradient, and rows and columns of the identity.
    """

    energy: Tensor
    """(B,)."""
    gradient: Tensor
    """(B, 64)."""
    hessian: Tensor
    """(B, 64, 64)."""


@dataclass(frozen=True, eq=False)
class Assembly:
    """Which parameters may move. Make it once per solve: it copies tables to the device."""

    free: Tensor
    """(64,) 1 for parameters that may move, else 0."""
    both: Tensor
    """(64, 64) 1 where row and column may move."""
    fixed: Tensor
    """(64,) 1 for the others."""

    @classmethod
    def of(cls, free: Tensor, like: Tensor) -> Assembly:
        """For parameters `free` (62,) bool."""
        known = torch.nn.functional.pad(free.to(like), (0, SIZE - N_PARAMS))
        return cls(known, known[:, None] * known, 1 - known)

    def equations(self, posed: PosedHand, terms: Sequence[Term]) -> NormalEquations:
        """At a posed hand with rows."""
        n, like = len(posed.state), posed.points
        energy = like.new_zeros(n)
        products: Tensor | None = None
        others: list[Residual] = []
        gradient, hessian = like.new_zeros(n, SIZE), like.new_zeros(n, SIZE, SIZE)
        for term in terms:
            if isinstance(term, PointTerm):
                by_point = term.by_point(posed)
                energy = energy + by_point.energy
                rows = by_point.rows.reshape(n * 6, -1, ROW_WIDTH)
                added = bmm(rows.mT, rows)
                products = added if products is None else products + added
            elif not isinstance(term, QuadraticTerm):
                others.append(term.linearise(posed))
                energy = energy + others[-1].energy
        if products is not None:
            _put_together(products.unflatten(0, (n, 6)), gradient, hessian)
        for term in terms:
            if isinstance(term, QuadraticTerm) and not isinstance(term, PointTerm):
                part = term.quadratic(posed)
                energy = energy + part.energy
                # Not +=, which would copy the result onto itself.
                gradient[:, part.columns].add_(part.gradient)
                hessian[:, part.columns, part.columns].add_(part.curvature)
        _add_others(others, posed, gradient, hessian)
        hessian.mul_(self.both)
        torch.diagonal(hessian, dim1=1, dim2=2).add_(self.fixed)
        return NormalEquations(energy, gradient.mul_(self.free), hessian)


def _put_together(products: Tensor, gradient: Tensor, hessian: Tensor) -> None:
    """Write what the products (B, 6, 28, 28) of the fingers' rows say into empty systems; the wrist's come first."""
    shared = products.sum(1)
    # Thumb, index, middle, ring, pinky to MANO's order: index, middle, pinky, ring, thumb.
    own = torch.cat([products[:, at : at + 1, :27, :9] for at in (2, 3, 5, 4, 1)], 1)
    blocks = hessian[:, POSE, POSE].unflatten(2, (5, 9)).unflatten(1, (5, 9)).diagonal(dim1=1, dim2=3)
    blocks.copy_(own[:, :, :9].permute(0, 2, 3, 1))
    gradient[:, POSE] = own[:, :, ROW_RESIDUAL].flatten(1)
    border = own.transpose(1, 2).flatten(2)
    for here, there in _SHARED:
        gradient[:, here] = shared[:, there, ROW_RESIDUAL]
        hessian[:, here, POSE] = border[:, there]
        hessian[:, POSE, here] = border[:, there].mT
        for other, elsewhere in _SHARED:
            hessian[:, here, other] = shared[:, there, elsewhere]


_SHARED = ((slice(0, 3), slice(9, 12)), (slice(48, N_PARAMS), slice(12, 26)))
"""Where the shared parameters stand among the unknowns, and in a row."""


def _sources() -> tuple[Tensor, Tensor]:
    """For each of 64 unknowns, its finger (0: shared) and its column in the rows of `PointResidual`."""
    group, column = torch.zeros(SIZE, dtype=torch.int64), torch.full((SIZE,), ROW_WIDTH - 1)
    for here, there in _SHARED:
        column[here] = torch.arange(there.start, there.stop)
    for finger, chain in enumerate(CHAINS):
        for depth, joint in enumerate(chain):
            group[3 * joint : 3 * joint + 3] = finger + 1
            column[3 * joint : 3 * joint + 3] = torch.arange(3 * depth, 3 * depth + 3)
    return group, column


def _add_others(parts: Sequence[Residual], posed: PosedHand, gradient: Tensor, hessian: Tensor) -> None:
    """Terms that bring a Jacobian only: by increments of rotations, turned to those of axis-angles."""
    parts = [part for part in parts if part.jacobian is not None]
    if not parts:
        return
    n, turn = len(gradient), posed.turn
    assert turn is not None
    per_joint = hessian[:, POSE, POSE].unflatten(2, (15, 3)).unflatten(1, (15, 3)).diagonal(dim1=1, dim2=3)
    for part in parts:
        jac, value = part.jacobian, part.value
        assert jac is not None
        if jac.ndim == 4:
            by_pose = jac @ turn
            gradient[:, POSE].add_((by_pose.mT @ value.reshape(n, 15, -1, 1)).reshape(n, 45))
            per_joint += (by_pose.mT @ by_pose).movedim(1, 3)
            continue
        columns = part.columns
        if columns.start < POSE.stop and columns.stop > POSE.start:
            jac = turned(torch.nn.functional.pad(jac, (columns.start, N_PARAMS - columns.stop)), turn)
            columns = slice(0, N_PARAMS)
        gradient[:, columns].add_(bmm(jac.mT, value[..., None])[..., 0])
        hessian[:, columns, columns].add_(bmm(jac.mT, jac))


def turned(jacobian: Tensor, turn: Tensor) -> Tensor:
    """A Jacobian (B, R, 62) by increments of `HandState.retract`, by those of `retract_pose`.

    An axis-angle's increment d turns its joint by J_r d, `turn` (B, 15, 3, 3).
    """
    fingers = jacobian[..., POSE].unflatten(2, (15, 3)).transpose(1, 2) @ turn
    return torch.cat([jacobian[..., :3], fingers.transpose(1, 2).flatten(2), jacobian[..., POSE.stop :]], 2)


def by_parameter(rows: Tensor, free: Tensor) -> Tensor:
    """(B, 21 D, 64) derivative by all unknowns of rows (B, 21, D, 25 to 28); 0 by those not `free` (62,) bool."""
    group, column = (t.to(rows.device) for t in _sources())
    finger = torch.arange(3, 24, device=rows.device).div(4, rounding_mode="floor")
    moved = (group == 0) | (group == finger[:, None])
    moved &= torch.nn.functional.pad(free, (0, SIZE - N_PARAMS))
    padded = torch.nn.functional.pad(rows, (0, ROW_WIDTH - rows.shape[-1]))
    return (padded[..., column] * moved[:, None]).flatten(1, 2)


def normal_equations(model: PointsModel, terms: Sequence[Term], state: HandState, free: Tensor) -> NormalEquations:
    """Energy, gradient and Gauss-Newton matrix of the terms at a state, for parameters `free` (62,) bool."""
    posed = PosedHand.of(model, state, jacobian=True)
    return Assembly.of(free, state.betas).equations(posed, terms)
