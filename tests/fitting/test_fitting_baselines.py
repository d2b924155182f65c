"""The classic fits: the published formulas, written down again; their stages; what no batch may do to a hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.rotations import so3_exp, so3_log
from handloop.core.terms import HandState, PosedHand, Term
from handloop.fitting import baseline_smplify, baseline_spin
from handloop.fitting.baseline_smplify import SmplifyOptions, SmplifyStage
from handloop.fitting.baseline_spin import SpinOptions
from handloop.fitting.baseline_terms import (
    BaselineWeights,
    Crop,
    CropOptions,
    body_terms,
    camera_terms,
    total_energy,
)
from handloop.fitting.baselines import BASELINE_SEEDS, fit_baseline
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Solution, SolverOptions, solve
from handloop.fitting.starts import closed_form_starts

F64 = torch.float64
WEIGHTS = BaselineWeights(4.78, 5.0, 15.2)
QUICK_SPIN = SpinOptions(20, 20)
QUICK_SMPLIFY = SmplifyOptions(solver=SolverOptions(8, 1e-4))
METHODS: list[SpinOptions | SmplifyOptions] = [QUICK_SPIN, QUICK_SMPLIFY]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Hundreds of tiny operations: threads that wait for each other on a busy machine cost ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def observe(hands: Any, model: FitModel, conf: Tensor | None = None, uv: Tensor | None = None) -> Observations:
    n = len(hands)
    conf = torch.ones(n, 21, dtype=F64) if conf is None else conf
    xyc = torch.cat([hands.uv if uv is None else uv, conf[..., None]], -1)
    keypoints = Keypoints.from_arrays(xyc, True, (640, 480))
    return Observations.of(keypoints, hands.camera, Recipe(), None, model.like)


def run(
    model: FitModel, seen: Observations, options: SpinOptions | SmplifyOptions, hand: Any = None, flips: int = 2
) -> Solution:
    starts = closed_form_starts(model.kinematics, model.seeds[:BASELINE_SEEDS], seen.views())
    if flips == 1:
        starts = starts.select(torch.arange(0, len(starts), 2))
    return fit_baseline(model, seen, options, starts, flips, hand)


def some(seen: Observations, index: Sequence[int]) -> Observations:
    return Observations(*(getattr(seen, name)[list(index)] for name in seen.__dataclass_fields__))


def close(a: HandState, b: HandState, atol: float) -> None:
    for one, other in ((a.rotations, b.rotations), (a.betas, b.betas), (a.root, b.root)):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def hands(synthetic: Callable[..., Any]) -> Any:
    return synthetic(12, 31)


@pytest.fixture(scope="module")
def conf() -> Tensor:
    g = torch.Generator().manual_seed(3)
    conf = torch.rand(12, 21, dtype=F64, generator=g)
    conf[torch.rand(12, 21, generator=g) < 0.2] = 0.0
    return conf


@pytest.fixture(scope="module")
def seen(hands: Any, model: FitModel) -> Observations:
    return observe(hands, model)


# Formulas.


def test_the_objective_is_the_published_formula(model: FitModel, hands: Any, conf: Tensor) -> None:
    """SPIN, losses.py: every sum written out for one hand in plain numpy, in pixels of the crop."""
    g = torch.Generator().manual_seed(0)
    noisy = hands.uv + 20 * torch.randn(12, 21, 2, dtype=F64, generator=g)
    uv, c, state = noisy[4].numpy(), conf[4].numpy(), hands.state.select(torch.tensor([4]))
    crop = Crop.of(observe(hands, model, conf, noisy), CropOptions()).select(torch.tensor([4]))
    box = uv[c > 0].max(0) - uv[c > 0].min(0)
    scale = 224 / (1.2 * box.max())
    xyz = model.kinematics.points(state.rotations, state.betas, state.root)[0].numpy()
    data = 0.0
    for j in range(21):
        for axis, centre in enumerate((320.0, 240.0)):
            e = scale * (600 * xyz[j, axis] / xyz[j, 2] + centre - uv[j, axis])
            data += c[j] ** 2 * 100**2 * e**2 / (100**2 + e**2)
    pose = so3_log(state.rotations[:, 1:])[0].numpy()
    away = pose.ravel() - model.pose_prior.mean.numpy()
    factor = model.pose_prior.precision_factor.numpy()
    prior = 4.78**2 * 0.5 * away @ factor @ factor.T @ away
    shape = 5.0**2 * (state.betas.numpy() ** 2).sum()
    flexion = model.limits.axes[:, :, 0].numpy()
    # MANO: index 1-3, middle 1-3, pinky 1-3, ring 1-3, thumb 1-3; the hinges are 2 and 3 of each, of the thumb 3.
    hinges = [k for k in range(15) if k % 3 == 2 or (k % 3 == 1 and k < 12)]
    limits = 15.2**2 * sum(np.exp(-pose[k] @ flexion[k]) ** 2 for k in hinges)
    parts = [term.linearise(PosedHand.of(model.kinematics, state, False)).energy for term in _body(model, crop)]
    assert len(hinges) == 9
    np.testing.assert_allclose([float(p) for p in parts], [data, prior, shape, limits], rtol=1e-9)


def test_the_camera_objective_is_the_published_formula(model: FitModel, hands: Any, conf: Tensor) -> None:
    """Plain squares of the palm, confidences playing no part but for missing points."""
    uv = hands.uv + 7.0
    state = hands.state
    crop = Crop.of(observe(hands, model, conf, uv), CropOptions())
    visible = conf > 0
    fit_px = 600 * hands.points[..., :2] / hands.points[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64)
    z0 = torch.linspace(0.4, 0.8, 12, dtype=F64)
    found = total_energy(model, camera_terms(crop, z0, 100.0), state)
    for i in range(12):
        box = uv[i, visible[i]].amax(0) - uv[i, visible[i]].amin(0)
        palm = [j for j in (0, 5, 9, 13, 17) if visible[i, j]]
        used = palm if len(palm) >= 3 else [j for j in range(21) if visible[i, j]]
        error = (224 / (1.2 * box.max()) * (fit_px[i] - uv[i])).square().sum(-1)
        expected = error[used].sum() + 100**2 * (state.root[i, 2] - z0[i]) ** 2
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=0)


def _body(model: FitModel, crop: Crop) -> list[Term]:
    return body_terms(model, crop, 100.0, WEIGHTS)


# Derivatives.


def test_jacobians_match_differences(
    model: FitModel, hard_state: HandState, derivative: Callable[..., Tensor], synthetic: Callable[..., Any]
) -> None:
    state = hard_state.select(torch.arange(30, 70))
    hands = synthetic(40, 8)
    crop = Crop.of(observe(hands, model), CropOptions())
    for term in [*_body(model, crop), *camera_terms(crop, state.root[:, 2] + 0.1, 100.0)]:

        def value(at: HandState, term: Term = term) -> Tensor:
            return term.linearise(PosedHand.of(model.kinematics, at, jacobian=False)).value

        part = term.linearise(PosedHand.of(model.kinematics, state, jacobian=True))
        jac = part.jacobian
        assert jac is not None
        expected = derivative(value, state, 1e-4)
        if jac.ndim == 4:
            full = torch.zeros_like(expected)
            for k in range(15):
                full[:, k, 3 + 3 * k : 6 + 3 * k] = jac[:, k, 0]
            jac = full
        else:
            full = torch.zeros_like(expected)
            full[:, :, part.columns] = jac
            jac = full
        scale = expected.abs().amax()
        torch.testing.assert_close(jac / scale, expected / scale, atol=1e-7, rtol=1e-5, msg=term.name)
        plain = term.linearise(PosedHand.of(model.kinematics, state, jacobian=False))
        torch.testing.assert_close(part.energy, plain.energy)
        torch.testing.assert_close(0.5 * part.value.square().sum(1), part.energy)


def test_adams_gradient_matches_differences(model: FitModel, hands: Any, seen: Observations) -> None:
    terms = _body(model, Crop.of(seen, CropOptions()))
    g = torch.Generator().manual_seed(2)
    aa = so3_log(hands.state.rotations) + 0.1 * torch.randn(12, 16, 3, dtype=F64, generator=g)
    parts = [aa, hands.state.betas.clone(), hands.state.root.clone()]

    def loss(*at: Tensor) -> Tensor:
        return baseline_spin._loss(model, terms, model.kinematics.points, *at)

    leaves = [part.clone().requires_grad_() for part in parts]
    loss(*leaves).backward()
    for which in range(3):
        for _ in range(4):
            step = 1e-5 * torch.randn(parts[which].shape, dtype=F64, generator=g)
            ahead, back = ([p + s * step if i == which else p for i, p in enumerate(parts)] for s in (1, -1))
            slope = (loss(*ahead) - loss(*back)) / 2
            gradient = leaves[which].grad
            assert gradient is not None
            torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-4, atol=1e-7)


# Crops and cameras.


def test_the_crop_is_the_true_camera_resized(hands: Any, seen: Observations) -> None:
    crop = Crop.of(seen, CropOptions(size=200.0, padding=1.5))
    found = crop.focal[:, None] * hands.points[..., :2] / hands.points[..., 2:] + crop.princpt[:, None]
    torch.testing.assert_close(found, crop.uv)
    side = (crop.uv.amax(1) - crop.uv.amin(1)).amax(1)
    torch.testing.assert_close(side, torch.full_like(side, 200 / 1.5))
    torch.testing.assert_close((crop.uv.amax(1) + crop.uv.amin(1)) / 2, torch.full((12, 2), 100.0, dtype=F64))
    torch.testing.assert_close(crop.enter(hands.state.root), hands.state.root)


def test_the_published_camera_converts_and_back(hands: Any, seen: Observations) -> None:
    """HMR's conversion: a wrist keeps its place in the picture and its distance grows with the focal length."""
    crop = Crop.of(seen, CropOptions(published_camera=True))
    assert bool((crop.focal == 5000).all()) and bool((crop.princpt == 112).all())
    root = hands.state.root
    inside = crop.enter(root)
    torch.testing.assert_close(crop.leave(inside), root)
    at = 5000 * inside[:, :2] / inside[:, 2:] + 112
    torch.testing.assert_close(at, crop.uv[:, 0], atol=1e-9, rtol=0)
    scale = (crop.uv[:, 1] - crop.uv[:, 0]).norm(dim=1) / (seen.uv[:, 1] - seen.uv[:, 0]).norm(dim=1)
    torch.testing.assert_close(inside[:, 2] / root[:, 2], 5000 / (600 * scale))


