"""Errors of points and meshes, and what is made of many of them: means with intervals, curves, F-scores.

Lengths are metres in and millimetres out where a name ends in `_mm`. NaN marks what is unknown: a joint without truth,
a hand without a fit. It is left out joint by joint, and what was left out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError, check_shape
from handloop.evaluation.alignment import ALIGNMENTS, WRIST

FEWEST_POINTS = 4
"""Known joints that a rotation is fitted to; three points say almost nothing once rotation and scale are free."""
_FITTED = ("rigid", "pa", "pa_mirror")
"""The alignments with a free rotation."""

_CHUNK_DRAWS = 4_000_000
"""Random numbers of the bootstrap held at a time: 64 MB with the counts made of them."""


@dataclass(frozen=True)
class Mean:
    """A mean over hands with its bootstrap interval; NaN where there is no hand."""

    mean: float
    """In the unit that the name of the field says."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    n: int
    """Hands it is the mean of."""


@dataclass(frozen=True)
class Curve:
    """Share of joints whose error is at most a threshold: percentage of correct keypoints (PCK), and its area."""

    thresholds_mm: tuple[float, ...]
    """(T,) mm, rising."""
    share: tuple[float, ...]
    """(T,) 0..1, the mean over joints of each joint's share."""
    auc: float
    """Area under the curve over the range of thresholds, 0..1."""


def joint_errors(points: Tensor, truth: Tensor, alignment: str) -> Tensor:
    """Distance of each joint from its true place after an alignment.

    Args:
        points: (N, 21, 3) m; NaN for hands without a fit.
        truth: (N, 21, 3) m; NaN where unknown.
        alignment: a key of `ALIGNMENTS`.

    Returns:
        (N, 21) m float64, NaN where unknown; whole hands are NaN where the alignment is not determined: without the
        wrist for "root", with fewer than four known joints for those with a free rotation.
    """
    if alignment not in ALIGNMENTS:
        raise InputError(f"the alignment {alignment!r} is unknown, expected one of {', '.join(ALIGNMENTS)}.")
    errors = (ALIGNMENTS[alignment](points, truth).apply(points) - truth.double()).norm(dim=-1)
    if alignment in _FITTED:
        enough = torch.isfinite(errors).sum(1) >= FEWEST_POINTS
        errors = torch.where(enough[:, None], errors, torch.full_like(errors, math.nan))
    return errors


