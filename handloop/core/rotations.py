"""SO(3) in closed form, safe in float32 at zero and up to an angle of pi.

Conventions: matrices act on column vectors; axis-angle vectors are in rad with an angle of at most pi after `so3_log`.
References: Sola, Deray, Atchuthan, "A micro Lie theory for state estimation in robotics" (2018), for the Jacobians;
Zhou et al., "On the continuity of rotation representations" (2019), for the 6D form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """(..., 3) vectors to (..., 3, 3) matrices with skew(v) @ w = v x w."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*x.shape, 3, 3)


def _sinc_terms(sq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(t)/t, (1-cos t)/t^2 and (t-sin t)/t^3 for squared angles, by series where the quotients cancel."""
    # The quotients lose digits as t -> 0; six terms of each series are exact to float64 below this bound.
    small = sq < 0.1
    safe = torch.where(small, torch.ones_like(sq), sq)
    t = safe.sqrt()
    a = torch.where(small, _series(sq, 1), t.sin() / t)
    b = torch.where(small, _series(sq, 2), 2 * (0.5 * t).sin().square() / safe)
    c = torch.where(small, _series(sq, 3), (t - t.sin()) / (safe * t))
    return a, b, c


def _series(sq: Tensor, k: int) -> Tensor:
    """sum_i (-sq)^i / (2 i + k)!, by Horner's rule."""
    total = torch.full_like(sq, 1.0 / math.factorial(14 + k))
    for i in range(6, -1, -1):
        total = 1.0 / math.factorial(2 * i + k) - sq * total
    return total


def so3_exp(w: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of axis-angle vectors (..., 3) (Rodrigues)."""
    sq = (w * w).sum(-1)
    a, b, _ = _sinc_terms(sq)
    k = skew(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    outer = w.unsqueeze(-1) * w.unsqueeze(-2)
    # I + a K + b K^2 with K^2 = w w^T - |w|^2 I.
    return (1 - b * sq)[..., None, None] * eye + a[..., None, None] * k + b[..., None, None] * outer


def so3_exp_and_turn(w: Tensor) -> tuple[Tensor, Tensor]:
    """`so3_exp` and `right_jacobian` of (..., 3) at once, for those who need no gradients of them.

    By half angles only (t - sin t)/t^3 cancels near zero; the rest needs no series.
    """
    sq = (w * w).sum(-1)
    half = 0.5 * sq.clamp(min=1e-30).sqrt()
    k = half.sin() / half
    a, b = k * half.cos(), 0.5 * k * k
    c = torch.where(sq < 0.1, _series(sq, 3), (1 - a) / sq.clamp(min=0.1))
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    cross, outer = skew(w), w.unsqueeze(-1) * w.unsqueeze(-2)
    a, b, c = a[..., None, None], b[..., None, None], c[..., None, None]
    # I + a K + b K^2 with K^2 = w w^T - |w|^2 I; the Jacobian is a I - b K + c w w^T.
    rotation = torch.addcmul(torch.addcmul((1 - b * sq[..., None, None]) * eye, a, cross), b, outer)
    return rotation, torch.addcmul(torch.addcmul(a * eye, b, cross, value=-1), c, outer)


def shortened(w: Tensor) -> Tensor:
    """The same rotations by axis-angles (..., 3) of at most pi: the short way round."""
    angle = w.square().sum(-1, keepdim=True).sqrt()
    beyond = angle > torch.pi
    turns = ((angle - torch.pi) / (2 * torch.pi)).ceil()
    factor = (angle - 2 * torch.pi * turns) / torch.where(beyond, angle, torch.ones_like(angle))
    return torch.where(beyond, w * factor, w)


def so3_log(r: Tensor) -> Tensor:
    """Axis-angle vectors (..., 3), |w| <= pi, of rotation matrices (..., 3, 3).

    Goes through the unit quaternion whose largest component is computed from a square root (Shepperd 1978), which keeps
    full precision for every angle; near pi either of the two equal answers may come out.
    """
    q = quaternion_from_matrix(r)
    w, v = q[..., 0], q[..., 1:]
    flip = torch.where(w < 0, -torch.ones_like(w), torch.ones_like(w))
    w, v = w * flip, v * flip[..., None]
    sin_sq = (v * v).sum(-1)
    small = sin_sq < 1e-12
    sin = torch.where(small, torch.ones_like(sin_sq), sin_sq).sqrt()
    # Not atan2: torch's CPU kernel rounds it differently by place in the batch, and no hand may depend on its mates.
    factor = torch.where(small, 2.0 / w.clamp(min=0.5), 4.0 * torch.atan(sin / (1 + w)) / sin)
    return v * factor[..., None]


def angle_from_sides(y: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """atan2(y, x), where radius = hypot(x, y) is known and positive.

    Not atan2: torch's CPU kernel rounds it differently by place in the batch, and its gradient at (0, 0) is NaN.
    """
    half = 2 * torch.atan(y / (radius + torch.where(x < 0, -x, x)))
    # Scaled after the cast: torch.where makes its numbers float32.
    straight = torch.where(y < 0, -1.0, 1.0).to(y) * torch.pi
    return torch.where(x < 0, straight - half, half)


def quaternion_from_matrix(r: Tensor) -> Tensor:
    """Unit quaternions (..., 4), scalar first, of rotation matrices (..., 3, 3)."""
    m00, m01, m02 = r[..., 0, 0], r[..., 0, 1], r[..., 0, 2]
    m10, m11, m12 = r[..., 1, 0], r[..., 1, 1], r[..., 1, 2]
    m20, m21, m22 = r[..., 2, 0], r[..., 2, 1], r[..., 2, 2]
    # Row i is 4 q_i times the quaternion; the row with the largest diagonal is the well-conditioned one.
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m21 + m12], -1),
            torch.stack([m10 - m01, m02 + m20, m21 + m12, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    best = torch.diagonal(rows, dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(rows, best[..., None, None].expand(*best.shape, 1, 4), -2).squeeze(-2)
    length: Tensor = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return row / length


def left_jacobian(w: Tensor) -> Tensor:
    """(..., 3, 3) J_l with exp(w + d) = exp(J_l d) exp(w) to first order in d."""
    sq = (w * w).sum(-1)
    a, b, c = _sinc_terms(sq)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    outer = w.unsqueeze(-1) * w.unsqueeze(-2)
    return a[..., None, None] * eye + b[..., None, None] * skew(w) + c[..., None, None] * outer


def left_jacobian_inverse(w: Tensor) -> Tensor:
    """(..., 3, 3) inverse of `left_jacobian`, for angles below 2 pi."""
    sq = (w * w).sum(-1)
    small = sq < 0.1
    safe = torch.where(small, torch.ones_like(sq), sq)
    t = safe.sqrt()
    # d(t) = 1/t^2 - (1 + cos t) / (2 t sin t) = (1 - (t/2) cot(t/2)) / t^2; the half-angle form is safe at pi.
    exact = (1 - 0.5 * t * (0.5 * t).cos() / (0.5 * t).sin()) / safe
    series = 1 / 12 + sq * (1 / 720 + sq * (1 / 30240 + sq * (1 / 1209600 + sq * (1 / 47900160))))
    d = torch.where(small, series, exact)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    outer = w.unsqueeze(-1) * w.unsqueeze(-2)
    return (1 - d * sq)[..., None, None] * eye - 0.5 * skew(w) + d[..., None, None] * outer


def right_jacobian(w: Tensor) -> Tensor:
    """(..., 3, 3) J_r with exp(w + d) = exp(w) exp(J_r d) to first order in d."""
    return left_jacobian(-w)


def right_jacobian_inverse(w: Tensor) -> Tensor:
    """(..., 3, 3) with log(exp(w) exp(d)) = w + J_r^-1 d to first order in d."""
    return left_jacobian_inverse(-w)


def matrix_to_6d(r: Tensor) -> Tensor:
    """First two columns of (..., 3, 3) rotations, one behind the other: (..., 6)."""
    return torch.cat([r[..., 0], r[..., 1]], -1)


def matrix_from_6d(d: Tensor) -> Tensor:
    """Rotations (..., 3, 3) from (..., 6) by Gram-Schmidt (Zhou et al. 2019)."""
    x = torch.nn.functional.normalize(d[..., :3], dim=-1)
    y = d[..., 3:] - (x * d[..., 3:]).sum(-1, keepdim=True) * x
    y = torch.nn.functional.normalize(y, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)
