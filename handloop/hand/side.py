"""Which side a hand model is, decided by its content; and the sign error in the left model's shape directions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from handloop.core.errors import ModelError
from handloop.hand.model import Hand

_FINGER_CHAINS = ((1, 2, 3), (4, 5, 6), (10, 11, 12), (7, 8, 9))
"""Index, middle, ring, pinky in MANO's joint order, from the thumb's side outward."""


def find_side(hand: Hand, path: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a model is a right hand, and notes on what that rests on.

    First the curl: seen from the palm, the poses the model was built from bend the fingers towards the viewer, and the
    knuckles run from index to pinky one way round on a right hand and the other way on a left. Then MANO's frame: its
    right hand's fingers point to -x with the thumb at +z. The file's name decides only where the content does not.

    Args:
        hand: any side; `is_right` is not looked at.
        path: of the file, for its name and for messages.

    Raises:
        ModelError: neither content nor name decides.
    """
    named = side_of_name(path)
    curl = _side_from_curl(hand)
    found = curl if curl is not None else _side_from_frame(hand)
    if found is None:
        if named is None:
            raise ModelError(
                f"{path}: its content does not tell a right hand from a left one, nor does its name; "
                "put RIGHT or LEFT into the file's name."
            )
        return named, ("The side was taken from the file's name: the content does not look like a hand.",)
    notes = []
    if curl is None:
        notes.append("The side was taken from the rest pose's axes: the model's poses do not show where its palm is.")
    if named is not None and named is not found:
        notes.append(f"The file is named {_word(named)}, but its content is a {_word(found)} hand; the content counts.")
    return found, tuple(notes)


def side_of_name(path: str | Path) -> bool | None:
    """True for a file named ...RIGHT..., False for ...LEFT..., None otherwise."""
    name = Path(path).name.lower()
    right, left = (re.search(f"(?<![a-z]){word}(?![a-z])", name) is not None for word in ("right", "left"))
    return right if right is not left else None


def _word(is_right: bool) -> str:
    return "right" if is_right else "left"


def _looks_like_a_hand(joints: np.ndarray) -> bool:
    """Four straight fingers side by side on one palm, of a hand's size."""
    knuckles = joints[[chain[0] for chain in _FINGER_CHAINS]]
    palm = knuckles - joints[0]
    lengths = np.linalg.norm(palm, axis=1)
    if lengths.min() < 0.04 or lengths.max() > 0.2:
        return False
    # The knuckles lie in order along the line from index to pinky.
    along = palm @ (palm[3] - palm[0])
    if not (np.diff(along) > 0).all():
        return False
    for chain, direction in zip(_FINGER_CHAINS, palm / lengths[:, None], strict=True):
        first, second = joints[chain[1]] - joints[chain[0]], joints[chain[2]] - joints[chain[1]]
        if first @ direction <= 0.5 * np.linalg.norm(first) or second @ direction <= 0.5 * np.linalg.norm(second):
            return False
    return True


def _side_from_curl(hand: Hand) -> bool | None:
    """True, False, or None where the poses do not bend the fingers to one side of the palm."""
    joints = hand.joints_rest
    if not _looks_like_a_hand(joints):
        return None
    # Points out of the palm on a right hand, out of the back on a left one.
    normal = np.cross(joints[1] - joints[0], joints[7] - joints[0])
    normal /= np.linalg.norm(normal)
    poses = hand.poses() if len(hand.hands_coeffs) else hand.hands_mean[None]
    poses = np.clip(poses, -np.pi, np.pi).reshape(len(poses), 15, 3)
    bent = []
    for chain in _FINGER_CHAINS:
        turn = _rotation(poses[:, chain[0] - 1])
        first = joints[chain[1]] - joints[chain[0]]
        second = joints[chain[2]] - joints[chain[1]]
        end = turn @ first + turn @ _rotation(poses[:, chain[1] - 1]) @ second
        rest = first + second
        bent.append((end - rest) @ normal / np.linalg.norm(rest))
    curl = np.stack(bent, 1)
    # Hands close much further than they open, so the mean is clear wherever real poses are at hand.
    mean = float(curl.mean())
    same_way = float((np.sign(curl.mean(1)) == np.sign(mean)).mean())
    return mean > 0 if abs(mean) > 0.08 and same_way > 0.7 else None


