"""How far a fit can be trusted: standard deviations, the weakest direction, an expected error, a verdict with reasons.

All from the Laplace posterior at the solution (see `fitting.posterior`), the runner-up solution and the parts of the
energy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.fitting.posterior import DIRECTIONS, Posterior

INFLATION = 1.07
"""Factor on the posterior's standard deviations. The Laplace approximation is overconfident where modes are curved or
several; this one number was fitted on synthetic hands drawn from the priors (benchmarks/coverage.py)."""

_POINTS_3D_LIMIT = 21 * 1.5 * 9.0
"""Energy of 21 points that miss by three times the noise each."""


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


def judge(posterior: Posterior, terms: dict[str, Tensor], n_numbers: Tensor, gap: Tensor, apart: Tensor) -> Trust:
    """Sum up a posterior.

    Args:
        posterior: of B hands.
        terms: (B,) energies by term.
        n_numbers: (B,) coordinates seen: two for each keypoint, three for each known 3D point.
        gap: (B,) energy of the runner-up minus the best, inf without one.
        apart: (B,) m, mean distance of the runner-up's points, wrist on wrist, 0 without one.
    """
    sd = INFLATION * posterior.points.sqrt()
    depth_sd = INFLATION * posterior.depth.sqrt()
    aligned = INFLATION * posterior.aligned.sqrt()
    # Residuals larger than the noise model mean that model and data differ: Birge's ratio widens the posterior.
    freedom = (n_numbers - 6).clamp(min=2).to(aligned)
    birge = (2 * (terms["reprojection"] + terms["points_3d"]) / freedom).clamp(min=1.0).sqrt()
    # The mean of a 3D distance is 0.92 of its root mean square.
    within = 0.92 * aligned * birge
    odds = torch.sigmoid(-gap)
    expected = ((1 - odds) * within.square() + odds * (within.square() + apart.square())).sqrt()
    return Trust(sd, depth_sd, expected, _weakest(posterior.directions))


_IN_WORDS = [[f"{a}, then {b}" for b in DIRECTIONS] for a in DIRECTIONS]


def _weakest(directions: Tensor) -> tuple[str, ...]:
    order = directions.nan_to_num(0.0).argsort(dim=1, descending=True, stable=True)[:, :2].tolist()
    return tuple(_IN_WORDS[a][b] for a, b in order)


def reasons_against(
    terms: dict[str, Tensor],
    pose_limit: Tensor,
    betas: Tensor,
    limits_sigma_deg: float,
    relative_rms: Tensor,
    gap: Tensor,
    apart: Tensor,
) -> list[list[str]]:
    """What speaks against each of B fits; empty lists for plausible ones.

    Args:
        terms: (B,) energies by term.
        pose_limit: (B,) energy of the pose prior that its own poses stay below.
        betas: (B, 10).
        limits_sigma_deg: softness of the limits, to turn their energy into degrees.
        relative_rms: (B,) reprojection error over the hand's box.
        gap, apart: as in `judge`.
    """
    beyond = (2 * terms["limits"]).sqrt() * limits_sigma_deg
    checks = (
        (terms["pose_prior"] > pose_limit, "the pose is unlike any the model knows"),
        (beyond > 15, "joints are bent beyond their limits"),
        (betas.abs().amax(1) > 3, "the shape is an outlier"),
        (relative_rms > 0.05, "the joints miss the keypoints"),
        (terms["points_3d"] > _POINTS_3D_LIMIT, "the joints miss the 3D points"),
        ((gap < 1) & (apart > 0.015), "another pose explains the keypoints as well"),
    )
    out: list[list[str]] = [[] for _ in range(len(betas))]
    for mask, text in checks:
        for i in mask.nonzero()[:, 0].tolist():
            out[i].append(text)
    return out
