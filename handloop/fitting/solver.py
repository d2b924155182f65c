"""Levenberg-Marquardt for many hands at once: each has its own damping, acceptance, stopping and status.

Marquardt's diagonal scaling with Nielsen's damping update (Madsen, Nielsen, Tingleff, "Methods for non-linear least
squares problems", 2004, algorithm 3.16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.products import bmm
from handloop.core.rotations import right_jacobian
from handloop.core.terms import N_PARAMS, POSE, HandState, PointsModel, PosedHand, Term
from handloop.fitting.posterior import Posterior, summarise


@dataclass(frozen=True)
class SolverOptions:
    """When and how to stop."""

    max_steps: int = 30
    """Steps tried per hand, accepted or not."""
    tolerance: float = 1e-4
    """Converged when a step that the model predicts well lowers the energy by less than this share (or less than
    1e-3 of it in half squared sigmas)."""
    damping: float = 1e-2
    """First damping, relative to the diagonal of J^T J."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Where each hand ended."""

    state: HandState
    energy: Tensor
    """(B,) inf where no finite energy was ever found."""
    converged: Tensor
    """(B,) bool."""
    steps: Tensor
    """(B,) int64."""


@dataclass(frozen=True, eq=False)
class Finish:
    """What is known of B hands at their solutions."""

    terms: dict[str, Tensor]
    """(B,) energy of each term."""
    posterior: Posterior | None
    """Of the points there; None where it was not asked for."""


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Energy, gradient and Gauss-Newton matrix at a state."""

    energy: Tensor
    """(B,)."""
    gradient: Tensor
    """(B, 62)."""
    hessian: Tensor
    """(B, 62, 62)."""
    pose: Tensor
    """(B, 45) axis-angles of the finger joints there."""

    def by_pose(self) -> NormalEquations:
        """The same by increments of the finger joints' axis-angles in place of their rotations.

        An axis-angle's increment d turns its joint by J_r d. The pose prior's part becomes a constant matrix, which is
        what the fused engine gains by these coordinates.
        """
        n = len(self.energy)
        turn = right_jacobian(self.pose.reshape(n, 15, 3))
        gradient = self.gradient.clone()
        gradient[:, POSE] = (turn.mT @ gradient[:, POSE].reshape(n, 15, 3, 1)).reshape(n, 45)
        hessian = self.hessian.clone()
        hessian[:, POSE] = (turn.mT @ hessian[:, POSE].reshape(n, 15, 3, 62)).reshape(n, 45, 62)
        columns = hessian[:, :, POSE].reshape(n, 62, 15, 3).transpose(1, 2)
        hessian[:, :, POSE] = (columns @ turn).transpose(1, 2).reshape(n, 62, 45)
        return NormalEquations(self.energy, gradient, hessian, self.pose)


_STEPS_BETWEEN_LOOKS = 4


def solve(
    model: PointsModel, terms: Sequence[Term], start: HandState, free: Tensor, options: SolverOptions
) -> Solution:
    """Minimise the sum of the terms' energies over the free parameters, from one start per hand.

    Args:
        model: kinematics.
        terms: with one row per hand.
        start: B states.
        free: (62,) bool, which parameters may move.
        options: stopping rules.

    Returns:
        Per-hand results; never raises for a bad hand.
    """
    n = len(start)
    device = start.betas.device
    energy = torch.full((n,), float("inf"), dtype=start.betas.dtype, device=device)
    converged = torch.zeros(n, dtype=torch.bool, device=device)
    steps = torch.zeros(n, dtype=torch.int64, device=device)
    final = start
    if n == 0:
        return Solution(final, energy, converged, steps)
    # Working set: the hands still moving. A product over one matrix takes another code path in torch than a batch of
    # two, with other rounding; a lone hand is therefore kept company by itself.
    rows = _pair(torch.arange(n, device=device))
    state, local = start.select(rows), [t.select(rows) for t in terms]
    current = normal_equations(model, local, state, free).by_pose()
    energy[rows] = current.energy.nan_to_num(float("inf"), float("inf"))
    damping = torch.full_like(current.energy, options.damping)
    growth = torch.full_like(current.energy, 2.0)
    # A hand that is done stays put from then on, whether or not it has been dropped from the working set yet.
    active = torch.isfinite(current.energy) | torch.isposinf(current.energy)
    for step in range(1, options.max_steps + 1):
        delta, predicted = _step(current, damping)
        trial_state = state.retract_pose(current.pose, delta)
        trial = normal_equations(model, local, trial_state, free).by_pose()
        gain = current.energy - trial.energy
        ok = active & torch.isfinite(trial.energy) & (gain > 0)
        ratio = gain / predicted.clamp(min=1e-30)
        threshold = options.tolerance * (current.energy + 1e-3)
        # Done: an accepted step gained next to nothing, or a rejected one could not have gained more.
        done = torch.where(ok, (gain < threshold) & (ratio > 0.1), predicted < 0.1 * threshold)
        shrink = (1 - (2 * ratio - 1).pow(3)).clamp(min=0.1)
        damping = torch.where(ok, damping * shrink, damping * growth).clamp(min=1e-9)
        growth = torch.where(ok, torch.full_like(growth, 2.0), growth * 2)
        stalled = damping > 1e10
        state = trial_state.where(ok, state)
        current = _where(ok, trial, current)
        final = _scatter(final, state, rows)
        energy[rows] = current.energy.nan_to_num(float("inf"), float("inf"))
        converged[rows] |= active & done & torch.isfinite(current.energy)
        steps[rows] = torch.where(active, step, steps[rows])
        active = active & ~done & ~stalled & torch.isfinite(current.energy)
        # To ask a GPU how many are left is to wait for it: there, hands that are done are carried along for a while.
        if device.type != "cpu" and step % _STEPS_BETWEEN_LOOKS:
            continue
        count = int(active.sum())
        if count == 0:
            break
        if count < 0.8 * len(rows):
            at = _pair(active.nonzero()[:, 0])
            rows, state, local = rows[at], state.select(at), [t.select(at) for t in local]
            current = NormalEquations(current.energy[at], current.gradient[at], current.hessian[at], current.pose[at])
            damping, growth, active = damping[at], growth[at], active[at]
    return Solution(final.orthonormalised(), energy, converged, steps)


def finish(model: PointsModel, terms: Sequence[Term], state: HandState, free: Tensor, posterior: bool) -> Finish:
    """Energies by term at solutions and, if wanted, the posterior of the points there."""
    rows = _pair(torch.arange(len(state), device=state.betas.device))
    n = len(state)
    local = state.select(rows)
    posed = PosedHand.of(model, local, jacobian=posterior)
    parts = {t.name: t.select(rows).linearise(posed).energy[:n] for t in terms}
    if not posterior or n == 0:
        return Finish(parts, None)
    at = normal_equations(model, [t.select(rows) for t in terms], local, free)
    diagonal = torch.diagonal(at.hessian, dim1=1, dim2=2)
    factor, failed = torch.linalg.cholesky_ex(at.hessian + torch.diag_embed(1e-12 * diagonal))
    assert posed.points_jacobian is not None
    rows_jac = posed.points_jacobian.flatten(1, 2) * free[:61]
    padded = torch.nn.functional.pad(rows_jac, (0, 1))
    spread = torch.linalg.solve_triangular(factor, padded.mT, upper=False).mT
    spread = torch.where((failed > 0)[:, None, None], torch.full_like(spread, float("nan")), spread)
    return Finish(parts, summarise(spread[:n].unflatten(1, (21, 3)), posed.points[:n], at.by_pose().hessian[:n]))


def _pair(index: Tensor) -> Tensor:
    return index.repeat(2) if len(index) == 1 else index


def normal_equations(model: PointsModel, terms: Sequence[Term], state: HandState, free: Tensor) -> NormalEquations:
    """Energy, gradient and Gauss-Newton matrix of the terms by the increments of `HandState.retract`.

    Parameters that are not free have a zero gradient, and rows and columns of the identity.
    """
    posed = PosedHand.of(model, state, jacobian=True)
    n = len(state)
    energy = state.betas.new_zeros(n)
    gradient = state.betas.new_zeros(n, N_PARAMS)
    hessian = state.betas.new_zeros(n, N_PARAMS, N_PARAMS)
    per_joint = hessian[:, POSE, POSE].unflatten(2, (15, 3)).unflatten(1, (15, 3)).diagonal(dim1=1, dim2=3)
    for term in terms:
        part = term.linearise(posed)
        energy = energy + part.energy
        jac = part.jacobian
        if jac is None:
            continue
        if jac.ndim == 4:
            value = part.value.reshape(n, 15, -1, 1)
            gradient[:, POSE] += (jac.mT @ value).reshape(n, 45)
            per_joint += (jac.mT @ jac).movedim(1, 3)
        else:
            gradient[:, part.columns] += bmm(jac.mT, part.value[..., None])[..., 0]
            hessian[:, part.columns, part.columns] += bmm(jac.mT, jac)
    fixed = ~free
    gradient[:, fixed] = 0
    hessian[:, fixed] = 0
    hessian[:, :, fixed] = 0
    hessian[:, fixed, fixed] = 1
    return NormalEquations(energy, gradient, hessian, posed.pose)


def _step(at: NormalEquations, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton increment (B, 62) and the decrease the linear model predicts for it (B,)."""
    diagonal = torch.diagonal(at.hessian, dim1=1, dim2=2)
    # A parameter nothing depends on still needs a positive pivot.
    added = damping[:, None] * diagonal + 1e-8 * (1 + diagonal.amax(1, keepdim=True) * 1e-6)
    delta = -_solve(at.hessian + torch.diag_embed(added), at.gradient)
    # Rotations by more than a radian, or a shape or depth jump, are outside any linear model's reach.
    delta = delta * (1.0 / delta[:, :48].abs().amax(1).clamp(min=1.0))[:, None]
    delta = torch.cat([delta[:, :48], delta[:, 48:58].clamp(-2, 2), delta[:, 58:].clamp(-0.7, 0.7)], 1)
    failed = ~torch.isfinite(delta).all(1)
    delta = torch.where(failed[:, None], torch.zeros_like(delta), delta)
    curvature = torch.bmm(at.hessian, delta[..., None])[..., 0]
    predicted = -((at.gradient + 0.5 * curvature) * delta).sum(1)
    # Without a step there is nothing to judge convergence by: more damping is the answer.
    return delta, torch.where(failed, torch.full_like(predicted, float("inf")), predicted)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """(B, 62) solutions of positive definite systems (B, 62, 62); NaN where one is not positive definite.

    LAPACK chooses its inner loops by where each matrix starts in memory, and 62 x 62 float32 numbers do not fill whole
    cache lines: with two idle unknowns more, all start alike, and none is rounded by its place in the batch.
    """
    idle = (0, 2)
    padded = torch.nn.functional.pad(matrix, (*idle, *idle))
    torch.diagonal(padded, dim1=1, dim2=2)[:, N_PARAMS:] = 1
    factor, failed = torch.linalg.cholesky_ex(padded)
    solved = torch.cholesky_solve(torch.nn.functional.pad(right, idle)[..., None], factor)[:, :N_PARAMS, 0]
    return torch.where((failed > 0)[:, None], torch.full_like(solved, float("nan")), solved)


def _where(mask: Tensor, a: NormalEquations, b: NormalEquations) -> NormalEquations:
    return NormalEquations(
        torch.where(mask, a.energy, b.energy),
        torch.where(mask[:, None], a.gradient, b.gradient),
        torch.where(mask[:, None, None], a.hessian, b.hessian),
        torch.where(mask[:, None], a.pose, b.pose),
    )


def _scatter(into: HandState, state: HandState, rows: Tensor) -> HandState:
    def put(a: Tensor, b: Tensor) -> Tensor:
        out = a.clone()
        out[rows] = b
        return out

    return HandState(
        put(into.rotations, state.rotations),
        put(into.betas, state.betas),
        put(into.root, state.root),
        put(into.log_focal, state.log_focal),
    )
