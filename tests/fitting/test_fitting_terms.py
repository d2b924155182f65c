"""Each term: formula in plain numpy, Jacobian by differences through `retract`, batch independence; states too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from handloop.core.terms import AutoTerm, Cauchy, GemanMcClure, HandState, PosedHand, Residual, Term
from handloop.fitting.problem import FitModel
from handloop.fitting.terms import FocalPrior, Limits, Points3d, PosePrior, Reprojection, Shape, Size

F64 = torch.float64
N = 100


def observations(model: FitModel, state: HandState, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keypoints some px off the projection, 1/sigma with some missing, focal lengths and principal points."""
    g = torch.Generator().manual_seed(seed)
    n = len(state)
    focal = 600 + 50 * torch.rand(n, 2, dtype=F64, generator=g)
    princpt = torch.tensor([320.0, 240.0], dtype=F64) + 5 * torch.randn(n, 2, dtype=F64, generator=g)
    points = model.kinematics.points(state.rotations, state.betas, state.root)
    uv = points[..., :2] / points[..., 2:] * focal[:, None] + princpt[:, None]
    uv = uv + 8 * torch.randn(n, 21, 2, dtype=F64, generator=g)
    inverse = torch.rand(n, 21, dtype=F64, generator=g) / 4
    inverse[torch.rand(n, 21, generator=g) < 0.2] = 0
    return uv, inverse, focal, princpt


def points_seen(model: FitModel, state: HandState) -> tuple[Tensor, Tensor]:
    """3D points some mm off, and 1/sigma with half of them unknown."""
    g = torch.Generator().manual_seed(6)
    points = model.kinematics.points(state.rotations, state.betas, state.root)
    inverse = 300 * torch.rand(len(state), 21, dtype=F64, generator=g)
    inverse[torch.rand(len(state), 21, generator=g) < 0.5] = 0
    return points + 0.008 * torch.randn(points.shape, dtype=F64, generator=g), inverse


def make_terms(model: FitModel, state: HandState) -> dict[str, Term]:
    g = torch.Generator().manual_seed(8)
    n = len(state)
    length = 0.15 + 0.08 * torch.rand(n, dtype=F64, generator=g)
    length[::3] = float("nan")
    return {
        "reprojection": Reprojection(*observations(model, state), GemanMcClure(4.0)),
        "pose_prior": PosePrior(model.pose_prior),
        "limits": Limits(model.limits, 4.0),
        "shape": Shape(0.7, torch.linspace(-1, 1, 10, dtype=F64)),
        "size": Size(model.hand_length, length, 0.001),
        "focal": FocalPrior(torch.full((n,), 5.0, dtype=F64)),
        "points_3d": Points3d(*points_seen(model, state), GemanMcClure(3.0)),
    }


NAMES = ("reprojection", "pose_prior", "limits", "shape", "size", "focal", "points_3d")


@pytest.fixture(scope="module")
def terms(model: FitModel, hard_state: HandState) -> dict[str, Term]:
    return make_terms(model, hard_state)


@pytest.fixture(scope="module")
def posed(model: FitModel, hard_state: HandState) -> PosedHand:
    return PosedHand.of(model.kinematics, hard_state, jacobian=True)


def dense(part: Residual) -> Tensor:
    """(B, R, 62) of either form of a Jacobian."""
    assert part.jacobian is not None
    b, r = part.value.shape
    out = torch.zeros(b, r, 62, dtype=part.value.dtype)
    if part.jacobian.ndim == 4:
        d = r // 15
        for joint in range(15):
            out[:, d * joint : d * joint + d, 3 + 3 * joint : 6 + 3 * joint] = part.jacobian[:, joint]
    else:
        out[:, :, part.columns] = part.jacobian
    return out


def unweighted(term: Term) -> Term:
    """A term whose kernel never weights, so that its values can be differentiated."""
    if isinstance(term, Reprojection):
        return Reprojection(term.uv, term.inverse_sigma, term.focal, term.princpt, GemanMcClure(1e9))
    if isinstance(term, Points3d):
        return Points3d(term.xyz, term.inverse_sigma, GemanMcClure(1e9))
    return term


# Formulas.


