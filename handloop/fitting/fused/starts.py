"""Compiled closed-form starts: the formulas of `fitting.starts`, one hand and seed at a time."""

from __future__ import annotations

import numpy as np

from handloop.compiler import compiled, inlined
from handloop.fitting.fused.records import make_work, one_of
from handloop.fitting.fused.solve import total_energy


@compiled
def starts_range(model, many, seeds, poses, models, rays, weights, palm, rot, root, arena, first, last):
    """Fill the 2 S starts of hands first .. last - 1, from the palm points that agree (`fitting.robust_starts`).

    Args:
        model, many: for the energies that decide which points agree.
        seeds: (S, 135) joint rotations.
        poses: (S, 45) their axis-angles.
        models: (S, 21, 3) their points, wrist at the origin.
        rays: (B, 21, 2) undistorted x/z, y/z of the keypoints.
        weights: (B, 21) confidence.
        palm: (5,) the palm's points.
        rot, root: (B * 2 S, 144), (B * 2 S, 3), hands outermost, flips innermost.
        arena: (ARENA,) scratch memory.
    """
    count = len(seeds)
    w = make_work(arena)
    # Memory that only the normal equations and the posterior use.
    weight, image = w.row[:21], w.rows[:42].reshape(21, 2)
    turn, axes = w.block[:9].reshape(3, 3), w.block[16:25].reshape(3, 3)
    frame, local = w.block[32:41].reshape(3, 3), w.block[48:57].reshape(3, 3)
    space, place = w.spread[:288].reshape(2, 144), w.block[64:70].reshape(2, 3)
    for s in range(10):
        w.betas[s] = 0.0
    for h in range(first, last):
        seen = one_of(model, many, h)
        best, chosen = np.inf, -1
        # Set -1 holds all five points of the palm, set i leaves out the i-th.
        for left_out in range(-1, 5):
            if left_out >= 0 and not weights[h, palm[left_out]] > 0.0:
                continue
            total, iu, iv = _view(rays[h], weights[h], palm, left_out, weight, image, turn)
            _plane_pose(models[0], weight, total, image, iu, iv, turn, axes, frame, local, space, place, 0)
            for flip in range(2):
                energy = total_energy(model, seen, poses[0], space[flip], w.betas, place[flip], 0.0, w)
                if energy < best:
                    best, chosen = energy, left_out
        total, iu, iv = _view(rays[h], weights[h], palm, chosen, weight, image, turn)
        for s in range(count):
            at = 2 * (h * count + s)
            for flip in range(2):
                for e in range(135):
                    rot[at + flip, 9 + e] = seeds[s, e]
            _plane_pose(models[s], weight, total, image, iu, iv, turn, axes, frame, local, rot, root, at)


@inlined
def _view(rays, weights, palm, left_out, weight, image, turn):
    """What a camera that looks along the mean ray sees: fills `weight`, `image` and `turn`.

    Returns the total weight and the image's mean.
    """
    n_palm = 0
    for i in range(5):
        if i != left_out and weights[palm[i]] > 0.0:
            n_palm += 1
    total, cu, cv = 0.0, 0.0, 0.0
    for p in range(21):
        weight[p] = 0.0 if n_palm >= 3 else weights[p]
    for i in range(5):
        weight[palm[i]] = 0.0 if i == left_out else weights[palm[i]]
    for p in range(21):
        total += weight[p]
        cu += weight[p] * rays[p, 0]
        cv += weight[p] * rays[p, 1]
    total = max(total, 1e-9)
    _look_at(cu / total, cv / total, turn)
    iu, iv = 0.0, 0.0
    for p in range(21):
        u, v = rays[p, 0], rays[p, 1]
        z = max(u * turn[0, 2] + v * turn[1, 2] + turn[2, 2], 1e-2)
        image[p, 0] = (u * turn[0, 0] + v * turn[1, 0] + turn[2, 0]) / z
        image[p, 1] = (u * turn[0, 1] + v * turn[1, 1] + turn[2, 1]) / z
        iu += weight[p] * image[p, 0] / total
        iv += weight[p] * image[p, 1] / total
    return total, iu, iv