@pytest.mark.parametrize("options", METHODS, ids=["spin", "smplify"])
def test_the_published_camera_finds_the_hand_too(
    model: FitModel, hands: Any, seen: Observations, options: SpinOptions | SmplifyOptions
) -> None:
    out = run(model, seen, replace(options, crop=CropOptions(published_camera=True)))
    assert bool(torch.isfinite(out.energy).all())
    assert float((out.state.root - hands.state.root).norm(dim=1).median()) < 0.08


# Starts and stages.


def test_spin_starts_from_the_better_flip(model: FitModel, hands: Any, seen: Observations) -> None:
    """Without a single step the state that comes back is the start that projects nearest to the keypoints."""
    good = hands.state
    g = torch.Generator().manual_seed(1)
    bad = good.retract(torch.nn.functional.pad(0.5 * torch.randn(12, 3, dtype=F64, generator=g), (0, 59)))
    where = torch.arange(12) % 3
    rows = [(good if where[i] == k else bad).select(torch.tensor([i])) for i in range(12) for k in range(3)]
    starts = HandState(
        torch.cat([r.rotations for r in rows]),
        torch.cat([r.betas for r in rows]),
        torch.cat([r.root for r in rows]),
        torch.cat([r.log_focal for r in rows]),
    )
    out = fit_baseline(model, seen, SpinOptions(0, 0), starts, 3)
    close(out.state, good, 1e-12)
    assert bool((out.steps == 0).all()) and not bool(out.converged.any())