def test_reprojection_formula(model: FitModel, hard_state: HandState, terms: dict[str, Term]) -> None:
    term = terms["reprojection"]
    assert isinstance(term, Reprojection)
    points = model.kinematics.points(hard_state.rotations, hard_state.betas, hard_state.root).numpy()
    part = term.linearise(PosedHand.of(model.kinematics, hard_state, jacobian=False))
    assert part.jacobian is None
    for i in range(0, N, 9):
        factor = np.exp(float(hard_state.log_focal[i]))
        energy = 0.0
        for p in range(21):
            x, y, z = points[i, p]
            fx, fy = term.focal[i].numpy() * factor
            cx, cy = term.princpt[i].numpy()
            error = np.array([fx * x / z + cx, fy * y / z + cy]) - term.uv[i, p].numpy()
            pair = error * float(term.inverse_sigma[i, p])
            s = float(pair @ pair)
            energy += 0.5 * 16 * s / (16 + s)
            np.testing.assert_allclose(
                part.value[i, 2 * p : 2 * p + 2].numpy(), pair * 16 / (16 + s), rtol=1e-9, atol=1e-10
            )
        assert float(part.energy[i]) == pytest.approx(energy, rel=1e-9)


def test_reprojection_ignores_missing_points(model: FitModel, hard_state: HandState, posed: PosedHand) -> None:
    uv, inverse, focal, princpt = observations(model, hard_state)
    moved = torch.where((inverse > 0)[..., None], uv, torch.full_like(uv, 1e7))
    a, b = (Reprojection(u, inverse, focal, princpt, GemanMcClure(4.0)).linearise(posed) for u in (uv, moved))
    assert torch.equal(a.energy, b.energy) and torch.equal(a.value, b.value)
    assert a.jacobian is not None and b.jacobian is not None and torch.equal(a.jacobian, b.jacobian)
    nothing = Reprojection(uv, torch.zeros_like(inverse), focal, princpt, GemanMcClure(4.0)).linearise(posed)
    assert bool((nothing.energy == 0).all())


def test_a_visible_point_behind_the_camera_costs_infinitely_much(model: FitModel, hard_state: HandState) -> None:
    uv, inverse, focal, princpt = observations(model, hard_state)
    inverse = torch.ones_like(inverse)
    root = hard_state.root.clone()
    root[3, 2] = -0.5
    root[4, 2] = -0.5
    inverse[4] = 0
    state = HandState(hard_state.rotations, hard_state.betas, root, hard_state.log_focal)
    posed = PosedHand.of(model.kinematics, state, jacobian=True)
    part = Reprojection(uv, inverse, focal, princpt, GemanMcClure(4.0)).linearise(posed)
    assert float(part.energy[3]) == float("inf") and float(part.energy[4]) == 0.0
    assert bool(torch.isfinite(part.energy[torch.arange(N) != 3]).all())
    assert part.jacobian is not None and not bool(torch.isnan(part.jacobian).any() | torch.isnan(part.value).any())


def test_pose_prior_formula(model: FitModel, hard_state: HandState, posed: PosedHand, terms: dict[str, Term]) -> None:
    rotations = hard_state.rotations[:, 1:].numpy().reshape(-1, 3, 3)
    pose = Rotation.from_matrix(rotations).as_rotvec().reshape(N, 45)
    off = pose - model.pose_prior.mean.numpy()
    factor = model.pose_prior.precision_factor.numpy()
    energy = 0.5 * np.einsum("bi,ij,bj->b", off, factor @ factor.T, off)
    np.testing.assert_allclose(terms["pose_prior"].linearise(posed).energy.numpy(), energy, rtol=1e-7)


def test_limits_formula(model: FitModel, hard_state: HandState, posed: PosedHand, terms: dict[str, Term]) -> None:
    axes = model.limits.axes.numpy()
    local = np.swapaxes(axes, 1, 2) @ hard_state.rotations[:, 1:].numpy() @ axes
    angles = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_euler("XYZ").reshape(N, 15, 3)
    low, high = model.limits.low.numpy(), model.limits.high.numpy()
    excess = np.maximum(angles - high, 0) - np.maximum(low - angles, 0)
    energy = 0.5 * np.square(np.rad2deg(excess) / 4.0).sum((1, 2))
    ours = terms["limits"].linearise(posed)
    np.testing.assert_allclose(ours.energy.numpy(), energy, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.value.numpy(), np.rad2deg(excess).reshape(N, 45) / 4.0, rtol=1e-6, atol=1e-6)


