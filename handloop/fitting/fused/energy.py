"""Compiled energy of one hand: the standard recipe's terms, with the formulas of `fitting.terms`."""

from __future__ import annotations

import numpy as np

from handloop.compiler import inlined
from handloop.fitting.fused.math import arc_tangents, robust_cost, turn_vector
from handloop.fitting.fused.points import pose_points
from handloop.fitting.fused.records import STRIDE


@inlined
def energy_of(model, seen, pose, wrist, betas, root, log_focal, w):
    """Energy of the standard terms; fills w.points, w.angles, w.parts (energies by term) and what `linearise` needs."""
    pose_points(model, pose, wrist, betas, root, w)
    parts = w.parts
    _points_energy(model, seen, log_focal, w)
    _pose_energy(model, pose, w)
    _limits_energy(model, w)
    total = 0.0
    for s in range(10):
        away = betas[s] - model.shape_mean[s]
        total += away * away
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
                w.bones[3 * i + c] = v
                sq += v * v
            w.bone_lengths[i] = np.sqrt(sq)
            total += w.bone_lengths[i]
        w.length_error[0] = (total - seen.length) * model.length_scale
        parts[4] = 0.5 * w.length_error[0] * w.length_error[0]
    parts[5] = 0.5 * (log_focal * seen.focal_scale) ** 2
    return parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6]


@inlined
def _points_energy(model, seen, log_focal, w):
    scale = np.exp(log_focal)
    fx, fy = seen.focal[0] * scale, seen.focal[1] * scale
    c2 = model.robust * model.robust
    points = w.points
    total = 0.0
    behind = False
    for p in range(21):
        inverse_sigma = seen.inverse_sigma[p]
        if inverse_sigma > 0.0:
            z = points[3 * p + 2]
            if not z > 1e-3:
                behind = True
                z = 1e-3
            rx = (fx * points[3 * p] / z + seen.princpt[0] - seen.uv[p, 0]) * inverse_sigma
            ry = (fy * points[3 * p + 1] / z + seen.princpt[1] - seen.uv[p, 1]) * inverse_sigma
            total += robust_cost(rx * rx + ry * ry, c2, model.kernel)
    w.parts[0] = np.inf if behind else 0.5 * total
    total = 0.0
    for p in range(21):
        inverse_sigma = seen.inverse_sigma_3d[p]
        if inverse_sigma > 0.0:
            rx = (points[3 * p] - seen.xyz[p, 0]) * inverse_sigma
            ry = (points[3 * p + 1] - seen.xyz[p, 1]) * inverse_sigma
            rz = (points[3 * p + 2] - seen.xyz[p, 2]) * inverse_sigma
            total += robust_cost(rx * rx + ry * ry + rz * rz, c2, model.kernel)
    w.parts[6] = 0.5 * total


@inlined
def _pose_energy(model, pose, w):
    """The prior's component of least energy; its number, and precision times distance from its mean, are kept."""
    best = np.inf
    away = w.away
    for k in range(len(model.prior_offset)):
        for i in range(45):
            away[i] = pose[i] - model.prior_mean[k, i]
        pull = w.pull[48 * k : 48 * k + 48]
        for i in range(48):
            pull[i] = 0.0
        # The precision is symmetric: its rows times what they belong to, nine at a time, add up to the product.
        for j in range(5):
            a0, a1, a2, a3, a4 = away[9 * j], away[9 * j + 1], away[9 * j + 2], away[9 * j + 3], away[9 * j + 4]
            a5, a6, a7, a8 = away[9 * j + 5], away[9 * j + 6], away[9 * j + 7], away[9 * j + 8]
            at = (45 * k + 9 * j) * STRIDE
            rows = model.prior_precision[at : at + 9 * STRIDE]
            for i in range(len(pull)):
                pull[i] += (
                    a0 * rows[i]
                    + a1 * rows[STRIDE + i]
                    + a2 * rows[2 * STRIDE + i]
                    + a3 * rows[3 * STRIDE + i]
                    + a4 * rows[4 * STRIDE + i]
                    + a5 * rows[5 * STRIDE + i]
                    + a6 * rows[6 * STRIDE + i]
                    + a7 * rows[7 * STRIDE + i]
                    + a8 * rows[8 * STRIDE + i]
                )
        total = 0.0
        for i in range(45):
            total += pull[i] * away[i]
        energy = 0.5 * total + model.prior_offset[k]
        if energy < best:
            best = energy
            w.component[0] = k
    w.parts[1] = best


@inlined
def _limits_energy(model, w):
    """Flexion, abduction and twist are the Euler angles of A^T R A; beyond their range they cost."""
    for j in range(15):
        a, at = model.axes, 9 * j
        # Columns of R A, then the entries of A^T R A that the angles need.
        x0, y0, z0 = turn_vector(w.rot, at + 9, a[at], a[at + 3], a[at + 6])
        x1, y1, z1 = turn_vector(w.rot, at + 9, a[at + 1], a[at + 4], a[at + 7])
        x2, y2, z2 = turn_vector(w.rot, at + 9, a[at + 2], a[at + 5], a[at + 8])
        m00 = a[at] * x0 + a[at + 3] * y0 + a[at + 6] * z0
        m01 = a[at] * x1 + a[at + 3] * y1 + a[at + 6] * z1
        m02 = a[at] * x2 + a[at + 3] * y2 + a[at + 6] * z2
        m12 = a[at + 1] * x2 + a[at + 4] * y2 + a[at + 7] * z2
        m22 = a[at + 2] * x2 + a[at + 5] * y2 + a[at + 8] * z2
        w.opposite[3 * j], w.adjacent[3 * j] = -m12, m22
        w.opposite[3 * j + 1], w.adjacent[3 * j + 1] = m02, np.sqrt(m12 * m12 + m22 * m22)
        w.opposite[3 * j + 2], w.adjacent[3 * j + 2] = -m01, m00
    arc_tangents(w.opposite, w.adjacent, w.angles, 45)
    total = 0.0
    for i in range(45):
        angle = w.angles[i]
        over, under = angle - model.high[i], angle - model.low[i]
        e = over if over > 0.0 else 0.0
        e = under if under < 0.0 else e
        e *= model.limits_scale
        w.excess[i] = e
        total += e * e
    w.parts[2] = 0.5 * total
