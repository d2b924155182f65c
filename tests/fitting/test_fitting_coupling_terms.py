"""Coupled flexion, closing spread and E_a: formulas by hand, Jacobians against autograd, batches, and in fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.api import fit
from handloop.core.terms import AutoTerm, HandState, PosedHand, Residual, Term
from handloop.fitting.coupling_terms import FlexionCoupling, Spread
from handloop.fitting.hyperextension import PUBLISHED_WEIGHT, HingeExtension
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.hand.load import embedded_hand
from handloop.priors.anatomy import rotations_from_angles

F64 = torch.float64
N = 100
# Rows of MANO's finger joints (index, middle, ring, pinky), written out once more.
KNUCKLES, MIDDLES, ENDS = [0, 3, 9, 6], [1, 4, 10, 7], [2, 5, 11, 8]
BENDING = [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]


def make_terms(model: FitModel) -> dict[str, Term]:
    rule = model.couplings
    return {
        "flexion_coupling": FlexionCoupling(rule, 10.0),
        "spread": Spread(rule, 4.0),
        "hyperextension": HingeExtension(rule),
        "sharp": HingeExtension(rule, 0.5, 10.0, "sharp"),
    }


NAMES = ("flexion_coupling", "spread", "hyperextension", "sharp")


def plain_angles(model: FitModel, posed: PosedHand) -> Tensor:
    """(B, 15, 3) by torch's own atan2."""
    axes = model.limits.axes
    m = axes.mT @ posed.state.rotations[:, 1:] @ axes
    flexion = torch.atan2(-m[..., 1, 2], m[..., 2, 2])
    return torch.stack([flexion, m[..., 0, 2].clamp(-1, 1).asin(), torch.atan2(-m[..., 0, 1], m[..., 0, 0])], -1)


def functions(model: FitModel) -> dict[str, Callable[[PosedHand], Tensor]]:
    """The same residuals in plain torch."""
    rule = model.couplings

    def coupling(posed: PosedHand) -> Tensor:
        flexion = plain_angles(model, posed)[..., 0].rad2deg()
        return (flexion[:, ENDS] - 2 / 3 * flexion[:, MIDDLES] - rule.dip_offset.rad2deg()) / 10

    def spread(posed: PosedHand) -> Tensor:
        angles = plain_angles(model, posed)[:, KNUCKLES].rad2deg()
        share = torch.clip(angles[..., 0] / 70, 0, 1)[..., None]
        low, high = (rule.open_spread.rad2deg() * (1 - share) + rule.closed_spread.rad2deg() * share).unbind(-1)
        return (torch.relu(angles[..., 1] - high) - torch.relu(low - angles[..., 1])) / 4

    def hinges(weight: float, sharpness: float) -> Callable[[PosedHand], Tensor]:
        def value(posed: PosedHand) -> Tensor:
            bent = (plain_angles(model, posed)[..., 0] - rule.straight)[:, BENDING]
            out = torch.zeros(len(bent), 15, dtype=bent.dtype)
            away = -sharpness * bent
            out[:, BENDING] = weight * torch.where(away < 4, away.clamp(max=4).exp(), torch.e**4 * (away - 3))
            return out

        return value

    return dict(zip(NAMES, (coupling, spread, hinges(2**0.5 * 3.17, 1.0), hinges(0.5, 10.0)), strict=True))


@pytest.fixture(scope="module")
def posed(model: FitModel, hard_state: HandState) -> PosedHand:
    """100 hands, straight fingers, zero rotations and angles near pi among them."""
    return PosedHand.of(model.kinematics, hard_state, jacobian=True)


def dense(part: Residual) -> Tensor:
    """(B, R, 62) of either form of a Jacobian."""
    assert part.jacobian is not None
    b, r = part.value.shape
    out = torch.zeros(b, r, 62, dtype=part.value.dtype)
    if part.jacobian.ndim == 4:
        for joint in range(15):
            out[:, joint, 3 + 3 * joint : 6 + 3 * joint] = part.jacobian[:, joint, 0]
    else:
        out[:, :, part.columns] = part.jacobian
    return out


