"""The mixture of Gaussians as a pose prior, and the whitened PCA prior, against scipy and hand calculation."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from handloop.core.errors import InputError
from handloop.hand.load import embedded_hand
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior, check_model

F64 = torch.float64
WEIGHTS = np.array([0.6, 0.1, 0.3])


def components(k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Means (k, 45) and full covariances (k, 45, 45) of very different size."""
    rng = np.random.default_rng(4)
    mixing = 0.04 * rng.normal(size=(k, 45, 45)) * np.array([1.0, 1.6, 0.7])[:k, None, None]
    return 0.15 * rng.normal(size=(k, 45)), mixing @ mixing.swapaxes(1, 2) + 0.01 * np.eye(45)


MEANS, COVARIANCES = components()


@pytest.fixture(scope="module")
def prior() -> MixturePosePrior:
    return MixturePosePrior.of(WEIGHTS, MEANS, COVARIANCES, "three", "abc")


@pytest.fixture(scope="module")
def poses(prior: MixturePosePrior) -> Tensor:
    return prior.sample(200, torch.Generator().manual_seed(1))


def energy(prior: MixturePosePrior, pose: Tensor) -> Tensor:
    return 0.5 * prior.linearise(pose)[0].square().sum(1)


def costs(pose: np.ndarray) -> np.ndarray:
    """(B, 3) -log(w_k N(pose; m_k, S_k)) by scipy."""
    each = [multivariate_normal(m, c).logpdf(pose) for m, c in zip(MEANS, COVARIANCES, strict=True)]
    return -np.log(WEIGHTS) - np.stack([np.atleast_1d(e) for e in each], 1)


def test_energy_is_that_of_the_likeliest_component(prior: MixturePosePrior, poses: Tensor) -> None:
    by_component = costs(poses.numpy())
    cheapest_pose = np.diag(costs(MEANS)).min()
    np.testing.assert_allclose(energy(prior, poses).numpy(), by_component.min(1) - cheapest_pose, rtol=1e-9)
    assert np.array_equal(prior.nearest(poses).numpy(), by_component.argmin(1))
    assert set(by_component.argmin(1)) == {0, 1, 2}


def test_the_mean_costs_nothing_and_no_pose_less(prior: MixturePosePrior, poses: Tensor) -> None:
    assert float(energy(prior, prior.mean[None])) == 0.0
    assert float(energy(prior, poses).min()) > 0 and float(prior.offsets.min()) == 0.0
    best = int(np.diag(costs(MEANS)).argmin())
    assert torch.equal(prior.mean, prior.means[best])
    assert torch.equal(prior.precision_factor, prior.precision_factors[best])


def test_factors_and_weights_are_those_given(prior: MixturePosePrior) -> None:
    factors = prior.precision_factors.numpy()
    np.testing.assert_allclose(
        factors @ factors.swapaxes(1, 2) @ COVARIANCES, np.tile(np.eye(45), (3, 1, 1)), atol=1e-9
    )
    np.testing.assert_allclose(prior.weights.numpy(), WEIGHTS, rtol=1e-9)


def test_derivative_against_autograd(prior: MixturePosePrior, poses: Tensor) -> None:
    straight = torch.cat([poses[:99], torch.zeros(1, 45, dtype=F64)])
    jac = torch.autograd.functional.jacobian(lambda p: prior.linearise(p)[0].sum(0), straight)
    _, slope = prior.linearise(straight)
    torch.testing.assert_close(slope, jac.transpose(0, 1), rtol=1e-9, atol=1e-9)
    assert bool((slope[:, 45] == 0).all())


def test_the_component_changes_where_the_energies_cross(prior: MixturePosePrior) -> None:
    """Along the way from one mean to another the energy is continuous and the component changes once."""
    way = torch.linspace(0, 1, 4001, dtype=F64)[:, None]
    path = prior.means[0] + way * (prior.means[2] - prior.means[0])
    picked = prior.nearest(path)
    change = (picked[1:] != picked[:-1]).nonzero()[:, 0]
    assert len(change) == 1 and int(picked[0]) == 0 and int(picked[-1]) == 2
    values = energy(prior, path)
    assert float((values[1:] - values[:-1]).abs().max()) < 0.3
    at_change = np.sort(costs(path[change].numpy())[0])
    assert at_change[1] - at_change[0] < 0.3


def test_one_component_is_the_gaussian(poses: Tensor) -> None:
    one = MixturePosePrior.of(np.ones(1), MEANS[:1], COVARIANCES[:1])
    gaussian = GaussianPosePrior(one.mean, one.precision_factor)
    value, slope = one.linearise(poses)
    white, factor = gaussian.linearise(poses)
    assert torch.equal(value[:, :45], white) and torch.equal(slope[:, :45], factor.expand(200, 45, 45))
    assert bool((value[:, 45] == 0).all()) and one.energy_limit == pytest.approx(gaussian.energy_limit)
    for name in ("means", "precision_factors", "offsets"):
        assert torch.equal(getattr(one, name), getattr(gaussian, name))


def test_samples_have_the_mixtures_moments(prior: MixturePosePrior) -> None:
    samples = prior.sample(20000, torch.Generator().manual_seed(0)).numpy()
    mean = WEIGHTS @ MEANS
    spread = np.einsum("k,kij->ij", WEIGHTS, COVARIANCES + MEANS[:, :, None] * MEANS[:, None]) - np.outer(mean, mean)
    sd = np.sqrt(np.diag(spread))
    np.testing.assert_allclose((samples.mean(0) - mean) / sd, 0, atol=0.035)
    np.testing.assert_allclose(np.cov(samples.T) / np.outer(sd, sd), spread / np.outer(sd, sd), atol=0.06)