def test_spin_moves_what_each_stage_may(model: FitModel, seen: Observations) -> None:
    none, camera, all_ = (run(model, seen, SpinOptions(*steps)) for steps in ((0, 0), (15, 0), (15, 15)))
    torch.testing.assert_close(camera.state.rotations[:, 1:], none.state.rotations[:, 1:])
    torch.testing.assert_close(camera.state.betas, none.state.betas)
    assert bool((camera.state.root != none.state.root).all())
    assert bool((camera.state.rotations[:, 0] != none.state.rotations[:, 0]).any(1).any(1).all())
    torch.testing.assert_close(all_.state.root, camera.state.root)
    assert bool((all_.state.betas != 0).all())
    assert bool((all_.steps == 30).all())


def test_smplify_runs_the_published_stages(
    model: FitModel, seen: Observations, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[dict[str, Any], Tensor, SolverOptions]] = []

    def spy(kinematics: Any, terms: Any, start: HandState, free: Tensor, options: SolverOptions) -> Solution:
        calls.append(({t.name: t for t in terms}, free, options))
        return solve(kinematics, terms, start, free, SolverOptions(1))

    monkeypatch.setattr(baseline_smplify, "solve", spy)
    run(model, seen, SmplifyOptions())
    camera, *stages = calls
    assert set(camera[0]) == {"reprojection", "depth"} and camera[0]["depth"].weight == 100
    assert camera[0]["reprojection"].gmof_px is None
    assert camera[1].nonzero()[:, 0].tolist() == [0, 1, 2, 58, 59, 60]
    assert len(stages) == 4
    factor = model.pose_prior.precision_factor
    for (terms, free, options), pose, shape in zip(stages, (404, 404, 57.4, 4.78), (100, 50, 10, 5), strict=True):
        torch.testing.assert_close(terms["pose_prior"].prior.precision_factor, pose * factor)
        assert terms["shape"].sigma == pytest.approx(1 / (2**0.5 * shape))
        assert terms["hyperextension"].weight == pytest.approx(3.17 * pose)
        assert terms["reprojection"].gmof_px == 100
        assert free.nonzero()[:, 0].tolist() == list(range(58))
        assert options.max_steps == 100 and options.tolerance == 1e-4


