"""Fits with mixtures as pose priors: the term, the solver's change of components, whole fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import multivariate_normal
from torch import Tensor

from handloop.api import fit, fit_joints
from handloop.core.errors import InputError
from handloop.core.results import FitResult, Status
from handloop.core.rotations import so3_exp, so3_log
from handloop.core.terms import AutoTerm, HandState, PosedHand
from handloop.fitting.engines import uses_fused_engine
from handloop.fitting.normal import normal_equations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.solver import SolverOptions, solve
from handloop.fitting.terms import PosePrior, Shape
from handloop.hand.load import embedded_hand
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior

F64 = torch.float64
PAIR = embedded_hand()
N = 8


def two_halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and covariances of the embedded hand's more open and more curled poses."""
    poses = PAIR.right.poses()
    curled = poses[:, 2::3].sum(1) > np.quantile(poses[:, 2::3].sum(1), 0.6)
    parts = (poses[~curled], poses[curled])
    floor = np.deg2rad(3.0) ** 2 * np.eye(45)
    return np.array([0.6, 0.4]), np.stack([p.mean(0) for p in parts]), np.stack([np.cov(p.T) + floor for p in parts])


WEIGHTS, MEANS, COVARIANCES = two_halves()
MIXTURE = MixturePosePrior.of(WEIGHTS, MEANS, COVARIANCES, "open and curled", PAIR.right.digest)


def costs(pose: np.ndarray) -> np.ndarray:
    """(B, 2) energies of the components by scipy, the cheapest mean at zero."""

    def each(x: np.ndarray) -> np.ndarray:
        parts = [multivariate_normal(m, c).logpdf(x) for m, c in zip(MEANS, COVARIANCES, strict=True)]
        return -np.log(WEIGHTS) - np.stack(parts, -1)

    out: np.ndarray = each(pose) - np.diag(each(MEANS)).min()
    return out


def test_term_energy(model: FitModel, hard_state: HandState) -> None:
    part = PosePrior(MIXTURE).linearise(PosedHand.of(model.kinematics, hard_state, jacobian=False))
    pose = Rotation.from_matrix(hard_state.rotations[:, 1:].reshape(-1, 3, 3).numpy()).as_rotvec().reshape(-1, 45)
    by_component = costs(pose)
    assert set(by_component.argmin(1)) == {0, 1} and part.jacobian is None
    np.testing.assert_allclose(part.energy.numpy(), by_component.min(1), rtol=1e-7)
    np.testing.assert_allclose(0.5 * part.value.square().sum(1).numpy(), by_component.min(1), rtol=1e-7)


def test_term_jacobian(model: FitModel, hard_state: HandState, derivative: Callable[..., Tensor]) -> None:
    """By differences of the picked component's whitened pose; straight fingers and angles near pi are among them."""
    posed = PosedHand.of(model.kinematics, hard_state, jacobian=True)
    part = PosePrior(MIXTURE).linearise(posed)
    picked = MIXTURE.nearest(posed.pose)
    factors, means = MIXTURE.precision_factors[picked], MIXTURE.means[picked]
    start = posed.pose.reshape(-1, 15, 3)

    def white(state: HandState) -> Tensor:
        moved = so3_log(state.rotations[:, 1:])
        # Beyond pi the logarithm jumps to the other side; the difference goes on along the way it came.
        angle = moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        unwound = moved - 2 * torch.pi * moved / angle
        moved = torch.where((moved - start).norm(dim=-1, keepdim=True) > 3, unwound, moved)
        return (factors.mT @ (moved.flatten(1) - means)[..., None])[..., 0]

    expected = derivative(white, hard_state)
    assert part.jacobian is not None and part.jacobian.shape == (100, 46, 45)
    assert bool(torch.isfinite(part.jacobian).all()) and bool((part.jacobian[:, 45] == 0).all())
    error = (part.jacobian[:, :45] - expected[:, :, 3:48]).abs().amax((1, 2)) / expected.abs().amax((1, 2))
    assert float(error.max()) < 1e-6
    assert bool((expected[:, :, :3] == 0).all() & (expected[:, :, 48:] == 0).all())


