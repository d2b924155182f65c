"""Mixtures of Gaussians by expectation maximisation, with covariances that stay proper for few poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from handloop.priors.gaussian import FLOOR_DEG

BORROWED = 45.0
"""Poses' worth of the common covariance that each component's own one starts from, one per dimension: components that
saw few poses would otherwise lose the directions in which no hand moves."""

_FLOOR = np.deg2rad(FLOOR_DEG) ** 2 * np.eye(45)
# Shrinkage in proportion to the poses' own scatter (towards its diagonal or a multiple of the identity) is no use here:
# it widens the directions that hands keep stiff, less so within components, and splitting would always seem to help.
_MOST_STEPS = 100
_TOLERANCE = 1e-3
"""Done when a step gains less than this, nats per pose."""


@dataclass(frozen=True, eq=False)
class PoseSample:
    """M poses to learn from."""

    poses: np.ndarray
    """(M, 45) flat-mean axis-angle, rad."""
    weights: np.ndarray
    """(M,) positive; they sum to the number of equally weighted poses that would say as much."""
    covariances: np.ndarray | None
    """(M, 45, 45) how uncertain each pose is, rad^2; None for certain ones."""

    def __len__(self) -> int:
        return len(self.poses)

    def select(self, index: np.ndarray) -> PoseSample:
        """Rows by index."""
        covariances = None if self.covariances is None else self.covariances[index]
        return sample_of(self.poses[index], self.weights[index], covariances)


def sample_of(poses: np.ndarray, weights: np.ndarray, covariances: np.ndarray | None) -> PoseSample:
    """Poses with weights on any scale; Kish's effective number becomes their sum."""
    effective = weights.sum() ** 2 / np.square(weights).sum()
    return PoseSample(poses, weights * (effective / weights.sum()), covariances)


@dataclass(frozen=True, eq=False)
class Mixture:
    """K Gaussians."""

    weights: np.ndarray
    """(K,) shares."""
    means: np.ndarray
    """(K, 45) rad."""
    covariances: np.ndarray
    """(K, 45, 45) rad^2."""

    def log_joint(self, sample: PoseSample) -> np.ndarray:
        """(M, K) log w_k N(pose; m_k, S_k); of uncertain poses its expectation, less 1/2 trace(S_k^-1 covariance)."""
        out = np.empty((len(sample), len(self.weights)))
        for k, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            factor = np.linalg.cholesky(covariance)
            white = solve_triangular(factor, (sample.poses - mean).T, lower=True)
            constant = np.log(self.weights[k]) - np.log(np.diag(factor)).sum() - 22.5 * np.log(2 * np.pi)
            out[:, k] = constant - 0.5 * np.square(white).sum(0)
            if sample.covariances is not None:
                out[:, k] -= 0.5 * sample.covariances.reshape(-1, 2025) @ np.linalg.inv(covariance).ravel()
        return out

    def log_likelihood(self, sample: PoseSample) -> np.ndarray:
        """(M,) nats."""
        likelihood: np.ndarray = logsumexp(self.log_joint(sample), axis=1)
        return likelihood


def fit_mixture(sample: PoseSample, k: int, tied: bool, rng: np.random.Generator, starts: int = 2) -> Mixture:
    """The likeliest of a few mixtures of K Gaussians, each grown from other first guesses (Dempster et al. 1977).

    Args:
        sample: the poses.
        k: number of components.
        tied: one covariance for all components.
        rng: makes the first guesses.
        starts: how many; one component needs one.
    """
    found = [_grow(sample, k, tied, rng) for _ in range(starts if k > 1 else 1)]
    return max(found, key=lambda pair: pair[0])[1]


def _grow(sample: PoseSample, k: int, tied: bool, rng: np.random.Generator) -> tuple[float, Mixture]:
    """Mean log-likelihood and mixture where expectation maximisation from one guess ends."""
    mixture = _maximise(sample, _first_shares(sample.poses, k, rng), tied)
    before = -np.inf
    for _ in range(_MOST_STEPS):
        joint = mixture.log_joint(sample)
        likelihood = logsumexp(joint, axis=1)
        now = float(np.average(likelihood, weights=sample.weights))
        if k == 1 or now - before < _TOLERANCE:
            break
        mixture, before = _maximise(sample, np.exp(joint - likelihood[:, None]), tied), now
    return now, mixture


def _maximise(sample: PoseSample, shares: np.ndarray, tied: bool) -> Mixture:
    """Weights, means and covariances of poses that belong to components by shares (M, K)."""
    mass = shares * sample.weights[:, None]
    count = mass.sum(0)
    k = len(count)
    # A component that nothing belongs to falls back to the mean of all, and its weight stays above zero.
    everything = sample.weights @ sample.poses / sample.weights.sum()
    means = (mass.T @ sample.poses + 1e-9 * everything) / (count + 1e-9)[:, None]
    scatter = np.empty((k, 45, 45))
    for i, mean in enumerate(means):
        away = sample.poses - mean
        scatter[i] = (away * mass[:, i : i + 1]).T @ away
        if sample.covariances is not None:
            scatter[i] += (mass[:, i] @ sample.covariances.reshape(-1, 2025)).reshape(45, 45)
    total = float(count.sum())
    common = scatter.sum(0) / total + _FLOOR
    if tied:
        covariances = np.repeat(common[None], k, 0)
    else:
        own = scatter + count[:, None, None] * _FLOOR
        covariances = (own + BORROWED * common) / (count + BORROWED)[:, None, None]
    return Mixture((count + 1) / (total + k), means, covariances)


def _first_shares(poses: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """(M, K) ones and zeros: k-means from centres drawn far apart (Arthur and Vassilvitskii 2007)."""
    centres = poses[rng.integers(len(poses))][None]
    while len(centres) < k:
        distance = _squared_distances(poses, centres).min(1)
        # Where fewer different poses than components exist, any will do.
        odds = distance / distance.sum() if distance.sum() > 0 else np.full(len(poses), 1 / len(poses))
        centres = np.concatenate([centres, poses[rng.choice(len(poses), p=odds)][None]])
    for _ in range(10):
        shares = np.eye(k)[_squared_distances(poses, centres).argmin(1)]
        count = shares.sum(0)[:, None]
        centres = np.where(count > 0, shares.T @ poses / count.clip(min=1), centres)
    return np.eye(k)[_squared_distances(poses, centres).argmin(1)]


def _squared_distances(poses: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.stack([np.square(poses - centre).sum(1) for centre in centres], 1)