def test_smplify_keeps_the_lower_joint_error(model: FitModel, seen: Observations) -> None:
    """From two starts as from the better one of them, and never by the energy alone."""
    starts = closed_form_starts(model.kinematics, model.seeds[:BASELINE_SEEDS], seen.views())
    crop = Crop.of(seen, CropOptions())
    data = body_terms(model, crop, 100.0, WEIGHTS)[:1]
    one, other = (fit_baseline(model, seen, QUICK_SMPLIFY, starts.select(torch.arange(k, 24, 2)), 1) for k in range(2))
    errors = [total_energy(model, data, out.state) for out in (one, other)]
    both = fit_baseline(model, seen, QUICK_SMPLIFY, starts, 2)
    close(both.state, one.state.where(errors[0] <= errors[1], other.state), 1e-9)
    torch.testing.assert_close(total_energy(model, data, both.state), torch.minimum(*errors), rtol=1e-6, atol=1e-9)


# Minimisation.


def test_spin_goes_down(model: FitModel, seen: Observations) -> None:
    energies = [run(model, seen, SpinOptions(40, steps)).energy for steps in (0, 10, 40, 160)]
    for before, after in pairwise(energies):
        assert bool((after < before).all())


def test_smplify_goes_down_and_ends_at_a_minimum_of_the_last_stage(model: FitModel, seen: Observations) -> None:
    out = run(model, seen, SmplifyOptions(), flips=1)
    terms = _body(model, Crop.of(seen, CropOptions()))
    terms[3] = body_terms(model, Crop.of(seen, CropOptions()), 100.0, SmplifyOptions().weights(SmplifyStage(4.78, 5)))[
        3
    ]
    torch.testing.assert_close(total_energy(model, terms, out.state), out.energy, rtol=1e-9, atol=0)
    assert bool((out.energy < total_energy(model, terms, _starts(model, seen))).all())
    assert bool(out.converged.all())
    free = torch.arange(62) < 58
    again = solve(model.kinematics, terms, out.state, free, SolverOptions(100, 1e-8))
    assert float((1 - again.energy / out.energy).median()) < 1e-2


