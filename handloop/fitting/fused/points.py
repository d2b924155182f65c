"""Compiled kinematics of one hand: the 21 points in canonical order and what their derivatives are made of.

The same mathematics as `hand.kinematics`, with the chains written out. Fingers count thumb, index, middle, ring, pinky;
`JOINT[f, d]` is the MANO joint d of finger f. Points 1 + 4 f + d are joints for d < 3 and the fingertip for d = 3.
"""

from __future__ import annotations

import numpy as np

from handloop.fitting.fused.compiler import compiled
from handloop.fitting.fused.math import mul
from handloop.hand.kinematics import CHAINS, STARTING_JOINT

JOINT = np.array(CHAINS)
START = np.array(STARTING_JOINT)


@compiled
def pose_points(model, rot, betas, root, w):
    """Fill w.rest, w.world, w.x, w.unposed, w.skinned and w.points from rotations (16, 3, 3), betas, wrist position."""
    rest, world, x = w.rest, w.world, w.x
    for j in range(16):
        for c in range(3):
            total = model.joints[j, c]
            for s in range(10):
                total += model.joints_dirs[j, c, s] * betas[s]
            rest[j, c] = total
    for a in range(3):
        x[0, a] = root[a]
        w.points[0, a] = root[a]
        for b in range(3):
            world[0, a, b] = rot[0, a, b]
    for f in range(5):
        parent = 0
        for d in range(3):
            j = JOINT[f, d]
            for a in range(3):
                x[j, a] = (
                    x[parent, a]
                    + world[parent, a, 0] * (rest[j, 0] - rest[parent, 0])
                    + world[parent, a, 1] * (rest[j, 1] - rest[parent, 1])
                    + world[parent, a, 2] * (rest[j, 2] - rest[parent, 2])
                )
                w.points[1 + 4 * f + d, a] = x[j, a]
            mul(world[parent], rot[j], world[j])
            parent = j
    # R - I of the finger joints drives the pose blend shapes.
    for j in range(15):
        for a in range(3):
            for b in range(3):
                w.feature[9 * j + 3 * a + b] = rot[j + 1, a, b]
            w.feature[9 * j + 4 * a] -= 1.0
    for f in range(5):
        for c in range(3):
            total = model.tips[f, c]
            for s in range(10):
                total += model.tips_dirs[f, c, s] * betas[s]
            blend = 0.0
            row = model.tips_pose[f, c]
            for e in range(135):
                blend += row[e] * w.feature[e]
            w.unposed[f, c] = total + blend
            w.points[4 + 4 * f, c] = 0.0
        for m in range(16):
            weight = model.tips_weights[f, m]
            if weight == 0.0:
                continue
            for a in range(3):
                moved = x[m, a]
                for b in range(3):
                    moved += world[m, a, b] * (w.unposed[f, b] - rest[m, b])
                w.skinned[f, m, a] = moved
                w.points[4 + 4 * f, a] += weight * moved
    if model.has_offsets:
        scale = 1.0
        for s in range(10):
            scale += model.scale_dirs[s] * betas[s]
        for p in range(21):
            j = START[p]
            for a in range(3):
                turned = (
                    world[j, a, 0] * model.offsets[p, 0]
                    + world[j, a, 1] * model.offsets[p, 1]
                    + world[j, a, 2] * model.offsets[p, 2]
                )
                w.turned[p, a] = turned
                w.added[p, a] = scale * turned
                w.points[p, a] += scale * turned


@compiled
def joint_dirs(model, w):
    """Fill w.x_dirs (16, 3, 10): the joints' derivative by the betas at a fixed wrist."""
    for a in range(3):
        for s in range(10):
            w.x_dirs[0, a, s] = 0.0
    for f in range(5):
        parent = 0
        for d in range(3):
            j = JOINT[f, d]
            for a in range(3):
                g0, g1, g2 = w.world[parent, a, 0], w.world[parent, a, 1], w.world[parent, a, 2]
                for s in range(10):
                    w.x_dirs[j, a, s] = (
                        w.x_dirs[parent, a, s]
                        + g0 * (model.joints_dirs[j, 0, s] - model.joints_dirs[parent, 0, s])
                        + g1 * (model.joints_dirs[j, 1, s] - model.joints_dirs[parent, 1, s])
                        + g2 * (model.joints_dirs[j, 2, s] - model.joints_dirs[parent, 2, s])
                    )
            parent = j


@compiled
def turn(world, j, ax, ay, az, jac, first):
    """Three columns of a point's derivative by joint j's increment: G's columns crossed with the arm."""
    for e in range(3):
        gx, gy, gz = world[j, 0, e], world[j, 1, e], world[j, 2, e]
        jac[0, first + e] = gy * az - gz * ay
        jac[1, first + e] = gz * ax - gx * az
        jac[2, first + e] = gx * ay - gy * ax


