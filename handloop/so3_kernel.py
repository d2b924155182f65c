"""Compiled maps between rotation matrices and axis-angle vectors, one at a time and for many.

What `core.rotations` does for tensors with gradients, for float64 arrays without: a few microseconds for one hand.
"""

from __future__ import annotations

import numpy as np

from handloop.compiler import compiled, ensure_compiled, inlined, part


@inlined
def exp_coefficients(sq):
    """sin t / t and (1 - cos t) / t^2 of t = sqrt(sq)."""
    if sq < 0.25:
        # Series to sq^7: the next terms are below 1e-17.
        a = 1.0 - sq / 6.0 * (
            1.0
            - sq
            / 20.0
            * (1.0 - sq / 42.0 * (1.0 - sq / 72.0 * (1.0 - sq / 110.0 * (1.0 - sq / 156.0 * (1.0 - sq / 210.0)))))
        )
        b = 0.5 - sq / 24.0 * (
            1.0
            - sq
            / 30.0
            * (1.0 - sq / 56.0 * (1.0 - sq / 90.0 * (1.0 - sq / 132.0 * (1.0 - sq / 182.0 * (1.0 - sq / 240.0)))))
        )
    else:
        t = np.sqrt(sq)
        s = np.sin(0.5 * t)
        a = 2.0 * s * np.cos(0.5 * t) / t
        b = 2.0 * s * s / sq
    return a, b


@inlined
def rotation(x, y, z, a, b, out, k):
    """out[k : k + 9] = rotation matrix of an axis-angle vector with its two coefficients (Rodrigues)."""
    c = 1.0 - b * (x * x + y * y + z * z)
    out[k], out[k + 4], out[k + 8] = c + b * x * x, c + b * y * y, c + b * z * z
    out[k + 1], out[k + 3] = b * x * y - a * z, b * x * y + a * z
    out[k + 2], out[k + 6] = b * x * z + a * y, b * x * z - a * y
    out[k + 5], out[k + 7] = b * y * z - a * x, b * y * z + a * x


@part
def so3_log(r, k, out, at):
    """out[at : at + 3] = axis-angle vector of the rotation matrix r[k : k + 9].

    Through the best-conditioned component of the quaternion (Shepperd).
    """
    r00, r11, r22 = r[k], r[k + 4], r[k + 8]
    trace = r00 + r11 + r22
    i, top = 0, trace
    if r00 > top:
        i, top = 1, r00
    if r11 > top:
        i, top = 2, r11
    if r22 > top:
        i, top = 3, r22
    if i == 0:
        w, x, y, z = 1.0 + trace, r[k + 7] - r[k + 5], r[k + 2] - r[k + 6], r[k + 3] - r[k + 1]
    elif i == 1:
        w, x, y, z = r[k + 7] - r[k + 5], 1.0 + 2.0 * r00 - trace, r[k + 3] + r[k + 1], r[k + 2] + r[k + 6]
    elif i == 2:
        w, x, y, z = r[k + 2] - r[k + 6], r[k + 3] + r[k + 1], 1.0 + 2.0 * r11 - trace, r[k + 7] + r[k + 5]
    else:
        w, x, y, z = r[k + 3] - r[k + 1], r[k + 2] + r[k + 6], r[k + 7] + r[k + 5], 1.0 + 2.0 * r22 - trace
    if w < 0:
        w, x, y, z = -w, -x, -y, -z
    sin = np.sqrt(x * x + y * y + z * z)
    if sin < 1e-6 * w:
        factor = 2.0 / w
    else:
        factor = 2.0 * np.arctan2(sin, w) / sin
    out[at], out[at + 1], out[at + 2] = factor * x, factor * y, factor * z


@compiled
def _vectors(matrices, out):
    for i in range(len(matrices)):
        so3_log(matrices[i], 0, out[i], 0)


@compiled
def _matrices(vectors, out):
    for i in range(len(vectors)):
        x, y, z = vectors[i, 0], vectors[i, 1], vectors[i, 2]
        a, b = exp_coefficients(x * x + y * y + z * z)
        rotation(x, y, z, a, b, out[i], 0)


def rotation_vectors(matrices: np.ndarray) -> np.ndarray:
    """Axis-angle vectors (..., 3), angles at most pi, float64, of rotation matrices (..., 3, 3)."""
    ensure_compiled()
    flat = np.ascontiguousarray(matrices, dtype=np.float64).reshape(-1, 9)
    out = np.empty((len(flat), 3))
    _vectors(flat, out)
    return out.reshape(*matrices.shape[:-2], 3)


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3), float64, of axis-angle vectors (..., 3)."""
    ensure_compiled()
    flat = np.ascontiguousarray(vectors, dtype=np.float64).reshape(-1, 3)
    out = np.empty((len(flat), 9))
    _matrices(flat, out)
    return out.reshape(*vectors.shape, 3)
