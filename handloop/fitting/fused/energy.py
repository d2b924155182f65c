"""Compiled energy of one hand, its gradient and its Gauss-Newton matrix: the standard recipe's terms.

The formulas are those of `fitting.terms`. Increments have the 62 columns of `core.terms` with the wrist's rotation
moved behind the finger joints': pose 45, orient 3, betas 10, wrist position 3, focal 1. The last 17, from `SHARED` on,
move every point; a finger's own nine move only its points.
"""

from __future__ import annotations

import numpy as np

from handloop.fitting.fused.compiler import compiled
from handloop.fitting.fused.math import mul, right_jacobian_inverse, so3_log
from handloop.fitting.fused.points import JOINT, joint_dirs, point_jacobian, pose_points
from handloop.fitting.fused.records import SHARED, WIDTH


@compiled
def energy_of(model, seen, rot, betas, root, log_focal, w):
    """Total energy; fills w.points, w.pose, w.angles, w.parts (energies by term) and what `linearise` needs."""
    pose_points(model, rot, betas, root, w)
    parts = w.parts
    scale = np.exp(log_focal)
    fx, fy = seen.focal[0] * scale, seen.focal[1] * scale
    c2 = model.robust * model.robust
    total = 0.0
    behind = False
    for p in range(21):
        inverse_sigma = seen.inverse_sigma[p]
        if inverse_sigma > 0.0:
            z = w.points[p, 2]
            if not z > 1e-3:
                behind = True
                z = 1e-3
            rx = (fx * w.points[p, 0] / z + seen.princpt[0] - seen.uv[p, 0]) * inverse_sigma
            ry = (fy * w.points[p, 1] / z + seen.princpt[1] - seen.uv[p, 1]) * inverse_sigma
            s = rx * rx + ry * ry
            total += s * (c2 / (c2 + s))
    parts[0] = np.inf if behind else 0.5 * total
    total = 0.0
    for p in range(21):
        inverse_sigma = seen.inverse_sigma_3d[p]
        if inverse_sigma > 0.0:
            rx = (w.points[p, 0] - seen.xyz[p, 0]) * inverse_sigma
            ry = (w.points[p, 1] - seen.xyz[p, 1]) * inverse_sigma
            rz = (w.points[p, 2] - seen.xyz[p, 2]) * inverse_sigma
            s = rx * rx + ry * ry + rz * rz
            total += s * (c2 / (c2 + s))
    parts[6] = 0.5 * total
    for j in range(15):
        so3_log(rot[j + 1], w.pose[j])
    total = 0.0
    flat = w.pose.reshape(45)
    for i in range(45):
        w.offset[i] = flat[i] - model.prior_mean[i]
    for i in range(45):
        pull = 0.0
        row = model.prior_precision[i]
        for k in range(45):
            pull += row[k] * w.offset[k]
        w.pull[i] = pull
        total += pull * w.offset[i]
    parts[1] = 0.5 * total
    total = 0.0
    for j in range(15):
        mul(model.axes_t[j], rot[j + 1], w.local)
        mul(w.local, model.axes[j], w.frame)
        m = w.frame
        w.angles[j, 0] = np.arctan2(-m[1, 2], m[2, 2])
        w.angles[j, 1] = np.arctan2(m[0, 2], np.sqrt(m[1, 2] * m[1, 2] + m[2, 2] * m[2, 2]))
        w.angles[j, 2] = np.arctan2(-m[0, 1], m[0, 0])
        for a in range(3):
            e = 0.0
            if w.angles[j, a] > model.high[j, a]:
                e = w.angles[j, a] - model.high[j, a]
            elif w.angles[j, a] < model.low[j, a]:
                e = w.angles[j, a] - model.low[j, a]
            w.excess[j, a] = e * model.limits_scale
            total += w.excess[j, a] * w.excess[j, a]
    parts[2] = 0.5 * total
    total = 0.0
    for s in range(10):
        total += (betas[s] - model.shape_mean[s]) ** 2
    parts[3] = 0.5 * total * model.shape_scale * model.shape_scale
    parts[4] = 0.0
    if seen.length == seen.length:
        total = 0.0
        for i in range(4):
            sq = 0.0
            for c in range(3):
                v = model.length_bones[i, c]
                for s in range(10):
                    v += model.length_dirs[i, c, s] * betas[s]
                w.bones[i, c] = v
                sq += v * v
            w.bone_lengths[i] = np.sqrt(sq)
            total += w.bone_lengths[i]
        w.length_error[0] = (total - seen.length) * model.length_scale
        parts[4] = 0.5 * w.length_error[0] * w.length_error[0]
    parts[5] = 0.5 * (log_focal * seen.focal_scale) ** 2
    return parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6]


