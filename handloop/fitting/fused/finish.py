"""Compiled posterior at the solutions: what `fitting.posterior` sums up, without ever storing the factor."""

from __future__ import annotations

import numpy as np

from handloop.compiler import compiled, inlined, part
from handloop.fitting.fused.math import back_substitute, factorise
from handloop.fitting.fused.points import JOINT, point_jacobian, pose_points
from handloop.fitting.fused.records import POINTS, RHS, SHARED, STRIDE, WIDTH, N, make_work, one_of
from handloop.fitting.fused.solve import normal_equations, read_state, total_energy

_ITERATIONS = 8


@compiled
def finish_range(
    model, many, rot, betas, root, log_focal, parts, posterior, variances, scales, directions, arena, first, last
):
    """At the solutions of hands first .. last - 1: energies by term `parts` (B, 11) and, if wanted, the posterior.

    `variances` (B, 21, 3), `scales` (B, 3: depth, aligned, condition) and `directions` (B, 7) are those of
    `fitting.posterior`; NaN where the Gauss-Newton matrix cannot be factored.
    """
    w = make_work(arena)
    for i in range(first, last):
        seen = one_of(model, many, i)
        read_state(rot[i], betas[i], root[i], w)
        total_energy(model, seen, w.pose, w.wrist, w.betas, w.root, log_focal[i], w)
        for k in range(11):
            parts[i, k] = w.parts[k]
        if not posterior:
            continue
        normal_equations(model, seen, w.pose, w.betas, w.root, log_focal[i], w)
        n = N if model.free_focal else N - 1
        if factorise(w.hessian, w.gradient, n, 1e-12, 0.0, w.factor, w.row, w.inverse):
            _point_rows(model, w)
            _forward(w.factor, w.inverse, n, w.spread)
            _sum_up(w, n, variances[i], scales[i], directions[i])
            scales[i, 2] = _condition(w.hessian, w.factor, w.inverse, n, w.row, w.delta)
        else:
            for p in range(21):
                for a in range(3):
                    variances[i, p, a] = np.nan
            scales[i, 0], scales[i, 1], scales[i, 2] = np.nan, np.nan, np.nan
            for k in range(7):
                directions[i, k] = np.nan


@compiled
def points_range(model, rot, betas, root, meant, plain, arena, first, last):
    """The 21 points of states first .. last - 1: as the source means them, and the model's own; (B, 63) each."""
    w = make_work(arena)
    for i in range(first, last):
        read_state(rot[i], betas[i], root[i], w)
        pose_points(model, w.pose, w.wrist, w.betas, w.root, w)
        for k in range(63):
            meant[i, k] = w.points[k]
            plain[i, k] = w.points[k] - w.added[k]


@inlined
def _point_rows(model, w):
    """w.spread = derivatives of the 63 coordinates, by parameter (62 rows, the last never moves a point)."""
    spread = w.spread
    for i in range(N * POINTS):
        spread[i] = 0.0
    for p in range(21):
        finger = (p - 1) // 4 if p > 0 else -1
        point_jacobian(model, finger, p - 1 - 4 * finger if p > 0 else 0, w.root, w, w.point_jac)
        for a in range(3):
            at = 3 * p + a
            if finger >= 0:
                own = 3 * JOINT[finger, 0] - 3
                for k in range(9):
                    spread[(own + k) * POINTS + at] = w.point_jac[a * WIDTH + k]
            for k in range(16):
                spread[(SHARED + k) * POINTS + at] = w.point_jac[a * WIDTH + 9 + k]
    if model.has_fixed:
        for k in range(N):
            if not model.free[k]:
                for at in range(POINTS):
                    spread[k * POINTS + at] = 0.0


@part
def _forward(factor, inverse, n, spread):
    """spread = U^-T spread in place, row by row, eight finished rows at a time."""
    for i in range(n):
        own = spread[i * POINTS : i * POINTS + POINTS]
        for k in range(0, i, 8):
            above = spread[k * POINTS : k * POINTS + 8 * POINTS]
            at = k * STRIDE + i
            f0 = factor[at]
            f1 = factor[at + STRIDE] if k + 1 < i else 0.0
            f2 = factor[at + 2 * STRIDE] if k + 2 < i else 0.0
            f3 = factor[at + 3 * STRIDE] if k + 3 < i else 0.0
            f4 = factor[at + 4 * STRIDE] if k + 4 < i else 0.0
            f5 = factor[at + 5 * STRIDE] if k + 5 < i else 0.0
            f6 = factor[at + 6 * STRIDE] if k + 6 < i else 0.0
            f7 = factor[at + 7 * STRIDE] if k + 7 < i else 0.0
            for j in range(len(own)):
                own[j] -= (
                    f0 * above[j]
                    + f1 * above[POINTS + j]
                    + f2 * above[2 * POINTS + j]
                    + f3 * above[3 * POINTS + j]
                    + f4 * above[4 * POINTS + j]
                    + f5 * above[5 * POINTS + j]
                    + f6 * above[6 * POINTS + j]
                    + f7 * above[7 * POINTS + j]
                )
        scale = inverse[i]
        for j in range(len(own)):
            own[j] *= scale


