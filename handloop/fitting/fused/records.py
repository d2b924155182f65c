"""The tuples of arrays the kernels work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from handloop.fitting.fused.compiler import compiled

SHARED = 45
"""First of the 17 columns that move every point."""

WIDTH = 32
"""The 26 columns of a finger's rows, padded to whole vector registers."""


class Model(NamedTuple):
    """Constants of one hand model and recipe; float64, contiguous."""

    joints: Any  # (16, 3)
    joints_dirs: Any  # (16, 3, 10)
    tips: Any  # (5, 3)
    tips_dirs: Any  # (5, 3, 10)
    tips_pose: Any  # (5, 3, 135)
    tips_weights: Any  # (5, 16)
    prior_mean: Any  # (45,)
    prior_precision: Any  # (45, 45)
    axes: Any  # (15, 3, 3)
    axes_t: Any  # (15, 3, 3)
    low: Any  # (15, 3)
    high: Any  # (15, 3)
    length_bones: Any  # (4, 3)
    length_dirs: Any  # (4, 3, 10)
    free: Any  # (62,) bool, kernel order
    offsets: Any  # (21, 3)
    scale_dirs: Any  # (10,)
    has_offsets: bool
    shape_mean: Any  # (10,)
    robust: float
    limits_scale: float
    shape_scale: float
    length_scale: float


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


class Work(NamedTuple):
    """Scratch memory of one thread, about 90 kB."""

    rest: Any
    world: Any
    x: Any
    x_dirs: Any
    points: Any
    turned: Any
    added: Any
    feature: Any
    unposed: Any
    skinned: Any
    blend: Any
    tip_turn: Any
    pose: Any
    pose_jac: Any
    offset: Any
    pull: Any
    local: Any
    frame: Any
    angles: Any
    excess: Any
    limit_rows: Any
    bones: Any
    bone_lengths: Any
    length_error: Any
    length_row: Any
    parts: Any
    point_jac: Any
    rows: Any
    block: Any
    block_grad: Any
    hessian: Any
    gradient: Any
    factor: Any
    delta: Any
    spin: Any
    new_rot: Any
    new_betas: Any
    new_root: Any


@compiled
def one_of(many, i):
    """The observations of hand i."""
    return Seen(
        many.uv[i],
        many.inverse_sigma[i],
        many.focal[i],
        many.princpt[i],
        many.length[i],
        many.xyz[i],
        many.inverse_sigma_3d[i],
        many.focal_scale[i],
    )


@compiled
def make_work():
    """Fresh scratch memory; zeroed, because slots of zero skinning weight are never written."""
    return Work(
        np.zeros((16, 3)),
        np.zeros((16, 3, 3)),
        np.zeros((16, 3)),
        np.zeros((16, 3, 10)),
        np.zeros((21, 3)),
        np.zeros((21, 3)),
        np.zeros((21, 3)),
        np.zeros(135),
        np.zeros((5, 3)),
        np.zeros((5, 16, 3)),
        np.zeros((3, 3)),
        np.zeros((3, 3)),
        np.zeros((15, 3)),
        np.zeros((15, 3, 3)),
        np.zeros(45),
        np.zeros(45),
        np.zeros((3, 3)),
        np.zeros((3, 3)),
        np.zeros((15, 3)),
        np.zeros((15, 3)),
        np.zeros((3, 3)),
        np.zeros((4, 3)),
        np.zeros(4),
        np.zeros(1),
        np.zeros(10),
        np.zeros(7),
        np.zeros((3, 26)),
        np.zeros((20, WIDTH)),
        np.zeros((26, WIDTH)),
        np.zeros(26),
        np.zeros((62, 62)),
        np.zeros(62),
        np.zeros((62, 62)),
        np.zeros(62),
        np.zeros((3, 3)),
        np.zeros((16, 3, 3)),
        np.zeros(10),
        np.zeros(3),
    )