@compiled
def linearise(model, seen, rot, betas, root, log_focal, w, hessian, gradient):
    """Upper triangle of J^T J (62, 62) and J^T r (62,) at the state `energy_of` was last called with."""
    for i in range(62):
        gradient[i] = 0.0
        for k in range(i, 62):
            hessian[i, k] = 0.0
    _add_points(model, seen, rot, root, log_focal, w, hessian, gradient)
    _add_pose_prior(model, w, hessian, gradient)
    _add_limits(model, w, hessian, gradient)
    shape = model.shape_scale * model.shape_scale
    for s in range(10):
        hessian[48 + s, 48 + s] += shape
        gradient[48 + s] += shape * (betas[s] - model.shape_mean[s])
    if seen.length == seen.length:
        row = w.length_row
        for s in range(10):
            total = 0.0
            for i in range(4):
                for c in range(3):
                    total += w.bones[i, c] * model.length_dirs[i, c, s] / w.bone_lengths[i]
            row[s] = total * model.length_scale
        for s in range(10):
            gradient[48 + s] += row[s] * w.length_error[0]
            for t in range(s, 10):
                hessian[48 + s, 48 + t] += row[s] * row[t]
    focal = seen.focal_scale * seen.focal_scale
    hessian[61, 61] += focal
    gradient[61] += focal * log_focal
    for i in range(62):
        if not model.free[i]:
            gradient[i] = 0.0
            for k in range(i, 62):
                hessian[i, k] = 0.0
            for k in range(i):
                hessian[k, i] = 0.0
            hessian[i, i] = 1.0


@compiled
def _add_points(model, seen, rot, root, log_focal, w, hessian, gradient):
    """Reprojection and 3D points."""
    joint_dirs(model, w)
    scale = np.exp(log_focal)
    fx, fy = seen.focal[0] * scale, seen.focal[1] * scale
    c2 = model.robust * model.robust
    jac, rows, block, grad = w.point_jac, w.rows, w.block, w.block_grad
    # Rows and columns 9 .. 25 of `block` belong to the shared parameters and collect over all fingers; 0 .. 8 are a
    # finger's own.
    for i in range(26):
        grad[i] = 0.0
        for k in range(WIDTH):
            block[i, k] = 0.0
    for finger in range(-1, 5):
        first, last = (0, 1) if finger < 0 else (1 + 4 * finger, 5 + 4 * finger)
        for i in range(9):
            grad[i] = 0.0
            for k in range(WIDTH):
                block[i, k] = 0.0
        n = 0
        for p in range(first, last):
            in_2d, in_3d = seen.inverse_sigma[p], seen.inverse_sigma_3d[p]
            if not (in_2d > 0.0 or in_3d > 0.0):
                continue
            point_jacobian(model, rot, finger, p - first, w, jac)
            # Wrist: bearing x, bearing y, log depth.
            jac[0, 22], jac[1, 22], jac[2, 22] = root[2], 0.0, 0.0
            jac[0, 23], jac[1, 23], jac[2, 23] = 0.0, root[2], 0.0
            jac[0, 24], jac[1, 24], jac[2, 24] = root[0], root[1], root[2]
            if in_2d > 0.0:
                z = max(w.points[p, 2], 1e-3)
                xn, yn = w.points[p, 0] / z, w.points[p, 1] / z
                rx = (fx * xn + seen.princpt[0] - seen.uv[p, 0]) * in_2d
                ry = (fy * yn + seen.princpt[1] - seen.uv[p, 1]) * in_2d
                keep = c2 / (c2 + rx * rx + ry * ry)
                # Square root of the kernel's weight, which is keep squared.
                sx, sy = fx * in_2d * keep, fy * in_2d * keep
                sxz, syz = sx / z, sy / z
                for i in range(25):
                    rows[n, i] = (jac[0, i] - xn * jac[2, i]) * sxz
                    rows[n + 1, i] = (jac[1, i] - yn * jac[2, i]) * syz
                rows[n, 25], rows[n + 1, 25] = xn * sx, yn * sy
                rx *= keep
                ry *= keep
                for i in range(26):
                    grad[i] += rows[n, i] * rx + rows[n + 1, i] * ry
                n += 2
            if in_3d > 0.0:
                rx = (w.points[p, 0] - seen.xyz[p, 0]) * in_3d
                ry = (w.points[p, 1] - seen.xyz[p, 1]) * in_3d
                rz = (w.points[p, 2] - seen.xyz[p, 2]) * in_3d
                keep = c2 / (c2 + rx * rx + ry * ry + rz * rz)
                weight = in_3d * keep
                for i in range(25):
                    rows[n, i] = jac[0, i] * weight
                    rows[n + 1, i] = jac[1, i] * weight
                    rows[n + 2, i] = jac[2, i] * weight
                    grad[i] += (rows[n, i] * rx + rows[n + 1, i] * ry + rows[n + 2, i] * rz) * keep
                for a in range(3):
                    rows[n + a, 25] = 0.0
                n += 3
        if n % 2 == 1:
            for i in range(WIDTH):
                rows[n, i] = 0.0
            n += 1
        if finger < 0:
            _outer(rows, n, 9, block)
            continue
        _outer(rows, n, 0, block)
        own = 3 * JOINT[finger, 0] - 3
        for i in range(9):
            gradient[own + i] += grad[i]
            for k in range(i, 9):
                hessian[own + i, own + k] += block[i, k]
            for k in range(17):
                hessian[own + i, SHARED + k] += block[i, 9 + k]
    for i in range(17):
        gradient[SHARED + i] += grad[9 + i]
        for k in range(i, 17):
            hessian[SHARED + i, SHARED + k] += block[9 + i, 9 + k]


