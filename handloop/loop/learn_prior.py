"""Re-estimate the pose prior from fits: expectation maximisation, judged on hands it did not learn from.

The fits are maxima of the posterior, which lie nearer to the prior's mean than the hands themselves: their scatter
alone would shrink the prior round after round. The E step therefore adds the mean of their own posterior covariances
(Laplace approximation). Only the pose is learned: freeing the shape or the layout lets the size of the hand drain away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.rotations import so3_log
from handloop.core.terms import POSE
from handloop.fitting.engines import free_parameters, standard_terms
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.normal import normal_equations
from handloop.fitting.observe import Observations
from handloop.fitting.problem import HandModels
from handloop.fitting.proposals import proposal_starts
from handloop.fitting.recipes import Recipe
from handloop.loop.config import PriorOptions
from handloop.loop.memory import start_at, with_prior
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.learn import POSES_PER_COMPONENT
from handloop.priors.mixture import PosePriorModel

_MISSED = 1.5
"""A fit that misses its keypoints by more than this, in terms of their noise or of what the median fit misses, is one
of spoiled keypoints, or in another mode: its pose is nobody's."""
_CHUNK = 128
"""Hands linearised at a time."""
_TRIM = 0.05
"""Held-out hands left out at each end of the differences: one hand in another mode must not decide."""


@dataclass(frozen=True, eq=False)
class FittedHands:
    """Hands with a fit each."""

    keypoints: Keypoints
    camera: Camera
    params: HandParams
    points_3d: Tensor | None
    """(N, 21, 4), see `HandData`."""

    def __len__(self) -> int:
        return len(self.keypoints)

    def select(self, rows: Tensor) -> FittedHands:
        """Rows by an integer or boolean index."""
        known = None if self.points_3d is None else self.points_3d[rows]
        return FittedHands(self.keypoints.select(rows), self.camera.select(rows), self.params.select(rows), known)


@dataclass(frozen=True, eq=False)
class PriorUpdate:
    """An attempt to learn a better prior."""

    prior: PosePriorModel
    """The one proposed."""
    accepted: bool
    """Whether held-out hands are likelier under it."""
    gain: float
    """Mean increase of a held-out hand's log evidence, nats."""
    gain_error: float
    """Its standard error."""
    moved_deg: float
    """Root mean square change of the mean pose's angles."""
    reason: str
    """Why it was refused; "" where it was not."""
    held_out: FittedHands
    """The held-out hands, fitted under the prior that is to be used."""


def learn_prior(
    models: HandModels, recipe: Recipe, hands: FittedHands, held_out: FittedHands, options: PriorOptions, name: str
) -> PriorUpdate:
    """Learn from some fits, judge on others.

    Args:
        models: with the present prior.
        recipe: how to refit, without seeds.
        hands: fits to learn from.
        held_out: fits to judge by.
        options: rounds and shares.
        name: of the new prior.
    """
    present = models.right.pose_prior
    if len(hands) < POSES_PER_COMPONENT or len(held_out) < 2:
        text = f"{len(hands)} fits and {len(held_out)} held out, at least {POSES_PER_COMPONENT} and 2 are needed"
        return PriorUpdate(present, False, 0.0, 0.0, 0.0, text, held_out)
    candidate, changed = present, models
    for _ in range(options.rounds):
        candidate = _maximised(changed, recipe, hands, options, name)
        changed = with_prior(changed, candidate)
        hands = refitted(changed, recipe, hands)
    before, after = refitted(models, recipe, held_out), refitted(changed, recipe, held_out)
    both = log_evidence(changed, recipe, after) - log_evidence(models, recipe, before)
    gain, error = _trimmed_mean(both)
    moved = torch.rad2deg((candidate.mean - present.mean).square().mean().sqrt())
    # Better by more than chance; where nothing is gained the prior stays, so that versions do not pile up.
    accepted = gain > 2 * error
    reason = "" if accepted else "hands it did not learn from are not likelier under it"
    return PriorUpdate(candidate, accepted, gain, error, float(moved), reason, after if accepted else before)


def refitted(models: HandModels, recipe: Recipe, hands: FittedHands) -> FittedHands:
    """The hands fitted on from where they are; one that cannot be stays."""
    result = fit_keypoints(
        models,
        hands.keypoints,
        hands.camera,
        recipe,
        points_3d=hands.points_3d,
        proposal=start_at(hands.params, hands.keypoints.is_right),
    )
    good = result.fitted()[:, None]
    pairs = zip(result.params.tensors(), hands.params.tensors(), strict=True)
    params = HandParams(*(torch.where(good, a.double().cpu(), b) for a, b in pairs))
    return FittedHands(hands.keypoints, hands.camera, params, hands.points_3d)


