"""Compiled kinematics of one hand: the 21 points in canonical order and what their derivatives are made of.

The same mathematics as `hand.kinematics`, with the chains written out. Fingers count thumb, index, middle, ring, pinky;
`JOINT[f, d]` is the MANO joint d of finger f. Points 1 + 4 f + d are joints for d < 3 and the fingertip for d = 3.
"""

from __future__ import annotations

import numpy as np

from handloop.compiler import inlined, part
from handloop.fitting.fused.math import cross_columns, mul, right_jacobian, turn_vector
from handloop.fitting.fused.records import WIDTH
from handloop.hand.kinematics import CHAINS, STARTING_JOINT
from handloop.so3_kernel import exp_coefficients, rotation

JOINT = np.array(CHAINS)
START = np.array(STARTING_JOINT)


@part
def pose_points(model, pose, wrist, betas, root, w):
    """Fill w.rot, w.world, w.x, w.skinned, w.points from axis-angles (45,), wrist rotation, betas, wrist position."""
    rest, rot, world, x, points, feature = w.rest, w.rot, w.world, w.x, w.points, w.feature
    for i in range(48):
        rest[i] = model.joints[i]
    for s in range(10):
        beta = betas[s]
        row = model.joints_dirs[48 * s : 48 * s + 48]
        for i in range(len(row)):
            rest[i] += beta * row[i]
    for j in range(15):
        wx, wy, wz = pose[3 * j], pose[3 * j + 1], pose[3 * j + 2]
        a, b = exp_coefficients(wx * wx + wy * wy + wz * wz)
        w.trig[2 * j], w.trig[2 * j + 1] = a, b
        at = 9 * j + 9
        rotation(wx, wy, wz, a, b, rot, at)
        # R - I drives the pose blend shapes.
        for e in range(9):
            feature[9 * j + e] = rot[at + e]
        feature[9 * j] -= 1.0
        feature[9 * j + 4] -= 1.0
        feature[9 * j + 8] -= 1.0
    for e in range(9):
        rot[e] = wrist[e]
        world[e] = wrist[e]
    for r in range(3):
        x[r] = root[r]
        points[r] = root[r]
    for f in range(5):
        parent = 0
        for d in range(3):
            j = JOINT[f, d]
            bx = rest[3 * j] - rest[3 * parent]
            by = rest[3 * j + 1] - rest[3 * parent + 1]
            bz = rest[3 * j + 2] - rest[3 * parent + 2]
            vx, vy, vz = turn_vector(world, 9 * parent, bx, by, bz)
            x[3 * j], x[3 * j + 1], x[3 * j + 2] = x[3 * parent] + vx, x[3 * parent + 1] + vy, x[3 * parent + 2] + vz
            at = 3 * (1 + 4 * f + d)
            points[at], points[at + 1], points[at + 2] = x[3 * j], x[3 * j + 1], x[3 * j + 2]
            mul(world, 9 * parent, rot, 9 * j, world, 9 * j)
            parent = j
    _unpose_tips(model, betas, feature, w.unposed)
    for f in range(5):
        px, py, pz = 0.0, 0.0, 0.0
        for i in range(model.tip_count[f]):
            m, weight = model.tip_joint[f, i], model.tip_weight[f, i]
            ux = w.unposed[3 * f] - rest[3 * m]
            uy = w.unposed[3 * f + 1] - rest[3 * m + 1]
            uz = w.unposed[3 * f + 2] - rest[3 * m + 2]
            vx, vy, vz = turn_vector(world, 9 * m, ux, uy, uz)
            vx, vy, vz = vx + x[3 * m], vy + x[3 * m + 1], vz + x[3 * m + 2]
            at = 3 * (16 * f + m)
            w.skinned[at], w.skinned[at + 1], w.skinned[at + 2] = vx, vy, vz
            px, py, pz = px + weight * vx, py + weight * vy, pz + weight * vz
        at = 3 * (4 + 4 * f)
        points[at], points[at + 1], points[at + 2] = px, py, pz
    if model.has_offsets:
        scale = 1.0
        for s in range(10):
            scale += model.scale_dirs[s] * betas[s]
        for p in range(21):
            at = 3 * p
            vx, vy, vz = turn_vector(
                world, 9 * START[p], model.offsets[at], model.offsets[at + 1], model.offsets[at + 2]
            )
            w.turned[at], w.turned[at + 1], w.turned[at + 2] = vx, vy, vz
            w.added[at], w.added[at + 1], w.added[at + 2] = scale * vx, scale * vy, scale * vz
            for r in range(3):
                points[at + r] += w.added[at + r]


