"""Compiled building blocks: 3x3 products, Jacobians of SO(3), arc tangents, robust costs, Cholesky; all float64."""

from __future__ import annotations

import numpy as np

from handloop.compiler import inlined, part
from handloop.fitting.fused.records import RHS, STRIDE, WIDTH

GEMAN_MCCLURE, HUBER, CAUCHY = 0, 1, 2


@inlined
def mul(a, i, b, j, out, k):
    """Entries out[k : k + 9] = a[i : i + 9] b[j : j + 9] as 3x3 matrices; out must not overlap the others."""
    b00, b01, b02 = b[j], b[j + 1], b[j + 2]
    b10, b11, b12 = b[j + 3], b[j + 4], b[j + 5]
    b20, b21, b22 = b[j + 6], b[j + 7], b[j + 8]
    for r in range(0, 9, 3):
        x, y, z = a[i + r], a[i + r + 1], a[i + r + 2]
        out[k + r] = x * b00 + y * b10 + z * b20
        out[k + r + 1] = x * b01 + y * b11 + z * b21
        out[k + r + 2] = x * b02 + y * b12 + z * b22


@inlined
def turn_vector(a, i, x, y, z):
    """a[i : i + 9] as a 3x3 matrix times (x, y, z)."""
    return (
        a[i] * x + a[i + 1] * y + a[i + 2] * z,
        a[i + 3] * x + a[i + 4] * y + a[i + 5] * z,
        a[i + 6] * x + a[i + 7] * y + a[i + 8] * z,
    )


@inlined
def cross_columns(spin, i, ax, ay, az, jac, first):
    """Three columns of a point's derivative: the columns of spin[i : i + 9] crossed with the arm (ax, ay, az)."""
    for e in range(3):
        gx, gy, gz = spin[i + e], spin[i + 3 + e], spin[i + 6 + e]
        jac[first + e] = gy * az - gz * ay
        jac[WIDTH + first + e] = gz * ax - gx * az
        jac[2 * WIDTH + first + e] = gx * ay - gy * ax


@inlined
def right_jacobian(x, y, z, a, b, out, k):
    """out[k : k + 9] = J_r, exp(w + d) = exp(w) exp(J_r d), as `core.rotations.right_jacobian`: I - b [w] + c [w]^2."""
    sq = x * x + y * y + z * z
    if sq < 0.25:
        c = 1.0 - sq / 110.0 * (1.0 - sq / 156.0 * (1.0 - sq / 210.0))
        c = (1.0 - sq / 20.0 * (1.0 - sq / 42.0 * (1.0 - sq / 72.0 * c))) / 6.0
    else:
        c = (1.0 - a) / sq
    out[k], out[k + 4], out[k + 8] = a + c * x * x, a + c * y * y, a + c * z * z
    out[k + 1], out[k + 3] = c * x * y + b * z, c * x * y - b * z
    out[k + 2], out[k + 6] = c * x * z - b * y, c * x * z + b * y
    out[k + 5], out[k + 7] = c * y * z + b * x, c * y * z - b * x


@inlined
def right_jacobian_inverse(x, y, z, out):
    """out[:9] = J_r^-1 of an axis-angle vector, as `core.rotations.right_jacobian_inverse`: I + [w] / 2 + d [w]^2."""
    sq = x * x + y * y + z * z
    if sq < 1e-2:
        d = 1.0 / 12.0 + sq * (1.0 / 720.0 + sq * (1.0 / 30240.0 + sq * (1.0 / 1209600.0 + sq / 47900160.0)))
    else:
        t = np.sqrt(sq)
        d = (1.0 - 0.5 * t * np.cos(0.5 * t) / np.sin(0.5 * t)) / sq
    c = 1.0 - d * sq
    out[0], out[4], out[8] = c + d * x * x, c + d * y * y, c + d * z * z
    out[1], out[3] = d * x * y - 0.5 * z, d * x * y + 0.5 * z
    out[2], out[6] = d * x * z + 0.5 * y, d * x * z - 0.5 * y
    out[5], out[7] = d * y * z - 0.5 * x, d * y * z + 0.5 * x


@inlined
def arc_tangents(y, x, out, n):
    """out = atan2(y, x) of the first n entries, without branches so that it vectorises; 0 where both are 0.

    The octant is folded to |t| <= tan(pi/8); there atan(t) / t is a polynomial in t^2, by Chebyshev interpolation to
    1e-18.
    """
    for i in range(n):
        ax, ay = abs(x[i]), abs(y[i])
        small, large = (ax, ay) if ax < ay else (ay, ax)
        large = large if large > 0.0 else 1.0
        upper = small > 0.41421356237309503 * large
        # atan(s / l) = pi / 4 + atan((s - l) / (s + l))
        t = (small - large) / (small + large) if upper else small / large
        z = t * t
        p = -0.017805397205419446
        p = p * z + 0.03796525745386593
        p = p * z - 0.05035102456601552
        p = p * z + 0.05846878297330872
        p = p * z - 0.06662951813629191
        p = p * z + 0.07692045330902225
        p = p * z - 0.09090896809064027
        p = p * z + 0.11111110744919658
        p = p * z - 0.14285714279250245
        p = p * z + 0.19999999999940893
        p = p * z - 0.3333333333333312
        angle = t + t * (z * p)
        angle = 0.7853981633974483 + angle if upper else angle
        angle = 1.5707963267948966 - angle if ax < ay else angle
        angle = 3.141592653589793 - angle if x[i] < 0.0 else angle
        out[i] = -angle if y[i] < 0.0 else angle


