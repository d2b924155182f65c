"""The Gaussian pose prior against numpy and scipy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from handloop.core.errors import InputError
from handloop.hand.load import embedded_hand
from handloop.priors.gaussian import GaussianPosePrior

F64 = torch.float64


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    return embedded_hand().right.poses()


@pytest.fixture(scope="module")
def prior() -> GaussianPosePrior:
    return GaussianPosePrior.from_hand(embedded_hand().right)


def test_mean_and_covariance(poses: np.ndarray, prior: GaussianPosePrior) -> None:
    covariance = np.cov(poses.T) + np.deg2rad(3.0) ** 2 * np.eye(45)
    factor = prior.precision_factor.numpy()
    np.testing.assert_allclose(prior.mean.numpy(), poses.mean(0), atol=1e-12)
    np.testing.assert_allclose(factor @ factor.T @ covariance, np.eye(45), atol=1e-7)
    assert np.all(np.linalg.eigvalsh(factor @ factor.T) <= 1.0001 / np.deg2rad(3.0) ** 2)


def test_whiten_is_the_mahalanobis_distance(poses: np.ndarray, prior: GaussianPosePrior) -> None:
    covariance = np.cov(poses.T) + np.deg2rad(3.0) ** 2 * np.eye(45)
    scipy = multivariate_normal(poses.mean(0), covariance)
    some = torch.tensor(poses[:50])
    energy = 0.5 * prior.whiten(some).square().sum(1).numpy()
    constant = 0.5 * (45 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])
    np.testing.assert_allclose(-scipy.logpdf(poses[:50]), energy + constant, rtol=1e-8)
    assert bool((prior.whiten(prior.mean[None]) == 0).all())


def test_jacobian_of_whiten_is_the_factor(poses: np.ndarray, prior: GaussianPosePrior) -> None:
    pose = torch.tensor(poses[:3])
    jac = torch.autograd.functional.jacobian(lambda p: prior.whiten(p).sum(0), pose)
    for row in range(3):
        torch.testing.assert_close(jac[:, row], prior.precision_factor.T)


def test_own_poses_are_white(poses: np.ndarray, prior: GaussianPosePrior) -> None:
    white = prior.whiten(torch.tensor(poses)).numpy()
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-8)
    eigenvalues = np.linalg.eigvalsh(np.cov(white.T))
    # The floor takes a share of each direction; none is left wider than one.
    assert eigenvalues.max() <= 1 + 1e-9 and eigenvalues.max() > 0.9


def test_samples_have_the_priors_moments(prior: GaussianPosePrior) -> None:
    samples = prior.sample(20000, torch.Generator().manual_seed(0)).numpy()
    factor = prior.precision_factor.numpy()
    covariance = np.linalg.inv(factor @ factor.T)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((samples.mean(0) - prior.mean.numpy()) / sd, 0, atol=0.035)
    np.testing.assert_allclose(np.cov(samples.T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.05)


def test_samples_follow_the_generator(prior: GaussianPosePrior) -> None:
    first, again = (prior.sample(5, torch.Generator().manual_seed(9)) for _ in range(2))
    other = prior.sample(5, torch.Generator().manual_seed(10))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_floor_keeps_unmoved_directions_finite() -> None:
    poses = np.zeros((60, 45))
    poses[:, 0] = np.linspace(-1, 1, 60)
    prior = GaussianPosePrior.from_poses(poses, floor_deg=2.0)
    off = torch.zeros(1, 45, dtype=F64)
    off[0, 7] = np.deg2rad(2.0)
    assert float(prior.whiten(off).norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(poses: np.ndarray, prior: GaussianPosePrior, dtype: torch.dtype) -> None:
    some = torch.tensor(poses[:101], dtype=dtype)
    white = prior.whiten(some)
    assert white.dtype == dtype
    for at in (torch.tensor([100, 4]), torch.arange(100, -1, -1), torch.arange(9, 60)):
        assert torch.equal(prior.whiten(some[at]), white[at])
    torch.testing.assert_close(prior.whiten(some[5:6]), white[5:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (np.zeros((60, 48)), "poses have shape (60, 48), expected (n, 45) flat-mean axis-angle."),
        (np.zeros(45), "poses have shape (45,), expected (n, 45) flat-mean axis-angle."),
        (np.zeros((59, 45)), "a pose prior needs at least 60 finite poses, got 59."),
        (np.full((70, 45), np.nan), "a pose prior needs at least 60 finite poses, got 70."),
    ],
)
def test_errors(poses: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        GaussianPosePrior.from_poses(poses)
