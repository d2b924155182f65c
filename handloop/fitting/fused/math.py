"""Compiled building blocks: 3x3 products, SO(3), robust cost, Cholesky. All arrays are float64 and contiguous."""

from __future__ import annotations

import numpy as np

from handloop.fitting.fused.compiler import compiled


@compiled
def mul(a, b, out):
    """out = a b for 3x3 matrices; out must be another array."""
    for i in range(3):
        for j in range(3):
            out[i, j] = a[i, 0] * b[0, j] + a[i, 1] * b[1, j] + a[i, 2] * b[2, j]


@compiled
def so3_exp(x, y, z, out):
    """Rotation matrix of an axis-angle vector (Rodrigues), as `core.rotations.so3_exp`."""
    sq = x * x + y * y + z * z
    if sq < 1e-4:
        # Series to sq^3: the next terms are below 1e-19.
        a = 1.0 - sq / 6.0 * (1.0 - sq / 20.0 * (1.0 - sq / 42.0))
        b = 0.5 - sq / 24.0 * (1.0 - sq / 30.0 * (1.0 - sq / 56.0))
    else:
        t = np.sqrt(sq)
        a = np.sin(t) / t
        h = np.sin(0.5 * t) / t
        b = 2.0 * h * h
    c = 1.0 - b * sq
    out[0, 0], out[1, 1], out[2, 2] = c + b * x * x, c + b * y * y, c + b * z * z
    out[0, 1], out[1, 0] = b * x * y - a * z, b * x * y + a * z
    out[0, 2], out[2, 0] = b * x * z + a * y, b * x * z - a * y
    out[1, 2], out[2, 1] = b * y * z - a * x, b * y * z + a * x


@compiled
def so3_log(r, out):
    """Axis-angle vector (3,) of a rotation matrix through the best-conditioned quaternion component (Shepperd)."""
    trace = r[0, 0] + r[1, 1] + r[2, 2]
    i, top = 0, trace
    for k in range(3):
        if r[k, k] > top:
            i, top = k + 1, r[k, k]
    if i == 0:
        w, x, y, z = 1.0 + trace, r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    elif i == 1:
        w, x, y, z = r[2, 1] - r[1, 2], 1.0 + 2.0 * r[0, 0] - trace, r[1, 0] + r[0, 1], r[0, 2] + r[2, 0]
    elif i == 2:
        w, x, y, z = r[0, 2] - r[2, 0], r[1, 0] + r[0, 1], 1.0 + 2.0 * r[1, 1] - trace, r[2, 1] + r[1, 2]
    else:
        w, x, y, z = r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], 1.0 + 2.0 * r[2, 2] - trace
    if w < 0:
        w, x, y, z = -w, -x, -y, -z
    sin = np.sqrt(x * x + y * y + z * z)
    if sin < 1e-6 * w:
        factor = 2.0 / w
    else:
        factor = 2.0 * np.arctan2(sin, w) / sin
    out[0], out[1], out[2] = factor * x, factor * y, factor * z


@compiled
def right_jacobian_inverse(w, out):
    """(3, 3) J_r^-1 of an axis-angle vector, as `core.rotations.right_jacobian_inverse`."""
    x, y, z = w[0], w[1], w[2]
    sq = x * x + y * y + z * z
    if sq < 1e-2:
        d = 1.0 / 12.0 + sq * (1.0 / 720.0 + sq * (1.0 / 30240.0 + sq * (1.0 / 1209600.0 + sq / 47900160.0)))
    else:
        t = np.sqrt(sq)
        d = (1.0 - 0.5 * t * np.cos(0.5 * t) / np.sin(0.5 * t)) / sq
    c = 1.0 - d * sq
    out[0, 0], out[1, 1], out[2, 2] = c + d * x * x, c + d * y * y, c + d * z * z
    out[0, 1], out[1, 0] = d * x * y - 0.5 * z, d * x * y + 0.5 * z
    out[0, 2], out[2, 0] = d * x * z + 0.5 * y, d * x * z - 0.5 * y
    out[1, 2], out[2, 1] = d * y * z - 0.5 * x, d * y * z + 0.5 * x


@compiled
def cholesky_solve(a, n, x):
    """Solve A x = b in place for a symmetric positive definite A given by its upper triangle; x holds b on entry.

    A is overwritten by U with U^T U = A, row by row and two pivots at a time: every inner loop runs along memory, and
    each trailing entry is loaded and stored once for two updates. Returns False where A is not positive definite.
    """
    k = 0
    while k < n:
        pivot = a[k, k]
        if not pivot > 0.0:
            return False
        scale = 1.0 / np.sqrt(pivot)
        for j in range(k, n):
            a[k, j] *= scale
        x[k] *= scale
        if k + 1 == n:
            break
        f = a[k, k + 1]
        for j in range(k + 1, n):
            a[k + 1, j] -= f * a[k, j]
        x[k + 1] -= f * x[k]
        pivot = a[k + 1, k + 1]
        if not pivot > 0.0:
            return False
        scale = 1.0 / np.sqrt(pivot)
        for j in range(k + 1, n):
            a[k + 1, j] *= scale
        x[k + 1] *= scale
        for i in range(k + 2, n):
            f, g = a[k, i], a[k + 1, i]
            for j in range(i, n):
                a[i, j] -= f * a[k, j] + g * a[k + 1, j]
            x[i] -= f * x[k] + g * x[k + 1]
        k += 2
    for k in range(n - 1, -1, -1):
        total = x[k]
        for j in range(k + 1, n):
            total -= a[k, j] * x[j]
        x[k] = total / a[k, k]
    return True
