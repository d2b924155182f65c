"""Levenberg-Marquardt: problems with known answers, what each hand may expect, and what may not happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from handloop.core.terms import BETAS, AutoTerm, Cauchy, GemanMcClure, HandState, PosedHand, Term
from handloop.fitting.problem import FitModel
from handloop.fitting.solver import SolverOptions, finish, solve
from handloop.fitting.steps import solve_systems
from handloop.fitting.terms import FocalPrior, Limits, Points3d, PosePrior, Reprojection, Shape, Size

F64 = torch.float64
ALL = torch.arange(62) < 61
"""Everything but the focal length."""


def states(n: int) -> HandState:
    eye = torch.eye(3, dtype=F64).expand(n, 16, 3, 3).clone()
    root = torch.tensor([0.0, 0.0, 0.5], dtype=F64).repeat(n, 1)
    return HandState(eye, torch.zeros(n, 10, dtype=F64), root, torch.zeros(n, dtype=F64))


@dataclass(frozen=True, eq=False)
class Problem:
    """Synthetic hands with noise, and where to start."""

    terms: list[Term]
    start: HandState
    xyz: Tensor
    """(24, 21, 3) m, the true points."""


@pytest.fixture(scope="module")
def problem(model: FitModel, synthetic: Callable[..., Any]) -> Problem:
    hands = synthetic(24, 5)
    g = torch.Generator().manual_seed(0)
    n = len(hands)
    uv = hands.uv + 2 * torch.randn(n, 21, 2, dtype=F64, generator=g)
    camera = hands.camera
    terms: list[Term] = [
        Reprojection(uv, torch.full((n, 21), 0.5, dtype=F64), camera.focal, camera.princpt, GemanMcClure(4.0)),
        PosePrior(model.pose_prior),
        Limits(model.limits, 4.0),
        Shape(),
    ]
    return Problem(terms, hands.state.retract(0.1 * torch.randn(n, 62, dtype=F64, generator=g) * ALL), hands.points)


def total(model: FitModel, terms: list[Term], state: HandState) -> Tensor:
    posed = PosedHand.of(model.kinematics, state, jacobian=False)
    return torch.stack([t.linearise(posed).energy for t in terms]).sum(0)


def test_a_quadratic_problem_takes_two_steps(model: FitModel) -> None:
    """Betas under N(0, 1) and a linear measurement: the answer is known in closed form."""
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(10, 10, dtype=F64, generator=g)
    seen = torch.randn(4, 10, dtype=F64, generator=g)

    def measured(posed: PosedHand, seen: Tensor) -> Tensor:
        return posed.state.betas @ matrix.T - seen

    terms: list[Term] = [Shape(), AutoTerm("measured", measured, (seen,))]
    free = torch.zeros(62, dtype=torch.bool)
    free[BETAS] = True
    undamped = SolverOptions(max_steps=2, tolerance=1e-6, damping=1e-9)
    out = solve(model.kinematics, terms, states(4), free, undamped)
    expected = torch.linalg.solve(matrix.T @ matrix + torch.eye(10, dtype=F64), matrix.T @ seen.T).T
    torch.testing.assert_close(out.state.betas, expected, atol=1e-5, rtol=1e-5)
    once = solve(model.kinematics, terms, states(4), free, replace(undamped, max_steps=1))
    torch.testing.assert_close(once.state.betas, expected, atol=1e-5, rtol=1e-5)
    assert bool(out.converged.all()) and not bool(once.converged.any()) and bool((once.steps == 1).all())


def test_energy_never_rises_and_the_answer_is_a_minimum(model: FitModel, problem: Problem) -> None:
    before = total(model, problem.terms, problem.start)
    for steps in (1, 2, 3, 6, 30):
        out = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions(max_steps=steps))
        assert bool((out.energy <= before).all()), steps
        torch.testing.assert_close(total(model, problem.terms, out.state), out.energy, rtol=1e-9, atol=1e-9)
        assert bool((out.steps <= steps).all())
        before = out.energy
    out = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions(100, 1e-10))
    assert bool(out.converged.all())
    g = torch.Generator().manual_seed(4)
    for size in (1e-4, 1e-3, 1e-2):
        for _ in range(8):
            step = size * torch.randn(24, 62, dtype=F64, generator=g) * ALL
            near = total(model, problem.terms, out.state.retract(step))
            assert bool((near > out.energy * (1 - 1e-7)).all())


def test_parts_sum_to_the_energy(model: FitModel, problem: Problem) -> None:
    out = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions())
    ends = finish(model.kinematics, problem.terms, out.state, ALL, posterior=False)
    parts = ends.terms
    assert ends.posterior is None and list(parts) == ["reprojection", "pose_prior", "limits", "shape"]
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), out.energy, rtol=1e-9, atol=1e-9)


def test_posterior_is_the_inverse_of_the_curvature(
    model: FitModel, problem: Problem, derivative_by_rows: Callable[..., Tensor]
) -> None:
    """Laplace: covariance of the points = J H^-1 J^T, H the sum of J^T J of the weighted residuals, by differences."""
    free = ALL.clone()
    free[48:50] = False
    out = solve(model.kinematics, problem.terms, problem.start, free, SolverOptions())
    ends = finish(model.kinematics, problem.terms, out.state, free, posterior=True)
    assert ends.posterior is not None and ends.posterior.points.shape == (24, 21, 3)
    at = torch.arange(4)
    state, local = out.state.select(at), [t.select(at) for t in problem.terms]
    sight = local[0]
    assert isinstance(sight, Reprojection)

    def values(s: HandState, rows: Tensor) -> Tensor:
        posed = PosedHand.of(model.kinematics, s, jacobian=False)
        own = [t.select(rows) for t in (replace(sight, kernel=GemanMcClure(1e9)), *local[1:])]
        return torch.cat([t.linearise(posed).value for t in own] + [posed.points.flatten(1)], 1)

    jac = derivative_by_rows(values, state, 1e-6)
    points = jac[:, -63:]
    jac = jac[:, :-63]
    sq = values(state, at)[:, :42].reshape(4, 21, 2).square().sum(-1)
    jac[:, :42] *= (16 / (16 + sq))[..., None].expand(4, 21, 2).flatten(1)[..., None]
    hessian = (jac.mT @ jac)[:, free][:, :, free]
    covariance = points[..., free] @ torch.linalg.solve(hessian, points[..., free].mT)
    ours = ends.posterior
    variances = torch.diagonal(covariance, dim1=1, dim2=2).reshape(4, 21, 3)
    torch.testing.assert_close(ours.points[:4], variances, rtol=1e-4, atol=1e-10)
    pick = torch.zeros(7, 21, 3, dtype=F64)
    pick[0, :, 2] = 1 / 21
    pick[1, 9, 2], pick[1, 0, 2] = 1, -1
    along = torch.einsum("dpa,npaqb,dqb->nd", pick, covariance.reshape(4, 21, 3, 21, 3), pick)
    torch.testing.assert_close(ours.depth[:4], along[:, 0], rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(ours.directions[:4, :2], along[:, :2], rtol=1e-4, atol=1e-10)
    for f in range(5):
        difference = torch.zeros(3, 21, 3, dtype=F64)
        for a in range(3):
            difference[a, 4 + 4 * f, a], difference[a, 1 + 4 * f, a] = 1, -1
        across = torch.einsum("dpa,npaqb,dqb->n", difference, covariance.reshape(4, 21, 3, 21, 3), difference)
        torch.testing.assert_close(ours.directions[:4, 2 + f], across, rtol=1e-4, atol=1e-10)
    # What is left outside the seven directions of a similarity transform.
    x = model.kinematics.points(state.rotations, state.betas, state.root)
    for i in range(4):
        moves = [torch.eye(3, dtype=F64)[a].expand(21, 3) for a in range(3)] + [x[i]]
        moves += [torch.linalg.cross(torch.eye(3, dtype=F64)[a].expand(21, 3), x[i]) for a in range(3)]
        basis, _ = torch.linalg.qr(torch.stack([m.flatten() for m in moves], 1))
        left = torch.eye(63, dtype=F64) - basis @ basis.T
        expected = torch.trace(left @ covariance[i] @ left) / 21
        torch.testing.assert_close(ours.aligned[i], expected, rtol=1e-4, atol=1e-10)


def test_a_start_at_the_optimum_stays(model: FitModel, problem: Problem) -> None:
    best = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions(60, 1e-10))
    again = solve(model.kinematics, problem.terms, best.state, ALL, SolverOptions())
    assert bool(again.converged.all()) and bool((again.steps <= 3).all())
    torch.testing.assert_close(again.energy, best.energy, rtol=1e-8, atol=0.0)
    moved = model.kinematics.points(again.state.rotations, again.state.betas, again.state.root)
    still = model.kinematics.points(best.state.rotations, best.state.betas, best.state.root)
    assert float((moved - still).abs().max()) < 1e-5


@pytest.mark.parametrize("fixed", [slice(0, 3), slice(3, 48), slice(48, 58), slice(58, 61), slice(61, 62)])
def test_fixed_parameters_do_not_move(model: FitModel, problem: Problem, fixed: slice) -> None:
    free = torch.ones(62, dtype=torch.bool)
    free[fixed] = False
    terms = [*problem.terms, FocalPrior(torch.full((len(problem.start),), 10.0, dtype=torch.float64))]
    out = solve(model.kinematics, terms, problem.start, free, SolverOptions())
    pairs = {
        0: (out.state.rotations[:, 0], problem.start.rotations[:, 0]),
        3: (out.state.rotations[:, 1:], problem.start.rotations[:, 1:]),
        48: (out.state.betas, problem.start.betas),
        58: (out.state.root, problem.start.root),
        61: (out.state.log_focal, problem.start.log_focal),
    }
    assert bool((out.energy < total(model, terms, problem.start)).all())
    for column, (now, then) in pairs.items():
        if column != fixed.start:
            assert not torch.allclose(now, then, atol=1e-6)
        elif column < 48:  # Rotations are cleaned of rounding at the end.
            torch.testing.assert_close(now, then, atol=1e-14, rtol=0.0)
        else:
            assert torch.equal(now, then)


def test_nothing_free(model: FitModel, problem: Problem) -> None:
    out = solve(model.kinematics, problem.terms, problem.start, torch.zeros(62, dtype=torch.bool), SolverOptions())
    torch.testing.assert_close(out.energy, total(model, problem.terms, problem.start))
    assert torch.equal(out.state.betas, problem.start.betas)


def test_status(model: FitModel, problem: Problem) -> None:
    one = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions(max_steps=1))
    assert bool((one.steps == 1).all()) and not bool(one.converged.any())
    many = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions(max_steps=100))
    assert bool(many.converged.all()) and bool((many.steps < 60).all())


def test_a_bad_hand_does_not_change_the_others(model: FitModel, problem: Problem) -> None:
    clean = solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions())
    sight = problem.terms[0]
    assert isinstance(sight, Reprojection)
    uv, root, betas = sight.uv.clone(), problem.start.root.clone(), problem.start.betas.clone()
    uv[3] = float("nan")
    uv[7, 5] = 1e250  # Its square overflows.
    root[11, 2] = -0.3  # Behind the camera, where no step can bring it forward.
    betas[15] = float("nan")
    terms = [replace(sight, uv=uv), *problem.terms[1:]]
    start = HandState(problem.start.rotations, betas, root, problem.start.log_focal)
    out = solve(model.kinematics, terms, start, ALL, SolverOptions())
    bad = torch.tensor([3, 11, 15])
    assert bool(torch.isposinf(out.energy[bad]).all()) and not bool(out.converged[bad].any())
    others = torch.ones(24, dtype=torch.bool)
    others[[3, 7, 11, 15]] = False
    assert torch.equal(out.energy[others], clean.energy[others])
    assert torch.equal(out.steps[others], clean.steps[others])
    for now, then in zip(vars(out.state).values(), vars(clean.state).values(), strict=True):
        assert torch.equal(now[others], then[others])
    assert not bool(torch.isnan(out.energy).any())


@pytest.mark.parametrize(("max_steps", "spread"), [(4, False), (1, True), (15, True)])
def test_a_hand_does_not_depend_on_its_batch(
    model: FitModel, spread_model: FitModel, problem: Problem, max_steps: int, spread: bool
) -> None:
    """To the bit: alone, in any subset, in any order, while the others need more or fewer steps."""
    used = spread_model if spread else model
    options = SolverOptions(max_steps)
    length = torch.full((24,), 0.19, dtype=F64)
    terms = [
        *problem.terms,
        Size(used.hand_length, length, 0.01),
        Points3d(problem.xyz, torch.full((24, 21), 100.0, dtype=F64), Cauchy(3.0)),
    ]
    whole = solve(used.kinematics, terms, problem.start, ALL, options)
    g = torch.Generator().manual_seed(max_steps)
    groups = [torch.tensor([i]) for i in (0, 5)]
    groups += [torch.tensor([4, 17]), torch.arange(23, -1, -1), torch.randperm(24, generator=g)[:11]]
    for at in groups:
        some = solve(used.kinematics, [t.select(at) for t in terms], problem.start.select(at), ALL, options)
        assert torch.equal(some.energy, whole.energy[at]), at
        assert torch.equal(some.steps, whole.steps[at]) and torch.equal(some.converged, whole.converged[at])
        for now, then in zip(vars(some.state).values(), vars(whole.state).values(), strict=True):
            assert torch.equal(now, then[at])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_linear_systems_round_alike_at_every_place(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(6)
    root = torch.randn(16, 64, 64, dtype=F64, generator=g)
    matrix = (root @ root.mT + 5 * torch.eye(64, dtype=F64)).to(dtype)
    right = torch.randn(16, 64, dtype=F64, generator=g).to(dtype)
    found = solve_systems(matrix, right)
    expected = torch.linalg.solve(matrix.double(), right.double()[..., None])[..., 0]
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=1e-4 if dtype == torch.float32 else 1e-12)
    for at in (torch.arange(15, -1, -1), torch.tensor([3, 3]), torch.arange(1, 12)):
        assert torch.equal(solve_systems(matrix[at], right[at]), found[at])
    matrix[4] = -matrix[4]
    failed = solve_systems(matrix, right)
    assert bool(failed[4].isnan().all()) and torch.equal(failed[5:], found[5:])


def test_float32_and_its_batches(problem: Problem) -> None:
    from handloop.fitting.problem import HandModels
    from handloop.hand.load import embedded_hand

    model = HandModels.of(embedded_hand(), torch.float32).right
    sight = problem.terms[0]
    assert isinstance(sight, Reprojection)
    data = (t.float() for t in (sight.uv, sight.inverse_sigma, sight.focal, sight.princpt))
    terms = [Reprojection(*data, sight.kernel), PosePrior(model.pose_prior), Limits(model.limits, 4.0), Shape()]
    start = HandState(*(t.float() for t in vars(problem.start).values()))
    whole = solve(model.kinematics, terms, start, ALL, SolverOptions())
    assert whole.energy.dtype == torch.float32 and bool(torch.isfinite(whole.energy).all())
    gaps = []
    for at in (torch.tensor([0]), torch.tensor([4, 17]), torch.arange(23, -1, -1), torch.arange(1, 12)):
        some = solve(model.kinematics, [t.select(at) for t in terms], start.select(at), ALL, SolverOptions())
        ours, whole_points = (
            model.kinematics.points(s.rotations, s.betas, s.root) for s in (some.state, whole.state.select(at))
        )
        gaps.append((ours - whole_points).norm(dim=-1).flatten())
    assert float((torch.cat(gaps) < 1e-5).double().mean()) >= 0.999


def test_no_hands(model: FitModel, problem: Problem) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    terms = [t.select(none) for t in problem.terms]
    out = solve(model.kinematics, terms, problem.start.select(none), ALL, SolverOptions())
    assert len(out.state) == 0 and out.energy.shape == out.converged.shape == out.steps.shape == (0,)


def test_the_start_is_not_changed(model: FitModel, problem: Problem) -> None:
    before = [t.clone() for t in vars(problem.start).values()]
    solve(model.kinematics, problem.terms, problem.start, ALL, SolverOptions())
    assert all(torch.equal(a, b) for a, b in zip(before, vars(problem.start).values(), strict=True))


def test_unobserved_depth_does_not_run_away(model: FitModel) -> None:
    """Nothing seen at all: the priors' optimum, where the wrist stays."""
    start = states(3)
    out = solve(model.kinematics, [PosePrior(model.pose_prior), Shape()], start, ALL, SolverOptions(60))
    assert bool(out.converged.all()) and float(out.energy.max()) < 1e-6
    assert torch.equal(out.state.root, start.root)


def test_far_starts_never_raise(model: FitModel, problem: Problem) -> None:
    g = torch.Generator().manual_seed(3)
    n = len(problem.start)
    wild = problem.start.retract(3 * torch.randn(n, 62, dtype=F64, generator=g))
    out = solve(model.kinematics, problem.terms, wild, ALL, SolverOptions(15))
    finite = torch.isfinite(out.energy)
    assert not bool(torch.isnan(out.energy).any()) and not bool((out.converged & ~finite).any())
    for value in vars(out.state.select(finite.nonzero()[:, 0])).values():
        assert bool(torch.isfinite(value).all())