def test_limits_neither_cost_nor_pull_inside(model: FitModel, hard_state: HandState) -> None:
    rotations = hard_state.rotations[:3].clone()
    middle = ((model.limits.low + model.limits.high) / 2).numpy()
    axes = model.limits.axes.numpy()
    turn = Rotation.from_euler("XYZ", middle).as_matrix()
    rotations[:, 1:] = torch.tensor(axes @ turn @ np.swapaxes(axes, 1, 2))
    state = HandState(rotations, hard_state.betas[:3], hard_state.root[:3], hard_state.log_focal[:3])
    part = Limits(model.limits, 4.0).linearise(PosedHand.of(model.kinematics, state, jacobian=True))
    assert part.jacobian is not None
    assert bool((part.energy == 0).all() & (part.value == 0).all() & (part.jacobian == 0).all())


def test_formulas_of_the_small_terms(
    model: FitModel, hard_state: HandState, posed: PosedHand, terms: dict[str, Term]
) -> None:
    betas = hard_state.betas.numpy()
    expected = {
        "shape": 0.5 * np.square((betas - np.linspace(-1, 1, 10)) / 0.7).sum(1),
        "focal": 0.5 * np.square(hard_state.log_focal.numpy() / 0.2),
    }
    given = terms["points_3d"]
    assert isinstance(given, Points3d)
    sq = np.square((posed.points - given.xyz).numpy() * given.inverse_sigma.numpy()[..., None]).sum(2)
    expected["points_3d"] = 0.5 * (9 * sq / (9 + sq)).sum(1)
    size = terms["size"]
    assert isinstance(size, Size)
    kinematics = model.kinematics
    chain = np.concatenate([kinematics.joints.numpy()[[0, 4, 5, 6]], kinematics.tips.numpy()[[2]]])
    dirs = np.concatenate([kinematics.joints_dirs.numpy()[[0, 4, 5, 6]], kinematics.tips_dirs.numpy()[[2]]])
    shaped = chain + np.einsum("jcs,bs->bjc", dirs, betas)
    length = np.linalg.norm(np.diff(shaped, axis=1), axis=2).sum(1)
    off = np.nan_to_num((length - size.length.numpy()) / 0.001)
    expected["size"] = 0.5 * np.square(off)
    for name, energy in expected.items():
        np.testing.assert_allclose(terms[name].linearise(posed).energy.numpy(), energy, rtol=1e-9, err_msg=name)
    assert bool((terms["size"].linearise(posed).energy[::3] == 0).all()), "unknown lengths cost nothing"
    plain = Shape().linearise(posed).energy
    torch.testing.assert_close(plain, 0.5 * hard_state.betas.square().sum(1))


# Jacobians.


@dataclass(frozen=True, eq=False)
class Differences:
    """Numerical derivatives by the 62 increments, of everything that one sweep of steps can give."""

    values: dict[str, Tensor]
    """(B, R, 62) of each term's residuals, without robust weights."""
    energies: dict[str, Tensor]
    """(B, 62) of each term's energy, with them."""
    points: Tensor
    """(B, 63, 62)."""
    pose: Tensor
    """(B, 45, 62)."""


@pytest.fixture(scope="module")
def numeric(
    model: FitModel, hard_state: HandState, terms: dict[str, Term], derivative_by_rows: Callable[..., Tensor]
) -> Differences:
    smooth = [name for name in NAMES if name != "limits"]

    def everything(state: HandState, rows: Tensor) -> Tensor:
        posed = PosedHand.of(model.kinematics, state, jacobian=False)
        values = [unweighted(terms[name]).select(rows).linearise(posed).value for name in smooth]
        energies = [terms[name].select(rows).linearise(posed).energy[:, None] for name in smooth]
        return torch.cat([*values, *energies, posed.points.flatten(1), posed.pose], 1)

    def limits(state: HandState, rows: Tensor) -> Tensor:
        posed = PosedHand(model.kinematics, state, points=torch.zeros(0), pose=torch.zeros(0))
        part = terms["limits"].select(rows).linearise(posed)
        return torch.cat([part.value, part.energy[:, None]], 1)

    sizes = [42, 45, 10, 1, 1, 63, *[1] * len(smooth), 63, 45]
    pieces = derivative_by_rows(everything, hard_state, 1e-4).split(sizes, 1)
    # A wide step would cross the kinks of the limits.
    sharp = derivative_by_rows(limits, hard_state, 1e-6).split([45, 1], 1)
    n = len(smooth)
    values = dict(zip(smooth, pieces[:n], strict=True)) | {"limits": sharp[0]}
    energies = {k: v[:, 0] for k, v in zip(smooth, pieces[n : 2 * n], strict=True)} | {"limits": sharp[1][:, 0]}
    return Differences(values, energies, pieces[-2], pieces[-1])