def _side_from_frame(hand: Hand) -> bool | None:
    """The side by MANO's own rest frame: fingers along -x on a right hand, +x on a left one; thumb towards +z."""
    joints = hand.joints_rest
    if not _looks_like_a_hand(joints):
        return None
    fingers = joints[4] - joints[0]
    across = joints[1] - joints[7]
    if abs(fingers[0]) < 0.8 * np.linalg.norm(fingers) or across[2] < 0.8 * np.linalg.norm(across):
        return None
    return bool(fingers[0] < 0)


def _rotation(axis_angle: np.ndarray) -> np.ndarray:
    """(n, 3) rad to (n, 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(axis_angle, axis=1)[:, None, None]
    x, y, z = (axis_angle / np.maximum(angle[:, 0], 1e-12)).T
    o = np.zeros_like(x)
    k = np.stack([o, -z, y, z, o, -x, -y, x, o], 1).reshape(-1, 3, 3)
    turned: np.ndarray = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)
    return turned


def repair_left_shapedirs(left: Hand, right: Hand | None = None) -> Hand:
    """A left model whose `shapedirs` are the mirror image of a right hand's, with a note on what was found.

    MANO's left file has the x part of its shape directions with the right file's sign, so that a larger hand grows
    shorter fingers (smplx issue 48). With the right file at hand the two are compared, by smplx's own test. Without,
    the first shape direction decides: it is size, which moves every vertex away from the middle in x as in y and z.

    Args:
        left: as in the file.
        right: the right model of the same release, if at hand.

    Returns:
        The hand with `left_shapedirs` "repaired" or "none"; the digest is not set anew.
    """
    wrong = None if right is None else _x_sign_is_wrong_beside(left, right)
    how = "compared with the right file"
    if wrong is None:
        wrong, how = _x_sign_is_wrong(left), "by its first direction, which is size"
    if wrong is None:
        note = "Whether the left model's shapedirs have the wrong sign in x could not be told; they are as in the file."
        return replace(left, left_shapedirs="as-file", notes=(*left.notes, note))
    if not wrong:
        note = f"The left model's shapedirs are right as they are in the file ({how})."
        return replace(left, left_shapedirs="none", notes=(*left.notes, note))
    note = f"The left model's shapedirs had the wrong sign in x (smplx issue 48) and were repaired ({how})."
    repaired = left.shapedirs * np.array([-1.0, 1.0, 1.0])[:, None]
    return replace(left, shapedirs=repaired, left_shapedirs="repaired", notes=(*left.notes, note))


def _x_sign_is_wrong_beside(left: Hand, right: Hand) -> bool | None:
    """smplx's test, and its opposite; None where the two files are not each other's mirror images at all."""
    same = float(np.abs(left.shapedirs[:, 0] - right.shapedirs[:, 0]).sum())
    opposite = float(np.abs(left.shapedirs[:, 0] + right.shapedirs[:, 0]).sum())
    if min(same, opposite) > 1 or max(same, opposite) < 2 * min(same, opposite):
        return None
    return same < opposite


def _x_sign_is_wrong(left: Hand) -> bool | None:
    """True where the first shape direction grows the hand in y and z while it shrinks it in x, or the reverse."""
    place = left.v_template - left.v_template.mean(0)
    move = left.shapedirs[:, :, 0] - left.shapedirs[:, :, 0].mean(0)
    product, places, moves = (place * move).sum(0), (place**2).sum(0), (move**2).sum(0)
    along = product[0] / np.sqrt(places[0] * moves[0] + 1e-30)
    across = product[1:].sum() / np.sqrt(places[1:].sum() * moves[1:].sum() + 1e-30)
    if abs(along) < 0.4 or abs(across) < 0.4:
        return None
    return bool(along * across < 0)