@inlined
def _plane_pose(points, weight, total, image, iu, iv, turn, axes, frame, local, rot, root, at):
    mx, my, mz = 0.0, 0.0, 0.0
    for p in range(21):
        mx += weight[p] * points[p, 0] / total
        my += weight[p] * points[p, 1] / total
        mz += weight[p] * points[p, 2] / total
    for a in range(3):
        for b in range(3):
            local[a, b] = 0.0
    for p in range(21):
        x, y, z = points[p, 0] - mx, points[p, 1] - my, points[p, 2] - mz
        local[0, 0] += weight[p] * x * x
        local[0, 1] += weight[p] * x * y
        local[0, 2] += weight[p] * x * z
        local[1, 1] += weight[p] * y * y
        local[1, 2] += weight[p] * y * z
        local[2, 2] += weight[p] * z * z
    _plane_axes(local, axes)
    # The 2x2 map from plane to image by least squares.
    g00, g01, g11, b00, b01, b10, b11 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for p in range(21):
        x, y, z = points[p, 0] - mx, points[p, 1] - my, points[p, 2] - mz
        s = axes[0, 0] * x + axes[1, 0] * y + axes[2, 0] * z
        t = axes[0, 1] * x + axes[1, 1] * y + axes[2, 1] * z
        u, v = image[p, 0] - iu, image[p, 1] - iv
        g00, g01, g11 = g00 + weight[p] * s * s, g01 + weight[p] * s * t, g11 + weight[p] * t * t
        b00, b01 = b00 + weight[p] * s * u, b01 + weight[p] * t * u
        b10, b11 = b10 + weight[p] * s * v, b11 + weight[p] * t * v
    ridge = 1e-6 * max(g00 + g11, 1e-9)
    g00, g11 = g00 + ridge, g11 + ridge
    det = g00 * g11 - g01 * g01
    a00, a01 = (b00 * g11 - b01 * g01) / det, (b01 * g00 - b00 * g01) / det
    a10, a11 = (b10 * g11 - b11 * g01) / det, (b11 * g00 - b10 * g01) / det
    # Singular values and right vectors of that map from the eigenvalues of its Gram matrix.
    p00, p01, p11 = a00 * a00 + a10 * a10, a00 * a01 + a10 * a11, a01 * a01 + a11 * a11
    half = 0.5 * (p00 - p11)
    mean, reach = 0.5 * (p00 + p11), np.sqrt(half * half + p01 * p01)
    first = np.sqrt(mean + reach)
    second = abs(a00 * a11 - a01 * a10) / first if first > 0.0 else 0.0
    s1 = max(first, 1e-3)
    tilt = np.sqrt(max(1.0 - (second / s1) ** 2, 0.0))
    # Right vector of the smaller singular value.
    angle = 0.5 * np.arctan2(p01, half)
    v0, v1 = -np.sin(angle), np.cos(angle)
    depth = 1.0 / s1
    for flip in range(2):
        sign = tilt if flip == 0 else -tilt
        r00, r10, r20 = a00 / s1, a10 / s1, sign * v0
        r01, r11, r21 = a01 / s1, a11 / s1, sign * v1
        norm = max(np.sqrt(r00 * r00 + r10 * r10 + r20 * r20), 1e-12)
        r00, r10, r20 = r00 / norm, r10 / norm, r20 / norm
        along = r00 * r01 + r10 * r11 + r20 * r21
        r01, r11, r21 = r01 - along * r00, r11 - along * r10, r21 - along * r20
        norm = max(np.sqrt(r01 * r01 + r11 * r11 + r21 * r21), 1e-12)
        r01, r11, r21 = r01 / norm, r11 / norm, r21 / norm
        frame[0, 0], frame[1, 0], frame[2, 0] = r00, r10, r20
        frame[0, 1], frame[1, 1], frame[2, 1] = r01, r11, r21
        frame[0, 2] = r10 * r21 - r20 * r11
        frame[1, 2] = r20 * r01 - r00 * r21
        frame[2, 2] = r00 * r11 - r10 * r01
        # One point, or all in one place, say nothing about the orientation; the model's own is as good as any.
        sound = frame[0, 2] ** 2 + frame[1, 2] ** 2 + frame[2, 2] ** 2 > 0.5
        for a in range(3):
            for b in range(3):
                if sound:
                    local[a, b] = frame[a, 0] * axes[b, 0] + frame[a, 1] * axes[b, 1] + frame[a, 2] * axes[b, 2]
                else:
                    local[a, b] = 1.0 if a == b else 0.0
        for a in range(3):
            for b in range(3):
                rot[at + flip, 3 * a + b] = (
                    turn[a, 0] * local[0, b] + turn[a, 1] * local[1, b] + turn[a, 2] * local[2, b]
                )
        x = -(local[0, 0] * mx + local[0, 1] * my + local[0, 2] * mz)
        y = -(local[1, 0] * mx + local[1, 1] * my + local[1, 2] * mz)
        z = depth - (local[2, 0] * mx + local[2, 1] * my + local[2, 2] * mz)
        px = turn[0, 0] * x + turn[0, 1] * y + turn[0, 2] * z
        py = turn[1, 0] * x + turn[1, 1] * y + turn[1, 2] * z
        pz = turn[2, 0] * x + turn[2, 1] * y + turn[2, 2] * z
        # A wrist nearer than this cannot be in front of the camera with the rest of the hand.
        if pz > 0.0:
            lift = max(0.05 / pz, 1.0)
            root[at + flip, 0], root[at + flip, 1], root[at + flip, 2] = px * lift, py * lift, pz * lift
        else:
            root[at + flip, 0], root[at + flip, 1], root[at + flip, 2] = px, py, depth


