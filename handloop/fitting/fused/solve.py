"""Compiled Levenberg-Marquardt per hand, and the loops over a range of hands.

Step for step the algorithm of `fitting.solver`.
"""

from __future__ import annotations

import numpy as np

from handloop.fitting.fused.compiler import compiled
from handloop.fitting.fused.energy import energy_of, linearise
from handloop.fitting.fused.math import cholesky_solve, mul, so3_exp
from handloop.fitting.fused.points import JOINT, point_jacobian
from handloop.fitting.fused.records import SHARED, make_work, one_of

N = 62


@compiled
def _retract(rot, betas, root, log_focal, delta, w, new_rot, new_betas, new_root):
    for j in range(16):
        at = 45 if j == 0 else 3 * j - 3
        so3_exp(delta[at], delta[at + 1], delta[at + 2], w.spin)
        mul(rot[j], w.spin, new_rot[j])
    for s in range(10):
        new_betas[s] = betas[s] + delta[48 + s]
    grow = np.exp(delta[60])
    new_root[0] = (root[0] + delta[58] * root[2]) * grow
    new_root[1] = (root[1] + delta[59] * root[2]) * grow
    new_root[2] = root[2] * grow
    return log_focal + delta[61]


@compiled
def _take_over(rot, betas, root, new_rot, new_betas, new_root):
    # Loops, not slices: numba's slice assignment brings its error messages along, seconds of compiling.
    for j in range(16):
        for a in range(3):
            for b in range(3):
                rot[j, a, b] = new_rot[j, a, b]
    for s in range(10):
        betas[s] = new_betas[s]
    for a in range(3):
        root[a] = new_root[a]


@compiled
def _step(w, damping):
    """Damped increment into w.delta; returns the decrease the linear model predicts, NaN where there is no step."""
    top = 0.0
    for i in range(N):
        top = max(top, w.hessian[i, i])
    floor = 1e-8 * (1.0 + top * 1e-6)
    for i in range(N):
        w.delta[i] = -w.gradient[i]
        for k in range(i, N):
            w.factor[i, k] = w.hessian[i, k]
        w.factor[i, i] += damping * w.hessian[i, i] + floor
    if not cholesky_solve(w.factor, N, w.delta):
        return np.nan
    largest = 1.0
    for i in range(48):
        largest = max(largest, abs(w.delta[i]))
    for i in range(N):
        d = w.delta[i] / largest
        if 48 <= i < 58:
            d = min(max(d, -2.0), 2.0)
        elif i >= 58:
            d = min(max(d, -0.7), 0.7)
        if not np.isfinite(d):
            return np.nan
        w.delta[i] = d
    # H delta by the upper triangle: each row serves as row and as column.
    predicted = 0.0
    for i in range(N):
        d = w.delta[i]
        total = 0.5 * w.hessian[i, i] * d
        for k in range(i + 1, N):
            total += w.hessian[i, k] * w.delta[k]
        predicted -= d * (w.gradient[i] + total)
    return predicted


@compiled
def solve_hand(model, seen, rot, betas, root, log_focal, max_steps, tolerance, start_damping, w):
    """Minimise one hand's energy in place; returns energy, log focal, converged, steps."""
    energy = energy_of(model, seen, rot, betas, root, log_focal, w)
    if not np.isfinite(energy):
        return np.inf, log_focal, False, 1
    linearise(model, seen, rot, betas, root, log_focal, w, w.hessian, w.gradient)
    damping, growth = start_damping, 2.0
    for step in range(1, max_steps + 1):
        predicted = _step(w, damping)
        if predicted == predicted:
            new_focal = _retract(rot, betas, root, log_focal, w.delta, w, w.new_rot, w.new_betas, w.new_root)
            trial = energy_of(model, seen, w.new_rot, w.new_betas, w.new_root, new_focal, w)
        else:
            trial, predicted, new_focal = np.inf, np.inf, log_focal
        gain = energy - trial
        threshold = tolerance * (energy + 1e-3)
        if gain > 0.0:
            ratio = gain / max(predicted, 1e-30)
            done = gain < threshold and ratio > 0.1
            _take_over(rot, betas, root, w.new_rot, w.new_betas, w.new_root)
            log_focal, energy = new_focal, trial
            cube = 2.0 * ratio - 1.0
            damping *= max(1.0 - cube * cube * cube, 0.1)
            growth = 2.0
            if not done and step < max_steps:
                linearise(model, seen, rot, betas, root, log_focal, w, w.hessian, w.gradient)
        else:
            done = predicted < 0.1 * threshold
            damping *= growth
            growth *= 2.0
        damping = max(damping, 1e-9)
        if done or damping > 1e10:
            return energy, log_focal, True, step
    return energy, log_focal, False, max_steps


@compiled
def solve_range(
    model,
    many,
    hand,
    rot,
    betas,
    root,
    log_focal,
    options,
    energy,
    converged,
    steps,
    first,
    last,
):
    """Solve starts first .. last - 1; start i belongs to hand `hand[i]`. States are changed in place."""
    w = make_work()
    for i in range(first, last):
        h = hand[i]
        seen = one_of(many, h)
        result = solve_hand(
            model, seen, rot[i], betas[i], root[i], log_focal[i], int(options[0]), options[1], options[2], w
        )
        energy[i] = result[0]
        log_focal[i] = result[1]
        converged[i] = result[2]
        steps[i] = result[3]


@compiled
def finish_range(model, many, rot, betas, root, log_focal, parts, spread, first, last):
    """At the solutions of hands first .. last - 1: energies by term (N, 7), and the posterior's factor.

    `spread` (N, 63, 62) becomes B = J U^-1 with H = U^T U, so that B B^T is the covariance of the 21 points under the
    Laplace approximation; it is left alone where it has no rows, and NaN where H cannot be factored.
    """
    w = make_work()
    for i in range(first, last):
        seen = one_of(many, i)
        energy_of(model, seen, rot[i], betas[i], root[i], log_focal[i], w)
        for k in range(7):
            parts[i, k] = w.parts[k]
        if len(spread) == 0:
            continue
        linearise(model, seen, rot[i], betas[i], root[i], log_focal[i], w, w.hessian, w.gradient)
        for k in range(N):
            w.hessian[k, k] *= 1.0 + 1e-12
            w.delta[k] = 0.0
        ok = cholesky_solve(w.hessian, N, w.delta)
        for p in range(21):
            finger = (p - 1) // 4 if p > 0 else -1
            point_jacobian(model, rot[i], finger, p - 1 - 4 * finger, w, w.point_jac)
            jac = w.point_jac
            z = root[i, 2]
            jac[0, 22], jac[1, 22], jac[2, 22] = z, 0.0, 0.0
            jac[0, 23], jac[1, 23], jac[2, 23] = 0.0, z, 0.0
            jac[0, 24], jac[1, 24], jac[2, 24] = root[i, 0], root[i, 1], z
            for a in range(3):
                row = spread[i, 3 * p + a]
                for k in range(N):
                    row[k] = 0.0 if ok else np.nan
                if not ok:
                    continue
                if finger >= 0:
                    own = 3 * JOINT[finger, 0] - 3
                    for k in range(9):
                        row[own + k] = jac[a, k]
                for k in range(16):
                    row[SHARED + k] = jac[a, 9 + k]
                for k in range(N):
                    if not model.free[k]:
                        row[k] = 0.0
                # Forward substitution with U^T, a column at a time.
                for k in range(N):
                    if row[k] != 0.0:
                        row[k] /= w.hessian[k, k]
                        f = row[k]
                        for j in range(k + 1, N):
                            row[j] -= f * w.hessian[k, j]
