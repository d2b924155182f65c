"""How far a fit can be trusted: standard deviations, the weakest direction, an expected error, a verdict with reasons.

All from the Laplace posterior at the solution (its factor B, see `solver.Finish`), the other solutions tried and the
parts of the energy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.joints import FINGERS
from handloop.core.terms import GemanMcClure
from handloop.fitting.recipes import Recipe

INFLATION = 1.07
"""Factor on the posterior's standard deviations. The Laplace approximation is overconfident where modes are curved or
several; this one number was fitted on synthetic hands drawn from the priors (benchmarks/coverage.py)."""

_CHI2_45_999 = 80.1
"""99.9 % of hands have a squared Mahalanobis distance below this (chi-squared with 45 degrees of freedom)."""


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
    weakest: tuple[str, ...]
    """B texts: the least determined directions, worst first."""


def judge(
    spread: Tensor, points: Tensor, terms: dict[str, Tensor], n_numbers: Tensor, others: Tensor, above: Tensor
) -> Trust:
    """Sum up a posterior.

    Args:
        spread: (B, 21, 3, 62) factor of the covariance, m.
        points: (B, 21, 3) m, the fitted points.
        terms: (B,) energies by term.
        n_numbers: (B,) coordinates seen: two for each keypoint, three for each known 3D point.
        others: (B, M, 21, 3) m, how the points of all other solutions tried differ from these, palm on palm.
        above: (B, M) their energies minus the best's.
    """
    sd = INFLATION * spread.square().sum(-1).sqrt()
    mean = spread.mean(1)
    depth_sd = INFLATION * mean[:, 2].square().sum(-1).sqrt()
    # A larger energy than the noise and the priors lead one to expect means that model and data differ. Birge's ratio
    # widens the posterior by it, and makes the difference between two solutions' energies count for less. Every
    # parameter but six has a prior, so that the energy is that of as many squares as coordinates seen, less six.
    freedom = (n_numbers - 6).clamp(min=2).to(spread)
    birge = (2 * torch.stack(list(terms.values())).sum(0) / freedom).clamp(min=1.0)
    odds = torch.exp(-(above / birge[:, None]).clamp(min=0.0)).nan_to_num(0.0)
    odds = odds / (1 + odds.sum(1, keepdim=True))
    between = odds.sqrt()[..., None, None] * others.nan_to_num(0.0)
    within = INFLATION * birge.sqrt()[:, None, None, None] * spread
    # The mean of a 3D distance is 0.92 of its root mean square.
    expected = 0.92 * _aligned_rms(torch.cat([within, between.movedim(1, 3)], 3), points)
    return Trust(sd, depth_sd, expected, _weakest(spread))


def _aligned_rms(spread: Tensor, points: Tensor) -> Tensor:
    """(B,) root mean square of the points' sd over the 21 points, without what a similarity transform can take up."""
    centred = points - points.mean(1, keepdim=True)
    total = spread.square().sum((1, 2, 3))
    shift = 21 * spread.mean(1).square().sum((1, 2))
    moved = spread - spread.mean(1, keepdim=True)
    scale = (centred[..., None] * moved).sum((1, 2)).square().sum(1) / centred.square().sum((1, 2))
    turn = torch.linalg.cross(centred[..., None].expand_as(moved), moved, dim=2).sum(1)
    inertia = centred.square().sum((1, 2))[:, None, None] * torch.eye(3).to(points) - centred.mT @ centred
    ridge = 1e-9 * torch.eye(3).to(points)
    turned = (turn * torch.linalg.solve(inertia + ridge, turn)).sum((1, 2))
    return ((total - shift - scale - turned).clamp(min=0) / 21).sqrt()


def _weakest(spread: Tensor) -> tuple[str, ...]:
    names = ["distance along the viewing ray", "tilt of the palm"]
    directions = [spread.mean(1)[:, 2], spread[:, 9, 2] - spread[:, 0, 2]]
    sizes = [d.square().sum(-1) for d in directions]
    for f, finger in enumerate(FINGERS):
        names.append(f"curl of the {finger}" if finger in ("thumb", "pinky") else f"curl of the {finger} finger")
        sizes.append((spread[:, 4 + 4 * f] - spread[:, 1 + 4 * f]).square().sum((1, 2)))
    order = torch.stack(sizes, 1).nan_to_num(0.0).argsort(dim=1, descending=True)[:, :2].tolist()
    return tuple(f"{names[a]}, then {names[b]}" for a, b in order)


def reasons_against(
    terms: dict[str, Tensor], betas: Tensor, recipe: Recipe, relative_rms: Tensor, gap: Tensor, apart: Tensor
) -> list[list[str]]:
    """What speaks against each of B fits; empty lists for plausible ones.

    Args:
        terms: (B,) energies by term.
        betas: (B, 10).
        recipe: its limits' softness turns their energy into degrees, its kernel bounds what a missed point costs.
        relative_rms: (B,) reprojection error over the hand's box.
        gap: (B,) energy of the next different solution minus the best, inf without one.
        apart: (B,) m, mean distance of its points, wrist on wrist, 0 without one.
    """
    beyond = (2 * terms["limits"]).sqrt() * recipe.limits_sigma_deg
    missed = 0.5 * 21 * float(GemanMcClure(recipe.robust).rho(torch.tensor(_MISSED_3D)))
    checks = (
        (2 * terms["pose_prior"] > _CHI2_45_999, "the pose is unlike any the model knows"),
        (beyond > 15, "joints are bent beyond their limits"),
        (betas.abs().amax(1) > 3, "the shape is an outlier"),
        (relative_rms > 0.05, "the joints miss the keypoints"),
        (terms["points_3d"] > missed, "the joints miss the 3D points"),
        ((gap < 1) & (apart > 0.015), "another pose explains the keypoints as well"),
    )
    out: list[list[str]] = [[] for _ in range(len(betas))]
    for mask, text in checks:
        for i in mask.nonzero()[:, 0].tolist():
            out[i].append(text)
    return out