@compiled
def point_jacobian(model, rot, f, d, w, jac):
    """Derivative (3, 26) of point d of finger f (-1: the wrist).

    Columns: own joints 9, wrist rotation 3, betas 10, wrist position 3, focal 1.

    The wrist position's and the focal length's columns are left alone. Blend shapes that reach over from other fingers'
    joints are left out: they change a tip by fractions of a millimetre per radian.
    """
    x, world, x_dirs = w.x, w.world, w.x_dirs
    if f < 0:
        for a in range(3):
            for c in range(22):
                jac[a, c] = 0.0
        if model.has_offsets:
            turn(world, 0, w.added[0, 0], w.added[0, 1], w.added[0, 2], jac, 9)
            for a in range(3):
                for s in range(10):
                    jac[a, 12 + s] = w.turned[0, a] * model.scale_dirs[s]
        return
    p = 1 + 4 * f + d
    px, py, pz = w.points[p, 0], w.points[p, 1], w.points[p, 2]
    for a in range(3):
        for c in range(9):
            jac[a, c] = 0.0
    if d < 3:
        turn(world, 0, px - x[0, 0], py - x[0, 1], pz - x[0, 2], jac, 9)
        for k in range(d):
            j = JOINT[f, k]
            turn(world, j, px - x[j, 0], py - x[j, 1], pz - x[j, 2], jac, 3 * k)
        j = JOINT[f, d]
        if model.has_offsets:
            turn(world, j, w.added[p, 0], w.added[p, 1], w.added[p, 2], jac, 3 * d)
        for a in range(3):
            for s in range(10):
                jac[a, 12 + s] = x_dirs[j, a, s] + w.turned[p, a] * model.scale_dirs[s]
        return
    # The tip: weighted skinning. Everything turns about the wrist; own joints turn what hangs on them.
    turn(world, 0, px - x[0, 0], py - x[0, 1], pz - x[0, 2], jac, 9)
    for k in range(3):
        j = JOINT[f, k]
        ax, ay, az = w.added[p, 0], w.added[p, 1], w.added[p, 2]
        for i in range(k, 3):
            m = JOINT[f, i]
            weight = model.tips_weights[f, m]
            if weight != 0.0:
                ax += weight * (w.skinned[f, m, 0] - x[j, 0])
                ay += weight * (w.skinned[f, m, 1] - x[j, 1])
                az += weight * (w.skinned[f, m, 2] - x[j, 2])
        turn(world, j, ax, ay, az, jac, 3 * k)
    g = w.blend
    for a in range(3):
        for b in range(3):
            g[a, b] = 0.0
        for s in range(10):
            jac[a, 12 + s] = w.turned[p, a] * model.scale_dirs[s]
    for m in range(16):
        weight = model.tips_weights[f, m]
        if weight == 0.0:
            continue
        for a in range(3):
            g0, g1, g2 = weight * world[m, a, 0], weight * world[m, a, 1], weight * world[m, a, 2]
            g[a, 0] += g0
            g[a, 1] += g1
            g[a, 2] += g2
            for s in range(10):
                jac[a, 12 + s] += (
                    weight * x_dirs[m, a, s]
                    + g0 * (model.tips_dirs[f, 0, s] - model.joints_dirs[m, 0, s])
                    + g1 * (model.tips_dirs[f, 1, s] - model.joints_dirs[m, 1, s])
                    + g2 * (model.tips_dirs[f, 2, s] - model.joints_dirs[m, 2, s])
                )
    # Pose blend shapes of the finger's own joints: d vec(R) / d e = R skew(e).
    for k in range(3):
        j = JOINT[f, k]
        r = rot[j]
        u0, u1, u2 = w.tip_turn[0], w.tip_turn[1], w.tip_turn[2]
        for c in range(3):
            row = model.tips_pose[f, c]
            base = 9 * (j - 1)
            tx, ty, tz = 0.0, 0.0, 0.0
            for a in range(3):
                p0, p1, p2 = row[base + 3 * a], row[base + 3 * a + 1], row[base + 3 * a + 2]
                tx += p1 * r[a, 2] - p2 * r[a, 1]
                ty += p2 * r[a, 0] - p0 * r[a, 2]
                tz += p0 * r[a, 1] - p1 * r[a, 0]
            u0[c], u1[c], u2[c] = tx, ty, tz
        for a in range(3):
            for e in range(3):
                u = w.tip_turn[e]
                jac[a, 3 * k + e] += g[a, 0] * u[0] + g[a, 1] * u[1] + g[a, 2] * u[2]