@inlined
def _look_at(u, v, out):
    """A rotation whose third column is the ray through (u, v)."""
    norm = np.sqrt(u * u + v * v + 1.0)
    zx, zy, zz = u / norm, v / norm, 1.0 / norm
    # y = z x (1, 0, 0), normalised; x = y x z.
    norm = np.sqrt(zz * zz + zy * zy)
    yy, yz = zz / norm, -zy / norm
    out[0, 0], out[0, 1], out[0, 2] = yy * zz - yz * zy, 0.0, zx
    out[1, 0], out[1, 1], out[1, 2] = yz * zx, yy, zy
    out[2, 0], out[2, 1], out[2, 2] = -yy * zx, yz, zz


@inlined
def _plane_axes(scatter, axes):
    """Right-handed axes (columns) of a symmetric matrix given by its upper triangle, widest first (Jacobi's method)."""
    a00, a01, a02 = scatter[0, 0], scatter[0, 1], scatter[0, 2]
    a11, a12, a22 = scatter[1, 1], scatter[1, 2], scatter[2, 2]
    for i in range(3):
        for j in range(3):
            axes[i, j] = 1.0 if i == j else 0.0
    for _ in range(8):
        if abs(a01) + abs(a02) + abs(a12) <= 1e-18 * (a00 + a11 + a22):
            break
        if a01 != 0.0:
            c, s, a00, a11 = _jacobi(a00, a11, a01)
            a01 = 0.0
            a02, a12 = c * a02 - s * a12, s * a02 + c * a12
            _rotate(axes, 0, 1, c, s)
        if a02 != 0.0:
            c, s, a00, a22 = _jacobi(a00, a22, a02)
            a02 = 0.0
            a01, a12 = c * a01 - s * a12, s * a01 + c * a12
            _rotate(axes, 0, 2, c, s)
        if a12 != 0.0:
            c, s, a11, a22 = _jacobi(a11, a22, a12)
            a12 = 0.0
            a01, a02 = c * a01 - s * a02, s * a01 + c * a02
            _rotate(axes, 1, 2, c, s)
    first = 0 if a00 >= a11 and a00 >= a22 else (1 if a11 >= a22 else 2)
    last = 2 if a22 <= a11 and a22 <= a00 else (1 if a11 <= a00 else 0)
    if first == last:
        first, last = 0, 2
    middle = 3 - first - last
    x0, x1, x2 = axes[0, first], axes[1, first], axes[2, first]
    y0, y1, y2 = axes[0, middle], axes[1, middle], axes[2, middle]
    axes[0, 0], axes[1, 0], axes[2, 0] = x0, x1, x2
    axes[0, 1], axes[1, 1], axes[2, 1] = y0, y1, y2
    axes[0, 2], axes[1, 2], axes[2, 2] = x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0


@inlined
def _jacobi(p, q, r):
    """Cosine and sine of the rotation that makes the symmetric [[p, r], [r, q]] diagonal, and that diagonal."""
    theta = (q - p) / (2.0 * r)
    t = 1.0 / (abs(theta) + np.sqrt(theta * theta + 1.0))
    t = -t if theta < 0.0 else t
    c = 1.0 / np.sqrt(t * t + 1.0)
    return c, t * c, p - t * r, q + t * r


@inlined
def _rotate(axes, i, j, c, s):
    for k in range(3):
        a, b = axes[k, i], axes[k, j]
        axes[k, i], axes[k, j] = c * a - s * b, s * a + c * b