def _starts(model: FitModel, seen: Observations) -> HandState:
    starts = closed_form_starts(model.kinematics, model.seeds[:BASELINE_SEEDS], seen.views())
    return starts.select(torch.arange(0, len(starts), 2))


@pytest.mark.parametrize("options", [SpinOptions(), SmplifyOptions()], ids=["spin", "smplify"])
def test_exact_hands_are_found_to_a_few_pixels(
    model: FitModel, hands: Any, seen: Observations, options: SpinOptions | SmplifyOptions
) -> None:
    state = run(model, seen, options).state
    xyz = model.kinematics.points(state.rotations, state.betas, state.root)
    away = (600 * xyz[..., :2] / xyz[..., 2:] - (seen.uv - seen.princpt[:, None])).norm(dim=-1).mean(1)
    box = (seen.uv.amax(1) - seen.uv.amin(1)).amax(1)
    assert float((224 * away / box).median()) < 10
    assert float((xyz - hands.points).norm(dim=-1).mean(1).median()) < 0.06


@pytest.mark.parametrize("spread", [False, True])
def test_the_full_mesh_gives_the_same_hands(models: HandModels, seen: Observations, hands: Any, spread: bool) -> None:
    hand = models.pair.right
    if spread:
        # Weights on all joints and dense blend shapes, as licensed models have.
        rng = np.random.default_rng(5)
        weights = rng.dirichlet(0.3 * np.ones(16), 778)
        hand = replace(hand, posedirs=rng.normal(0, 0.003, (778, 3, 135)), weights=weights)
    model = FitModel.of(hand, F64, "cpu")
    few = some(seen, range(4))
    points, mesh = (run(model, few, SpinOptions(12, 12, full_mesh=full), hand) for full in (False, True))
    close(points.state, mesh.state, 1e-5)
    torch.testing.assert_close(points.energy, mesh.energy, rtol=1e-6, atol=0)


# Hands among others.


