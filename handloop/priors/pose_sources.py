"""Poses to learn a prior from, in the right hand's convention: the hand's own, MANO parameters, saved fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.results import Status, load_npz
from handloop.core.rotations import so3_exp, so3_log
from handloop.hand.model import Hand, HandPair

_KEYS = ("hand_pose", "pose", "poses")
_SIDED_KEYS = {"right_hand_pose": True, "left_hand_pose": False}
"""SMPL-X's names, which say the side."""
_MIRROR = np.tile([1.0, -1.0, -1.0], 15)
_LARGEST = 4 * np.pi
"""No axis-angle in radians reaches this."""


@dataclass(frozen=True, eq=False)
class PoseSet:
    """Poses of one source or several."""

    poses: np.ndarray
    """(M, 45) flat-mean axis-angle, rad, right-hand convention, every joint's angle at most pi."""
    model_digest: str
    """Digest of the right-hand model they belong to; "" for MANO's poses from elsewhere."""
    notes: tuple[str, ...] = ()
    """What was left out or taken for granted, in plain sentences."""


def own_poses(hand: Hand) -> PoseSet:
    """The poses inside a right hand's model."""
    return PoseSet(_shortest(hand.poses()), hand.digest)


def read_poses(path: Path, pair: HandPair, is_right: bool | None = None, mean_relative: bool = False) -> PoseSet:
    """Poses of an npz: MANO or smplx parameters, or `results.npz`, of which only plausible, converged fits count.

    Left poses are mirrored. `hand_pose`, `pose` or `poses` holds (M, 45), (M, 15, 3), or the same with the wrist in
    front; `flat_hand_mean` says whether poses are absolute, `is_right` (or `right`) which side they are of.

    Args:
        path: the file.
        pair: models whose mean poses are added where poses are relative to them.
        is_right: the side where the file does not say.
        mean_relative: where the file has no flat_hand_mean, its poses are relative to the mean.

    Raises:
        FileFormatError: no such file, or arrays of other shapes or units.
        InputError: the side or the mean pose is not known.
    """
    arrays = load_npz(path)
    poses, sides = _poses_and_sides(path, arrays, is_right)
    kept, notes = _kept(path, arrays, poses)
    poses, sides = poses[kept], sides[kept]
    if poses.size and np.linalg.norm(poses.reshape(-1, 15, 3), axis=2).max() > _LARGEST:
        raise FileFormatError(
            f"{path}: joint angles reach {np.linalg.norm(poses.reshape(-1, 15, 3), axis=2).max():.0f}, "
            "expected axis-angle in radians."
        )
    if _is_relative(path, arrays, mean_relative):
        if not pair.right.licensed:
            raise InputError(
                f"{path}: the poses are relative to MANO's mean pose, which the embedded hand does not have; "
                "name your MANO file with --mano."
            )
        poses = poses + np.where(sides[:, None], pair.right.hands_mean, pair.left.hands_mean)
    poses = np.where(sides[:, None], poses, poses * _MIRROR)
    digest = str(arrays["hand_model_digest"]).partition(" ")[0] if "hand_model_digest" in arrays else ""
    return PoseSet(_shortest(poses), digest, notes)


def join(sets: Sequence[PoseSet]) -> PoseSet:
    """All poses together.

    Raises:
        InputError: there are none, or they belong to different hand models.
    """
    digests = sorted({part.model_digest for part in sets if part.model_digest})
    if len(digests) > 1:
        raise InputError(
            f"the poses belong to different hand models ({', '.join(digests)}), whose parameters do not compare; "
            "give those of one model."
        )
    if not sets:
        raise InputError("no poses were given; name npz files with hand_pose or results.npz, or give --own-poses.")
    notes = tuple(note for part in sets for note in part.notes)
    return PoseSet(np.concatenate([part.poses for part in sets]), digests[0] if digests else "", notes)


