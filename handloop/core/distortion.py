"""OpenCV's lens model (radial, rational, tangential, thin prism) and its inverse by Newton's method."""

from __future__ import annotations

import torch
from torch import Tensor

DISTORTION_LENGTHS = (4, 5, 8, 12)
"""Numbers of coefficients OpenCV uses for this model."""


def _coefficients(dist: Tensor) -> tuple[Tensor, ...]:
    padded = torch.nn.functional.pad(dist, (0, 12 - dist.shape[-1]))
    return padded.unbind(-1)


def distort(xy: Tensor, dist: Tensor) -> Tensor:
    """Ideal normalised coordinates (..., 2) to distorted ones; `dist` (..., 4|5|8|12) broadcasts.

    OpenCV, "Camera Calibration and 3D Reconstruction": x' = x (1 + k1 r2 + k2 r4 + k3 r6) / (1 + k4 r2 + k5 r4 + k6 r6)
    + 2 p1 x y + p2 (r2 + 2 x2) + s1 r2 + s2 r4, and likewise for y.
    """
    return _distort(xy, dist)[0]


def _distort(xy: Tensor, dist: Tensor) -> tuple[Tensor, Tensor]:
    """Distorted coordinates (..., 2) and their Jacobian (..., 2, 2)."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = _coefficients(dist)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    top = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    bottom = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    ratio = top / bottom
    d_ratio = (k1 + r2 * (2 * k2 + r2 * 3 * k3) - ratio * (k4 + r2 * (2 * k5 + r2 * 3 * k6))) / bottom
    out_x = x * ratio + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2)
    out_y = y * ratio + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + r2 * s4)
    dx, dy = 2 * x, 2 * y
    prism_x, prism_y = s1 + 2 * s2 * r2, s3 + 2 * s4 * r2
    jxx = ratio + x * d_ratio * dx + 2 * p1 * y + 6 * p2 * x + prism_x * dx
    jxy = x * d_ratio * dy + 2 * p1 * x + 2 * p2 * y + prism_x * dy
    jyx = y * d_ratio * dx + 2 * p1 * x + 2 * p2 * y + prism_y * dx
    jyy = ratio + y * d_ratio * dy + 6 * p1 * y + 2 * p2 * x + prism_y * dy
    jac = torch.stack([jxx, jxy, jyx, jyy], -1).reshape(*jxx.shape, 2, 2)
    return torch.stack([out_x, out_y], -1), jac


def undistort(xy: Tensor, dist: Tensor) -> Tensor:
    """Distorted normalised coordinates (..., 2) to ideal ones, to rounding where the model is one-to-one.

    Far outside the picture the model folds over and has no inverse; there the result is the last iterate.
    """
    ideal = xy.clone()
    # A step is limited to the distance from the axis, which keeps Newton from jumping across a fold.
    limit = 0.5 * (1 + xy.norm(dim=-1, keepdim=True))
    for _ in range(30):
        value, jac = _distort(ideal, dist)
        error = value - xy
        det = jac[..., 0, 0] * jac[..., 1, 1] - jac[..., 0, 1] * jac[..., 1, 0]
        det = torch.where(det.abs() < 1e-6, torch.full_like(det, 1e-6), det)
        step_x = (jac[..., 1, 1] * error[..., 0] - jac[..., 0, 1] * error[..., 1]) / det
        step_y = (jac[..., 0, 0] * error[..., 1] - jac[..., 1, 0] * error[..., 0]) / det
        step = torch.stack([step_x, step_y], -1)
        ideal = ideal - step * (limit / step.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    return ideal