def clear_of_the_pole(model: FitModel, state: HandState) -> Tensor:
    """(B, 15) joints whose abduction is not within 3 degrees of 90, where the angles' derivative is bounded."""
    axes = model.limits.axes
    return (axes.mT @ state.rotations[:, 1:] @ axes)[..., 0, 2].abs() < 0.998


@pytest.mark.parametrize("name", NAMES)
def test_jacobian(
    name: str, model: FitModel, hard_state: HandState, posed: PosedHand, terms: dict[str, Term], numeric: Differences
) -> None:
    jac = dense(unweighted(terms[name]).linearise(posed))
    expected = numeric.values[name]
    assert bool(torch.isfinite(jac).all())
    gap = (jac - expected).abs().amax(2)
    if name == "limits":
        clear = clear_of_the_pole(model, hard_state)
        assert float(clear.double().mean()) > 0.9
        gap = gap * clear[..., None].expand(N, 15, 3).flatten(1)
    scale = expected.abs().amax((1, 2)).clamp(min=1e-9)
    error = gap.amax(1) / scale
    assert float(error.max()) < 1e-6, f"hand {int(error.argmax())}: relative error {float(error.max()):.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_energy(
    name: str, model: FitModel, hard_state: HandState, posed: PosedHand, terms: dict[str, Term], numeric: Differences
) -> None:
    """J^T r with its robust weights is the derivative of the energy that is reported."""
    part = terms[name].linearise(posed)
    gradient = (dense(part).mT @ part.value[..., None])[..., 0]
    expected = numeric.energies[name]
    use = clear_of_the_pole(model, hard_state).all(1) if name == "limits" else torch.ones(N, dtype=torch.bool)
    # Differences of a large energy cannot show a derivative to more than its own rounding.
    scale = expected.abs().amax(1) + 1e-4 * part.energy + 1e-9
    assert float(((gradient - expected).abs().amax(1) / scale)[use].max()) < 1e-6


def test_second_witness_for_the_reprojection(model: FitModel, hard_state: HandState, terms: dict[str, Term]) -> None:
    """Automatic differentiation of the same residuals, written as an `AutoTerm`."""
    term = unweighted(terms["reprojection"])
    assert isinstance(term, Reprojection)

    def pairs(posed: PosedHand, uv: Tensor, inverse: Tensor, focal: Tensor, princpt: Tensor) -> Tensor:
        f = focal * posed.state.log_focal.exp()[:, None]
        seen = posed.points[..., :2] / posed.points[..., 2:] * f[:, None] + princpt[:, None]
        return ((seen - uv) * inverse[..., None]).flatten(1)

    posed = PosedHand.of(model.kinematics, hard_state, jacobian=True)
    auto = AutoTerm("auto", pairs, (term.uv, term.inverse_sigma, term.focal, term.princpt)).linearise(posed)
    ours, theirs = dense(term.linearise(posed)), dense(auto)
    error = (ours - theirs).abs().amax((1, 2)) / theirs.abs().amax((1, 2))
    assert float(error.max()) < 1e-9


