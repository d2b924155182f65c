"""Compiled inference of the lifter's network: what `LifterNetwork.forward` does, hand by hand.

No operation runs across hands and every sum has one order, so a hand's result is the same to the bit whatever else is
lifted with it. A block of hands goes through each layer together, so that the weights are read once per block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from handloop.compiler import compiled, inlined, part
from handloop.regressors.network import N_INPUT, N_SD, OFFSET_UNIT, USUAL_LOG_SCALE, USUAL_SIZE
from handloop.regressors.view import ALONG, FARTHEST, STRAY

ROWS = 8
"""Outputs computed at once, which share the loads of the input; layers' outputs are padded to a multiple."""
LANES = 16
"""Inputs are padded to a multiple of this many numbers, so that vector loops have no remainder."""
N_HIDDEN = 128
"""Units between the body and the standard deviations."""

_EPS = 1e-5  # nn.LayerNorm's


class Weights(NamedTuple):
    """A network's weights, flat float32, rows of outputs, padded with zeros."""

    width: int
    padded: int
    """`width` up to a multiple of LANES."""
    n_input: int
    """N_INPUT likewise."""
    blocks: int
    enter: np.ndarray
    enter_bias: np.ndarray
    scale: np.ndarray
    """Of the blocks' norms and the last one."""
    shift: np.ndarray
    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_bias: np.ndarray
    mean: np.ndarray
    mean_bias: np.ndarray
    """With the rotations the network starts from."""
    hidden: np.ndarray
    hidden_bias: np.ndarray
    sd: np.ndarray
    sd_bias: np.ndarray
    """With the calibration."""


@part
def _dense(weights, first, bias, first_bias, n_in, n_out, x, y, stride, hands):
    """y = W x + b for each hand; n_out is a multiple of ROWS."""
    for o in range(0, n_out, ROWS):
        at = first + o * n_in
        w0, w1 = weights[at : at + n_in], weights[at + n_in : at + 2 * n_in]
        w2, w3 = weights[at + 2 * n_in : at + 3 * n_in], weights[at + 3 * n_in : at + 4 * n_in]
        w4, w5 = weights[at + 4 * n_in : at + 5 * n_in], weights[at + 5 * n_in : at + 6 * n_in]
        w6, w7 = weights[at + 6 * n_in : at + 7 * n_in], weights[at + 7 * n_in : at + 8 * n_in]
        b = bias[first_bias + o : first_bias + o + ROWS]
        for h in range(hands):
            v = x[h * stride : h * stride + n_in]
            t0, t1, t2, t3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
            t4, t5, t6, t7 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for i in range(n_in):
                t0 += w0[i] * v[i]
                t1 += w1[i] * v[i]
                t2 += w2[i] * v[i]
                t3 += w3[i] * v[i]
                t4 += w4[i] * v[i]
                t5 += w5[i] * v[i]
                t6 += w6[i] * v[i]
                t7 += w7[i] * v[i]
            out = y[h * stride + o : h * stride + o + ROWS]
            out[0], out[1], out[2], out[3] = t0 + b[0], t1 + b[1], t2 + b[2], t3 + b[3]
            out[4], out[5], out[6], out[7] = t4 + b[4], t5 + b[5], t6 + b[6], t7 + b[7]


@part
def _norm(scale, shift, first, width, padded, x, y, stride, hands):
    """y = layer norm of x; the padding stays 0."""
    a, b = scale[first : first + padded], shift[first : first + padded]
    for h in range(hands):
        v, out = x[h * stride : h * stride + padded], y[h * stride : h * stride + padded]
        total = np.float32(0.0)
        for i in range(padded):
            total += v[i]
        mean = total / np.float32(width)
        square = np.float32(0.0)
        for i in range(width):
            square += (v[i] - mean) * (v[i] - mean)
        inverse = np.float32(1.0) / np.sqrt(square / np.float32(width) + np.float32(_EPS))
        for i in range(padded):
            out[i] = (v[i] - mean) * inverse * a[i] + b[i]


@part
def _gelu(x, n, stride, hands):
    """In place, the form with tanh."""
    for h in range(hands):
        v = x[h * stride : h * stride + n]
        for i in range(n):
            t = v[i]
            inner = np.float32(1.5957691216057308) * (t + np.float32(0.044715) * t * t * t)
            v[i] = t / (np.float32(1.0) + np.exp(-inner))


