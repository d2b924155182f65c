"""One step of Levenberg-Marquardt for many hands at once, in tensors of fixed shapes and without a look at any number.

A GPU is never waited for, and a block of such steps can be captured in a CUDA graph: see `fitting.solver`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.terms import N_PARAMS, HandState, PointsModel, PosedHand, Term
from handloop.fitting.normal import Assembly, NormalEquations


@dataclass(frozen=True, eq=False)
class Work:
    """Where B hands stand between two steps."""

    state: HandState
    pose: Tensor
    """(B, 45) axis-angles of the state's finger joints."""
    equations: NormalEquations
    """At the state."""
    damping: Tensor
    """(B,)."""
    growth: Tensor
    """(B,) what the damping grows by at the next refusal."""
    active: Tensor
    """(B,) bool; a hand that is done stays put."""
    converged: Tensor
    """(B,) bool."""
    steps: Tensor
    """(B,) int64."""

    def tensors(self) -> Iterator[Tensor]:
        """All of them, in a fixed order."""
        for part in (self.state, self.equations):
            yield from vars(part).values()
        yield from (self.pose, self.damping, self.growth, self.active, self.converged, self.steps)

    def select(self, index: Tensor) -> Work:
        """Rows by an integer index."""
        at = self.equations
        return Work(
            self.state.select(index),
            self.pose[index],
            NormalEquations(at.energy[index], at.gradient[index], at.hessian[index]),
            *(self.damping[index], self.growth[index], self.active[index], self.converged[index], self.steps[index]),
        )

    def take_over(self, other: Work) -> None:
        """Copy another's numbers into this one's memory."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)


@dataclass(frozen=True, eq=False)
class Stepper:
    """What does not change from step to step."""

    model: PointsModel
    terms: Sequence[Term]
    """With one row per hand."""
    assembly: Assembly
    tolerance: float
    """See `SolverOptions`."""

    def select(self, index: Tensor) -> Stepper:
        """For some of the hands."""
        return Stepper(self.model, [t.select(index) for t in self.terms], self.assembly, self.tolerance)

    def begin(self, start: HandState, damping: float) -> Work:
        """At the starts."""
        posed = PosedHand.of(self.model, start, jacobian=True)
        at = self.assembly.equations(posed, self.terms)
        no = torch.zeros_like(at.energy, dtype=torch.bool)
        return Work(
            start,
            posed.pose,
            at,
            torch.full_like(at.energy, damping),
            torch.full_like(at.energy, 2.0),
            ~torch.isnan(at.energy),
            *(no, torch.zeros_like(no, dtype=torch.int64)),
        )

    def advance(self, work: Work, steps: int) -> Work:
        """Some steps, each tried and for each hand accepted or not."""
        for _ in range(steps):
            work = self._step(work)
        return work

    def _step(self, work: Work) -> Work:
        current, damping = work.equations, work.damping
        delta, predicted = step(current, damping)
        moved, angles = work.state.retract_pose(work.pose, delta)
        trial = self.assembly.equations(PosedHand.at(self.model, moved, angles), self.terms)
        gain = current.energy - trial.energy
        ok = work.active & torch.isfinite(trial.energy) & (gain > 0)
        ratio = gain / predicted.clamp(min=1e-30)
        threshold = self.tolerance * (current.energy + 1e-3)
        # Done: an accepted step gained next to nothing, or a rejected one could not have gained more.
        done = torch.where(ok, (gain < threshold) & (ratio > 0.1), predicted < 0.1 * threshold)
        shrink = (1 - (2 * ratio - 1).pow(3)).clamp(min=0.1)
        damping = (damping * torch.where(ok, shrink, work.growth)).clamp(min=1e-9)
        energy = torch.where(ok, trial.energy, current.energy)
        finite = torch.isfinite(energy)
        return Work(
            moved.where(ok, work.state),
            torch.where(ok[:, None], angles.pose, work.pose),
            NormalEquations(
                energy,
                torch.where(ok[:, None], trial.gradient, current.gradient),
                torch.where(ok[:, None, None], trial.hessian, current.hessian),
            ),
            damping,
            torch.where(ok, 2.0, work.growth * 2).to(damping),
            work.active & ~done & (damping <= 1e10) & finite,
            work.converged | (work.active & done & finite),
            work.steps + work.active,
        )


def step(at: NormalEquations, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton increment (B, 62) and the decrease the linear model predicts for it (B,)."""
    diagonal = torch.diagonal(at.hessian, dim1=1, dim2=2)
    # A parameter nothing depends on still needs a positive pivot.
    added = damping[:, None] * diagonal + 1e-8 * (1 + diagonal.amax(1, keepdim=True) * 1e-6)
    damped = at.hessian.clone()
    torch.diagonal(damped, dim1=1, dim2=2).add_(added)
    delta = -solve_systems(damped, at.gradient)
    # Rotations by more than a radian, or a shape or depth jump, are outside any linear model's reach.
    delta = delta * (1.0 / delta[:, :48].abs().amax(1).clamp(min=1.0))[:, None]
    delta = torch.cat([delta[:, :48], delta[:, 48:58].clamp(-2, 2), delta[:, 58:].clamp(-0.7, 0.7)], 1)
    failed = ~torch.isfinite(delta).all(1)
    delta = delta.masked_fill(failed[:, None], 0.0)
    curvature = torch.bmm(at.hessian, delta[..., None])[..., 0]
    predicted = -((at.gradient + 0.5 * curvature) * delta).sum(1)
    # Without a step there is nothing to judge convergence by: more damping is the answer.
    return delta[:, :N_PARAMS], predicted.masked_fill(failed, float("inf"))


def solve_systems(matrix: Tensor, right: Tensor) -> Tensor:
    """(B, n) solutions of positive definite systems (B, n, n); NaN where one is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if matrix.device.type == "cuda":
        # torch may give `cholesky_solve` to MAGMA, which waits for the device; triangular systems go to cuBLAS.
        half = torch.linalg.solve_triangular(factor, right[..., None], upper=False)
        solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0]
    else:
        solved = torch.cholesky_solve(right[..., None], factor)[..., 0]
    return solved.masked_fill((failed > 0)[:, None], float("nan"))