@inlined
def _unpose_tips(model, betas, feature, unposed):
    """The five tips (15,) before skinning: shape and pose blend shapes added, nine entries of R - I at a time."""
    for i in range(16):
        unposed[i] = model.tips[i]
    for s in range(10):
        beta = betas[s]
        row = model.tips_dirs[16 * s : 16 * s + 16]
        for i in range(len(row)):
            unposed[i] += beta * row[i]
    for j in range(15):
        e = 9 * j
        f0, f1, f2, f3, f4 = feature[e], feature[e + 1], feature[e + 2], feature[e + 3], feature[e + 4]
        f5, f6, f7, f8 = feature[e + 5], feature[e + 6], feature[e + 7], feature[e + 8]
        rows = model.tips_pose[144 * j : 144 * j + 144]
        for i in range(model.tips_width):
            unposed[i] += (
                f0 * rows[i]
                + f1 * rows[16 + i]
                + f2 * rows[32 + i]
                + f3 * rows[48 + i]
                + f4 * rows[64 + i]
                + f5 * rows[80 + i]
                + f6 * rows[96 + i]
                + f7 * rows[112 + i]
                + f8 * rows[128 + i]
            )


@inlined
def chain_derivatives(model, pose, w):
    """Fill w.x_dirs, the joints' derivative by the betas at a fixed wrist, w.by_pose, and w.spin = world times it.

    An increment d of a finger joint's axis-angle turns the joint by G J_r d in the camera frame; one of the wrist's
    rotation by G d.
    """
    world, x_dirs, spin, by_pose = w.world, w.x_dirs, w.spin, w.by_pose
    for e in range(9):
        spin[e] = world[e]
    for e in range(30):
        x_dirs[e] = 0.0
    for f in range(5):
        parent = 0
        for d in range(3):
            j = JOINT[f, d]
            bone = 30 * j
            for r in range(3):
                at = 9 * parent + 3 * r
                g0, g1, g2 = world[at], world[at + 1], world[at + 2]
                to, of = 30 * j + 10 * r, 30 * parent + 10 * r
                for s in range(10):
                    x_dirs[to + s] = (
                        x_dirs[of + s]
                        + g0 * model.bone_dirs[bone + s]
                        + g1 * model.bone_dirs[bone + 10 + s]
                        + g2 * model.bone_dirs[bone + 20 + s]
                    )
            i = j - 1
            right_jacobian(
                pose[3 * i], pose[3 * i + 1], pose[3 * i + 2], w.trig[2 * i], w.trig[2 * i + 1], by_pose, 9 * i
            )
            mul(world, 9 * j, by_pose, 9 * i, spin, 9 * j)
            parent = j


