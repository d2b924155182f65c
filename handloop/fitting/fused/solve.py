"""Compiled Levenberg-Marquardt per hand, and the loop over a range of starts.

Step for step the algorithm of `fitting.solver`.
"""

from __future__ import annotations

import numpy as np

from handloop.compiler import compiled, inlined, part
from handloop.fitting.fused.energy import energy_of
from handloop.fitting.fused.extras import add_extras, extra_energy
from handloop.fitting.fused.linearise import linearise
from handloop.fitting.fused.math import back_substitute, factorise, mul
from handloop.fitting.fused.records import STRIDE, N, make_work, one_of
from handloop.so3_kernel import exp_coefficients, rotation, so3_log


@part
def total_energy(model, seen, pose, wrist, betas, root, log_focal, w):
    """Energy of all terms; fills w.points, w.parts and what `normal_equations` needs."""
    energy = energy_of(model, seen, pose, wrist, betas, root, log_focal, w)
    return energy + extra_energy(model, seen, betas, root, w)


@part
def normal_equations(model, seen, pose, betas, root, log_focal, w):
    """Upper triangle of J^T J into w.hessian, J^T r into w.gradient, at the state of the last `total_energy`."""
    linearise(model, seen, pose, betas, root, log_focal, w)
    add_extras(model, seen, betas, root, w, w.hessian, w.gradient)
    if model.has_fixed:
        for i in range(N):
            if not model.free[i]:
                w.gradient[i] = 0.0
                for k in range(i, N):
                    w.hessian[i * STRIDE + k] = 0.0
                for k in range(i):
                    w.hessian[k * STRIDE + i] = 0.0
                w.hessian[i * STRIDE + i] = 1.0


@inlined
def _retract(w, log_focal):
    """The state w.pose, w.wrist ... moved by w.delta, into w.new_pose ...; returns the new log focal."""
    delta = w.delta
    for i in range(45):
        w.new_pose[i] = w.pose[i] + delta[i]
    for j in range(15):
        x, y, z = w.new_pose[3 * j], w.new_pose[3 * j + 1], w.new_pose[3 * j + 2]
        sq = x * x + y * y + z * z
        if sq > np.pi * np.pi:
            # The same rotation, the short way round.
            t = np.sqrt(sq)
            shorter = (t - 2.0 * np.pi * np.ceil((t - np.pi) / (2.0 * np.pi))) / t
            w.new_pose[3 * j], w.new_pose[3 * j + 1], w.new_pose[3 * j + 2] = shorter * x, shorter * y, shorter * z
    x, y, z = delta[45], delta[46], delta[47]
    a, b = exp_coefficients(x * x + y * y + z * z)
    rotation(x, y, z, a, b, w.local, 0)
    mul(w.wrist, 0, w.local, 0, w.new_wrist, 0)
    for s in range(10):
        w.new_betas[s] = w.betas[s] + delta[48 + s]
    grow = np.exp(delta[60])
    w.new_root[0] = (w.root[0] + delta[58] * w.root[2]) * grow
    w.new_root[1] = (w.root[1] + delta[59] * w.root[2]) * grow
    w.new_root[2] = w.root[2] * grow
    return log_focal + delta[61]


@inlined
def _take_over(w):
    # Loops, not slices: numba's slice assignment brings its error messages along, seconds of compiling.
    for i in range(45):
        w.pose[i] = w.new_pose[i]
    for a in range(3):
        w.root[a] = w.new_root[a]
    for e in range(9):
        w.wrist[e] = w.new_wrist[e]
    for s in range(10):
        w.betas[s] = w.new_betas[s]