def test_second_witness_by_autograd(model: FitModel, hard_state: HandState) -> None:
    """The whole energy, minimum and all, differentiated automatically."""
    state = hard_state.select(torch.arange(30, 60))

    def residuals(posed: PosedHand) -> Tensor:
        away = posed.pose[:, None] - MIXTURE.means
        value = (away[:, :, None] @ MIXTURE.precision_factors)[:, :, 0]
        energy = 0.5 * value.square().sum(2) + MIXTURE.offsets
        return (2 * energy.amin(1, keepdim=True)).sqrt()

    free = torch.ones(62, dtype=torch.bool)
    ours = normal_equations(model.kinematics, [PosePrior(MIXTURE)], state, free)
    witness = normal_equations(model.kinematics, [AutoTerm("witness", residuals)], state, free)
    torch.testing.assert_close(ours.energy, witness.energy, rtol=1e-9, atol=1e-9)
    assert float((ours.gradient - witness.gradient).abs().max() / witness.gradient.abs().max()) < 1e-8


def test_gaussian_and_one_component_are_the_same_term(model: FitModel, hard_state: HandState) -> None:
    prior = model.pose_prior
    one = MixturePosePrior(prior.means, prior.precision_factors, prior.offsets)
    posed = PosedHand.of(model.kinematics, hard_state, jacobian=True)
    a, b = PosePrior(prior).linearise(posed), PosePrior(one).linearise(posed)
    assert torch.equal(a.energy, b.energy) and a.jacobian is not None and b.jacobian is not None
    torch.testing.assert_close(a.jacobian, b.jacobian[:, :45], rtol=1e-12, atol=1e-12)


