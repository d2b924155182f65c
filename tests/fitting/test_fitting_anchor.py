"""The pull to a proposal: formula by scipy, Jacobian against autograd, half turns, opinions left out, and in fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.api import fit
from handloop.core.errors import InputError
from handloop.core.rotations import so3_exp, so3_log
from handloop.core.terms import AutoTerm, HandState, PosedHand
from handloop.fitting.anchor import Anchor
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import SolverOptions, solve

F64 = torch.float64
N = 100


def proposal(state: HandState, spread: float = 0.6) -> Anchor:
    """Near some states, far from others and right upon a few; one opinion in four is missing."""
    g = torch.Generator().manual_seed(12)
    n = len(state)
    turn = spread * torch.randn(n, 16, 3, dtype=F64, generator=g)
    turn[:10] = 0
    turn[10:20] *= 1e-8
    turn[20:30] = (torch.pi - 1e-3) * torch.nn.functional.normalize(turn[20:30], dim=-1)
    inverse = [20 * torch.rand(n, k, dtype=F64, generator=g) for k in (16, 10, 3)]
    for part in inverse:
        part[torch.rand(part.shape, generator=g) < 0.25] = 0
    betas = state.betas + torch.randn(n, 10, dtype=F64, generator=g)
    root = state.root + 0.05 * torch.randn(n, 3, dtype=F64, generator=g)
    return Anchor.of(state.rotations @ so3_exp(turn), betas, root, *inverse)


@pytest.fixture(scope="module")
def anchor(hard_state: HandState) -> Anchor:
    return proposal(hard_state)


@pytest.fixture(scope="module")
def posed(model: FitModel, hard_state: HandState) -> PosedHand:
    return PosedHand.of(model.kinematics, hard_state, jacobian=True)


def test_formula(anchor: Anchor, posed: PosedHand, hard_state: HandState) -> None:
    part = anchor.linearise(posed)
    for i in range(0, N, 7):
        there, here = (r[i].numpy() for r in (anchor.rotations, hard_state.rotations))
        turn = (Rotation.from_matrix(there).inv() * Rotation.from_matrix(here)).as_rotvec()
        x, y, z = hard_state.root[i].tolist()
        a, b, c = anchor.root[i].tolist()
        sight = np.array([x / z - a / c, y / z - b / c, np.log(z / c)])
        expected = [
            (turn * anchor.inverse_rotation_sd[i].numpy()[:, None]).ravel(),
            (hard_state.betas[i] - anchor.betas[i]).numpy() * anchor.inverse_betas_sd[i].numpy(),
            sight * anchor.inverse_root_sd[i].numpy(),
        ]
        value = np.concatenate(expected)
        np.testing.assert_allclose(part.value[i].numpy(), value, rtol=1e-6, atol=1e-8)
        assert float(part.energy[i]) == pytest.approx(0.5 * float(value @ value), rel=1e-7)


def test_jacobian_equals_autograd(anchor: Anchor, posed: PosedHand) -> None:
    def value(posed: PosedHand, rotations: Tensor, betas: Tensor, root: Tensor, *inverse: Tensor) -> Tensor:
        turn = so3_log(rotations.mT @ posed.state.rotations) * inverse[0][..., None]
        there, here = root, posed.state.root
        bearing = here[:, :2] / here[:, 2:] - there[:, :2] / there[:, 2:]
        sight = torch.cat([bearing, (here[:, 2:] / there[:, 2:]).log()], 1) * inverse[2]
        return torch.cat([turn.flatten(1), (posed.state.betas - betas) * inverse[1], sight], 1)

    data = (anchor.rotations, anchor.betas, anchor.root)
    inverse = (anchor.inverse_rotation_sd, anchor.inverse_betas_sd, anchor.inverse_root_sd)
    reference = AutoTerm("auto", value, (*data, *inverse)).linearise(posed)
    part = anchor.linearise(posed)
    assert part.jacobian is not None and reference.jacobian is not None and part.columns == slice(0, 61)
    torch.testing.assert_close(part.value, reference.value)
    assert bool(torch.isfinite(part.jacobian).all()) and not reference.jacobian[..., 61].any()
    scale = reference.jacobian.abs().amax((1, 2), keepdim=True)
    assert float(((part.jacobian - reference.jacobian[..., :61]).abs() / scale).max()) < 1e-6


def test_jacobian_equals_differences(
    anchor: Anchor, model: FitModel, hard_state: HandState, derivative: Callable[..., Tensor]
) -> None:
    at = torch.arange(30, 100, 9)
    near, state = anchor.select(at), hard_state.select(at)

    def value(moved: HandState) -> Tensor:
        return near.linearise(PosedHand.of(model.kinematics, moved, jacobian=False)).value

    jac = near.linearise(PosedHand.of(model.kinematics, state, jacobian=True)).jacobian
    expected = derivative(value, state, 1e-4)[..., :61]
    assert jac is not None
    assert float(((jac - expected).abs() / expected.abs().amax((1, 2), keepdim=True)).max()) < 1e-6


def test_half_turns_are_bounded(model: FitModel, hard_state: HandState) -> None:
    """Exactly pi, and within rounding of it on either side: pi / sd, a bounded slope, no NaN."""
    g = torch.Generator().manual_seed(5)
    axis = torch.nn.functional.normalize(torch.randn(N, 16, 3, dtype=F64, generator=g), dim=-1)
    angle = torch.pi + torch.tensor([0.0, 1e-12, -1e-12, 1e-8, -1e-8], dtype=F64).repeat(20)
    rotations = hard_state.rotations @ so3_exp(axis * angle[:, None, None])
    rotations[0] = hard_state.rotations[0] @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=F64))
    one = torch.ones(N, 1, dtype=F64)
    anchor = Anchor.of(
        rotations, hard_state.betas, hard_state.root, 2 * one.expand(N, 16), one.expand(N, 10), one.expand(N, 3)
    )
    part = anchor.linearise(PosedHand.of(model.kinematics, hard_state, jacobian=True))
    size = part.value[:, :48].unflatten(1, (16, 3)).norm(dim=-1)
    torch.testing.assert_close(size, torch.full((N, 16), 2 * torch.pi, dtype=F64), atol=1e-6, rtol=0.0)
    # The slope of log grows to pi/2 across the axis, no further.
    assert part.jacobian is not None and float(part.jacobian.abs().max()) <= 2 * torch.pi / 2 + 1e-6


def test_no_opinion_is_ignored_whatever_it_says(anchor: Anchor, posed: PosedHand) -> None:
    nan = float("nan")
    rotations = anchor.rotations.masked_fill((anchor.inverse_rotation_sd == 0)[..., None, None], nan)
    betas = anchor.betas.masked_fill(anchor.inverse_betas_sd == 0, nan)
    root, inverse_root = anchor.root.clone(), anchor.inverse_root_sd.clone()
    root[7], inverse_root[7] = nan, 0
    root[8], inverse_root[8] = torch.tensor([0.0, 0.0, -1.0], dtype=F64), 0
    inverse = (anchor.inverse_rotation_sd, anchor.inverse_betas_sd, inverse_root)
    holes = Anchor.of(rotations, betas, root, *inverse).linearise(posed)
    whole = Anchor.of(anchor.rotations, anchor.betas, anchor.root, *inverse).linearise(posed)
    assert torch.equal(holes.energy, whole.energy) and torch.equal(holes.value, whole.value)
    assert holes.jacobian is not None and whole.jacobian is not None and torch.equal(holes.jacobian, whole.jacobian)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(dtype: torch.dtype, anchor: Anchor, hard_state: HandState) -> None:
    from handloop.hand.load import embedded_hand

    model = HandModels.of(embedded_hand(), dtype).right
    state = HandState(*(t.to(dtype) for t in vars(hard_state).values()))
    whole = anchor.linearise(PosedHand.of(model.kinematics, state, jacobian=True))
    assert whole.energy.dtype == dtype and whole.jacobian is not None and whole.jacobian.dtype == dtype
    for at in (torch.tensor([31, 2]), torch.arange(N - 1, -1, -1), torch.arange(5, 64), torch.tensor([8, 8, 8])):
        part = anchor.select(at).linearise(PosedHand.of(model.kinematics, state.select(at), jacobian=True))
        assert torch.equal(part.energy, whole.energy[at]) and torch.equal(part.value, whole.value[at])
        assert part.jacobian is not None and torch.equal(part.jacobian, whole.jacobian[at])


def test_energy_alone_is_the_same(anchor: Anchor, model: FitModel, posed: PosedHand) -> None:
    bare = anchor.linearise(PosedHand.of(model.kinematics, posed.state, jacobian=False))
    assert bare.jacobian is None and anchor.name == "anchor"
    torch.testing.assert_close(bare.energy, anchor.linearise(posed).energy, rtol=1e-12, atol=0.0)


_WRONG: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("rotations", lambda t: t[:, :15], "the anchor's rotations has shape (3, 15, 3, 3), expected (3, 16, 3, 3)."),
    ("betas", lambda t: t[:, :9], "the anchor's betas has shape (3, 9), expected (N, 10)."),
    ("root", lambda t: t[:2], "the anchor's root has shape (2, 3), expected (3, 3)."),
    ("inverse_rotation_sd", lambda t: t[:, 0], "the anchor's inverse_rotation_sd has shape (3,), expected (3, 16)."),
    (
        "inverse_betas_sd",
        lambda t: torch.where(torch.arange(3)[:, None] == 1, -t, t),
        "the anchor's inverse_betas_sd of hand 1 is negative or not finite; give 1/sd, and 0 for no opinion.",
    ),
    (
        "inverse_root_sd",
        lambda t: t / 0,
        "the anchor's inverse_root_sd of hand 0 is negative or not finite; give 1/sd, and 0 for no opinion.",
    ),
    (
        "rotations",
        lambda t: torch.where(torch.arange(3)[:, None, None, None] == 2, float("nan"), t),
        "the anchor's rotation of hand 2 is not finite; give it an inverse sd of 0 to leave it out.",
    ),
    (
        "root",
        lambda t: t * torch.tensor([1.0, 1.0, -1.0]),
        "the anchor's wrist of hand 0 is at a depth of -0.5 m, expected a positive one; give it in the camera frame.",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), _WRONG)
def test_errors(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    parts = {
        "rotations": torch.eye(3, dtype=F64).expand(3, 16, 3, 3),
        "betas": torch.zeros(3, 10, dtype=F64),
        "root": torch.tensor([[0.0, 0.0, 0.5]], dtype=F64).expand(3, 3),
        "inverse_rotation_sd": torch.ones(3, 16, dtype=F64),
        "inverse_betas_sd": torch.ones(3, 10, dtype=F64),
        "inverse_root_sd": torch.ones(3, 3, dtype=F64),
    }
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Anchor.of(**{**parts, name: change(parts[name])})


# In fits.


def test_alone_it_ends_at_the_proposal(model: FitModel, synthetic: Callable[..., Any]) -> None:
    aim, start = synthetic(10, 1).state, synthetic(10, 2).state
    sd = [torch.full((10, k), 1 / s, dtype=F64) for k, s in ((16, 0.1), (10, 1.0), (3, 0.01))]
    anchor = Anchor.of(aim.rotations, aim.betas, aim.root, *sd)
    free = torch.arange(62) < 61
    out = solve(model.kinematics, [anchor], start, free, SolverOptions(60, 1e-9))
    assert float(out.energy.max()) < 1e-9
    torch.testing.assert_close(out.state.rotations, aim.rotations, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(out.state.root, aim.root, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(out.state.betas, aim.betas, atol=1e-4, rtol=0.0)


def test_a_proposal_helps_where_the_picture_says_little(synthetic: Callable[..., Any]) -> None:
    """A good guess of depth and of the fingers that are hidden, none of the rest."""
    hands = synthetic(16, 4)
    conf = torch.ones(16, 21, 1, dtype=F64)
    conf[:, [7, 8, 11, 12, 15, 16, 19, 20]] = 0
    keypoints = torch.cat([hands.uv, conf], 2)
    inverse = torch.zeros(16, 16, dtype=F64)
    inverse[:, 1:] = 1 / 0.05
    depth = torch.tensor([0.0, 0.0, 1 / 0.01], dtype=F64).expand(16, 3)
    state = hands.state
    anchor = Anchor.of(state.rotations, state.betas, state.root, inverse, torch.zeros(16, 10, dtype=F64), depth)
    errors = {}
    for name, terms in {"without": (), "with": (anchor,)}.items():
        result = fit(keypoints, hands.K, recipe=Recipe(extra_terms=terms, seeds=2))
        errors[name] = (result.joints - hands.points).norm(dim=-1).mean(1)
    assert float(errors["with"].median()) < 0.5 * float(errors["without"].median())
    assert float(errors["with"].max()) < 0.02