@compiled
def _outer(rows, n, first, block):
    """block[i] += sum over the first n rows of row[i] row, for i >= first; whole padded rows, so that it vectorises."""
    for i in range(first, 26):
        for r in range(0, n, 2):
            u, v = rows[r, i], rows[r + 1, i]
            for k in range(WIDTH):
                block[i, k] += u * rows[r, k] + v * rows[r + 1, k]


@compiled
def _add_pose_prior(model, w, hessian, gradient):
    for j in range(15):
        right_jacobian_inverse(w.pose[j], w.pose_jac[j])
    for a in range(15):
        ja = w.pose_jac[a]
        for e in range(3):
            gradient[3 * a + e] += (
                ja[0, e] * w.pull[3 * a] + ja[1, e] * w.pull[3 * a + 1] + ja[2, e] * w.pull[3 * a + 2]
            )
        for b in range(a, 15):
            jb = w.pose_jac[b]
            for i in range(3):
                row = model.prior_precision[3 * a + i]
                for e in range(3):
                    w.local[i, e] = row[3 * b] * jb[0, e] + row[3 * b + 1] * jb[1, e] + row[3 * b + 2] * jb[2, e]
            for e in range(3):
                for g in range(3):
                    if a < b or e <= g:
                        hessian[3 * a + e, 3 * b + g] += (
                            ja[0, e] * w.local[0, g] + ja[1, e] * w.local[1, g] + ja[2, e] * w.local[2, g]
                        )


@compiled
def _add_limits(model, w, hessian, gradient):
    rows = w.limit_rows
    for j in range(15):
        if w.excess[j, 0] == 0.0 and w.excess[j, 1] == 0.0 and w.excess[j, 2] == 0.0:
            continue
        sin_t, cos_t = np.sin(w.angles[j, 2]), np.cos(w.angles[j, 2])
        sin_a = np.sin(w.angles[j, 1])
        inverse = 1.0 / max(np.cos(w.angles[j, 1]), 0.05)
        local = w.local
        local[0, 0], local[0, 1], local[0, 2] = cos_t * inverse, -sin_t * inverse, 0.0
        local[1, 0], local[1, 1], local[1, 2] = sin_t, cos_t, 0.0
        local[2, 0], local[2, 1], local[2, 2] = -sin_a * cos_t * inverse, sin_a * sin_t * inverse, 1.0
        mul(local, model.axes_t[j], rows)
        for a in range(3):
            if w.excess[j, a] == 0.0:
                continue
            for e in range(3):
                r = rows[a, e] * model.limits_scale
                gradient[3 * j + e] += r * w.excess[j, a]
                for g in range(e, 3):
                    hessian[3 * j + e, 3 * j + g] += r * rows[a, g] * model.limits_scale