def bent(model: FitModel, degrees: dict[tuple[int, int], float]) -> PosedHand:
    """One hand with some anatomical angles (joint row, angle) in degrees, all others zero."""
    local = np.zeros((15, 3))
    for (row, angle), value in degrees.items():
        local[row, angle] = value
    axes = model.limits.axes.numpy()
    turn = axes @ Rotation.from_euler("XYZ", local, degrees=True).as_matrix() @ axes.transpose(0, 2, 1)
    rotations = torch.cat([torch.eye(3, dtype=F64)[None], torch.tensor(turn)])[None]
    root = torch.tensor([[0.0, 0.0, 0.6]], dtype=F64)
    state = HandState(rotations, torch.zeros(1, 10, dtype=F64), root, torch.zeros(1, dtype=F64))
    return PosedHand.of(model.kinematics, state, jacobian=True)


# Formulas by hand.


@pytest.mark.parametrize("finger", range(4))
def test_a_dip_two_thirds_as_bent_as_its_pip_costs_nothing(model: FitModel, finger: int) -> None:
    zero = float(model.couplings.dip_offset[finger].rad2deg())
    pip, dip = MIDDLES[finger], ENDS[finger]
    term = FlexionCoupling(model.couplings, 10.0)
    fine = term.linearise(bent(model, {(pip, 0): 60.0, (dip, 0): 40.0 + zero})).value[0]
    assert float(fine[finger]) == pytest.approx(0, abs=1e-9)
    # 25 degrees too straight, 10 degrees a sigma; the other fingers' joints are all at zero.
    off = term.linearise(bent(model, {(pip, 0): 60.0, (dip, 0): 15.0 + zero}))
    expected = -model.couplings.dip_offset.rad2deg() / 10
    expected[finger] = -2.5
    torch.testing.assert_close(off.value[0], expected)
    assert float(off.energy[0]) == pytest.approx(0.5 * float(expected.square().sum()))


@pytest.mark.parametrize("finger", range(4))
@pytest.mark.parametrize(("flexion", "share"), [(-30.0, 0.0), (0.0, 0.0), (35.0, 0.5), (70.0, 1.0), (90.0, 1.0)])
def test_spread_closes_linearly_until_seventy_degrees(
    model: FitModel, finger: int, flexion: float, share: float
) -> None:
    opened, closed = (t[finger].rad2deg() for t in (model.couplings.open_spread, model.couplings.closed_spread))
    low, high = ((1 - share) * opened + share * closed).tolist()
    term, row = Spread(model.couplings, 4.0), KNUCKLES[finger]
    for abduction, excess in ((high + 6, 6.0), (low - 2, -2.0), (high - 0.01, 0.0), (low + 0.01, 0.0)):
        part = term.linearise(bent(model, {(row, 0): flexion, (row, 1): abduction}))
        expected = torch.zeros(4, dtype=F64)
        expected[finger] = excess / 4
        torch.testing.assert_close(part.value[0], expected, atol=1e-7, rtol=1e-7)
        assert (excess != 0) == bool(part.jacobian is not None and part.jacobian.any())


def test_hyperextension_is_the_published_form(model: FitModel, posed: PosedHand, hard_state: HandState) -> None:
    """SMPLify's code beside its pose prior: (0.317 w 10 exp(-flexion))^2, with the prior's w^2 taken out."""
    axes = model.limits.axes.numpy()
    local = axes.transpose(0, 2, 1) @ hard_state.rotations[:, 1:].numpy() @ axes
    flexion = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_euler("XYZ")[:, 0].reshape(N, 15)
    flexion = (flexion - model.couplings.straight.numpy())[:, BENDING]
    energy = np.square(0.317 * 10 * np.exp(-flexion)).sum(1)
    found = HingeExtension(model.couplings).linearise(posed)
    np.testing.assert_allclose(found.energy.numpy(), energy, rtol=1e-6)
    np.testing.assert_allclose(PUBLISHED_WEIGHT**2 / 2, 15.2**2 / 4.78**2, rtol=0.01)  # SPIN's weights.
    paper = HingeExtension(model.couplings, 2**0.5, 0.5).linearise(posed)
    np.testing.assert_allclose(paper.energy.numpy(), np.exp(-flexion).sum(1), rtol=1e-6)
    still = [row for row in range(15) if row not in BENDING]
    assert not bool(found.value[:, still].any())