@pytest.mark.parametrize("options", METHODS, ids=["spin", "smplify"])
def test_a_hand_does_not_depend_on_its_mates(
    model: FitModel, hands: Any, conf: Tensor, options: SpinOptions | SmplifyOptions
) -> None:
    seen = observe(hands, model, conf)
    together = run(model, seen, options)
    for rows in ([3], [7, 0], [11, 10, 9, 8, 7]):
        alone = run(model, some(seen, rows), options)
        close(alone.state, together.state.select(torch.tensor(rows)), 1e-9)
        torch.testing.assert_close(alone.energy, together.energy[rows], rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", METHODS, ids=["spin", "smplify"])
def test_broken_hands_spoil_no_others(
    model: FitModel, seen: Observations, options: SpinOptions | SmplifyOptions
) -> None:
    uv, focal, starts = seen.uv.clone(), seen.focal.clone(), _starts(model, seen)
    whole = fit_baseline(model, seen, options, starts, 1)
    uv[2, 5], focal[6] = float("nan"), float("inf")
    root = starts.root.clone()
    root[9] = float("nan")
    starts = replace(starts, root=root)
    out = fit_baseline(model, replace(seen, uv=uv, focal=focal), options, starts, 1)
    well = [i for i in range(12) if i not in (2, 6, 9)]
    close(out.state.select(torch.tensor(well)), whole.state.select(torch.tensor(well)), 1e-9)
    assert bool(torch.isposinf(out.energy[[2, 6, 9]]).all()) and not bool(out.converged[[2, 6, 9]].any())


@pytest.mark.parametrize("options", METHODS, ids=["spin", "smplify"])
def test_missing_points_do_not_count_and_inputs_stay(
    model: FitModel, hands: Any, conf: Tensor, options: SpinOptions | SmplifyOptions
) -> None:
    elsewhere = torch.where((conf > 0)[..., None], hands.uv, torch.full_like(hands.uv, 1e4))
    here, there = observe(hands, model, conf), observe(hands, model, conf, elsewhere)
    given = replace(there, uv=torch.where((conf > 0)[..., None], there.uv, torch.full_like(there.uv, 55.0)))
    before = given.uv.clone(), given.conf.clone()
    starts = _starts(model, here)
    kept = starts.rotations.clone(), starts.root.clone()
    a, b = (fit_baseline(model, s, options, starts, 1) for s in (here, given))
    close(a.state, b.state, 1e-9)
    assert torch.equal(given.uv, before[0]) and torch.equal(given.conf, before[1])
    assert torch.equal(starts.rotations, kept[0]) and torch.equal(starts.root, kept[1])
    assert not any(t.requires_grad for t in (a.state.rotations, a.state.betas, a.state.root, a.energy))


def test_a_hand_that_lies_behind_the_camera_has_no_energy(model: FitModel, seen: Observations) -> None:
    starts = _starts(model, seen)
    root = starts.root.clone()
    root[0, 2] = -0.5
    out = fit_baseline(model, seen, SpinOptions(0, 0), replace(starts, root=root), 1)
    assert bool(torch.isposinf(out.energy[0])) and bool(torch.isfinite(out.energy[1:]).all())


@pytest.mark.parametrize("options", METHODS, ids=["spin", "smplify"])
def test_no_hands_at_all(model: FitModel, seen: Observations, options: SpinOptions | SmplifyOptions) -> None:
    out = run(model, some(seen, []), options)
    assert len(out.state) == 0 and out.energy.shape == (0,) and out.steps.shape == (0,)


def test_float32_too(models: HandModels, hands: Any) -> None:
    model = FitModel.of(models.pair.right, torch.float32, "cpu")
    seen = observe(hands, model)
    for options in METHODS:
        out = run(model, seen, options)
        assert out.state.rotations.dtype == torch.float32 and bool(torch.isfinite(out.energy).all())


# Errors.


def test_what_does_not_fit_is_refused(model: FitModel, models: HandModels, seen: Observations) -> None:
    starts = _starts(model, seen)
    with pytest.raises(InputError, match="12 starts were given for 12 hands, expected 2 for each"):
        fit_baseline(model, seen, QUICK_SPIN, starts, 2)
    mesh = SpinOptions(1, 1, full_mesh=True)
    for hand in (None, models.pair.left):
        with pytest.raises(InputError, match="full_mesh needs the hand model"):
            fit_baseline(model, seen, mesh, starts, 1, hand)
    meant = replace(model, kinematics=model.kinematics.with_offsets(torch.zeros(21, 3, dtype=F64)))
    with pytest.raises(InputError, match="knows no keypoint layouts"):
        fit_baseline(meant, seen, mesh, starts, 1, models.pair.right)


def test_axis_angles_beyond_pi_do_not_harm(model: FitModel, seen: Observations) -> None:
    """Adam's own numbers feed the prior; the state that comes back is a rotation all the same."""
    out = run(model, seen, SpinOptions(5, 5, learning_rate=1.0))
    eye = torch.eye(3, dtype=F64).expand(12, 16, 3, 3)
    torch.testing.assert_close(out.state.rotations @ out.state.rotations.mT, eye)
    torch.testing.assert_close(so3_exp(so3_log(out.state.rotations)), out.state.rotations)
