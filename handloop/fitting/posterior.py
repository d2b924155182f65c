"""What a fit's posterior says: variances of the points, of the depth, of what alignment leaves, by direction.

The Laplace approximation at a solution: with the Gauss-Newton matrix H = U^T U (robust weights and active limits
included) and the points' Jacobian J, the covariance of the 63 coordinates is B B^T with B = J U^-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from handloop.core.joints import FINGERS

Numbers = TypeVar("Numbers", Tensor, np.ndarray)

DIRECTIONS = (
    "distance along the viewing ray",
    "tilt of the palm",
    *(f"curl of the {f}" if f in ("thumb", "pinky") else f"curl of the {f} finger" for f in FINGERS),
)
"""In words, the directions whose variances are compared."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Of B hands; NaN where the Gauss-Newton matrix could not be factored."""

    points: Tensor
    """(B, 21, 3) m^2, variance per point and camera axis."""
    depth: Tensor
    """(B,) m^2, variance of the hand's mean distance."""
    aligned: Tensor
    """(B,) m^2, mean variance of a point (all three axes) that a similarity transform of all points cannot take up."""
    directions: Tensor
    """(B, 7) m^2, variances along `DIRECTIONS`."""
    condition: Tensor
    """(B,) condition number of the Gauss-Newton matrix scaled to a unit diagonal."""


def summarise(spread: Tensor, points: Tensor, hessian: Tensor) -> Posterior:
    """From the factor B (B, 21, 3, P), m, the fitted points (B, 21, 3), m, and the Gauss-Newton matrix (B, P, P)."""
    mean = spread.mean(1)
    depth = mean[:, 2].square().sum(-1)
    directions = [depth, (spread[:, 9, 2] - spread[:, 0, 2]).square().sum(-1)]
    for f in range(5):
        directions.append((spread[:, 4 + 4 * f] - spread[:, 1 + 4 * f]).square().sum((1, 2)))
    aligned = aligned_variance(spread, points)
    return Posterior(spread.square().sum(-1), depth, aligned, torch.stack(directions, 1), condition_number(hessian))


def condition_number(hessian: Tensor) -> Tensor:
    """(B,) of positive definite matrices (B, P, P) scaled to a unit diagonal; NaN where one is not finite."""
    unit = torch.diagonal(hessian, dim1=1, dim2=2).rsqrt()
    scaled = hessian * unit[:, :, None] * unit[:, None]
    sound = torch.isfinite(scaled).all(2).all(1)
    eye = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    eigenvalues = torch.linalg.eigvalsh(torch.where(sound[:, None, None], scaled, eye))
    number = eigenvalues[:, -1] / eigenvalues[:, 0].clamp(min=torch.finfo(hessian.dtype).eps)
    return torch.where(sound, number, torch.full_like(number, float("nan")))


def aligned_variance(spread: Numbers, points: Numbers) -> Numbers:
    """(B,) m^2, mean variance of a point under the covariance of factor `spread` (B, 21, 3, P) that a similarity
    transform of all points (B, 21, 3) cannot take up. Tensors or arrays."""
    centred = (points - points.mean(1)[:, None])[..., None]
    x, y, z = centred[:, :, 0], centred[:, :, 1], centred[:, :, 2]
    # Without the mean a shift is taken up already.
    moved = spread - spread.mean(1)[:, None]
    u, v, w = moved[:, :, 0], moved[:, :, 1], moved[:, :, 2]
    xx, yy, zz = (x * x).sum(1), (y * y).sum(1), (z * z).sum(1)
    grow = (x * u + y * v + z * w).sum(1)
    tx, ty, tz = (y * w - z * v).sum(1), (z * u - x * w).sum(1), (x * v - y * u).sum(1)
    # Inverse of the points' inertia, by cofactors.
    a, b, c = yy + zz + 1e-9, xx + zz + 1e-9, xx + yy + 1e-9
    d, e, f = -(x * y).sum(1), -(x * z).sum(1), -(y * z).sum(1)
    det = a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
    across = (b * c - f * f) * tx + (e * f - d * c) * ty + (d * f - b * e) * tz
    down = (e * f - d * c) * tx + (a * c - e * e) * ty + (d * e - a * f) * tz
    along = (d * f - b * e) * tx + (d * e - a * f) * ty + (a * b - d * d) * tz
    taken_up = grow * grow / (xx + yy + zz) + (tx * across + ty * down + tz * along) / det
    return ((moved * moved).sum((1, 2, 3)) - taken_up.sum(1)).clip(0) / 21
