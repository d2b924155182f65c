"""Biomechanical limits as terms: residuals, Jacobians against autograd and differences, and in a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.rotations import so3_exp, so3_log
from handloop.core.terms import AutoTerm, HandState, PosedHand, Term
from handloop.fitting.biomechanical_terms import BoneLengths, JointAngles, PalmStructure, biomechanical_terms
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.solver import SolverOptions, solve
from handloop.fitting.terms import Shape
from handloop.priors.angle_hulls import AngleHulls
from handloop.priors.biomechanical_limits import BiomechanicalLimits, Interval
from handloop.priors.biomechanics import Skeleton, bone_lengths, joint_angles, palm_structure

F64 = torch.float64
NAMES = ("bone_lengths", "palm_structure", "joint_angles")


def narrow(reference: int | None) -> BiomechanicalLimits:
    """Ranges that most quantities of most hands leave, some on either side."""

    def interval(low: list[float], n: int) -> Interval:
        start = torch.tensor(low, dtype=F64).repeat(n)[:n]
        return Interval(start, start + 0.02)

    corners = np.deg2rad([[-8.0, -6.0], [12.0, -6.0], [14.0, 3.0], [-5.0, 5.0]])
    scale = 1.0 if reference is not None else 0.1
    bones = interval([scale * 0.9, scale * 0.4, scale * 0.3, scale * 0.2], 20)
    curvature = interval([0.1 / scale, 1.0 / scale], 4)
    return BiomechanicalLimits(bones, curvature, interval([0.4, 0.2], 4), AngleHulls.of([corners] * 15), reference)


def functions(limits: BiomechanicalLimits) -> dict[str, Callable[[PosedHand], Tensor]]:
    """The same residuals by plain torch."""

    def bones(posed: PosedHand) -> Tensor:
        return limits.bones.excess(bone_lengths(Skeleton.of(posed.points), limits.reference).value) / 0.02

    def palm(posed: PosedHand) -> Tensor:
        curvature, spread = palm_structure(Skeleton.of(posed.points), limits.reference)
        bent = limits.curvature.excess(curvature.value) / 0.25
        return torch.cat([bent, limits.spread.excess(spread.value).rad2deg() / 1.5], 1)

    def angles(posed: PosedHand) -> Tensor:
        return limits.hulls.excess(joint_angles(Skeleton.of(posed.points)).value).rad2deg().flatten(1) / 4

    return dict(zip(NAMES, (bones, palm, angles), strict=True))


@pytest.fixture(scope="module", params=[8, None], ids=["relative", "metres"])
def limits(request: pytest.FixtureRequest) -> BiomechanicalLimits:
    return narrow(request.param)


@pytest.fixture(scope="module")
def terms(limits: BiomechanicalLimits) -> dict[str, Term]:
    found = {term.name: term for term in biomechanical_terms(limits)}
    assert tuple(found) == NAMES
    return found


@pytest.fixture(scope="module")
def posed(model: FitModel, hard_state: HandState) -> PosedHand:
    """100 hands, straight fingers and angles near pi among them."""
    return PosedHand.of(model.kinematics, hard_state, jacobian=True)


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_equals_autograd(
    name: str, terms: dict[str, Term], limits: BiomechanicalLimits, posed: PosedHand
) -> None:
    part, expected = terms[name].linearise(posed), AutoTerm(name, functions(limits)[name]).linearise(posed)
    assert part.jacobian is not None and expected.jacobian is not None and part.columns == slice(0, 61)
    torch.testing.assert_close(part.value, expected.value)
    torch.testing.assert_close(part.energy, expected.energy)
    jac, reference = part.jacobian, expected.jacobian
    assert bool(torch.isfinite(jac).all()) and not reference[..., 61].any()
    scale = reference.abs().amax((1, 2), keepdim=True)
    assert float(((jac - reference[..., :61]).abs() / scale).max()) < 1e-6
    assert float((part.value != 0).double().mean()) > 0.5


def test_jacobians_equal_differences(
    limits: BiomechanicalLimits,
    terms: dict[str, Term],
    model: FitModel,
    posed: PosedHand,
    derivative: Callable[..., Tensor],
) -> None:
    state = posed.state.select(torch.arange(60, 80))

    def value(moved: HandState) -> Tensor:
        bare = PosedHand.of(model.kinematics, moved, jacobian=False)
        return torch.cat([function(bare) for function in functions(limits).values()], 1)

    numeric = derivative(value, state, 1e-5)[..., :61]
    for term, found in zip(terms.values(), numeric.split([20, 8, 30], 1), strict=True):
        jac = term.linearise(PosedHand.of(model.kinematics, state, jacobian=True)).jacobian
        assert jac is not None
        off = (found - jac).abs() / jac.abs().amax((1, 2), keepdim=True)
        # A difference across a range's edge or from a hull's edge to its corner belongs to neither side.
        assert float(off.amax(2).flatten().quantile(0.97)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_energy_alone_is_the_same(name: str, terms: dict[str, Term], model: FitModel, posed: PosedHand) -> None:
    bare = PosedHand.of(model.kinematics, posed.state, jacobian=False)
    alone, part = terms[name].linearise(bare), terms[name].linearise(posed)
    assert alone.jacobian is None
    torch.testing.assert_close(alone.energy, part.energy, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(part.energy, 0.5 * part.value.square().sum(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_hand_does_not_depend_on_its_batch(
    name: str, terms: dict[str, Term], model: FitModel, posed: PosedHand
) -> None:
    whole = terms[name].linearise(posed)
    assert whole.jacobian is not None
    for at in (torch.tensor([62]), torch.tensor([99, 0, 31]), torch.arange(99, -1, -1)):
        some = PosedHand.of(model.kinematics, posed.state.select(at), jacobian=True)
        part = terms[name].select(at).linearise(some)
        assert part.jacobian is not None
        assert torch.equal(part.value, whole.value[at]) and torch.equal(part.energy, whole.energy[at])
        assert torch.equal(part.jacobian, whole.jacobian[at])


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_points_that_are_no_hand_give_finite_residuals(posed: PosedHand, dtype: torch.dtype) -> None:
    points = posed.points[:4].to(dtype).clone()
    points[0] = 0
    points[1, 6] = points[1, 5]
    points[2, 9] = points[2, 0]
    points[3, :, 1:] = 0
    assert posed.points_jacobian is not None and posed.rows is not None
    state = posed.state.select(torch.arange(4))
    broken = PosedHand(posed.model, state, points, posed.pose[:4], rows=posed.rows[:4].to(dtype))
    vars(broken)["points_jacobian"] = posed.points_jacobian[:4].to(dtype)
    for term in biomechanical_terms(narrow(8)):
        part = term.linearise(broken)
        assert part.jacobian is not None and part.value.dtype == part.jacobian.dtype == dtype
        assert bool(torch.isfinite(part.value).all()) and bool(torch.isfinite(part.jacobian).all())


def test_zero_inside(posed: PosedHand) -> None:
    own = posed.points[30:]
    limits = BiomechanicalLimits.from_joints(own, True, trim=0.0)
    for term in biomechanical_terms(limits):
        part = term.linearise(PosedHand(posed.model, posed.state, own, posed.pose))
        assert float(part.value.abs().max()) < 1e-3


def test_sigmas_divide(posed: PosedHand, limits: BiomechanicalLimits) -> None:
    for one, two in (
        (BoneLengths(limits, 0.02), BoneLengths(limits, 0.04)),
        (PalmStructure(limits, 0.1, 2.0), PalmStructure(limits, 0.2, 4.0)),
        (JointAngles(limits, 4.0), JointAngles(limits, 8.0)),
    ):
        a, b = one.linearise(posed), two.linearise(posed)
        torch.testing.assert_close(a.value, 2 * b.value)
        assert a.jacobian is not None and b.jacobian is not None
        torch.testing.assert_close(a.jacobian, 2 * b.jacobian)


def test_a_solve_brings_hands_back(models: HandModels, model: FitModel, hard_state: HandState) -> None:
    """Hands bent at random, with a weak wish to stay as they are, go where their joints are allowed."""
    hand = models.pair.right
    limits = biomechanical_terms(BiomechanicalLimits.from_hand(replace(hand, hands_coeffs=hand.hands_coeffs[:300])))
    g = torch.Generator().manual_seed(3)
    pose = 0.4 * torch.randn(4, 15, 3, dtype=F64, generator=g)
    rotations = torch.cat([hard_state.rotations[60:64, :1], so3_exp(pose)], 1)
    start = HandState(rotations, 1.5 * hard_state.betas[60:64], hard_state.root[60:64], hard_state.log_focal[60:64])

    def stay(posed: PosedHand, wanted: Tensor) -> Tensor:
        return posed.pose - wanted

    def energy(state: HandState) -> Tensor:
        posed = PosedHand.of(model.kinematics, state, jacobian=False)
        return torch.stack([term.linearise(posed).energy for term in limits]).sum(0)

    terms: list[Term] = [*limits, Shape(), AutoTerm("stay", stay, (pose.flatten(1),))]
    done = solve(model.kinematics, terms, start, torch.ones(62, dtype=torch.bool), SolverOptions(40))
    assert bool((energy(done.state) < 0.02 * energy(start)).all())
    moved = so3_log(done.state.rotations[:, 1:] @ rotations[:, 1:].mT).norm(dim=-1)
    assert float(moved.median()) < 0.5