def test_hyperextension_does_not_overflow(model: FitModel) -> None:
    steep = HingeExtension(model.couplings, 1.0, 1000.0)
    values = [float(steep.linearise(bent(model, {(1, 0): a})).value[0, 1]) for a in (20.0, 0.0, -1.0, -90.0, -179.0)]
    assert values[0] == pytest.approx(0, abs=1e-100) and values[1] == pytest.approx(1.0)
    assert values == sorted(values) and len(set(values)) == len(values)
    # Tangent at an exponent of 4: e^4 (1 + (u - 4)).
    assert values[3] == pytest.approx(np.exp(4) * (1000 * np.pi / 2 - 3))
    part = steep.linearise(bent(model, {(row, 0): -179.0 for row in range(15)}))
    assert part.jacobian is not None and bool(torch.isfinite(part.jacobian).all() & torch.isfinite(part.energy).all())
    # The same slope on both sides of where the tangent begins.
    at = float(np.rad2deg(-4 / 10))
    sides = [HingeExtension(model.couplings, 1.0, 10.0).linearise(bent(model, {(1, 0): at + d})) for d in (1e-7, -1e-7)]
    jacobians = [side.jacobian for side in sides]
    assert jacobians[0] is not None and jacobians[1] is not None
    torch.testing.assert_close(jacobians[0], jacobians[1], rtol=1e-6, atol=1e-6)


