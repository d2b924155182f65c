"""`handloop limits`: learn biomechanical limits from labelled or fitted hands, and show them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from handloop.core.errors import FileFormatError, InputError
from handloop.core.results import load_npz
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.biomechanics import ANGLE_NAMES, BONE_NAMES, PALM_NAMES

if TYPE_CHECKING:
    from handloop.commands import LimitsCommand

_KEYS = ("joints_3d", "joints", "keypoints_3d")
"""Names of the points, the first present counts: a file of labels, or results.npz."""


def run_limits(command: LimitsCommand) -> int:
    """Learn, write, print; returns the exit status."""
    console = Console(highlight=False)
    joints, is_right = read_hands(command.source, None if command.hand is None else command.hand == "right")
    limits = BiomechanicalLimits.from_joints(joints, is_right, command.trim)
    try:
        command.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {command.out.parent} cannot be made ({error.strerror}); name another.") from error
    limits.save(command.out)
    show_limits(console, limits)
    unused = len(joints) - limits.n_hands
    note = f" ({unused} left out: points missing or on top of each other)" if unused else ""
    console.print(f"{limits.n_hands} hands{note} -> {command.out}", markup=False, soft_wrap=True)
    return 0


def read_hands(path: Path, is_right: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 21, 3) and sides (N,) of an npz; `is_right` is the side where the file does not say, or overrides it.

    Raises:
        FileFormatError: not an npz, or without 3D points of 21 joints.
        InputError: no side is known.
    """
    arrays = load_npz(path)
    key = next((k for k in _KEYS if k in arrays), None)
    if key is None:
        raise FileFormatError(
            f"{path}: has no joints_3d (or joints, keypoints_3d as in results.npz), "
            f"only {', '.join(arrays) or 'nothing'}."
        )
    joints = arrays[key]
    if joints.ndim != 3 or joints.shape[1:] != (21, 3) or joints.dtype.kind not in "fiu":
        raise FileFormatError(
            f"{path}: {key} has shape {joints.shape} and type {joints.dtype}, expected numbers of shape (N, 21, 3)."
        )
    if is_right is not None:
        return joints, np.full(len(joints), is_right)
    if "is_right" not in arrays:
        raise InputError(f"{path}: has no is_right; say with --hand which side the hands are.")
    sides = arrays["is_right"].astype(bool)
    if sides.shape not in ((), (len(joints),)):
        raise FileFormatError(f"{path}: is_right has shape {sides.shape}, expected ({len(joints)},).")
    return joints, np.broadcast_to(sides, len(joints)).copy()


def show_limits(console: Console, limits: BiomechanicalLimits) -> None:
    """Tables of the ranges: angles in degrees, lengths in reference bones."""
    angles = Table(title="joint angles, degrees (ends of each hull; positive: into the palm, towards the thumb)")
    angles.add_column("joint")
    for name in ("flexion", "abduction", "corners"):
        angles.add_column(name, justify="right")
    for name, polygon in zip(ANGLE_NAMES, limits.hulls.polygons(), strict=True):
        low, high = np.rad2deg(polygon.min(0)), np.rad2deg(polygon.max(0))
        ranges = (f"{a:.0f} .. {b:.0f}" for a, b in zip(low, high, strict=True))
        angles.add_row(name, *ranges, str(len(polygon)))
    console.print(angles)
    unit = "m" if limits.reference is None else f"shares of {BONE_NAMES[limits.reference]}"
    bones = Table(title=f"bone lengths, {unit}")
    bones.add_column("bone")
    bones.add_column("range", justify="right")
    for name, low, high in zip(BONE_NAMES, limits.bones.low.tolist(), limits.bones.high.tolist(), strict=True):
        bones.add_row(name, f"{low:.3f} .. {high:.3f}")
    console.print(bones)
    palm = Table(title="palm, between neighbouring root bones")
    palm.add_column("fingers")
    palm.add_column("curvature", justify="right")
    palm.add_column("spread, degrees", justify="right")
    for i, name in enumerate(PALM_NAMES):
        bent, spread = limits.curvature, limits.spread
        palm.add_row(
            name,
            f"{float(bent.low[i]):.2f} .. {float(bent.high[i]):.2f}",
            f"{np.rad2deg(float(spread.low[i])):.1f} .. {np.rad2deg(float(spread.high[i])):.1f}",
        )
    console.print(palm)