def plane_and_depth(points: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The root-relative error split into what a picture shows and what it does not.

    Each joint's error vector, wrists laid onto each other, is split into the part along the viewing ray of the joint's
    true place and the part across it; their squares add up to the squared root-relative error.

    Args:
        points: (N, 21, 3) m, camera frame.
        truth: (N, 21, 3) m, camera frame.

    Returns:
        Two (N, 21) m float64: across the ray (image plane), along it (depth). The wrist's are 0 by construction, as its
        root-relative error is.
    """
    a, t = points.double(), truth.double()
    error = (a - a[:, WRIST : WRIST + 1]) - (t - t[:, WRIST : WRIST + 1])
    ray = t / t.norm(dim=-1, keepdim=True)
    along = (error * ray).sum(-1)
    across = (error - along[..., None] * ray).norm(dim=-1)
    return across, along.abs()


def pixel_errors(points: Tensor, truth: Tensor, camera: Camera, true_camera: Camera) -> Tensor:
    """(N, 21) px between the projections of fitted and true joints (N, 21, 3) m, each by its own camera."""
    return (camera.project(points.double()) - true_camera.project(truth.double())).norm(dim=-1)


def hand_means(errors: Tensor) -> Tensor:
    """(N, P) errors to (N,) means over each hand's known points, NaN for hands without any."""
    return torch.nanmean(errors, dim=1)


def joint_means(errors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, P) errors to (P,) means over the hands that know the joint, and (P,) how many those are."""
    return torch.nanmean(errors, dim=0), torch.isfinite(errors).sum(0)


def share_above(values: Tensor, limit: float, missing: int = 0) -> float:
    """Share of the finite entries of (N,) that exceed `limit`; `missing` further hands count as exceeding it."""
    finite = values[torch.isfinite(values)]
    n = len(finite) + missing
    return (int((finite > limit).sum()) + missing) / n if n else math.nan


def pck(errors: Tensor, low_mm: float = 0.0, high_mm: float = 50.0, steps: int = 100) -> Curve:
    """The PCK curve and its area, as in FreiHAND's tool by default (0 to 50 mm in 100 steps).

    The curve is taken joint by joint and averaged over joints, as that tool and its ancestor, Zimmermann and Brox's,
    do. Their own "20 to 50 mm" begins at 21.05 mm, the ninth of 20 steps from 0; here it begins at 20.

    Args:
        errors: (N, P) m; NaN is left out, infinity counts as wrong at every threshold.
        low_mm, high_mm: range of the thresholds, mm.
        steps: how many thresholds.
    """
    if not (0 <= low_mm < high_mm and steps >= 2):
        raise InputError(f"thresholds from {low_mm} to {high_mm} mm in {steps} steps were asked for, expected a range.")
    thresholds = torch.linspace(low_mm, high_mm, steps, dtype=torch.float64)
    curves = []
    for joint in errors.double().unbind(1):
        known = joint[~torch.isnan(joint)].sort().values
        if len(known):
            within = torch.searchsorted(known * 1000, thresholds, right=True)
            curves.append(within.double() / len(known))
    if not curves:
        return Curve(tuple(thresholds.tolist()), (math.nan,) * steps, math.nan)
    share = torch.stack(curves).mean(0)
    area = torch.trapezoid(share, thresholds) / (high_mm - low_mm)
    return Curve(tuple(thresholds.tolist()), tuple(share.tolist()), float(area))


def f_scores(vertices: Tensor, truth: Tensor, thresholds: Sequence[float] = (0.005, 0.015)) -> Tensor:
    """F-scores of meshes: the harmonic mean of how much of each surface lies within a distance of the other's points.

    Vertex to nearest vertex, closer than the threshold, as in the tools of FreiHAND and HO-3D (Knapitsch et al. 2017).

    Args:
        vertices: (N, V, 3) m.
        truth: (N, W, 3) m.
        thresholds: T distances, m.

    Returns:
        (N, T) float64 in 0..1, NaN for hands with a vertex that is not finite.
    """
    check_shape("vertices", tuple(vertices.shape), (None, None, 3))
    check_shape("true vertices", tuple(truth.shape), (len(vertices), None, 3))
    from scipy.spatial import KDTree

    limits = np.array(list(thresholds), dtype=np.float64)
    out = torch.full((len(vertices), len(limits)), math.nan, dtype=torch.float64)
    usable = torch.isfinite(vertices).flatten(1).all(1) & torch.isfinite(truth).flatten(1).all(1)
    for row in usable.nonzero()[:, 0].tolist():
        # Seven times faster than all pairs of vertices at once, which no cache holds.
        given, true = (mesh[row].detach().cpu().double().numpy() for mesh in (vertices, truth))
        to_true, to_given = KDTree(true).query(given)[0], KDTree(given).query(true)[0]
        precision, recall = ((distance[:, None] < limits).mean(0) for distance in (to_true, to_given))
        out[row] = torch.from_numpy(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    return out


def bootstrap(
    values: Tensor, generator: torch.Generator, resamples: int = 1000, level: float = 0.95
) -> tuple[Mean, ...]:
    """Means of several values per hand, with percentile intervals from hands drawn with replacement.

    All values are resampled together, so that the same hands are in every draw.

    Args:
        values: (N, M); NaN is left out column by column.
        generator: a CPU generator: the same seed gives the same intervals.
        resamples: draws; 1000 leave the ends of a 95 % interval uncertain by about 5 % of its width.
        level: share of the draws' means that the interval holds.

    Returns:
        M means.
    """
    check_shape("values", tuple(values.shape), (None, None))
    given = values.detach().cpu().double()
    n = len(given)
    known = torch.isfinite(given)
    filled, counted = torch.where(known, given, torch.zeros_like(given)), known.double()
    number = known.sum(0).tolist()
    if n == 0:
        return tuple(Mean(math.nan, math.nan, math.nan, 0) for _ in number)
    means: list[Tensor] = []
    left = resamples
    while left > 0:
        draws = min(left, max(1, _CHUNK_DRAWS // n))
        hands = torch.randint(n, (draws, n), generator=generator)
        times = torch.zeros(draws, n, dtype=torch.float64).scatter_add_(1, hands, torch.ones_like(hands).double())
        means.append((times @ filled) / (times @ counted))
        left -= draws
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(torch.cat(means), ends, dim=0).tolist()
    middle = (filled.sum(0) / counted.sum(0)).tolist()
    return tuple(Mean(*row) for row in zip(middle, low, high, number, strict=True))
