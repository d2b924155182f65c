"""Learn a pose prior: a Gaussian, or as many as make poses that were held out likeliest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from handloop.core.errors import InputError
from handloop.priors.expectation import Mixture, PoseSample, fit_mixture, sample_of
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior, PosePriorModel

POSES_PER_COMPONENT = 60
"""Fewer poses do not pin down a mean and the widest directions of a covariance in 45 dimensions."""

COMPONENTS = (2, 3, 4, 6, 8)
"""Numbers tried, tied and full, besides the single Gaussian; SMPLify's body prior has 8."""

_FOLDS, _BLOCKS = 5, 50
_MOST_COMPARED = 5000
"""Poses, evenly drawn, that candidates are compared on; the winner learns from all."""


@dataclass(frozen=True)
class Candidate:
    """A kind of prior and how well it explains poses it did not learn from."""

    components: int
    tied: bool
    """One covariance for all components."""
    held_out: float
    """Mean log-likelihood of a held-out pose, nats."""
    gain: float
    """Of that over the single Gaussian's."""
    gain_error: float
    """Standard error of the gain, over blocks of neighbouring poses."""

    @property
    def kind(self) -> str:
        """In words."""
        if self.components == 1:
            return "1 Gaussian"
        return f"{self.components} Gaussians, {'one shared covariance' if self.tied else 'a covariance each'}"


@dataclass(frozen=True, eq=False)
class LearnedPrior:
    """A prior and how it was chosen."""

    prior: PosePriorModel
    candidates: tuple[Candidate, ...]
    """In the order they were tried, simplest first."""
    chosen: Candidate
    """One of them."""


def learn_pose_prior(
    poses: np.ndarray,
    weights: np.ndarray | None = None,
    covariances: np.ndarray | None = None,
    components: int | None = None,
    name: str = "poses",
    model_digest: str = "",
    seed: int = 0,
) -> LearnedPrior:
    """Learn which poses are likely.

    Covariances have the floor of `GaussianPosePrior.from_poses`; a component's own is shrunk towards the common one.
    Candidates are tried from simple to complex, a shared covariance before one each. One more complex than the best so
    far takes its place only where held-out poses are likelier under it by two standard errors of the difference.

    Args:
        poses: (M, 45) or (M, 15, 3) flat-mean axis-angle, rad, right-hand convention, in the order they were taken:
            neighbours, which look alike in a video, are held out together.
        weights: (M,) how much each pose counts, 0 or more; None for all alike.
        covariances: (M, 45, 45) posterior covariance of poses that were fitted, rad^2, which adds to their scatter
            (the E step of learning a prior from fits); None for poses that are known.
        components: number of Gaussians; None to choose among 1 and `COMPONENTS`.
        name: what the poses are, for results.
        model_digest: of the right-hand model whose poses these are; "" where any model shares them, as MANO's do.
        seed: of first guesses and folds; the same seed gives the same prior.

    Raises:
        InputError: wrong shapes, values that are not finite, or too few poses.
    """
    if components is not None and components < 1:
        raise InputError(f"{components} components were asked for, expected 1 or more.")
    sample = _checked(poses, weights, covariances, 1 if components is None else components)
    candidates = _compare(sample, components, seed)
    chosen = _choose(candidates)
    mixture = fit_mixture(sample, chosen.components, chosen.tied, np.random.default_rng(seed), starts=4)
    prior = _prior(mixture, f"{name} ({len(sample)} poses, {chosen.kind})", model_digest)
    return LearnedPrior(prior, tuple(candidate for candidate, _ in candidates), chosen)