@part
def step(hessian, gradient, n, damping, factor, row, inverse, delta):
    """Damped increment into `delta`; returns the decrease the linear model predicts, NaN where there is no step."""
    top = 0.0
    for i in range(n):
        top = max(top, hessian[i * STRIDE + i])
    floor = 1e-8 * (1.0 + top * 1e-6)
    if not factorise(hessian, gradient, n, damping, floor, factor, row, inverse):
        return np.nan
    back_substitute(factor, inverse, n, delta)
    for i in range(n, N):
        delta[i] = 0.0
    largest = 1.0
    for i in range(48):
        largest = max(largest, abs(delta[i]))
    clamped = largest > 1.0
    for i in range(n):
        d = delta[i] / largest
        if i >= 48:
            most = 2.0 if i < 58 else 0.7
            if abs(d) > most:
                clamped = True
                d = min(max(d, -most), most)
        if not np.isfinite(d):
            return np.nan
        delta[i] = d
    predicted = 0.0
    if not clamped:
        # (H + D) d = -g, so -(g + H d / 2) d = (d D d - g d) / 2.
        for i in range(n):
            d = delta[i]
            predicted += 0.5 * d * (d * (damping * hessian[i * STRIDE + i] + floor) - gradient[i])
        return predicted
    # H delta by the upper triangle: each row serves as row and as column.
    for i in range(n):
        total = 0.5 * hessian[i * STRIDE + i] * delta[i]
        for k in range(i + 1, n):
            total += hessian[i * STRIDE + k] * delta[k]
        predicted -= delta[i] * (gradient[i] + total)
    return predicted


@inlined
def _solve_hand(model, seen, log_focal, max_steps, tolerance, start_damping, w):
    """Minimise one hand's energy from the state in w.pose, w.wrist ...; returns energy, log focal, converged, steps."""
    n = N if model.free_focal else N - 1
    energy = total_energy(model, seen, w.pose, w.wrist, w.betas, w.root, log_focal, w)
    if not np.isfinite(energy):
        return np.inf, log_focal, False, 1
    damping, growth = start_damping, 2.0
    fresh = True
    for count in range(1, max_steps + 1):
        if fresh:
            normal_equations(model, seen, w.pose, w.betas, w.root, log_focal, w)
        predicted = step(w.hessian, w.gradient, n, damping, w.factor, w.row, w.inverse, w.delta)
        trial = np.inf
        new_focal = log_focal
        if predicted == predicted:
            new_focal = _retract(w, log_focal)
            trial = total_energy(model, seen, w.new_pose, w.new_wrist, w.new_betas, w.new_root, new_focal, w)
        else:
            predicted = np.inf
        gain = energy - trial
        threshold = tolerance * (energy + 1e-3)
        fresh = gain > 0.0
        if fresh:
            ratio = gain / max(predicted, 1e-30)
            done = gain < threshold and ratio > 0.1
            _take_over(w)
            log_focal, energy = new_focal, trial
            cube = 2.0 * ratio - 1.0
            damping *= max(1.0 - cube * cube * cube, 0.1)
            growth = 2.0
        else:
            done = predicted < 0.1 * threshold
            damping *= growth
            growth *= 2.0
        damping = max(damping, 1e-9)
        if done or damping > 1e10:
            return energy, log_focal, done, count
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
    max_steps,
    tolerance,
    damping,
    energy,
    converged,
    steps,
    arena,
    first,
    last,
):
    """Solve starts first .. last - 1; start i belongs to hand `hand[i]`. States are changed in place."""
    w = make_work(arena)
    for i in range(first, last):
        seen = one_of(model, many, hand[i])
        read_state(rot[i], betas[i], root[i], w)
        energy[i], log_focal[i], converged[i], steps[i] = _solve_hand(
            model, seen, log_focal[i], max_steps, tolerance, damping, w
        )
        _write_state(rot[i], betas[i], root[i], w)


@part
def read_state(rot, betas, root, w):
    """Rotations (16 * 9,), betas, wrist position into w.pose, w.wrist, w.betas, w.root."""
    for j in range(15):
        so3_log(rot, 9 * j + 9, w.pose, 3 * j)
    for e in range(9):
        w.wrist[e] = rot[e]
    for a in range(3):
        w.root[a] = root[a]
    for s in range(10):
        w.betas[s] = betas[s]


@inlined
def _write_state(rot, betas, root, w):
    """The other way; the wrist's rotation is cleaned of the rounding that products pile up."""
    vector = w.local
    for j in range(16):
        if j == 0:
            so3_log(w.wrist, 0, vector, 0)
            x, y, z = vector[0], vector[1], vector[2]
        else:
            x, y, z = w.pose[3 * j - 3], w.pose[3 * j - 2], w.pose[3 * j - 1]
        a, b = exp_coefficients(x * x + y * y + z * z)
        rotation(x, y, z, a, b, rot, 9 * j)
    for a in range(3):
        root[a] = w.root[a]
    for s in range(10):
        betas[s] = w.betas[s]