@inlined
def point_jacobian(model, f, d, root, w, jac):
    """Derivative of point d of finger f (-1: the wrist), three rows of 25 columns and padding.

    Columns: own joints 9, wrist rotation 3, betas 10, wrist bearing x, y and log depth. Blend shapes that reach over
    from other fingers' joints are left out: they change a tip by fractions of a millimetre per radian.
    """
    x, spin, x_dirs, turned, added = w.x, w.spin, w.x_dirs, w.turned, w.added
    jac[22], jac[WIDTH + 22], jac[2 * WIDTH + 22] = root[2], 0.0, 0.0
    jac[23], jac[WIDTH + 23], jac[2 * WIDTH + 23] = 0.0, root[2], 0.0
    jac[24], jac[WIDTH + 24], jac[2 * WIDTH + 24] = root[0], root[1], root[2]
    p = 3 * (1 + 4 * f + d) if f >= 0 else 0
    px, py, pz = w.points[p], w.points[p + 1], w.points[p + 2]
    cross_columns(spin, 0, px - x[0], py - x[1], pz - x[2], jac, 9)
    if f < 0:
        for r in range(3):
            for c in range(9):
                jac[r * WIDTH + c] = 0.0
            for s in range(10):
                jac[r * WIDTH + 12 + s] = turned[r] * model.scale_dirs[s]
        return
    if d < 3:
        for r in range(3):
            for c in range(9):
                jac[r * WIDTH + c] = 0.0
        for k in range(d):
            j = JOINT[f, k]
            cross_columns(spin, 9 * j, px - x[3 * j], py - x[3 * j + 1], pz - x[3 * j + 2], jac, 3 * k)
        j = JOINT[f, d]
        if model.has_offsets:
            cross_columns(spin, 9 * j, added[p], added[p + 1], added[p + 2], jac, 3 * d)
        for r in range(3):
            for s in range(10):
                jac[r * WIDTH + 12 + s] = x_dirs[30 * j + 10 * r + s] + turned[p + r] * model.scale_dirs[s]
        return
    _tip_jacobian(model, f, p, w, jac)


@inlined
def _tip_jacobian(model, f, p, w, jac):
    """Own joints' and betas' columns of a fingertip: weighted skinning, and blend shapes of the own joints."""
    x, x_dirs, skinned, added = w.x, w.x_dirs, w.skinned, w.added
    for k in range(3):
        j = JOINT[f, k]
        ax, ay, az = added[p], added[p + 1], added[p + 2]
        for i in range(k, 3):
            m = JOINT[f, i]
            weight = model.tip_share[f, m]
            if weight != 0.0:
                at = 3 * (16 * f + m)
                ax += weight * (skinned[at] - x[3 * j])
                ay += weight * (skinned[at + 1] - x[3 * j + 1])
                az += weight * (skinned[at + 2] - x[3 * j + 2])
        cross_columns(w.spin, 9 * j, ax, ay, az, jac, 3 * k)
    g = w.blend
    for r in range(3):
        for c in range(3):
            g[3 * r + c] = 0.0
        for s in range(10):
            jac[r * WIDTH + 12 + s] = w.turned[p + r] * model.scale_dirs[s]
    for i in range(model.tip_count[f]):
        m, weight = model.tip_joint[f, i], model.tip_weight[f, i]
        dirs = 30 * (16 * f + i)
        for r in range(3):
            at = 9 * m + 3 * r
            g0, g1, g2 = weight * w.world[at], weight * w.world[at + 1], weight * w.world[at + 2]
            g[3 * r] += g0
            g[3 * r + 1] += g1
            g[3 * r + 2] += g2
            for s in range(10):
                jac[r * WIDTH + 12 + s] += (
                    weight * x_dirs[30 * m + 10 * r + s]
                    + g0 * model.tip_dirs[dirs + s]
                    + g1 * model.tip_dirs[dirs + 10 + s]
                    + g2 * model.tip_dirs[dirs + 20 + s]
                )
    # d vec(R) / d e = R skew(e), and e = J_r d: columns u of the tip's motion before skinning.
    u = w.tip_turn
    for k in range(3):
        j = JOINT[f, k]
        at = 9 * j
        for c in range(3):
            rows = 144 * (j - 1) + 3 * f + c
            tx, ty, tz = 0.0, 0.0, 0.0
            for a in range(3):
                p0 = model.tips_pose[rows + 48 * a]
                p1 = model.tips_pose[rows + 48 * a + 16]
                p2 = model.tips_pose[rows + 48 * a + 32]
                r0, r1, r2 = w.rot[at + 3 * a], w.rot[at + 3 * a + 1], w.rot[at + 3 * a + 2]
                tx += p1 * r2 - p2 * r1
                ty += p2 * r0 - p0 * r2
                tz += p0 * r1 - p1 * r0
            u[3 * c], u[3 * c + 1], u[3 * c + 2] = tx, ty, tz
        # g u J_r
        mul(g, 0, u, 0, w.local, 0)
        mul(w.local, 0, w.by_pose, 9 * (j - 1), u, 0)
        for r in range(3):
            for e in range(3):
                jac[r * WIDTH + 3 * k + e] += u[3 * r + e]