def test_auto_term(
    model: FitModel, hard_state: HandState, posed: PosedHand, derivative_by_rows: Callable[..., Tensor]
) -> None:
    """Formula, kernel, Jacobian, selection and what it does when only energies are wanted."""

    def gaps(posed: PosedHand, wanted: Tensor, rows: Tensor) -> Tensor:
        tips = (posed.points[:, 4] - posed.points[:, 8]).norm(dim=1, keepdim=True)
        return torch.cat([(tips - wanted[:, None]) / 0.005, posed.pose[:, :2] * rows[:, None]], 1)

    g = torch.Generator().manual_seed(0)
    wanted = 0.05 * torch.rand(N, dtype=F64, generator=g)
    term = AutoTerm("pinch", gaps, (wanted, torch.arange(N)), Cauchy(3.0))
    part = term.linearise(posed)
    value = gaps(posed, wanted, torch.arange(N))
    expected = 0.5 * (9 * torch.log1p(value.square() / 9)).sum(1)
    torch.testing.assert_close(part.energy, expected)
    bare = PosedHand.of(model.kinematics, hard_state, jacobian=False)
    assert term.linearise(bare).jacobian is None
    torch.testing.assert_close(term.linearise(bare).energy, part.energy)
    plain = AutoTerm("pinch", gaps, (wanted, torch.arange(N)))
    some = hard_state.select(torch.arange(0, N, 6))
    few = plain.select(torch.arange(0, N, 6))
    jac = dense(few.linearise(PosedHand.of(model.kinematics, some, jacobian=True)))

    def value(state: HandState, rows: Tensor) -> Tensor:
        return few.select(rows).linearise(PosedHand.of(model.kinematics, state, jacobian=False)).value

    expected = derivative_by_rows(value, some, 1e-4)
    assert bool(torch.isfinite(dense(plain.linearise(posed))).all())
    error = (jac - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))
    assert float(error.max()) < 1e-6
    at = torch.tensor([7, 7, 3])
    chosen = term.select(at).linearise(PosedHand.of(model.kinematics, hard_state.select(at), jacobian=True))
    torch.testing.assert_close(chosen.energy, part.energy[at], rtol=1e-12, atol=0.0)


# Batches.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(
    name: str, dtype: torch.dtype, spread_model: FitModel, hard_state: HandState
) -> None:
    from handloop.fitting.problem import HandModels
    from handloop.hand.load import embedded_hand

    model = spread_model if dtype == F64 else HandModels.of(embedded_hand(), dtype).right
    source = spread_model if dtype == F64 else HandModels.of(embedded_hand()).right
    state = HandState(
        *(t.to(dtype) for t in (hard_state.rotations, hard_state.betas, hard_state.root, hard_state.log_focal))
    )
    term = make_terms(source, hard_state)[name]
    if dtype != F64:
        term = _as_float32(term, model)
    posed = PosedHand.of(model.kinematics, state, jacobian=True)
    whole = term.linearise(posed)
    assert whole.energy.dtype == dtype
    for at in (torch.tensor([31, 2]), torch.arange(N - 1, -1, -1), torch.arange(5, 64), torch.tensor([8, 8, 8])):
        part = term.select(at).linearise(PosedHand.of(model.kinematics, state.select(at), jacobian=True))
        assert torch.equal(part.energy, whole.energy[at]) and torch.equal(part.value, whole.value[at])
        assert part.jacobian is not None and whole.jacobian is not None
        assert torch.equal(part.jacobian, whole.jacobian[at])


def _as_float32(term: Term, model: FitModel) -> Term:
    """The same term with float32 data."""
    if isinstance(term, Reprojection):
        data = (term.uv, term.inverse_sigma, term.focal, term.princpt)
        return Reprojection(*(t.float() for t in data), term.kernel)
    if isinstance(term, PosePrior):
        return PosePrior(model.pose_prior)
    if isinstance(term, Limits):
        return Limits(model.limits, term.sigma_deg)
    if isinstance(term, Size):
        return Size(model.hand_length, term.length.float(), term.sigma)
    if isinstance(term, Points3d):
        return Points3d(term.xyz.float(), term.inverse_sigma.float(), term.kernel)
    if isinstance(term, Shape):
        return Shape(term.sigma, None if term.mean is None else term.mean.float())
    return term


@pytest.mark.parametrize("name", NAMES)
def test_energies_do_not_need_the_jacobian(
    name: str, model: FitModel, hard_state: HandState, posed: PosedHand, terms: dict[str, Term]
) -> None:
    bare = terms[name].linearise(PosedHand.of(model.kinematics, hard_state, jacobian=False))
    full = terms[name].linearise(posed)
    torch.testing.assert_close(bare.energy, full.energy, rtol=1e-12, atol=0.0)
    assert terms[name].name == name


