"""Levenberg-Marquardt for many hands at once: each has its own damping, acceptance, stopping and status.

Marquardt's diagonal scaling with Nielsen's damping update (Madsen, Nielsen, Tingleff, "Methods for non-linear least
squares problems", 2004, algorithm 3.16).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from handloop.core.terms import HandState, PointsModel, PosedHand, Term
from handloop.fitting import graphs
from handloop.fitting.normal import Assembly, by_parameter
from handloop.fitting.posterior import Posterior, summarise
from handloop.fitting.steps import Stepper, Work


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


def _steps_between_looks(device: torch.device) -> int:
    return 1 if device.type == "cpu" else 4


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
    n, device = len(start), start.betas.device
    ends = _Ends.of(start)
    if n == 0:
        return ends.solution()
    # Working set: the hands still moving. A product over one matrix takes another code path in torch than a batch of
    # two, with other rounding; a lone hand is therefore kept company by itself.
    rows = _pair(torch.arange(n, device=device))
    stepper = Stepper(model, terms, Assembly.of(free, start.betas), options.tolerance).select(rows)
    work = stepper.begin(start.select(rows), options.damping)
    # To ask a GPU how many are left is to wait for it: there, hands that are done are carried along for a while.
    between_looks = _steps_between_looks(device)
    in_graph = graphs.pays(device, n)
    again: Callable[[], None] | None = None
    for first in range(0, options.max_steps, between_looks):
        some = min(between_looks, options.max_steps - first)
        if not in_graph:
            work = stepper.advance(work, some)
        elif some < between_looks:
            work.take_over(stepper.advance(work, some))
        elif again is None:
            again = graphs.capture(partial(_in_place, stepper, work, some))
        else:
            again()
        count = int(work.active.sum())
        if count == 0:
            break
        # A graph has its shapes, and as many rows as it has cost little.
        if count < 0.8 * len(rows) and not in_graph:
            ends.put(rows, work)
            at = _pair(work.active.nonzero()[:, 0])
            rows, work, stepper = rows[at], work.select(at), stepper.select(at)
    ends.put(rows, work)
    return ends.solution()


def _in_place(stepper: Stepper, work: Work, steps: int) -> None:
    work.take_over(stepper.advance(work, steps))


@dataclass(frozen=True, eq=False)
class _Ends:
    """Results of all hands, written as their work ends."""

    state: HandState
    energy: Tensor
    converged: Tensor
    steps: Tensor

    @classmethod
    def of(cls, start: HandState) -> _Ends:
        energy = torch.full_like(start.log_focal, float("inf"))
        state = HandState(*(t.clone() for t in vars(start).values()))
        no = torch.zeros_like(energy, dtype=torch.bool)
        return cls(state, energy, no, torch.zeros_like(no, dtype=torch.int64))

    def put(self, rows: Tensor, work: Work) -> None:
        for mine, theirs in zip(vars(self.state).values(), vars(work.state).values(), strict=True):
            mine[rows] = theirs
        self.energy[rows] = work.equations.energy.nan_to_num(float("inf"), float("inf"))
        self.converged[rows] = work.converged
        self.steps[rows] = work.steps

    def solution(self) -> Solution:
        return Solution(self.state.orthonormalised(), self.energy, self.converged, self.steps)


def finish(model: PointsModel, terms: Sequence[Term], state: HandState, free: Tensor, posterior: bool) -> Finish:
    """Energies by term at solutions and, if wanted, the posterior of the points there."""
    rows = _pair(torch.arange(len(state), device=state.betas.device))
    n = len(state)
    local = state.select(rows)
    posed = PosedHand.of(model, local, jacobian=posterior)
    parts = {t.name: t.select(rows).linearise(posed).energy[:n] for t in terms}
    if not posterior or n == 0:
        return Finish(parts, None)
    at = Assembly.of(free, local.betas).equations(posed, [t.select(rows) for t in terms])
    diagonal = torch.diagonal(at.hessian, dim1=1, dim2=2)
    factor, failed = torch.linalg.cholesky_ex(at.hessian + torch.diag_embed(1e-12 * diagonal))
    assert posed.rows is not None
    spread = torch.linalg.solve_triangular(factor, by_parameter(posed.rows, free).mT, upper=False).mT
    spread = torch.where((failed > 0)[:, None, None], torch.full_like(spread, float("nan")), spread)
    return Finish(parts, summarise(spread[:n].unflatten(1, (21, 3)), posed.points[:n], at.hessian[:n]))


def _pair(index: Tensor) -> Tensor:
    return index.repeat(2) if len(index) == 1 else index
