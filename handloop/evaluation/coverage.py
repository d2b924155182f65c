"""Whether a fit knows how wrong it is: do its intervals hold the truth, and does it rank its worst hands as worst."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.errors import check_shape

SIGMAS_68, SIGMAS_95 = 0.994458, 1.959964
"""Half widths, in standard deviations, of the central intervals that hold 68 % and 95 % of a normal distribution."""

RANKED_WORST, TRULY_WORST = 0.2, 0.1
"""Share of hands that a user would look at, and the share that is worth finding."""
FEWEST_HANDS = 10
"""Hands from which a worst tenth exists."""


@dataclass(frozen=True)
class Held:
    """How much of the truth lies inside the intervals."""

    within_68: float
    """Share inside the 68 % interval, 0..1: 0.68 when calibrated, less when overconfident."""
    within_95: float
    """Share inside the 95 % interval."""
    rms: float
    """Root mean square of error over standard deviation: 1 when calibrated, the factor the sds lack otherwise."""
    n: int
    """Coordinates counted."""


@dataclass(frozen=True)
class Coverage:
    """Calibration of the posterior standard deviations, in camera space."""

    overall: Held
    """All coordinates."""
    by_axis: tuple[Held, Held, Held]
    """x (right), y (down), z (depth)."""
    without_sd: int
    """Coordinates with fit and truth but without a usable standard deviation (not finite, or not positive)."""


@dataclass(frozen=True)
class Ranking:
    """Whether the expected error finds the worst hands."""

    found: float
    """Share of the worst tenth by error that is among the fifth expected to be worst; 0.2 by chance, 1 at best."""
    n: int
    """Hands with both an error and an expected one."""
    without_expected: int
    """Hands with an error only; they are left out."""


def posterior_coverage(points: Tensor, truth: Tensor, sd: Tensor) -> Coverage:
    """How often the truth lies inside the intervals that the posterior standard deviations span.

    Args:
        points: (N, 21, 3) m, camera frame, NaN for hands without a fit.
        truth: (N, 21, 3) m, camera frame, NaN where unknown.
        sd: (N, 21, 3) m by axis, as `keypoints_3d_sd` of `results.npz`.
    """
    check_shape("keypoints_3d_sd", tuple(sd.shape), tuple(points.shape))
    error, width = (points.double() - truth.double()).abs(), sd.double()
    known = torch.isfinite(error)
    usable = known & torch.isfinite(width) & (width > 0)
    ratio = torch.where(usable, error / width, torch.full_like(error, math.nan))
    x, y, z = (_held(axis) for axis in ratio.unbind(-1))
    return Coverage(_held(ratio), (x, y, z), int((known & ~usable).sum()))


def ranking(expected_mm: Tensor, error: Tensor) -> Ranking | None:
    """How many of the worst hands a user finds who looks at those the fit itself expects to be worst.

    Args:
        expected_mm: (N,) `expected_error_mm` of `results.npz`; only the order matters.
        error: (N,) true error per hand (PA), in any unit; NaN where unknown.

    Returns:
        None with fewer than ten hands. Hands of equal expected error are taken in their order.
    """
    check_shape("expected_error_mm", tuple(expected_mm.shape), tuple(error.shape))
    known = torch.isfinite(error)
    both = known & torch.isfinite(expected_mm)
    n = int(both.sum())
    if n < FEWEST_HANDS:
        return None
    looked_at = _worst(expected_mm[both], RANKED_WORST)
    worst = _worst(error[both], TRULY_WORST)
    return Ranking(float(torch.isin(worst, looked_at).double().mean()), n, int((known & ~both).sum()))


def _worst(values: Tensor, share: float) -> Tensor:
    """Indices of the largest share of (n,), at least one."""
    return values.argsort(descending=True, stable=True)[: math.ceil(share * len(values) - 1e-9)]


def _held(ratio: Tensor) -> Held:
    values = ratio[torch.isfinite(ratio)]
    if not len(values):
        return Held(math.nan, math.nan, math.nan, 0)
    within = [float((values <= sigmas).double().mean()) for sigmas in (SIGMAS_68, SIGMAS_95)]
    return Held(within[0], within[1], float(values.square().mean().sqrt()), len(values))