@part
def median(values, n):
    """The lower median of values[:n], which are sorted on the way; NaN of nothing."""
    if n == 0:
        return np.nan
    for i in range(1, n):
        v, k = values[i], i
        while k > 0 and values[k - 1] > v:
            values[k] = values[k - 1]
            k -= 1
        values[k] = v
    return values[(n - 1) // 2]


@part
def look(rays, conf, x, turn, w):
    """`HandView.of` for one hand: points and confidences to x[:63], `turn`; returns the scale.

    Args:
        rays: (42,) float64.
        conf: (21,).
        x: float32.
        turn: (9,).
        w: 63 numbers of working set.
    """
    near, away = w[:21], w[21:42]
    n = 0
    for i in range(21):
        there = conf[i] > 0.0 and np.isfinite(rays[2 * i]) and np.isfinite(rays[2 * i + 1])
        near[i] = 1.0 if there else 0.0
        x[42 + i] = conf[i] if there else 0.0
        if there:
            away[n] = rays[2 * i]
            n += 1
    mx = median(away, n)
    n = 0
    for i in range(21):
        if near[i] > 0.0:
            away[n] = rays[2 * i + 1]
            n += 1
    my = median(away, n)
    n = 0
    for i in range(21):
        if near[i] > 0.0:
            dx, dy = rays[2 * i] - mx, rays[2 * i + 1] - my
            away[n] = np.sqrt(dx * dx + dy * dy)
            w[42 + i] = away[n]
            n += 1
    usual = median(away, n)
    count, low_x, high_x, low_y, high_y = 0, np.inf, -np.inf, np.inf, -np.inf
    for i in range(21):
        if near[i] > 0.0 and w[42 + i] > STRAY * usual and usual > 0.0:
            near[i] = 0.0
        if near[i] > 0.0:
            count += 1
            low_x, high_x = min(low_x, rays[2 * i]), max(high_x, rays[2 * i])
            low_y, high_y = min(low_y, rays[2 * i + 1]), max(high_y, rays[2 * i + 1])
    mx, my = (0.5 * (low_x + high_x), 0.5 * (low_y + high_y)) if count > 0 else (0.0, 0.0)
    length = np.sqrt(mx * mx + my * my + 1.0)
    ax, ay, az = mx / length, my / length, 1.0 / length
    k = 1.0 / (1.0 + az)
    l00, l01, l10, l11 = 1.0 - ax * ax * k, -ax * ay * k, -ax * ay * k, 1.0 - ay * ay * k
    flat = w[21:63]
    square, along = 0.0, 0.0
    for i in range(21):
        px, py = 0.0, 0.0
        if x[42 + i] > 0.0:
            rx, ry = rays[2 * i], rays[2 * i + 1]
            depth = max(rx * ax + ry * ay + az, 0.05)
            px, py = (rx * l00 + ry * l10 - ax) / depth, (rx * l01 + ry * l11 - ay) / depth
        flat[2 * i], flat[2 * i + 1] = px, py
        square += near[i] * (px * px + py * py)
        along += near[i] * ALONG[i]
    scale = max(np.sqrt(square / max(count, 1)), 1e-6)
    along /= max(count, 1)
    pull_x, pull_y = 0.0, 0.0
    for i in range(21):
        px, py = flat[2 * i] / scale, flat[2 * i + 1] / scale
        shrink = min(FARTHEST / max(np.sqrt(px * px + py * py), 1e-9), 1.0)
        flat[2 * i], flat[2 * i + 1] = px * shrink, py * shrink
        pull_x += near[i] * (ALONG[i] - along) * flat[2 * i]
        pull_y += near[i] * (ALONG[i] - along) * flat[2 * i + 1]
    pull = np.sqrt(pull_x * pull_x + pull_y * pull_y)
    a, b = (pull_x / pull, pull_y / pull) if pull > 1e-6 else (0.0, -1.0)
    for i in range(21):
        px, py = flat[2 * i], flat[2 * i + 1]
        x[2 * i], x[2 * i + 1] = a * py - b * px, -a * px - b * py
    turn[0], turn[1], turn[2] = a * l01 - b * l00, -a * l00 - b * l01, ax
    turn[3], turn[4], turn[5] = a * l11 - b * l10, -a * l10 - b * l11, ay
    turn[6], turn[7], turn[8] = b * ax - a * ay, a * ax + b * ay, az
    return scale


@inlined
def _rotation(six, out):
    """`matrix_from_6d` of six numbers to out[:9]."""
    x0, x1, x2 = np.float64(six[0]), np.float64(six[1]), np.float64(six[2])
    length = max(np.sqrt(x0 * x0 + x1 * x1 + x2 * x2), 1e-12)
    x0, x1, x2 = x0 / length, x1 / length, x2 / length
    dot = x0 * six[3] + x1 * six[4] + x2 * six[5]
    y0, y1, y2 = six[3] - dot * x0, six[4] - dot * x1, six[5] - dot * x2
    length = max(np.sqrt(y0 * y0 + y1 * y1 + y2 * y2), 1e-12)
    y0, y1, y2 = y0 / length, y1 / length, y2 / length
    out[0], out[1], out[2] = x0, y0, x1 * y2 - x2 * y1
    out[3], out[4], out[5] = x1, y1, x2 * y0 - x0 * y2
    out[6], out[7], out[8] = x2, y2, x0 * y1 - x1 * y0


@compiled
def lift_range(weights, rays, conf, source, rotations, betas, root, sd, narrow, wide, first, last):
    """Lift hands first .. last - 1.

    Args:
        weights: `Weights`.
        rays: (B, 42) float64 of right hands; conf: (B, 21).
        source: (73,) the source's offsets in m and mean betas.
        rotations: (B, 144); betas: (B, 10); root: (B, 3); sd: (B, 28), written.
        narrow: float32, zeros, 3 rows per hand as long as the widest layer.
        wide: 10 numbers per hand and 72 more.
    """
    hands = last - first
    stride = len(narrow) // (3 * hands)
    x, y, z = narrow[: hands * stride], narrow[hands * stride : 2 * hands * stride], narrow[2 * hands * stride :]
    views, w = wide[: 10 * hands], wide[10 * hands :]
    width, padded = weights.width, weights.padded
    for h in range(hands):
        row = y[h * stride : (h + 1) * stride]
        scale = look(rays[first + h], conf[first + h], row, views[10 * h : 10 * h + 9], w)
        views[10 * h + 9] = scale
        row[63] = np.log(scale) - USUAL_LOG_SCALE
        for i in range(63):
            row[64 + i] = source[i] / OFFSET_UNIT
        for i in range(10):
            row[127 + i] = source[63 + i]
        for i in range(N_INPUT, weights.n_input):
            row[i] = 0.0
    _dense(weights.enter, 0, weights.enter_bias, 0, weights.n_input, padded, y, x, stride, hands)
    for block in range(weights.blocks):
        at, at_bias = block * padded * padded, block * padded
        _norm(weights.scale, weights.shift, at_bias, width, padded, x, y, stride, hands)
        _dense(weights.up, at, weights.up_bias, at_bias, padded, padded, y, z, stride, hands)
        _gelu(z, padded, stride, hands)
        _dense(weights.down, at, weights.down_bias, at_bias, padded, padded, z, y, stride, hands)
        for h in range(hands):
            v, more = x[h * stride : h * stride + padded], y[h * stride : h * stride + padded]
            for i in range(padded):
                v[i] += more[i]
    _norm(weights.scale, weights.shift, weights.blocks * padded, width, padded, x, y, stride, hands)
    _dense(weights.hidden, 0, weights.hidden_bias, 0, padded, N_HIDDEN, y, z, stride, hands)
    _gelu(z, N_HIDDEN, stride, hands)
    _dense(weights.sd, 0, weights.sd_bias, 0, N_HIDDEN, len(weights.sd_bias), z, x, stride, hands)
    _dense(weights.mean, 0, weights.mean_bias, 0, padded, len(weights.mean_bias), y, z, stride, hands)
    for h in range(hands):
        mean, log_sd = z[h * stride : (h + 1) * stride], x[h * stride : (h + 1) * stride]
        turn, scale, b = views[10 * h : 10 * h + 9], views[10 * h + 9], first + h
        for joint in range(16):
            _rotation(mean[6 * joint : 6 * joint + 6], rotations[b, 9 * joint : 9 * joint + 9])
        for i in range(9):
            w[i] = rotations[b, i]
        for i in range(3):
            for k in range(3):
                rotations[b, 3 * i + k] = turn[3 * i] * w[k] + turn[3 * i + 1] * w[3 + k] + turn[3 * i + 2] * w[6 + k]
        for i in range(10):
            betas[b, i] = source[63 + i] + mean[96 + i]
        depth = USUAL_SIZE * np.exp(np.float64(mean[108])) / scale
        across, down = mean[106] * scale, mean[107] * scale
        for i in range(3):
            root[b, i] = (turn[3 * i] * across + turn[3 * i + 1] * down + turn[3 * i + 2]) * depth
        for i in range(N_SD):
            sd[b, i] = np.exp(np.float64(log_sd[i]))