def _poses_and_sides(
    path: Path, arrays: Mapping[str, np.ndarray], is_right: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 45) as the file has them, and (M,) sides."""
    found = [(_fingers(path, key, arrays[key]), side) for key, side in _SIDED_KEYS.items() if key in arrays]
    if found:
        poses = np.concatenate([part for part, _ in found])
        return poses, np.concatenate([np.full(len(part), side) for part, side in found])
    key = next((k for k in _KEYS if k in arrays), None)
    if key is None:
        raise FileFormatError(
            f"{path}: has no {', '.join((*_KEYS, *_SIDED_KEYS))}, only {', '.join(arrays) or 'nothing'}."
        )
    poses = _fingers(path, key, arrays[key])
    given = next((arrays[k] for k in ("is_right", "right") if k in arrays), None)
    if given is None and is_right is None:
        raise InputError(f"{path}: has no is_right; say with --hand which side the poses are of.")
    sides = np.array(is_right) if given is None else given
    if (
        sides.shape not in ((), (1,), (len(poses),))
        or sides.dtype.kind not in "bfiu"
        or not np.isin(sides, (0, 1)).all()
    ):
        raise FileFormatError(f"{path}: is_right has shape {sides.shape}, expected ({len(poses)},) of true and false.")
    return poses, np.broadcast_to(sides.astype(bool), len(poses))


def _fingers(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    """(M, 45) without the wrist."""
    flat = array.reshape(len(array), -1) if array.ndim == 3 and array.shape[2] == 3 else array
    if flat.ndim != 2 or flat.shape[1] not in (45, 48) or flat.dtype.kind not in "fiu":
        raise FileFormatError(
            f"{path}: {key} has shape {array.shape}, expected (M, 45) axis-angle numbers of the fingers or (M, 48) "
            "with the wrist in front; turn PCA coefficients into axis-angle first."
        )
    return flat[:, -45:].astype(np.float64)


def _kept(path: Path, arrays: Mapping[str, np.ndarray], poses: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """(M,) which poses to learn from, and how many were left out for what."""
    n = len(poses)
    checks = [("not finite", np.isfinite(poses).all(1)), ("zero throughout", (poses != 0).any(1))]
    if "status" in arrays and "plausible" in arrays:
        status = _column(path, arrays, "status", n)
        ended = (status == int(Status.CONVERGED)) | (status == int(Status.MAX_STEPS))
        checks.insert(0, ("not fitted", ended))
        checks.insert(1, ("not converged", ~ended | (status == int(Status.CONVERGED))))
        checks.insert(2, ("doubtful", _column(path, arrays, "plausible", n) != 0))
    if "has_hand_pose" in arrays:
        checks.insert(0, ("unlabelled", _column(path, arrays, "has_hand_pose", n) != 0))
    kept = np.ones(n, dtype=bool)
    reasons = []
    for reason, good in checks:
        lost = int((kept & ~good).sum())
        if lost:
            reasons.append(f"{lost} {reason}")
        kept &= good
    left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
    return kept, (f"{path.name}: {int(kept.sum())} of {n} poses{left_out}.",)


def _column(path: Path, arrays: Mapping[str, np.ndarray], key: str, n: int) -> np.ndarray:
    column = arrays[key]
    if column.shape != (n,) or column.dtype.kind not in "bfiu":
        raise FileFormatError(f"{path}: {key} has shape {column.shape}, expected ({n},) numbers.")
    return column


def _is_relative(path: Path, arrays: Mapping[str, np.ndarray], otherwise: bool) -> bool:
    if "flat_hand_mean" not in arrays:
        return otherwise
    # handloop writes texts, scripts write booleans.
    text = str(arrays["flat_hand_mean"].reshape(-1)[0]) if arrays["flat_hand_mean"].size == 1 else ""
    if text not in ("True", "False"):
        raise FileFormatError(f"{path}: flat_hand_mean must be one true or false for all poses.")
    return text == "False"


def _shortest(poses: np.ndarray) -> np.ndarray:
    """The same rotations with angles of at most pi, as the prior sees a fit's."""
    out: np.ndarray = so3_log(so3_exp(torch.tensor(poses, dtype=torch.float64).reshape(-1, 15, 3))).flatten(1).numpy()
    return out
