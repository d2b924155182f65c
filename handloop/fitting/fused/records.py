"""The tuples of arrays the kernels work on.

Arrays that long loops run over are flat, with strides known when compiling: only then can the compiler see that the
rows of one loop do not overlap, and use vector registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from handloop.compiler import inlined
from handloop.priors.mixture import MAX_COMPONENTS

N = 62
"""Columns of an increment: finger joints' axis-angle 45, wrist rotation 3, betas 10, wrist position 3, focal 1."""

SHARED = 45
"""First of the 17 columns that move every point; a finger's own nine move only its points."""

STRIDE = 64
"""From one row of the normal equations to the next. Column 62 holds the right-hand side."""

RHS = 62

WIDTH = 32
"""A point's row: own finger's joints 9, the shared columns 17, the residual, and padding to whole registers."""

RESIDUAL = 26

POINTS = 64
"""From one parameter to the next in the derivatives of the 63 coordinates."""


class Model(NamedTuple):
    """Constants of one hand model and recipe; float64, contiguous."""

    joints: Any  # (48,)
    joints_dirs: Any  # (10 * 48,) by beta, then joint and axis
    bone_dirs: Any  # (16 * 30,) by joint, axis and beta: a joint's directions less its parent's
    tips: Any  # (16,)
    tips_dirs: Any  # (10 * 16,) by beta, then tip and axis
    tips_pose: Any  # (135 * 16,) by entry of R - I, then tip and axis
    tips_width: int  # 16; see `linearise._outer` for why it is no constant
    tip_share: Any  # (5, 16) skinning weights
    tip_joint: Any  # (5, 16) joints of weight above zero, first `tip_count` entries
    tip_weight: Any  # (5, 16) their weights
    tip_dirs: Any  # (5 * 16 * 30,) the tip's directions less theirs
    tip_count: Any  # (5,)
    prior_mean: Any  # (K, 45)
    prior_precision: Any  # (K * 45 * 64,) rows padded to STRIDE
    prior_offset: Any  # (K,)
    axes: Any  # (15 * 9,)
    low: Any  # (45,)
    high: Any  # (45,)
    length_bones: Any  # (12,)
    length_dirs: Any  # (4, 3, 10)
    free: Any  # (62,) bool
    offsets: Any  # (63,)
    scale_dirs: Any  # (10,)
    has_offsets: bool
    has_fixed: bool
    free_focal: bool
    shape_mean: Any  # (10,)
    width: int  # WIDTH; the same
    kernel: int
    robust: float
    limits_scale: float
    shape_scale: float
    length_scale: float
    coupling_scale: float  # 1/rad; 0 for each term that is off
    spread_scale: float  # 1/rad
    hinge_weight: float
    has_anchor: bool
    dip_per_pip: float
    dip_offset: Any  # (4,)
    open_spread: Any  # (4, 2)
    closed_spread: Any  # (4, 2)
    closed_at: float
    straight: Any  # (15,)


class Seen(NamedTuple):
    """One hand's observations; the same fields with a leading axis hold many hands'."""

    uv: Any  # (21, 2)
    inverse_sigma: Any  # (21,)
    focal: Any  # (2,)
    princpt: Any  # (2,)
    length: Any  # ()
    xyz: Any  # (21, 3)
    inverse_sigma_3d: Any  # (21,) 1/m; 0 where no 3D point is known
    focal_scale: Any  # ()
    anchor_rot: Any  # (144,); one row for all where there is no anchor
    anchor_turn: Any  # (16,) 1/rad
    anchor_betas: Any  # (10,)
    anchor_sight: Any  # (3,) x/z, y/z, log z of the wrist
    anchor_rest: Any  # (13,) inverse sd of the betas and of the sight


class Work(NamedTuple):
    """Scratch memory of one thread, 165 kB, of which a hand with a prior of one component touches 100."""

    rest: Any  # (48,)
    rot: Any  # (16 * 9,)
    trig: Any  # (15 * 2,) sin t / t and (1 - cos t) / t^2 of each finger joint
    world: Any  # (16 * 9,)
    x: Any  # (48,)
    points: Any  # (63,)
    turned: Any  # (63,) a source's offset in the camera frame, for the mean hand
    added: Any  # (63,) the same times the hand's scale
    feature: Any  # (135,)
    unposed: Any  # (16,)
    skinned: Any  # (5 * 16 * 3,)
    away: Any  # (45,) pose less the prior's mean
    pull: Any  # (64 * 48,) by component: precision times `away`
    component: Any  # (1,) number of the prior's component in charge
    opposite: Any  # (48,) the sines and
    adjacent: Any  # (48,) cosines whose quotient's arc tangent is a joint angle
    angles: Any  # (48,)
    excess: Any  # (48,)
    bones: Any  # (12,)
    bone_lengths: Any  # (4,)
    length_error: Any  # (1,)
    length_row: Any  # (10,)
    parts: Any  # (11,)
    x_dirs: Any  # (16 * 30,)
    spin: Any  # (16 * 9,) world rotation times how a joint's axis-angle turns it
    by_pose: Any  # (15 * 9,) right Jacobian of each finger joint
    local: Any  # (9,)
    blend: Any  # (9,)
    tip_turn: Any  # (9,)
    point_jac: Any  # (3 * 32,)
    rows: Any  # (24 * 32,)
    block: Any  # (26 * 32,)
    hessian: Any  # (62 * 64,)
    gradient: Any  # (64,)
    factor: Any  # (72 * 64,) upper triangular, with the right-hand side
    row: Any  # (64,)
    inverse: Any  # (64,) of the factor's diagonal
    delta: Any  # (64,)
    spread: Any  # (72 * 64,) by parameter, then coordinate
    new_pose: Any  # (45,)
    new_wrist: Any  # (9,)
    new_betas: Any  # (10,)
    new_root: Any  # (3,)
    pose: Any  # (45,)
    wrist: Any  # (9,)
    betas: Any  # (10,)
    root: Any  # (3,)