# Jacobians and batches.


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_equals_autograd(name: str, model: FitModel, posed: PosedHand, hard_state: HandState) -> None:
    part, expected = make_terms(model)[name].linearise(posed), AutoTerm(name, functions(model)[name]).linearise(posed)
    torch.testing.assert_close(part.value, expected.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(part.energy, 0.5 * part.value.square().sum(1))
    jac, reference = dense(part), dense(expected)
    assert bool(torch.isfinite(jac).all())
    # Beyond, the closed form is bounded and the true derivative is not; none of the hands comes there.
    axes = model.limits.axes
    assert float((axes.mT @ hard_state.rotations[:, 1:] @ axes)[..., 0, 2].abs().max()) < 0.9987
    scale = reference.abs().amax((1, 2), keepdim=True).clamp(min=1e-9)
    assert float(((jac - reference).abs() / scale).max()) < 1e-6
    used = (reference != 0).any(2).double().mean()
    assert float(used) > (0.1 if name == "spread" else 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_equals_differences(
    name: str, model: FitModel, derivative: Callable[..., Tensor], hard_state: HandState
) -> None:
    state, term = hard_state.select(torch.arange(60, 100, 3)), make_terms(model)[name]

    def value(moved: HandState) -> Tensor:
        # These terms look at the state alone.
        none = torch.zeros(0, dtype=F64)
        return term.linearise(PosedHand(model.kinematics, moved, points=none, pose=none)).value

    jac = dense(term.linearise(PosedHand.of(model.kinematics, state, jacobian=True)))
    expected = derivative(value, state, 1e-5)
    error = (jac - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2)).clamp(min=1e-6)
    assert float(error.max()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(name: str, dtype: torch.dtype, hard_state: HandState) -> None:
    model = HandModels.of(embedded_hand(), dtype).right
    state = HandState(*(t.to(dtype) for t in vars(hard_state).values()))
    term = make_terms(model)[name]
    whole = term.linearise(PosedHand.of(model.kinematics, state, jacobian=True))
    assert whole.energy.dtype == dtype and bool(torch.isfinite(whole.energy).all()) and whole.jacobian is not None
    for at in (torch.tensor([31, 2]), torch.arange(N - 1, -1, -1), torch.arange(5, 64), torch.tensor([8, 8, 8])):
        part = term.select(at).linearise(PosedHand.of(model.kinematics, state.select(at), jacobian=True))
        assert torch.equal(part.energy, whole.energy[at]) and torch.equal(part.value, whole.value[at])
        assert part.jacobian is not None and torch.equal(part.jacobian, whole.jacobian[at])


@pytest.mark.parametrize("name", NAMES)
def test_energy_alone_is_the_same(name: str, model: FitModel, posed: PosedHand) -> None:
    term = make_terms(model)[name]
    bare = term.linearise(PosedHand.of(model.kinematics, posed.state, jacobian=False))
    assert bare.jacobian is None and term.name == name
    torch.testing.assert_close(bare.energy, term.linearise(posed).energy, rtol=1e-12, atol=0.0)


# In fits.


def curled(model: FitModel, synthetic: Callable[..., Any], n: int) -> Tensor:
    """(n, 21, 2) px, hands with PIPs at 60 degrees and DIPs where the rule has them."""
    base = synthetic(n, 3).state
    angles = torch.zeros(n, 15, 3, dtype=F64)
    angles[:, MIDDLES, 0] = torch.pi / 3
    angles[:, ENDS, 0] = 2 * torch.pi / 9 + model.couplings.dip_offset
    fingers = rotations_from_angles(angles, model.limits.axes)
    rotations = torch.cat([base.rotations[:, :1], fingers], 1)
    points = model.kinematics.points(rotations, base.betas, base.root)
    return 600 * points[..., :2] / points[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64)


def test_a_coupled_fit_bends_the_tips_it_does_not_see(model: FitModel, synthetic: Callable[..., Any]) -> None:
    uv = curled(model, synthetic, 6)
    conf = torch.ones(6, 21, 1, dtype=F64)
    conf[:, [7, 8, 11, 12, 15, 16, 19, 20]] = 0
    keypoints, K = torch.cat([uv, conf], 2), [[600.0, 0.0, 320.0], [0.0, 600.0, 240.0], [0.0, 0.0, 1.0]]
    off = {}
    for sigma in (None, 10.0, 0.5):
        result = fit(keypoints, K, recipe=Recipe(coupling_sigma_deg=sigma, seeds=1))
        assert ("flexion_coupling" in result.energy_terms) == (sigma is not None)
        turn = Rotation.from_rotvec(result.params.hand_pose.reshape(-1, 3).numpy()).as_matrix().reshape(-1, 15, 3, 3)
        axes = model.limits.axes.numpy()
        local = (axes.transpose(0, 2, 1) @ turn @ axes).reshape(-1, 3, 3)
        flexion = Rotation.from_matrix(local).as_euler("XYZ", degrees=True)[:, 0].reshape(-1, 15)
        rule = flexion[:, ENDS] - 2 / 3 * flexion[:, MIDDLES] - model.couplings.dip_offset.rad2deg().numpy()
        off[sigma] = float(np.abs(rule).mean())
    assert off[0.5] < 0.5 and off[0.5] < off[10.0] < off[None]


@pytest.mark.parametrize(
    ("setting", "name"), [({"spread": True}, "spread"), ({"hyperextension": PUBLISHED_WEIGHT}, "hyperextension")]
)
def test_a_fit_with_a_term_has_less_of_what_it_is_against(
    setting: dict[str, Any], name: str, models: HandModels, synthetic: Callable[..., Any]
) -> None:
    hands = synthetic(12, 8)
    g = torch.Generator().manual_seed(1)
    uv = hands.uv + 8 * torch.randn(hands.uv.shape, dtype=F64, generator=g)
    term = make_terms(models.right)[name]

    def energy(recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
        result = fit(uv, hands.K, recipe=recipe)
        state = HandState(
            result.params.rotation_matrices(), result.params.betas, result.joints[:, 0], torch.zeros(12, dtype=F64)
        )
        posed = PosedHand.of(models.right.kinematics, state, jacobian=False)
        return term.linearise(posed).energy, dict(result.energy_terms)

    without, plain = energy(Recipe(seeds=1))
    with_it, named = energy(Recipe(seeds=1, **setting))
    assert name not in plain and set(named) >= {name, "reprojection"}
    torch.testing.assert_close(named[name], with_it, rtol=1e-6, atol=1e-9)
    assert float(with_it.mean()) < float(without.mean()) and float(without.mean()) > 0