@dataclass(frozen=True, eq=False)
class Laplace:
    """The posterior of B hands near their fits, in right-hand canonical coordinates."""

    pose: Tensor
    """(B, 45) rad."""
    energy: Tensor
    """(B,)."""
    covariance: Tensor
    """(B, 45, 45) rad^2, of the pose with everything else unknown, too."""
    log_volume: Tensor
    """(B,) 1/2 log det of the whole Gauss-Newton matrix."""


def laplace(models: HandModels, recipe: Recipe, hands: FittedHands) -> Laplace:
    """Gauss-Newton matrices at fits, inverted; NaN where one is not positive definite."""
    n = len(hands)
    pose, energy = torch.full((n, 45), float("nan")).double(), torch.full((n,), float("nan")).double()
    covariance, volume = torch.full((n, 45, 45), float("nan")).double(), energy.clone()
    for model, rows in models.split(hands.keypoints.is_right):
        for at in rows.split(_CHUNK):
            some = hands.select(at)
            seen = Observations.of(some.keypoints, some.camera, recipe, None, model.like, some.points_3d)
            start = start_at(some.params, some.keypoints.is_right)
            state = proposal_starts(model, start, some.camera, seen)
            free = free_parameters(recipe, model.like.device)
            equations = normal_equations(model.kinematics, standard_terms(model, seen, recipe), state, free)
            factor, failed = torch.linalg.cholesky_ex(equations.hessian)
            factor = torch.where((failed > 0)[:, None, None], torch.full_like(factor, float("nan")), factor)
            pose[at] = so3_log(state.rotations[:, 1:]).flatten(1).double().cpu()
            energy[at] = equations.energy.double().cpu()
            covariance[at] = torch.cholesky_inverse(factor)[:, POSE, POSE].double().cpu()
            volume[at] = torch.diagonal(factor, dim1=1, dim2=2).log().sum(1).double().cpu()
    return Laplace(pose, energy, covariance, volume)


def log_evidence(models: HandModels, recipe: Recipe, hands: FittedHands) -> Tensor:
    """(B,) log probability of the keypoints, all parameters integrated out, but for a constant of the data.

    -(energy + 1/2 log det H) less the prior's own normaliser: energies alone cannot be compared between priors, a
    narrow one makes good fits dear and a wide one makes anything cheap.
    """
    at = laplace(models, recipe, hands)
    return -(at.energy + at.log_volume + log_normaliser(models.right.pose_prior))


def log_normaliser(prior: PosePriorModel) -> float:
    """What to add to a prior's energy for a negative log density, but for 45/2 log 2 pi.

    Each component's energy at its mean is offset + this = -log w + 1/2 log det S, and the weights w sum to one.
    """
    half_log_det = -torch.diagonal(prior.precision_factors, dim1=1, dim2=2).log().sum(1)
    return float(torch.logsumexp(half_log_det - prior.offsets, 0))


def _maximised(
    models: HandModels, recipe: Recipe, hands: FittedHands, options: PriorOptions, name: str
) -> GaussianPosePrior:
    """The Gaussian of the fits' poses and their mean posterior covariance, the worst fits left out."""
    few = torch.linspace(0, len(hands) - 1, min(len(hands), options.uncertain)).round().long()
    result = fit_keypoints(
        models,
        hands.keypoints,
        hands.camera,
        _as_they_are(recipe),
        points_3d=hands.points_3d,
        proposal=start_at(hands.params, hands.keypoints.is_right),
    )
    energy = result.energy.double().cpu().nan_to_num(float("inf"), float("inf"))
    good = energy <= energy.quantile(1 - options.drop)
    missed = result.energy_terms["reprojection"].double().cpu() / (hands.keypoints.conf > 0).sum(1)
    good &= torch.isfinite(energy) & (missed <= _MISSED**2 * missed.nanmedian().clamp(min=1.0))
    at = laplace(models, recipe, hands.select(few))
    known = good[few] & torch.isfinite(at.covariance).flatten(1).all(1)
    canonical = hands.params.as_right(hands.keypoints.is_right).hand_pose.double()[good]
    mean = canonical.mean(0)
    away = canonical - mean
    covariance = away.T @ away / len(away) + at.covariance[known].mean(0)
    covariance += np.deg2rad(options.floor_deg) ** 2 * torch.eye(45).double()
    factor = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return GaussianPosePrior(mean, factor, name, models.pair.right.digest)


def _as_they_are(recipe: Recipe) -> Recipe:
    return replace(recipe, solver=replace(recipe.solver, max_steps=0), posterior=False)


def _trimmed_mean(values: Tensor) -> tuple[float, float]:
    """Mean without the extremes and its standard error; values that are not finite do not count."""
    ordered = values[torch.isfinite(values)].sort().values
    cut = int(_TRIM * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    if len(kept) < 2:
        return 0.0, float("inf")
    return float(kept.mean()), float(kept.std() / len(kept) ** 0.5)