@inlined
def robust_cost(s, c2, kind):
    """rho(s) of a squared residual norm, as the kernels of `core.terms`."""
    if kind == GEMAN_MCCLURE:
        return s * (c2 / (c2 + s))
    if kind == HUBER:
        return s if s <= c2 else 2.0 * np.sqrt(c2 * s) - c2
    return c2 * np.log1p(s / c2)


@inlined
def robust_scale(s, c2, kind):
    """Square root of the kernel's weight rho'(s)."""
    if kind == GEMAN_MCCLURE:
        return c2 / (c2 + s)
    if kind == HUBER:
        return 1.0 if s <= c2 else (c2 / s) ** 0.25
    return np.sqrt(c2 / (c2 + s))


@part
def factorise(hessian, gradient, n, damping, floor, factor, row, inverse):
    """Cholesky factor U^T U of H + damping diag(H) + floor, and U^-T (-gradient) in its column RHS.

    Row by row; each is reduced by eight finished rows at a time, so that the inner loop has much to do per load.
    Returns False where the matrix is not positive definite.
    """
    for i in range(n):
        width = n - i
        given = hessian[i * STRIDE + i : i * STRIDE + n]
        for j in range(width):
            row[j] = given[j]
        row[0] = row[0] * (1.0 + damping) + floor
        right = -gradient[i]
        for k in range(0, i, 8):
            above = factor[k * STRIDE + i : k * STRIDE + 7 * STRIDE + n]
            f0 = above[0]
            # Rows from i on hold what an earlier matrix left there.
            f1 = above[STRIDE] if k + 1 < i else 0.0
            f2 = above[2 * STRIDE] if k + 2 < i else 0.0
            f3 = above[3 * STRIDE] if k + 3 < i else 0.0
            f4 = above[4 * STRIDE] if k + 4 < i else 0.0
            f5 = above[5 * STRIDE] if k + 5 < i else 0.0
            f6 = above[6 * STRIDE] if k + 6 < i else 0.0
            f7 = above[7 * STRIDE] if k + 7 < i else 0.0
            for j in range(width):
                row[j] -= (
                    f0 * above[j]
                    + f1 * above[STRIDE + j]
                    + f2 * above[2 * STRIDE + j]
                    + f3 * above[3 * STRIDE + j]
                    + f4 * above[4 * STRIDE + j]
                    + f5 * above[5 * STRIDE + j]
                    + f6 * above[6 * STRIDE + j]
                    + f7 * above[7 * STRIDE + j]
                )
            at = k * STRIDE + RHS
            right -= (
                f0 * factor[at]
                + f1 * factor[at + STRIDE]
                + f2 * factor[at + 2 * STRIDE]
                + f3 * factor[at + 3 * STRIDE]
                + f4 * factor[at + 4 * STRIDE]
                + f5 * factor[at + 5 * STRIDE]
                + f6 * factor[at + 6 * STRIDE]
                + f7 * factor[at + 7 * STRIDE]
            )
        if not row[0] > 0.0:
            return False
        scale = 1.0 / np.sqrt(row[0])
        inverse[i] = scale
        own = factor[i * STRIDE + i : i * STRIDE + n]
        for j in range(width):
            own[j] = row[j] * scale
        factor[i * STRIDE + RHS] = right * scale
    return True


@part
def back_substitute(factor, inverse, n, x):
    """x = U^-1 (column RHS), four unknowns at a time: their sums do not wait for each other."""
    k = n
    while k % 4 != 0:
        k -= 1
        total = factor[k * STRIDE + RHS]
        for j in range(k + 1, n):
            total -= factor[k * STRIDE + j] * x[j]
        x[k] = total * inverse[k]
    for block in range(k // 4 - 1, -1, -1):
        k = 4 * block
        rows = factor[k * STRIDE + k : k * STRIDE + 3 * STRIDE + n]
        known = x[k + 4 : n]
        s0 = s1 = s2 = s3 = 0.0
        for j in range(n - k - 4):
            v = known[j]
            s0 += rows[4 + j] * v
            s1 += rows[STRIDE + 4 + j] * v
            s2 += rows[2 * STRIDE + 4 + j] * v
            s3 += rows[3 * STRIDE + 4 + j] * v
        at = k * STRIDE + RHS
        x3 = (factor[at + 3 * STRIDE] - s3) * inverse[k + 3]
        x2 = (factor[at + 2 * STRIDE] - s2 - rows[2 * STRIDE + 3] * x3) * inverse[k + 2]
        x1 = (factor[at + STRIDE] - s1 - rows[STRIDE + 2] * x2 - rows[STRIDE + 3] * x3) * inverse[k + 1]
        x0 = (factor[at] - s0 - rows[1] * x1 - rows[2] * x2 - rows[3] * x3) * inverse[k]
        x[k], x[k + 1], x[k + 2], x[k + 3] = x0, x1, x2, x3
