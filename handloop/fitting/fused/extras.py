"""Compiled terms that a recipe may add: couplings of joints, hyper-extension, the anchor to a proposal.

The formulas of `fitting.coupling_terms`, `fitting.hyperextension` and `fitting.anchor`.
"""

from __future__ import annotations

import numpy as np

from handloop.compiler import inlined, part
from handloop.fitting.fused.linearise import angle_rows
from handloop.fitting.fused.math import mul, right_jacobian_inverse
from handloop.fitting.fused.records import STRIDE
from handloop.priors.couplings import DIP, HINGES, MCP, PIP
from handloop.so3_kernel import so3_log

_MCP, _PIP, _DIP, _HINGES = np.array(MCP), np.array(PIP), np.array(DIP), np.array(HINGES)
_LARGEST_EXPONENT = 4.0


@part
def extra_energy(model, seen, betas, root, w):
    """Sum of the terms that are on; fills w.parts from 7 on. The joint angles of the state must be in w.angles."""
    parts = w.parts
    for i in range(7, 11):
        parts[i] = 0.0
    if model.coupling_scale > 0.0:
        for f in range(4):
            r = _coupling(model, f, w)
            parts[7] += 0.5 * r * r
    if model.spread_scale > 0.0:
        for f in range(4):
            r = _spread(model, f, w)[0]
            parts[8] += 0.5 * r * r
    if model.hinge_weight > 0.0:
        for i in range(len(_HINGES)):
            r = _hinge(model, _HINGES[i], w)[0]
            parts[9] += 0.5 * r * r
    if model.has_anchor:
        parts[10] = _anchor_energy(seen, betas, root, w)
    return parts[7] + parts[8] + parts[9] + parts[10]


@part
def add_extras(model, seen, betas, root, w, hessian, gradient):
    """Their part of the normal equations."""
    if model.coupling_scale > 0.0:
        for f in range(4):
            _add_coupling(model, f, _coupling(model, f, w), w, hessian, gradient)
    if model.spread_scale > 0.0:
        for f in range(4):
            r, rate = _spread(model, f, w)
            if r != 0.0:
                j = _MCP[f]
                angle_rows(model, j, w)
                for e in range(3):
                    w.local[e] = (w.blend[3 + e] - rate * w.blend[e]) * model.spread_scale
                _add_row(j, r, w.local, hessian, gradient)
    if model.hinge_weight > 0.0:
        for i in range(len(_HINGES)):
            j = _HINGES[i]
            r, slope = _hinge(model, j, w)
            angle_rows(model, j, w)
            for e in range(3):
                w.local[e] = slope * w.blend[e]
            _add_row(j, r, w.local, hessian, gradient)
    if model.has_anchor:
        _add_anchor(seen, betas, root, w, hessian, gradient)


@inlined
def _coupling(model, f, w):
    return (
        w.angles[3 * _DIP[f]] - model.dip_per_pip * w.angles[3 * _PIP[f]] - model.dip_offset[f]
    ) * model.coupling_scale


@inlined
def _add_coupling(model, f, r, w, hessian, gradient):
    pip, dip = 3 * _PIP[f], 3 * _DIP[f]
    row = w.new_pose  # Free until the next step.
    angle_rows(model, _PIP[f], w)
    for e in range(3):
        row[e] = -model.dip_per_pip * model.coupling_scale * w.blend[e]
    angle_rows(model, _DIP[f], w)
    for e in range(3):
        row[3 + e] = model.coupling_scale * w.blend[e]
    for e in range(3):
        gradient[pip + e] += row[e] * r
        gradient[dip + e] += row[3 + e] * r
        for g in range(3):
            if g >= e:
                hessian[(pip + e) * STRIDE + pip + g] += row[e] * row[g]
                hessian[(dip + e) * STRIDE + dip + g] += row[3 + e] * row[3 + g]
            # In each chain the PIP is numbered before the DIP.
            hessian[(pip + e) * STRIDE + dip + g] += row[e] * row[3 + g]


