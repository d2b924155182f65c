"""Compiled gradient and Gauss-Newton matrix of one hand's energy.

Increments have 62 columns: the finger joints' axis-angle 45 (their own coordinates: the pose prior's matrix needs no
turning), wrist rotation 3, betas 10, wrist bearing and log depth 3, log focal 1. The last 17, from `SHARED` on, move
every point; a finger's own nine move only its points.
"""

from __future__ import annotations

import numpy as np

from handloop.compiler import inlined, part
from handloop.fitting.fused.math import mul, robust_scale
from handloop.fitting.fused.points import JOINT, chain_derivatives, point_jacobian
from handloop.fitting.fused.records import RESIDUAL, SHARED, STRIDE, WIDTH, N


@inlined
def linearise(model, seen, pose, betas, root, log_focal, w):
    """The standard terms' part of w.hessian and w.gradient, at the state `energy_of` was last called with."""
    hessian, gradient = w.hessian, w.gradient
    component = int(w.component[0])
    prior = model.prior_precision[component * 45 * STRIDE : (component + 1) * 45 * STRIDE]
    for i in range(45 * STRIDE):
        hessian[i] = prior[i]
    for i in range(45 * STRIDE, N * STRIDE):
        hessian[i] = 0.0
    for i in range(45):
        gradient[i] = w.pull[48 * component + i]
    for i in range(45, N):
        gradient[i] = 0.0
    chain_derivatives(model, pose, w)
    _add_points(model, seen, root, log_focal, w, hessian, gradient)
    _add_limits(model, w, hessian, gradient)
    shape = model.shape_scale * model.shape_scale
    for s in range(10):
        hessian[(48 + s) * STRIDE + 48 + s] += shape
        gradient[48 + s] += shape * (betas[s] - model.shape_mean[s])
    if seen.length == seen.length:
        row = w.length_row
        for s in range(10):
            total = 0.0
            for i in range(4):
                for c in range(3):
                    total += w.bones[3 * i + c] * model.length_dirs[i, c, s] / w.bone_lengths[i]
            row[s] = total * model.length_scale
        for s in range(10):
            gradient[48 + s] += row[s] * w.length_error[0]
            for t in range(s, 10):
                hessian[(48 + s) * STRIDE + 48 + t] += row[s] * row[t]
    focal = seen.focal_scale * seen.focal_scale
    hessian[61 * STRIDE + 61] += focal
    gradient[61] += focal * log_focal


@inlined
def _add_points(model, seen, root, log_focal, w, hessian, gradient):
    """Reprojection and 3D points."""
    scale = np.exp(log_focal)
    fx, fy = seen.focal[0] * scale, seen.focal[1] * scale
    c2 = model.robust * model.robust
    jac, rows, block = w.point_jac, w.rows, w.block
    # Rows and columns 9 .. 25 of `block` belong to the shared parameters and collect over all fingers; 0 .. 8 are a
    # finger's own. Column 26 is the gradient.
    _clear(block, 26 * WIDTH)
    for finger in range(-1, 5):
        first, last = (0, 1) if finger < 0 else (1 + 4 * finger, 5 + 4 * finger)
        _clear(block, 9 * WIDTH)
        n = 0
        for p in range(first, last):
            in_2d, in_3d = seen.inverse_sigma[p], seen.inverse_sigma_3d[p]
            if not (in_2d > 0.0 or in_3d > 0.0):
                continue
            point_jacobian(model, finger, p - first, root, w, jac)
            if in_2d > 0.0:
                z = max(w.points[3 * p + 2], 1e-3)
                xn, yn = w.points[3 * p] / z, w.points[3 * p + 1] / z
                rx = (fx * xn + seen.princpt[0] - seen.uv[p, 0]) * in_2d
                ry = (fy * yn + seen.princpt[1] - seen.uv[p, 1]) * in_2d
                keep = robust_scale(rx * rx + ry * ry, c2, model.kernel)
                sx, sy = fx * in_2d * keep, fy * in_2d * keep
                sxz, syz = sx / z, sy / z
                at = n * WIDTH
                two = rows[at : at + 2 * WIDTH]
                for i in range(model.width):
                    two[i] = (jac[i] - xn * jac[2 * WIDTH + i]) * sxz
                    two[WIDTH + i] = (jac[WIDTH + i] - yn * jac[2 * WIDTH + i]) * syz
                rows[at + 25], rows[at + WIDTH + 25] = xn * sx, yn * sy
                rows[at + RESIDUAL], rows[at + WIDTH + RESIDUAL] = rx * keep, ry * keep
                n += 2
            if in_3d > 0.0:
                rx = (w.points[3 * p] - seen.xyz[p, 0]) * in_3d
                ry = (w.points[3 * p + 1] - seen.xyz[p, 1]) * in_3d
                rz = (w.points[3 * p + 2] - seen.xyz[p, 2]) * in_3d
                keep = robust_scale(rx * rx + ry * ry + rz * rz, c2, model.kernel)
                weight = in_3d * keep
                at = n * WIDTH
                three = rows[at : at + 3 * WIDTH]
                for i in range(len(three)):
                    three[i] = jac[i] * weight
                rows[at + RESIDUAL], rows[at + WIDTH + RESIDUAL] = rx * keep, ry * keep
                rows[at + 2 * WIDTH + RESIDUAL] = rz * keep
                n += 3
        while n % 8 != 0:
            for i in range(WIDTH):
                rows[n * WIDTH + i] = 0.0
            n += 1
        # Upper triangle: rows from 9 on need no columns before 9.
        _outer(rows, n, 9, 26, block, 8, model.width - 12)
        if finger < 0:
            continue
        _outer(rows, n, 0, 9, block, 0, model.width - 4)
        own = 3 * JOINT[finger, 0] - 3
        for i in range(9):
            gradient[own + i] += block[i * WIDTH + RESIDUAL]
            for k in range(i, 9):
                hessian[(own + i) * STRIDE + own + k] += block[i * WIDTH + k]
            for k in range(17):
                hessian[(own + i) * STRIDE + SHARED + k] += block[i * WIDTH + 9 + k]
    for i in range(17):
        gradient[SHARED + i] += block[(9 + i) * WIDTH + RESIDUAL]
        for k in range(i, 17):
            hessian[(SHARED + i) * STRIDE + SHARED + k] += block[(9 + i) * WIDTH + 9 + k]


