"""Compiled Levenberg-Marquardt per hand, and the loops over a range of hands.

Step for step the algorithm of `fitting.solver`.
"""

from __future__ import annotations

import numpy as np

from handloop.fitting.fused.compiler import compiled
from handloop.fitting.fused.energy import energy_of, linearise
from handloop.fitting.fused.math import cholesky_solve, mul, so3_exp
from handloop.fitting.fused.records import make_seen, make_work

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
    model, uv, inverse_sigma, focal, princpt, length, hand, rot, betas, root, log_focal, options, energy, converged, steps,
    first, last,
):
    """Solve starts first .. last - 1; start i belongs to hand `hand[i]`. States are changed in place."""
    w = make_work()
    for i in range(first, last):
        h = hand[i]
        seen = make_seen(uv[h], inverse_sigma[h], focal[h], princpt[h], length[h])
        result = solve_hand(
            model, seen, rot[i], betas[i], root[i], log_focal[i], int(options[0]), options[1], options[2], w
        )
        energy[i] = result[0]
        log_focal[i] = result[1]
        converged[i] = result[2]
        steps[i] = result[3]


@compiled
def energies_range(model, uv, inverse_sigma, focal, princpt, length, rot, betas, root, log_focal, parts, first, last):
    """Energy by term (N, 6) of one state per hand, for hands first .. last - 1."""
    w = make_work()
    for i in range(first, last):
        seen = make_seen(uv[i], inverse_sigma[i], focal[i], princpt[i], length[i])
        energy_of(model, seen, rot[i], betas[i], root[i], log_focal[i], w)
        for k in range(6):
            parts[i, k] = w.parts[k]