@inlined
def _spread(model, f, w):
    """Residual of a finger's spread, and how fast the violated end of the range moves with flexion."""
    flexion, abduction = w.angles[3 * _MCP[f]], w.angles[3 * _MCP[f] + 1]
    closed = min(max(flexion / model.closed_at, 0.0), 1.0)
    moving = 1.0 / model.closed_at if 0.0 < flexion < model.closed_at else 0.0
    low_rate = model.closed_spread[f, 0] - model.open_spread[f, 0]
    high_rate = model.closed_spread[f, 1] - model.open_spread[f, 1]
    low = model.open_spread[f, 0] + low_rate * closed
    high = model.open_spread[f, 1] + high_rate * closed
    if abduction > high:
        return (abduction - high) * model.spread_scale, high_rate * moving
    if abduction < low:
        return (abduction - low) * model.spread_scale, low_rate * moving
    return 0.0, 0.0


@inlined
def _hinge(model, j, w):
    """Residual of a hinge and its derivative by flexion; the exponential goes on as its tangent."""
    exponent = model.straight[j] - w.angles[3 * j]
    grown = model.hinge_weight * np.exp(min(exponent, _LARGEST_EXPONENT))
    return grown * (1.0 + max(exponent - _LARGEST_EXPONENT, 0.0)), -grown


@inlined
def _add_row(j, r, row, hessian, gradient):
    """A residual with derivatives by one finger joint only."""
    for e in range(3):
        gradient[3 * j + e] += row[e] * r
        for g in range(e, 3):
            hessian[(3 * j + e) * STRIDE + 3 * j + g] += row[e] * row[g]


@inlined
def _turn_to_proposal(seen, j, w):
    """w.tip_turn[:3] = log(A^T R) of joint j."""
    for r in range(3):
        for c in range(3):
            total = 0.0
            for k in range(3):
                total += seen.anchor_rot[9 * j + 3 * k + r] * w.rot[9 * j + 3 * k + c]
            w.local[3 * r + c] = total
    so3_log(w.local, 0, w.tip_turn, 0)


@inlined
def _sight(root, i):
    """x/z, y/z or log z of the wrist."""
    z = max(root[2], 1e-3)
    return np.log(z) if i == 2 else root[i] / z


@inlined
def _anchor_energy(seen, betas, root, w):
    total = 0.0
    for j in range(16):
        inverse = seen.anchor_turn[j]
        if inverse > 0.0:
            _turn_to_proposal(seen, j, w)
            for e in range(3):
                total += (inverse * w.tip_turn[e]) ** 2
    for s in range(10):
        if seen.anchor_rest[s] > 0.0:
            total += (seen.anchor_rest[s] * (betas[s] - seen.anchor_betas[s])) ** 2
    for i in range(3):
        if seen.anchor_rest[10 + i] > 0.0:
            total += (seen.anchor_rest[10 + i] * (_sight(root, i) - seen.anchor_sight[i])) ** 2
    return 0.5 * total


@inlined
def _add_anchor(seen, betas, root, w, hessian, gradient):
    jac = w.blend
    for j in range(16):
        inverse = seen.anchor_turn[j]
        if inverse > 0.0:
            _turn_to_proposal(seen, j, w)
            turn = w.tip_turn
            right_jacobian_inverse(turn[0], turn[1], turn[2], w.local)
            at = 45 if j == 0 else 3 * j - 3
            if j == 0:
                for e in range(9):
                    jac[e] = w.local[e]
            else:
                mul(w.local, 0, w.by_pose, 9 * (j - 1), jac, 0)
            square = inverse * inverse
            for e in range(3):
                gradient[at + e] += square * (jac[e] * turn[0] + jac[3 + e] * turn[1] + jac[6 + e] * turn[2])
                for g in range(e, 3):
                    hessian[(at + e) * STRIDE + at + g] += square * (
                        jac[e] * jac[g] + jac[3 + e] * jac[3 + g] + jac[6 + e] * jac[6 + g]
                    )
    for s in range(10):
        if seen.anchor_rest[s] > 0.0:
            square = seen.anchor_rest[s] ** 2
            gradient[48 + s] += square * (betas[s] - seen.anchor_betas[s])
            hessian[(48 + s) * STRIDE + 48 + s] += square
    for i in range(3):
        if seen.anchor_rest[10 + i] > 0.0:
            square = seen.anchor_rest[10 + i] ** 2
            gradient[58 + i] += square * (_sight(root, i) - seen.anchor_sight[i])
            hessian[(58 + i) * STRIDE + 58 + i] += square
