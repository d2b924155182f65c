"""Learning the prior from fits: the evidence, the E step, and that a worse prior is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.core.rotations import so3_exp
from handloop.core.terms import HandState
from handloop.fitting.engines import standard_terms
from handloop.fitting.normal import normal_equations
from handloop.fitting.observe import Observations
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import SolverOptions
from handloop.hand.load import embedded_hand
from handloop.loop import learn_prior as module
from handloop.loop.cache import FitCache
from handloop.loop.config import FitOptions, PriorOptions
from handloop.loop.learn_prior import FittedHands, laplace, learn_prior, log_normaliser, refitted
from handloop.loop.memory import FitMemory, start_at, with_prior
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior

from .loop_hands import drawn, seen

RECIPE = Recipe(seeds=0, solver=SolverOptions(8, 1e-3))
OPTIONS = PriorOptions(rounds=1, uncertain=30)


def fitted(n: int, alike_deg: float | None, seed: int = 0) -> FittedHands:
    """Hands fitted from near their truth."""
    hands = drawn(n, seed, alike_deg)
    keypoints, camera, _ = seen(hands, 1.0, left=False)
    kinematics = HandModels.of(embedded_hand()).right.plain
    betas = hands.betas.double()
    transl = hands.root.double() - kinematics.root_offset(betas)
    params = HandParams.from_rotation_matrices(hands.rotations.double(), betas, transl)
    return refitted(HandModels.of(embedded_hand()), RECIPE, FittedHands(keypoints, camera, params, None))


@pytest.fixture(scope="module")
def models() -> HandModels:
    return HandModels.of(embedded_hand())


@pytest.fixture(scope="module")
def alike() -> FittedHands:
    return fitted(90, 4.0)


def test_energy_and_normaliser_make_a_density(models: HandModels) -> None:
    """Against scipy, for a Gaussian and for a mixture's nearest component."""
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.3, 45)
    prior = models.right.pose_prior
    assert isinstance(prior, GaussianPosePrior)
    factor = prior.precision_factor.numpy()
    density = multivariate_normal(prior.mean.numpy(), np.linalg.inv(factor @ factor.T)).logpdf(pose)
    energy = 0.5 * float(prior.whiten(torch.tensor(pose)[None]).square().sum())
    assert -energy - log_normaliser(prior) - 22.5 * np.log(2 * np.pi) == pytest.approx(density, rel=1e-9)
    weights, means = np.array([0.3, 0.7]), rng.normal(0, 0.2, (2, 45))
    covariances = np.stack([np.diag(rng.uniform(0.05, 0.5, 45)) for _ in range(2)])
    mixture = MixturePosePrior.of(weights, means, covariances)
    parts = [
        np.log(w) + multivariate_normal(m, c).logpdf(pose) for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    value, _ = mixture.linearise(torch.tensor(pose)[None])
    energy = 0.5 * float(value.square().sum())
    assert -energy - log_normaliser(mixture) - 22.5 * np.log(2 * np.pi) == pytest.approx(max(parts), rel=1e-9)


def test_the_posterior_covariance_is_the_inverse_of_the_energys_curvature(
    models: HandModels, alike: FittedHands
) -> None:
    """A quadratic energy: prior and shape alone, far from keypoints and limits, against finite differences."""
    few = alike.select(torch.arange(3))
    at = laplace(models, RECIPE, few)
    assert bool(torch.isfinite(at.covariance).all()) and float((at.covariance - at.covariance.mT).abs().max()) < 1e-12
    seen_here = Observations.of(few.keypoints, few.camera, RECIPE, None, models.right.like)
    terms = standard_terms(models.right, seen_here, RECIPE)
    matrices = few.params.rotation_matrices()
    root = few.params.transl + models.right.plain.root_offset(few.params.betas)
    free = torch.ones(62, dtype=torch.bool)
    free[61] = False

    def gradient(pose: torch.Tensor) -> torch.Tensor:
        rotations = torch.cat([matrices[:, :1], so3_exp(pose.reshape(-1, 15, 3))], 1)
        state = HandState(rotations, few.params.betas, root, torch.zeros(3).double())
        return normal_equations(models.right.kinematics, terms, state, free).gradient

    # The prior's part of the curvature dominates stiff directions: H d of the numbers against the matrix's inverse.
    whole = torch.linalg.inv(at.covariance)
    prior = models.right.pose_prior.precision_factors[0]
    assert bool((torch.linalg.eigvalsh(prior @ prior.T).max() <= 1.001 * torch.linalg.eigvalsh(whole).amax(1)).all())
    direction = torch.linalg.eigh(prior @ prior.T).eigenvectors[:, -1]
    step = 1e-5
    numeric = (gradient(at.pose + step * direction) - gradient(at.pose - step * direction))[:, 3:48] / (2 * step)
    stiff = (numeric * direction).sum(1)
    assert bool((stiff >= 0.99 * torch.linalg.eigvalsh(prior @ prior.T).max()).all())


def test_spoiled_keypoints_teach_nothing(models: HandModels, alike: FittedHands) -> None:
    """Half of a hand shifted by its box: the prior is that of the other hands alone."""
    spoiled = alike.select(torch.arange(70, 90))
    uv = spoiled.keypoints.xy.clone()
    uv[:, 9:] += (uv.amax(1) - uv.amin(1)).amax(1)[:, None, None]
    spoiled = replace(spoiled, keypoints=replace(spoiled.keypoints, xy=uv))
    spoiled = refitted(models, RECIPE, spoiled)
    good = alike.select(torch.arange(70))
    both = FittedHands(
        Keypoints.concatenate([good.keypoints, spoiled.keypoints]),
        alike.camera,
        HandParams(*(torch.cat(pair) for pair in zip(good.params.tensors(), spoiled.params.tensors(), strict=True))),
        None,
    )
    options = replace(OPTIONS, uncertain=90, drop=0.0)
    with_them, without = (learn_prior(models, RECIPE, hands, good, options, "x").prior for hands in (both, good))
    torch.testing.assert_close(with_them.mean, without.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(with_them.precision_factor, without.precision_factor, rtol=1e-6, atol=1e-6)


def test_hands_alike_teach_a_narrower_prior(models: HandModels, alike: FittedHands) -> None:
    present = models.right.pose_prior
    update = learn_prior(
        models, RECIPE, alike.select(torch.arange(70)), alike.select(torch.arange(70, 90)), OPTIONS, "x"
    )
    assert update.accepted and update.gain > 3 * update.gain_error > 0 and update.reason == ""
    # Its own poses are nearer to the hands' common one than the model's are: the root mean square angle falls.
    pose = alike.params.hand_pose

    def spread(prior: GaussianPosePrior) -> float:
        covariance = torch.linalg.inv(prior.precision_factor @ prior.precision_factor.T)
        return float((covariance.trace() + (prior.mean - pose.mean(0)).square().sum()).sqrt())

    assert isinstance(update.prior, GaussianPosePrior) and isinstance(present, GaussianPosePrior)
    assert spread(update.prior) < 0.8 * spread(present)
    assert log_normaliser(update.prior) < log_normaliser(present)  # Narrower.


def test_without_the_posterior_covariance_the_prior_is_narrower_still(
    models: HandModels, alike: FittedHands, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module._maximised(models, RECIPE, alike, OPTIONS, "x")
    zero = laplace(models, RECIPE, alike)
    flat = module.Laplace(zero.pose, zero.energy, torch.zeros_like(zero.covariance), zero.log_volume)
    monkeypatch.setattr(
        module,
        "laplace",
        lambda models, recipe, hands: flat.__class__(
            flat.pose[: len(hands)],
            flat.energy[: len(hands)],
            flat.covariance[: len(hands)],
            flat.log_volume[: len(hands)],
        ),
    )
    bare = module._maximised(models, RECIPE, alike, OPTIONS, "x")
    covariance = torch.linalg.inv(whole.precision_factor @ whole.precision_factor.T)
    less = torch.linalg.inv(bare.precision_factor @ bare.precision_factor.T)
    added = covariance - less
    torch.testing.assert_close(added, zero.covariance[:30].mean(0), rtol=0.5, atol=0.05)
    assert float(torch.linalg.eigvalsh(added).min()) > -1e-9


@pytest.mark.parametrize("what", ["narrow", "shifted", "wide"])
def test_a_harmful_prior_is_refused(
    models: HandModels, alike: FittedHands, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Narrower makes fits dear, wider pays for its volume: neither is taken for better."""
    honest = module._maximised(models, RECIPE, alike, OPTIONS, "x")
    start = with_prior(models, honest)
    factor = {"narrow": 6.0, "shifted": 1.0, "wide": 0.15}[what]
    shift = 0.5 if what == "shifted" else 0.0
    spoiled = GaussianPosePrior(honest.mean + shift, honest.precision_factor * factor, "spoiled")
    monkeypatch.setattr(module, "_maximised", lambda *_: spoiled)
    held = refitted(start, RECIPE, alike.select(torch.arange(70, 90)))
    update = learn_prior(start, RECIPE, alike.select(torch.arange(70)), held, OPTIONS, "x")
    assert not update.accepted and update.gain < 0 and "not likelier" in update.reason
    # The judges stay fitted under the prior that stays.
    torch.testing.assert_close(update.held_out.params.hand_pose, held.params.hand_pose, rtol=0, atol=0.05)


def test_too_few_fits_teach_nothing(models: HandModels, alike: FittedHands) -> None:
    update = learn_prior(models, RECIPE, alike.select(torch.arange(20)), alike, OPTIONS, "x")
    assert not update.accepted and "20 fits" in update.reason and update.prior is models.right.pose_prior


def test_a_new_prior_scores_every_cached_fit_anew(models: HandModels, alike: FittedHands, tmp_path: Path) -> None:
    """Against the prior's own formula, at the parameters that are in the cache."""
    with FitCache.open(tmp_path) as cache:
        memory = FitMemory(cache, embedded_hand(), KeypointLayout.identity(), None)
        memory.adopt(0)
        memory.fill(alike.keypoints, alike.camera, None, 1, 0, "search")
        before = cache.get(alike.keypoints.ids)
        prior = module._maximised(models, RECIPE, alike, OPTIONS, "new")
        memory.change_prior(prior, 1, 0)
        after = cache.get(alike.keypoints.ids)
        assert set(after.score_version.tolist()) == {cache.score_version} and cache.score_version == 2
        pose = after.params.hand_pose
        expected = 0.5 * ((pose - prior.mean) @ prior.precision_factor).square().sum(1)
        torch.testing.assert_close(after.energy_terms["pose_prior"], expected, rtol=1e-6, atol=1e-6)
        assert float((after.energy - before.energy).abs().max()) > 1
        assert {origin.prior for origin in after.origin if origin} != {o.prior for o in before.origin if o}
        # The same prior again changes nothing.
        memory.change_prior(prior, 2, 0)
        assert cache.score_version == 2


def test_fits_that_have_stood_for_some_epochs_rest(alike: FittedHands, tmp_path: Path) -> None:
    with FitCache.open(tmp_path) as cache:
        memory = FitMemory(cache, embedded_hand(), KeypointLayout.identity(), None, FitOptions(steps=30, rest=3))
        memory.adopt(0)
        start = start_at(alike.params, alike.keypoints.is_right)
        offered = []
        for epoch in range(9):
            visit = memory.visit(alike.keypoints, alike.camera, start, epoch + 1, epoch)
            offered.append(visit.offered)
            assert visit.new == (90 if epoch == 0 else 0) and visit.accepted <= visit.offered
        assert offered[:3] == [0, 90, 90]
        # Each comes once in three epochs, but for fits that still improve.
        assert 90 <= sum(offered[3:6]) <= 110 and 90 <= sum(offered[6:]) <= 110 and max(offered[3:]) < 60
