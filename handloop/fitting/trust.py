"""How far a fit can be trusted: standard deviations, the weakest direction, an expected error, a verdict with reasons.

All from the Laplace posterior at the solution (see `fitting.posterior`), the other solutions tried and the parts of the
energy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from handloop.core.terms import GemanMcClure
from handloop.fitting.posterior import DIRECTIONS, Posterior, aligned_variance
from handloop.fitting.recipes import Recipe

INFLATION = 1.07
"""Factor on the posterior's standard deviations. The Laplace approximation is overconfident where modes are curved or
several; this one number was fitted on synthetic hands drawn from the priors (benchmarks/coverage.py)."""

_MISSED_3D = 27.0
"""Squared distance, in sigmas, of a known 3D point missed by three times the noise along each axis."""


@dataclass(frozen=True, eq=False)
class Trust:
    """B verdicts."""

    points_sd: Tensor
    """(B, 21, 3) m, per point and camera axis."""
    depth_sd: Tensor
    """(B,) m, of the hand's mean distance."""
    expected_error: Tensor
    """(B,) m, expected mean joint error after similarity alignment (PA-MPJPE)."""
    condition: Tensor
    """(B,) see `Posterior`."""
    weakest: tuple[str, ...]
    """B texts: the least determined directions, worst first."""


def judge(
    posterior: Posterior, points: Tensor, terms: dict[str, Tensor], n_numbers: Tensor, others: Tensor, above: Tensor
) -> Trust:
    """Sum up a posterior.

    Args:
        posterior: of B hands.
        points: (B, 21, 3) m, the fitted points.
        terms: (B,) energies by term.
        n_numbers: (B,) coordinates seen: two for each keypoint, three for each known 3D point.
        others: (B, M, 21, 3) m, how the points of all other solutions tried differ from these, palm on palm.
        above: (B, M) their energies minus the best's.
    """
    sd = INFLATION * posterior.points.sqrt()
    depth_sd = INFLATION * posterior.depth.sqrt()
    # A larger energy than the noise and the priors lead one to expect means that model and data differ. Birge's ratio
    # widens the posterior by it, and makes the difference between two solutions' energies count for less. Every
    # parameter but six has a prior, so that the energy is that of as many squares as coordinates seen, less six.
    # In numpy, which takes a third of torch's time for a few numbers: a single hand is mostly such.
    freedom = np.maximum(n_numbers.numpy(force=True) - 6, 2)
    birge = np.maximum(2 * sum(term.numpy(force=True) for term in terms.values()) / freedom, 1.0)
    ratio = np.maximum(above.numpy(force=True) / birge[:, None], 0.0)
    odds = np.where(np.isnan(ratio), 0.0, np.exp(-ratio))
    odds = odds / (1 + odds.sum(1, keepdims=True))
    away = others.numpy(force=True)
    between = np.sqrt(odds)[..., None, None] * np.where(np.isfinite(away), away, 0.0)
    between = aligned_variance(between.transpose(0, 2, 3, 1), points.numpy(force=True))
    # The mean of a 3D distance is 0.92 of its root mean square.
    expected = 0.92 * np.sqrt(INFLATION**2 * birge * posterior.aligned.numpy(force=True) + between)
    error = torch.from_numpy(expected).to(sd)
    return Trust(sd, depth_sd, error, posterior.condition, _weakest(posterior.directions))


_IN_WORDS = [[f"{a}, then {b}" for b in DIRECTIONS] for a in DIRECTIONS]


def _weakest(directions: Tensor) -> tuple[str, ...]:
    variances = directions.numpy(force=True)
    order = np.argsort(np.where(np.isnan(variances), 0.0, -variances), axis=1, kind="stable")[:, :2].tolist()
    return tuple(_IN_WORDS[a][b] for a, b in order)


@lru_cache(maxsize=16)
def _missed_3d(robust: float) -> float:
    """Energy of 21 points missed in 3D."""
    return 0.5 * 21 * float(GemanMcClure(robust).rho(torch.tensor(_MISSED_3D)))


def reasons_against(
    terms: dict[str, Tensor],
    pose_limit: Tensor,
    betas: Tensor,
    recipe: Recipe,
    relative_rms: Tensor,
    gap: Tensor,
    apart: Tensor,
) -> tuple[str, ...]:
    """What speaks against each of B fits, reasons joined by "; "; "" for plausible ones.

    Args:
        terms: (B,) energies by term.
        pose_limit: (B,) energy of the pose prior that its own poses stay below.
        betas: (B, 10), from the source's mean shape.
        recipe: its limits' softness turns their energy into degrees, its kernel bounds what a missed point costs.
        relative_rms: (B,) reprojection error over the hand's box.
        gap: (B,) energy of the next different solution minus the best, inf without one.
        apart: (B,) m, mean distance of its points, wrist on wrist, 0 without one.
    """
    energy = {name: terms[name].numpy() for name in ("pose_prior", "limits", "points_3d")}
    beyond = np.sqrt(2 * energy["limits"]) * recipe.limits_sigma_deg
    checks = (
        (energy["pose_prior"] > pose_limit.numpy(), "the pose is unlike any the model knows"),
        (beyond > 15, "joints are bent beyond their limits"),
        (np.abs(betas.numpy()).max(1) > 3, "the shape is an outlier"),
        (relative_rms.numpy() > 0.05, "the joints miss the keypoints"),
        (energy["points_3d"] > _missed_3d(recipe.robust), "the joints miss the 3D points"),
        ((gap.numpy() < 1) & (apart.numpy() > 0.015), "another pose explains the keypoints as well"),
    )
    codes = sum((mask.astype(np.int64) << i for i, (mask, _) in enumerate(checks)), np.zeros(len(betas), np.int64))
    # Of all that may come together only a few do: each is put into words once, however many hands there are.
    codes = codes.tolist()
    said = {k: "; ".join(text for i, (_, text) in enumerate(checks) if k >> i & 1) for k in set(codes)}
    return tuple(said[k] for k in codes)