def _checked(
    poses: np.ndarray, weights: np.ndarray | None, covariances: np.ndarray | None, components: int
) -> PoseSample:
    if poses.ndim == 3 and poses.shape[1:] == (15, 3):
        poses = poses.reshape(-1, 45)
    if poses.ndim != 2 or poses.shape[1] != 45:
        raise InputError(f"poses have shape {poses.shape}, expected (M, 45) or (M, 15, 3) flat-mean axis-angle.")
    n = len(poses)
    weights = np.ones(n) if weights is None else weights
    if weights.shape != (n,) or (covariances is not None and covariances.shape != (n, 45, 45)):
        raise InputError(
            f"weights have shape {weights.shape}{'' if covariances is None else f', covariances {covariances.shape}'}, "
            f"expected ({n},){'' if covariances is None else f' and ({n}, 45, 45)'}."
        )
    given = [poses, weights] if covariances is None else [poses, weights, covariances]
    if not all(np.isfinite(a).all() for a in given) or (weights < 0).any():
        raise InputError("poses, weights and covariances must be finite and weights not negative; leave others out.")
    kept = weights > 0
    if kept.sum() < components * POSES_PER_COMPONENT:
        noun = "component" if components == 1 else "components"
        raise InputError(
            f"a pose prior of {components} {noun} needs at least {components * POSES_PER_COMPONENT} poses, "
            f"got {kept.sum()}; give more{' or ask for fewer components' if components > 1 else ''}."
        )
    return sample_of(
        poses[kept].astype(np.float64),
        weights[kept].astype(np.float64),
        None if covariances is None else covariances[kept].astype(np.float64),
    )


_Scored = list[tuple[Candidate, np.ndarray]]
"""Candidates with the mean held-out log-likelihood of each block of poses."""


def _compare(sample: PoseSample, components: int | None, seed: int) -> _Scored:
    """Cross-validate the candidates; a family is left when one more complex is worse than the one before."""
    n = len(sample)
    if n > _MOST_COMPARED:
        sample = sample.select(np.linspace(0, n - 1, _MOST_COMPARED).round().astype(np.int64))
    counts: tuple[int, ...] = COMPONENTS if components is None else (components,)
    learning = len(sample) * (_FOLDS - 1) // _FOLDS
    counts = tuple(k for k in counts if k > 1 and (k == components or k * POSES_PER_COMPONENT <= learning))
    found: _Scored = []
    if components in (None, 1):
        found.append(_score(sample, 1, True, seed, None))
    for tied in (True, False):
        last = -np.inf
        for k in counts:
            scored = _score(sample, k, tied, seed, found[0][1] if found else None)
            found.append(scored)
            if scored[0].held_out < last:
                break
            last = scored[0].held_out
    return found


def _score(
    sample: PoseSample, k: int, tied: bool, seed: int, single: np.ndarray | None
) -> tuple[Candidate, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = len(sample)
    blocks = np.arange(n) * _BLOCKS // n
    fold = rng.permutation(np.arange(_BLOCKS) % _FOLDS)[blocks]
    likelihood = np.empty(n)
    for i in range(_FOLDS):
        mixture = fit_mixture(sample.select(np.flatnonzero(fold != i)), k, tied, rng)
        held = np.flatnonzero(fold == i)
        likelihood[held] = mixture.log_likelihood(sample.select(held))
    mass = np.bincount(blocks, sample.weights, _BLOCKS)
    by_block = np.bincount(blocks, sample.weights * likelihood, _BLOCKS) / mass
    mean = float(np.average(likelihood, weights=sample.weights))
    gain, error = (0.0, 0.0) if single is None else _gain(by_block, single)
    return Candidate(k, tied, mean, gain, error), by_block


def _gain(by_block: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Mean difference and its standard error."""
    difference = by_block - before
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def _choose(candidates: _Scored) -> Candidate:
    best, by_block = candidates[0]
    for candidate, blocks in candidates[1:]:
        gain, error = _gain(blocks, by_block)
        if gain > 2 * error:
            best, by_block = candidate, blocks
    return best


def _prior(mixture: Mixture, name: str, digest: str) -> PosePriorModel:
    if len(mixture.weights) > 1:
        return MixturePosePrior.of(mixture.weights, mixture.means, mixture.covariances, name, digest)
    factor = torch.tensor(np.linalg.cholesky(np.linalg.inv(mixture.covariances[0])))
    return GaussianPosePrior(torch.tensor(mixture.means[0]), factor, name, digest)