@part
def _condition(hessian, factor, inverse, n, v, y):
    """Condition number of the matrix scaled to a unit diagonal, by a few steps of power and of inverse iteration.

    `v` and `y` are memory. The result is too small by 3 % in the median and by up to 30 %: the order of magnitude is
    what such a number says.
    """
    size = 0.0
    for i in range(n):
        v[i] = 1.0 + 0.1 * np.cos(i)
        size += v[i] * v[i]
    largest = 0.0
    for _ in range(_ITERATIONS):
        for i in range(n):
            y[i] = 0.0
        for i in range(n):
            unit = 1.0 / np.sqrt(hessian[i * STRIDE + i])
            v[i] *= unit / np.sqrt(size)
        for i in range(n):
            row = hessian[i * STRIDE + i : i * STRIDE + n]
            total = row[0] * v[i]
            for k in range(1, n - i):
                total += row[k] * v[i + k]
                y[i + k] += row[k] * v[i]
            y[i] += total
        size = 0.0
        for i in range(n):
            v[i] = y[i] / np.sqrt(hessian[i * STRIDE + i])
            size += v[i] * v[i]
        largest = np.sqrt(size)
    size = 0.0
    for i in range(n):
        v[i] = 1.0 + 0.1 * np.cos(3.0 * i)
        size += v[i] * v[i]
    growth = 1.0
    for _ in range(_ITERATIONS):
        for i in range(n):
            v[i] *= np.sqrt(hessian[i * STRIDE + i] / size)
        # U^T a = v, then U y = a.
        for i in range(n):
            a = v[i] * inverse[i]
            factor[i * STRIDE + RHS] = a
            row = factor[i * STRIDE + i : i * STRIDE + n]
            for k in range(1, n - i):
                v[i + k] -= row[k] * a
        back_substitute(factor, inverse, n, y)
        size = 0.0
        for i in range(n):
            v[i] = y[i] * np.sqrt(hessian[i * STRIDE + i])
            size += v[i] * v[i]
        growth = np.sqrt(size)
    return largest * growth


@inlined
def _sum_up(w, n, variances, scales, directions):
    """See `fitting.posterior.summarise`, whose formulas these are."""
    points, spread, total = w.points, w.spread, w.row
    for j in range(63):
        total[j] = 0.0
    for i in range(7):
        directions[i] = 0.0
    cx, cy, cz = 0.0, 0.0, 0.0
    for p in range(21):
        cx += points[3 * p] / 21.0
        cy += points[3 * p + 1] / 21.0
        cz += points[3 * p + 2] / 21.0
    xx, yy, zz, xy, xz, yz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for p in range(21):
        x, y, z = points[3 * p] - cx, points[3 * p + 1] - cy, points[3 * p + 2] - cz
        xx, yy, zz = xx + x * x, yy + y * y, zz + z * z
        xy, xz, yz = xy + x * y, xz + x * z, yz + y * z
    size = xx + yy + zz
    # Inverse of the points' inertia, by cofactors.
    a, b, c = yy + zz + 1e-9, xx + zz + 1e-9, xx + yy + 1e-9
    d, e, f = -xy, -xz, -yz
    det = a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
    i00, i11, i22 = (b * c - f * f) / det, (a * c - e * e) / det, (a * b - d * d) / det
    i01, i02, i12 = (e * f - d * c) / det, (d * f - e * b) / det, (d * e - a * f) / det
    removed = 0.0
    for k in range(n):
        row = spread[k * POINTS : k * POINTS + POINTS]
        for j in range(63):
            total[j] += row[j] * row[j]
        mx, my, mz, grow, tx, ty, tz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for p in range(21):
            x, y, z = points[3 * p] - cx, points[3 * p + 1] - cy, points[3 * p + 2] - cz
            u, v, s = row[3 * p], row[3 * p + 1], row[3 * p + 2]
            mx, my, mz = mx + u, my + v, mz + s
            grow += x * u + y * v + z * s
            tx, ty, tz = tx + y * s - z * v, ty + z * u - x * s, tz + x * v - y * u
        # What shift, scale and turn of all points take up.
        removed += (mx * mx + my * my + mz * mz) / 21.0 + grow * grow / size
        removed += tx * (i00 * tx + i01 * ty + i02 * tz)
        removed += ty * (i01 * tx + i11 * ty + i12 * tz)
        removed += tz * (i02 * tx + i12 * ty + i22 * tz)
        directions[0] += mz * mz / 441.0
        tilt = row[29] - row[2]
        directions[1] += tilt * tilt
        for finger in range(5):
            for axis in range(3):
                curl = row[3 * (4 + 4 * finger) + axis] - row[3 * (1 + 4 * finger) + axis]
                directions[2 + finger] += curl * curl
    everything = 0.0
    for p in range(21):
        for axis in range(3):
            variances[p, axis] = total[3 * p + axis]
            everything += total[3 * p + axis]
    scales[0] = directions[0]
    scales[1] = max(everything - removed, 0.0) / 21.0