@part
def _clear(array, n):
    for i in range(n):
        array[i] = 0.0


@part
def _outer(rows, n, first, last, block, start, width):
    """block[i] += sum over the first n rows of row[i] row, for first <= i < last; n is a multiple of 8.

    Only the `width` columns from `start` on, which is an argument because a loop of known length would be unrolled and
    not vectorised.
    """
    for r in range(0, n, 8):
        of = rows[r * WIDTH : r * WIDTH + 8 * WIDTH]
        eight = rows[r * WIDTH + start : r * WIDTH + 8 * WIDTH]
        for i in range(first, last):
            a, b, c, d = of[i], of[WIDTH + i], of[2 * WIDTH + i], of[3 * WIDTH + i]
            e, f, g, h = of[4 * WIDTH + i], of[5 * WIDTH + i], of[6 * WIDTH + i], of[7 * WIDTH + i]
            out = block[i * WIDTH + start : i * WIDTH + WIDTH]
            for k in range(width):
                out[k] += (
                    a * eight[k]
                    + b * eight[WIDTH + k]
                    + c * eight[2 * WIDTH + k]
                    + d * eight[3 * WIDTH + k]
                    + e * eight[4 * WIDTH + k]
                    + f * eight[5 * WIDTH + k]
                    + g * eight[6 * WIDTH + k]
                    + h * eight[7 * WIDTH + k]
                )


@inlined
def _add_limits(model, w, hessian, gradient):
    for j in range(15):
        if w.excess[3 * j] == 0.0 and w.excess[3 * j + 1] == 0.0 and w.excess[3 * j + 2] == 0.0:
            continue
        angle_rows(model, j, w)
        rows = w.blend
        for a in range(3):
            excess = w.excess[3 * j + a]
            if excess == 0.0:
                continue
            for e in range(3):
                r = rows[3 * a + e] * model.limits_scale
                gradient[3 * j + e] += r * excess
                for g in range(e, 3):
                    hessian[(3 * j + e) * STRIDE + 3 * j + g] += r * rows[3 * a + g] * model.limits_scale


@part
def angle_rows(model, j, w):
    """w.blend = derivatives (3, 3) of joint j's flexion, abduction and twist by its axis-angle.

    Near 90 degrees of abduction flexion and twist are not determined; the quotient is held there.
    """
    a, at = model.axes, 9 * j
    sin_a, cos_a = w.opposite[3 * j + 1], w.adjacent[3 * j + 1]
    sin_t, cos_t = w.opposite[3 * j + 2], w.adjacent[3 * j + 2]
    length = np.sqrt(sin_t * sin_t + cos_t * cos_t)
    if length > 0.0:
        sin_t, cos_t = sin_t / length, cos_t / length
    else:
        sin_t, cos_t = 0.0, 1.0
    inverse = 1.0 / max(cos_a, 0.05)
    by_angle = w.local
    by_angle[0], by_angle[1], by_angle[2] = cos_t * inverse, -sin_t * inverse, 0.0
    by_angle[3], by_angle[4], by_angle[5] = sin_t, cos_t, 0.0
    by_angle[6], by_angle[7], by_angle[8] = -sin_a * cos_t * inverse, sin_a * sin_t * inverse, 1.0
    for r in range(3):
        for c in range(3):
            w.tip_turn[3 * r + c] = a[at + 3 * c + r]
    mul(by_angle, 0, w.tip_turn, 0, w.blend, 0)
    mul(w.blend, 0, w.by_pose, at, w.tip_turn, 0)
    for e in range(9):
        w.blend[e] = w.tip_turn[e]