@inlined
def one_of(model, many, i):
    """The observations of hand i."""
    a = i if model.has_anchor else 0
    return Seen(
        many.uv[i],
        many.inverse_sigma[i],
        many.focal[i],
        many.princpt[i],
        many.length[i],
        many.xyz[i],
        many.inverse_sigma_3d[i],
        many.focal_scale[i],
        many.anchor_rot[a],
        many.anchor_turn[a],
        many.anchor_betas[a],
        many.anchor_sight[a],
        many.anchor_rest[a],
    )


ARENA = 20_600
"""Numbers that `Work` takes."""


@inlined
def _take(arena, at, n):
    """The next n numbers and where those after them begin, whole cache lines on."""
    return arena[at : at + n], at + (n + 7) // 8 * 8


@inlined
def make_work(arena):
    """Scratch memory out of zeros (ARENA,): what padding is never written stays zero."""
    rest, at = _take(arena, 0, 48)
    rot, at = _take(arena, at, 144)
    trig, at = _take(arena, at, 30)
    world, at = _take(arena, at, 144)
    x, at = _take(arena, at, 48)
    points, at = _take(arena, at, 63)
    turned, at = _take(arena, at, 63)
    added, at = _take(arena, at, 63)
    feature, at = _take(arena, at, 135)
    unposed, at = _take(arena, at, 16)
    skinned, at = _take(arena, at, 240)
    away, at = _take(arena, at, 45)
    pull, at = _take(arena, at, 48 * MAX_COMPONENTS)
    component, at = _take(arena, at, 1)
    opposite, at = _take(arena, at, 48)
    adjacent, at = _take(arena, at, 48)
    angles, at = _take(arena, at, 48)
    excess, at = _take(arena, at, 48)
    bones, at = _take(arena, at, 12)
    bone_lengths, at = _take(arena, at, 4)
    length_error, at = _take(arena, at, 1)
    length_row, at = _take(arena, at, 10)
    parts, at = _take(arena, at, 11)
    x_dirs, at = _take(arena, at, 480)
    spin, at = _take(arena, at, 144)
    by_pose, at = _take(arena, at, 135)
    local, at = _take(arena, at, 9)
    blend, at = _take(arena, at, 9)
    tip_turn, at = _take(arena, at, 9)
    point_jac, at = _take(arena, at, 96)
    rows, at = _take(arena, at, 768)
    block, at = _take(arena, at, 832)
    hessian, at = _take(arena, at, N * STRIDE)
    gradient, at = _take(arena, at, 64)
    factor, at = _take(arena, at, 72 * STRIDE)
    row, at = _take(arena, at, 64)
    inverse, at = _take(arena, at, 64)
    delta, at = _take(arena, at, 64)
    spread, at = _take(arena, at, 72 * POINTS)
    new_pose, at = _take(arena, at, 45)
    new_wrist, at = _take(arena, at, 9)
    new_betas, at = _take(arena, at, 10)
    new_root, at = _take(arena, at, 3)
    pose, at = _take(arena, at, 45)
    wrist, at = _take(arena, at, 9)
    betas, at = _take(arena, at, 10)
    root, _ = _take(arena, at, 3)
    return Work(
        rest,
        rot,
        trig,
        world,
        x,
        points,
        turned,
        added,
        feature,
        unposed,
        skinned,
        away,
        pull,
        component,
        opposite,
        adjacent,
        angles,
        excess,
        bones,
        bone_lengths,
        length_error,
        length_row,
        parts,
        x_dirs,
        spin,
        by_pose,
        local,
        blend,
        tip_turn,
        point_jac,
        rows,
        block,
        hessian,
        gradient,
        factor,
        row,
        inverse,
        delta,
        spread,
        new_pose,
        new_wrist,
        new_betas,
        new_root,
        pose,
        wrist,
        betas,
        root,
    )