def test_a_solve_changes_the_component_and_ends_in_the_minimum(model: FitModel) -> None:
    """From one mean, pulled towards the other; where it ends is a linear system's solution."""
    target = torch.tensor(MEANS[1]).expand(3, 45) + 0.02 * torch.randn(
        3, 45, dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    pull = AutoTerm("pull", lambda posed, target: (posed.pose - target) / 0.1, (target,))
    eye = torch.eye(3, dtype=F64).expand(3, 1, 3, 3)
    rotations = torch.cat([eye, so3_exp(torch.tensor(MEANS[0]).reshape(15, 3)).expand(3, 15, 3, 3)], 1)
    place = torch.tensor([[0.0, 0.0, 0.5]], dtype=F64).expand(3, 3)
    start = HandState(rotations, torch.zeros(3, 10, dtype=F64), place, torch.zeros(3, dtype=F64))
    assert MIXTURE.nearest(so3_log(start.rotations[:, 1:]).flatten(1)).tolist() == [0, 0, 0]
    free = torch.ones(62, dtype=torch.bool)
    done = solve(model.kinematics, [PosePrior(MIXTURE), pull, Shape()], start, free, SolverOptions(60, 1e-8))
    pose = so3_log(done.state.rotations[:, 1:]).flatten(1)
    precision = np.linalg.inv(COVARIANCES[1])
    right = precision @ MEANS[1] + target.numpy() / 0.1**2
    expected = np.linalg.solve(precision + np.eye(45) / 0.1**2, right.T).T
    np.testing.assert_allclose(pose.numpy(), expected, atol=1e-4)
    assert bool(done.converged.all())
    pulled = 0.5 * (((expected - target.numpy()) / 0.1) ** 2).sum(1)
    np.testing.assert_allclose(done.energy.numpy(), costs(expected)[:, 1] + pulled, rtol=1e-6)


def test_which_engine_fits(models: HandModels) -> None:
    recipe = RECIPES["default"]
    for prior, fused in (
        (None, True),
        (GaussianPosePrior.from_pca(PAIR.right, 12), True),
        (MixturePosePrior(MIXTURE.means[:1], MIXTURE.precision_factors[:1], MIXTURE.offsets[:1] * 0), True),
        (MIXTURE, True),
    ):
        assert uses_fused_engine(HandModels.of(PAIR, pose_prior=prior).right, recipe) is fused


@pytest.fixture(scope="module")
def seen(synthetic: Callable[..., Any]) -> tuple[np.ndarray, Any]:
    """Keypoints (8, 21, 3) with noise, the last hand without any, and what they show."""
    hands = synthetic(N, 5)
    uv = hands.uv.numpy() + np.random.default_rng(0).normal(0, 2, (N, 21, 2))
    points = np.concatenate([uv, np.ones((N, 21, 1))], 2)
    points[-1] = np.nan
    return points, hands


@pytest.fixture(scope="module")
def fitted(seen: tuple[np.ndarray, Any]) -> FitResult:
    """With the mixture."""
    return fit(seen[0], seen[1].K, prior=MIXTURE, device="cpu")


def test_a_fit_lowers_its_own_energy(seen: tuple[np.ndarray, Any], fitted: FitResult) -> None:
    default = fit(seen[0], seen[1].K, device="cpu")
    good = slice(0, N - 1)

    def with_mixture(result: FitResult) -> np.ndarray:
        rest = result.energy - result.energy_terms["pose_prior"]
        out: np.ndarray = rest[good].numpy() + costs(result.params.hand_pose[good].numpy()).min(1)
        return out

    np.testing.assert_allclose(fitted.energy[good].numpy(), with_mixture(fitted), rtol=1e-6)
    gain = with_mixture(default) - with_mixture(fitted)
    assert gain.min() > -0.01 and gain.mean() > 0.1


def test_a_hand_without_points_harms_no_other(seen: tuple[np.ndarray, Any], fitted: FitResult) -> None:
    assert int(fitted.status[-1]) == Status.TOO_FEW_POINTS and bool(torch.isnan(fitted.params.hand_pose[-1]).all())
    assert bool(fitted.fitted()[:-1].all()) and bool(torch.isfinite(fitted.keypoints_3d_sd[:-1]).all())
    some = fit(seen[0][2:4], seen[1].K, prior=MIXTURE, device="cpu")
    assert torch.equal(some.params.hand_pose, fitted.params.hand_pose[2:4])


def test_provenance_names_the_prior(fitted: FitResult) -> None:
    assert fitted.provenance["pose_prior"] == "open and curled"
    assert HandModels.of(PAIR).provenance()["pose_prior"] == "poses of the hand model"


def test_left_hands_use_the_same_prior(seen: tuple[np.ndarray, Any], fitted: FitResult) -> None:
    mirrored = seen[0][:2].copy()
    mirrored[..., 0] = 640 - mirrored[..., 0]
    left = fit(mirrored, seen[1].K, is_right=False, prior=MIXTURE, device="cpu")
    turned = left.params.hand_pose.numpy() * np.tile([1, -1, -1], 15)
    np.testing.assert_allclose(turned, fitted.params.hand_pose[:2].numpy(), atol=1e-6)


def test_single_precision(seen: tuple[np.ndarray, Any], fitted: FitResult) -> None:
    rough = fit(seen[0][:3], seen[1].K, prior=MIXTURE, device="cpu", dtype=torch.float32)
    assert rough.joints.dtype == torch.float32
    torch.testing.assert_close(rough.energy.double(), fitted.energy[:3], rtol=2e-2, atol=0.05)


def test_joints_in_3d(seen: tuple[np.ndarray, Any]) -> None:
    truth = seen[1].points[:3]
    result = fit_joints(truth, prior=MIXTURE, device="cpu")
    assert float((result.joints - truth).norm(dim=-1).max()) < 0.005
    assert result.provenance["pose_prior"] == "open and curled"


def test_published_weights_act_on_the_whole_energy(seen: tuple[np.ndarray, Any]) -> None:
    result = fit(seen[0][:1], seen[1].K, prior=MIXTURE, recipe="smplify", device="cpu")
    assert bool(result.fitted().all()) and float(result.rms_px) < 15


def test_doubts_know_the_mixtures_offsets(models: HandModels) -> None:
    """A usual pose of a broad component is no outlier, for all that it costs."""
    broad = np.stack([COVARIANCES[0] / 100, COVARIANCES[1]])
    prior = MixturePosePrior.of(np.array([0.99, 0.01]), MEANS, broad, "narrow and broad", PAIR.right.digest)
    pose = torch.tensor(MEANS[1])
    rotations = torch.cat([torch.eye(3, dtype=F64)[None], so3_exp(pose.reshape(15, 3))])[None]
    place = torch.tensor([[0.0, 0.0, 0.5]], dtype=F64)
    points = models.right.kinematics.points(rotations, torch.zeros(1, 10, dtype=F64), place)
    # Exact points, and a kernel that takes none for an outlier: the pose is the broad component's.
    exact = Recipe(noise_mm=1.0, robust=50.0)
    result = fit_joints(points, prior=prior, recipe=exact, device="cpu")
    assert float(result.energy_terms["pose_prior"]) > 60 and "unlike any" not in result.doubts[0]
    strange = fit_joints(points, prior=replace(prior, offsets=prior.offsets * 0), recipe=exact, device="cpu")
    assert float(strange.energy_terms["pose_prior"]) < 40


def test_another_models_prior_is_refused(seen: tuple[np.ndarray, Any]) -> None:
    with pytest.raises(InputError, match="the pose prior 'open and curled' was learned with the hand model else, not"):
        fit(seen[0], seen[1].K, prior=replace(MIXTURE, model_digest="else"))