def test_energy_limit_holds_the_priors_own_poses(prior: MixturePosePrior) -> None:
    white = prior.whiten(prior.sample(30000, torch.Generator().manual_seed(2)))
    values = (0.5 * white.square().sum(2) + prior.offsets).amin(1)
    assert float((values < prior.energy_limit).double().mean()) >= 0.9985
    assert float((values < prior.energy_limit - 2.0).double().mean()) < 0.999
    assert GaussianPosePrior.from_hand(embedded_hand().right).energy_limit == pytest.approx(80.077 / 2, abs=1e-3)


def test_scaled_energies(prior: MixturePosePrior, poses: Tensor) -> None:
    torch.testing.assert_close(energy(prior.scaled(4.78), poses), 4.78**2 * energy(prior, poses))
    gaussian = GaussianPosePrior(prior.mean, prior.precision_factor)
    torch.testing.assert_close(gaussian.scaled(3.0).whiten(poses), 3 * gaussian.whiten(poses))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(prior: MixturePosePrior, poses: Tensor, dtype: torch.dtype) -> None:
    some, moved = poses.to(dtype), prior.to(torch.zeros(0, dtype=dtype))
    value, slope = moved.linearise(some)
    assert value.dtype == slope.dtype == dtype
    for at in (torch.tensor([150, 4]), torch.arange(199, -1, -1), torch.arange(9, 60)):
        again, steep = moved.linearise(some[at])
        assert torch.equal(again, value[at]) and torch.equal(steep, slope[at])


def test_a_pose_that_is_nan_harms_no_other(prior: MixturePosePrior, poses: Tensor) -> None:
    broken = poses[:5].clone()
    broken[2] = float("nan")
    value = prior.linearise(broken)[0]
    good = torch.tensor([0, 1, 3, 4])
    assert bool(torch.isnan(value[2]).any()) and torch.equal(value[good], prior.linearise(poses[:5])[0][good])


def test_check_model(prior: MixturePosePrior) -> None:
    check_model(prior, "abc")
    check_model(replace(prior, model_digest=""), "xyz")
    message = "the pose prior 'three' was learned with the hand model abc, not with xyz; learn it again for this model"
    with pytest.raises(InputError, match=re.escape(message)):
        check_model(prior, "xyz")


@pytest.mark.parametrize(
    ("weights", "covariances", "message"),
    [
        (np.ones(2), COVARIANCES, "weights (2,), means (3, 45) and covariances (3, 45, 45) were given, expected (K,)"),
        (np.ones(3), COVARIANCES, "the weights are [1.0, 1.0, 1.0], expected positive shares that sum to 1."),
        (np.array([1.0, 0.0, 0.0]), COVARIANCES, "expected positive shares that sum to 1."),
        (WEIGHTS, -COVARIANCES, "a covariance of the mixture is not positive definite."),
    ],
)
def test_errors(weights: np.ndarray, covariances: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        MixturePosePrior.of(weights, MEANS, covariances)


# Whitened PCA.


@pytest.mark.parametrize("n", [1, 6, 45])
def test_pca_energy_by_hand(n: int) -> None:
    hand = embedded_hand().right
    prior = GaussianPosePrior.from_pca(hand, n, residual_deg=5.0)
    pose = hand.poses()[:50] + 0.1 * np.random.default_rng(0).normal(size=(50, 45))
    coefficients = (pose - hand.hands_mean) @ hand.hands_components.T
    sd = np.sqrt((hand.hands_coeffs**2).mean(0))
    sd[sd < np.deg2rad(5)] = np.deg2rad(5)
    inside = 0.5 * ((coefficients[:, :n] / sd[:n]) ** 2).sum(1)
    beside = 0.5 * (coefficients[:, n:] ** 2).sum(1) / np.deg2rad(5) ** 2
    ours = 0.5 * prior.whiten(torch.tensor(pose)).square().sum(1)
    np.testing.assert_allclose(ours.numpy(), inside + beside, rtol=1e-8)
    assert prior.model_digest == hand.digest and prior.name.startswith(f"{n} whitened PCA components")


def test_pca_samples_follow_the_components() -> None:
    hand = embedded_hand().right
    samples = GaussianPosePrior.from_pca(hand, 3).sample(20000, torch.Generator().manual_seed(3)).numpy()
    sd = ((samples - hand.hands_mean) @ hand.hands_components.T).std(0)
    np.testing.assert_allclose(sd[:3], np.sqrt((hand.hands_coeffs[:, :3] ** 2).mean(0)), rtol=0.03)
    np.testing.assert_allclose(sd[3:], np.deg2rad(3.0), rtol=0.03)


def test_pca_errors() -> None:
    hand = embedded_hand().right
    for n in (0, 46):
        with pytest.raises(InputError, match=f"^{n} PCA components were asked for, expected 1 to 45.$"):
            GaussianPosePrior.from_pca(hand, n)
    with pytest.raises(InputError, match=r"the residual deviation is 0\.0 degrees, expected a positive number"):
        GaussianPosePrior.from_pca(hand, 6, 0.0)
    with pytest.raises(InputError, match=r"the PCA components of .* are not orthonormal"):
        GaussianPosePrior.from_pca(replace(hand, hands_components=2 * hand.hands_components), 6)
