"""What terms may offer a solver beside `Term.linearise`: their structure, which spares it most of the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from handloop.core.terms import Kernel, PosedHand

ROW_RESIDUAL = 26
ROW_WIDTH = 28
"""Of a row: the residual's column, and all of them. Rows of 28 numbers, eight or twelve to a finger, fill cache lines:
see `core.products`."""


@dataclass(frozen=True, eq=False)
class PointResidual:
    """One term's contribution where each of its residuals belongs to one point."""

    energy: Tensor
    """(B,)."""
    rows: Tensor
    """(B, 24, D, 28), three empty points before the 21 so that four make a finger; 25 columns as in
    `PosedHand.rows`, log focal, the residual itself, and a zero; robust weights put on."""

    @classmethod
    def of(cls, groups: Tensor, jacobian: Tensor, kernel: Kernel | None) -> PointResidual:
        """Of residuals (B, 21, D) whose norms the kernel acts on, and their Jacobian (B, 21, D, 25 or 26)."""
        sq = groups.square().sum(-1)
        rows = groups.new_zeros(len(groups), 24, groups.shape[2], ROW_WIDTH)
        seen = rows[:, 3:]
        if kernel is None:
            seen[..., : jacobian.shape[-1]], seen[..., ROW_RESIDUAL] = jacobian, groups
            return cls(0.5 * sq.sum(-1), rows)
        root = kernel.weight(sq).sqrt()[..., None]
        torch.mul(jacobian, root[..., None], out=seen[..., : jacobian.shape[-1]])
        torch.mul(groups, root, out=seen[..., ROW_RESIDUAL])
        return cls(0.5 * kernel.rho(sq).sum(-1), rows)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """One term's contribution where it is quadratic in some columns of an increment of `HandState.retract_pose`."""

    energy: Tensor
    """(B,)."""
    gradient: Tensor
    """(B, C)."""
    curvature: Tensor
    """(C, C), the same for all hands, or (B, C, C)."""
    columns: slice


@runtime_checkable
class PointTerm(Protocol):
    """What a term may offer beside `linearise`: its rows by fingers, which spare the solver most of a Jacobian."""

    def by_point(self, posed: PosedHand) -> PointResidual:
        """As `Term.linearise`, of a posed hand with `rows`."""
        ...


@runtime_checkable
class QuadraticTerm(Protocol):
    """What a term may offer beside `linearise`: that its second derivative is known beforehand."""

    def quadratic(self, posed: PosedHand) -> Quadratic:
        """As `Term.linearise`."""
        ...
