"""Learning pose priors: known mixtures are found again, and no more components than the poses show."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from handloop.core.errors import InputError
from handloop.priors.expectation import Mixture, fit_mixture, sample_of
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.learn import learn_pose_prior
from handloop.priors.mixture import MixturePosePrior

FLOOR = np.deg2rad(3.0) ** 2 * np.eye(45)


def covariance(seed: int, size: float) -> np.ndarray:
    """(45, 45) wide in six directions, about 3 degrees in the others."""
    directions = np.random.default_rng(seed).normal(size=(45, 6)) * size
    return directions @ directions.T + 0.003 * np.eye(45)


ONE, OTHER = covariance(0, 0.12), covariance(1, 0.07)
APART = np.where(np.arange(45) % 3 == 2, 0.8, 0.0)


def two_kinds(n: int, share: float, seed: int) -> np.ndarray:
    """(n, 45) in random order: `share` of one kind, the rest of another far away."""
    rng = np.random.default_rng(seed)
    count = round(share * n)
    parts = (rng.multivariate_normal(np.zeros(45), ONE, count), rng.multivariate_normal(APART, OTHER, n - count))
    return rng.permutation(np.concatenate(parts))


def test_a_known_mixture_is_found_again() -> None:
    sample = sample_of(two_kinds(3000, 0.7, 2), np.ones(3000), None)
    found = fit_mixture(sample, 2, False, np.random.default_rng(0))
    order = np.argsort(found.means @ APART)
    np.testing.assert_allclose(found.weights[order], [0.7, 0.3], atol=0.005)
    common = 0.7 * ONE + 0.3 * OTHER
    for k, mean, truth, count in zip(order, (np.zeros(45), APART), (ONE, OTHER), (2100, 900), strict=True):
        error = (found.means[k] - mean) / np.sqrt(np.diag(truth) / count)
        assert np.abs(error).max() < 4
        # Each borrows 45 poses' worth of what both have in common.
        expected = (count * truth + 45 * common) / (count + 45) + FLOOR
        assert np.linalg.norm(found.covariances[k] - expected) < 0.1 * np.linalg.norm(truth)


def test_a_shared_covariance_is_shared_and_found_again() -> None:
    rng = np.random.default_rng(5)
    poses = rng.multivariate_normal(np.zeros(45), ONE, 2000) + APART * (np.arange(2000) % 4 == 0)[:, None]
    found = fit_mixture(sample_of(poses, np.ones(2000), None), 2, True, rng)
    assert np.array_equal(found.covariances[0], found.covariances[1])
    assert np.linalg.norm(found.covariances[0] - FLOOR - ONE) < 0.12 * np.linalg.norm(ONE)
    np.testing.assert_allclose(np.sort(found.weights), [0.25, 0.75], atol=0.005)


def test_likelihood_against_scipy() -> None:
    mixture = Mixture(np.array([0.2, 0.8]), np.stack([np.zeros(45), APART]), np.stack([ONE, OTHER]))
    poses = two_kinds(50, 0.5, 3)
    density = 0.2 * multivariate_normal(np.zeros(45), ONE).pdf(poses) + 0.8 * multivariate_normal(APART, OTHER).pdf(
        poses
    )
    ours = mixture.log_likelihood(sample_of(poses, np.ones(50), None))
    np.testing.assert_allclose(ours, np.log(density), rtol=1e-8)


def test_uncertain_poses_have_the_likelihood_expected_of_them() -> None:
    mixture = Mixture(np.ones(1), np.zeros((1, 45)), ONE[None])
    pose, doubt = two_kinds(1, 1.0, 4), 0.3 * OTHER
    ours = mixture.log_likelihood(sample_of(pose, np.ones(1), doubt[None]))
    drawn = np.random.default_rng(6).multivariate_normal(pose[0], doubt, 40000)
    by_chance = multivariate_normal(np.zeros(45), ONE).logpdf(drawn)
    assert float(ours[0]) == pytest.approx(by_chance.mean(), abs=5 * by_chance.std() / 200)


def test_a_single_gaussian_by_hand() -> None:
    poses = two_kinds(200, 1.0, 7)
    rng = np.random.default_rng(8)
    weights, doubts = rng.uniform(0.5, 2, 200), rng.uniform(0, 0.02, (200, 1, 1)) * OTHER
    prior = learn_pose_prior(poses, weights, doubts, components=1).prior
    assert isinstance(prior, GaussianPosePrior)
    mean = np.average(poses, axis=0, weights=weights)
    scatter = np.cov(poses.T, aweights=weights, bias=True) + np.average(doubts, axis=0, weights=weights)
    factor = prior.precision_factor.numpy()
    np.testing.assert_allclose(prior.mean.numpy(), mean, atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(factor @ factor.T), scatter + FLOOR, atol=1e-9)


def test_poses_of_weight_zero_do_not_count() -> None:
    poses = two_kinds(300, 0.5, 9)
    with_junk = np.concatenate([poses, np.full((20, 45), 2.0)])
    weights = np.concatenate([np.ones(300), np.zeros(20)])
    a, b = learn_pose_prior(poses, components=2).prior, learn_pose_prior(with_junk, weights, components=2).prior
    assert torch.equal(a.means, b.means) and torch.equal(a.precision_factors, b.precision_factors)


def test_one_gaussian_is_chosen_for_gaussian_poses() -> None:
    learned = learn_pose_prior(two_kinds(400, 1.0, 10), name="mine", model_digest="abc")
    assert isinstance(learned.prior, GaussianPosePrior) and learned.chosen.components == 1
    assert learned.prior.name == "mine (400 poses, 1 Gaussian)" and learned.prior.model_digest == "abc"
    kinds = [(c.components, c.tied) for c in learned.candidates]
    assert kinds[0] == (1, True) and {(2, True), (2, False)} <= set(kinds)
    held = dict(zip(kinds, learned.candidates, strict=True))
    assert held[2, True].gain < 2 * held[2, True].gain_error and held[2, False].gain < 0


def test_two_gaussians_are_chosen_for_two_kinds_of_poses() -> None:
    learned = learn_pose_prior(two_kinds(500, 0.6, 11))
    assert isinstance(learned.prior, MixturePosePrior) and learned.chosen.components == 2
    assert learned.chosen in learned.candidates and learned.chosen.gain > 5 * learned.chosen.gain_error
    np.testing.assert_allclose(np.sort(learned.prior.weights.numpy()), [0.4, 0.6], atol=0.01)


def test_held_out_likelihood_is_of_poses_not_learned_from() -> None:
    """It predicts the likelihood of new poses, below that of the poses learned from."""
    poses, fresh = two_kinds(300, 1.0, 12), two_kinds(4000, 1.0, 13)
    learned = learn_pose_prior(poses, components=1)
    assert isinstance(learned.prior, GaussianPosePrior)
    factor = learned.prior.precision_factor.numpy()
    normal = multivariate_normal(learned.prior.mean.numpy(), np.linalg.inv(factor @ factor.T))
    new = float(normal.logpdf(fresh).mean())
    assert float(normal.logpdf(poses).mean()) > new + 0.5
    assert learned.chosen.held_out == pytest.approx(new, abs=0.7)


def test_neighbours_are_held_out_together() -> None:
    """A video whose frames repeat does not make many components look good."""
    rng = np.random.default_rng(14)
    moments = rng.multivariate_normal(np.zeros(45), ONE, 50)
    video = np.repeat(moments, 10, 0) + rng.normal(0, 0.005, (500, 45))
    assert learn_pose_prior(video).chosen.components == 1


def test_same_seed_same_prior() -> None:
    poses = two_kinds(300, 0.5, 15)
    first, again = (learn_pose_prior(poses.reshape(300, 15, 3), seed=3) for _ in range(2))
    assert torch.equal(first.prior.precision_factors, again.prior.precision_factors)
    assert first.candidates == again.candidates


def test_repeated_poses_leave_no_component_without_a_covariance() -> None:
    poses = np.tile(two_kinds(3, 1.0, 16), (60, 1))
    prior = learn_pose_prior(poses, components=3).prior
    assert bool(torch.isfinite(prior.precision_factors).all()) and float(prior.weights.min()) > 0.1


@pytest.mark.parametrize(
    ("poses", "kwargs", "message"),
    [
        (np.zeros((60, 44)), {}, "poses have shape (60, 44), expected (M, 45) or (M, 15, 3) flat-mean axis-angle."),
        (np.zeros((59, 45)), {}, "a pose prior of 1 component needs at least 60 poses, got 59; give more."),
        (
            np.zeros((150, 45)),
            {"components": 3},
            "a pose prior of 3 components needs at least 180 poses, got 150; give more or ask for fewer components.",
        ),
        (np.zeros((80, 45)), {"components": 0}, "0 components were asked for, expected 1 or more."),
        (
            np.full((80, 45), np.nan),
            {},
            "poses, weights and covariances must be finite and weights not negative; leave others out.",
        ),
        (np.zeros((80, 45)), {"weights": np.ones(79)}, "weights have shape (79,), expected (80,)."),
        (
            np.zeros((80, 45)),
            {"covariances": np.ones((80, 45))},
            "weights have shape (80,), covariances (80, 45), expected (80,) and (80, 45, 45).",
        ),
        (
            np.zeros((80, 45)),
            {"weights": np.zeros(80)},
            "a pose prior of 1 component needs at least 60 poses, got 0; give more.",
        ),
    ],
)
def test_errors(poses: np.ndarray, kwargs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        learn_pose_prior(poses, **kwargs)  # type: ignore[arg-type]