# States.


def test_retract_formula(hard_state: HandState) -> None:
    g = torch.Generator().manual_seed(2)
    delta = 0.3 * torch.randn(N, 62, dtype=F64, generator=g)
    moved = hard_state.retract(delta)
    for i in range(0, N, 11):
        for joint in range(16):
            turn = Rotation.from_rotvec(delta[i, 3 * joint : 3 * joint + 3].numpy()).as_matrix()
            expected = hard_state.rotations[i, joint].numpy() @ turn
            np.testing.assert_allclose(moved.rotations[i, joint].numpy(), expected, atol=1e-12)
        a, b, c = delta[i, 58:61].numpy()
        x, y, z = hard_state.root[i].numpy()
        np.testing.assert_allclose(moved.root[i].numpy(), np.exp(c) * np.array([x + a * z, y + b * z, z]), rtol=1e-12)
    torch.testing.assert_close(moved.betas, hard_state.betas + delta[:, 48:58])
    torch.testing.assert_close(moved.log_focal, hard_state.log_focal + delta[:, 61])
    still = hard_state.retract(torch.zeros(N, 62, dtype=F64))
    for a, b in zip(vars(still).values(), vars(hard_state).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-15)


def test_retract_never_puts_the_wrist_behind_the_camera(hard_state: HandState) -> None:
    delta = torch.zeros(N, 62, dtype=F64)
    delta[:, 60] = torch.linspace(-20, 5, N, dtype=F64)
    assert bool((hard_state.retract(delta).root[:, 2] > 0).all())


def test_posed_hand_jacobians(model: FitModel, hard_state: HandState, posed: PosedHand, numeric: Differences) -> None:
    """Points and axis-angle by the increments, bearing and log depth included."""
    assert posed.points_jacobian is not None and posed.pose_jacobian is not None
    bare = PosedHand.of(model.kinematics, hard_state, jacobian=False)
    assert bare.points_jacobian is None and bare.pose_jacobian is None
    torch.testing.assert_close(bare.points, posed.points, rtol=0.0, atol=1e-14)
    assert bool((posed.pose.reshape(N, 15, 3).norm(dim=-1) <= torch.pi + 1e-9).all())
    points = posed.points_jacobian.flatten(1, 2)
    error = (points - numeric.points[..., :61]).abs().amax((1, 2)) / numeric.points.abs().amax((1, 2))
    assert float(error.max()) < 1e-6 and bool((numeric.points[..., 61] == 0).all())
    pose = torch.zeros(N, 45, 62, dtype=F64)
    for joint in range(15):
        at = slice(3 * joint, 3 * joint + 3)
        pose[:, at, 3 + 3 * joint : 6 + 3 * joint] = posed.pose_jacobian[:, joint]
    error = (pose - numeric.pose).abs().amax((1, 2)) / numeric.pose.abs().amax((1, 2))
    assert float(error.max()) < 1e-6


def test_state_select_where_and_orthonormalised(hard_state: HandState) -> None:
    at = torch.tensor([4, 9, 9])
    chosen = hard_state.select(at)
    assert len(chosen) == 3 and torch.equal(chosen.root, hard_state.root[at])
    mask = torch.arange(N) % 2 == 0
    moved = hard_state.retract(torch.full((N, 62), 0.1, dtype=F64))
    mixed = moved.where(mask, hard_state)
    for ours, a, b in zip(vars(mixed).values(), vars(moved).values(), vars(hard_state).values(), strict=True):
        assert torch.equal(ours[mask], a[mask]) and torch.equal(ours[~mask], b[~mask])
    noisy = HandState(hard_state.rotations * (1 + 1e-9), hard_state.betas, hard_state.root, hard_state.log_focal)
    clean = noisy.orthonormalised().rotations
    torch.testing.assert_close(clean, hard_state.rotations, atol=1e-8, rtol=0.0)
    eye = torch.eye(3, dtype=F64).expand(N, 16, 3, 3)
    torch.testing.assert_close(clean.mT @ clean, eye, atol=1e-14, rtol=0.0)
