"""Bare arrays of hands (npy, or nested lists in JSON): what their shape and values say about their meaning."""

from __future__ import annotations

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.file_hands import FileHands, with_confidence

# MediaPipe holistic flattened as pose 33 x 4, face 468 x 3, left hand 21 x 3, right hand 21 x 3 ("MP_Data").
_HOLISTIC = 1662
_HOLISTIC_LEFT = slice(1536, 1599)
_HOLISTIC_RIGHT = slice(1599, 1662)

_METRES = 0.5
"""A hand's points lie within this many metres of its own origin."""
_NEGATIVE_METRES, _NEGATIVE_OTHER = 0.2, 0.3
"""Share of negative x and y from which points are relative to the hand, not to a picture's corner: about half are then,
while a hand in a picture rarely crosses the left or upper edge. Values within `_METRES` need less proof."""

_MAX_UNIT_DEPTH = 0.5
"""A hand is not deeper than half a picture's width; confidences of a hand without a wrist mostly reach higher."""

_MAX_CONFIDENCE = 1.1
"""OpenPose's confidences exceed 1 by a little."""


def array_hands(array: np.ndarray) -> FileHands:
    """Hands of an array (21, c), (N, 21, c), (T, hands, 21, c), c = 2 or 3, the same with 21 c flat, or (T, 1662).

    Raises:
        FileFormatError: another shape, or points in metres about the hand instead of a picture's.
    """
    if array.shape[-1:] == (_HOLISTIC,) and array.ndim in (1, 2):
        return _holistic(array)
    shape = array.shape
    if shape[-1:] in ((42,), (63,)) and array.ndim <= 2:
        array = array.reshape(*shape[:-1], 21, shape[-1] // 21)
    if array.ndim not in (2, 3, 4) or array.shape[-2] != 21 or array.shape[-1] not in (2, 3):
        raise FileFormatError(
            f"the array has shape {shape}, expected (21, c), (N, 21, c) or (T, hands, 21, c) with c = 2 or 3 in "
            "OpenPose order, or MediaPipe holistic vectors of 1662."
        )
    single = array.ndim == 2
    n_hands = array.shape[1] if array.ndim == 4 else 1
    rows = array.reshape(-1, 21, array.shape[-1])
    n_frames = len(rows) // max(n_hands, 1)
    frame, hand = np.divmod(np.arange(len(rows)), max(n_hands, 1))
    points, depth, note = _columns(rows)
    labels = tuple(_label(f, h, single, n_hands) for f, h in zip(frame.tolist(), hand.tolist(), strict=True))
    return FileHands(
        "array",
        points,
        labels,
        (None,) * len(rows),
        depth=depth,
        # One or two rows may as well be the two hands of a person.
        tracks=hand if n_frames > 2 else np.arange(len(rows)),
        frames=None if single else frame,
        notes=(note,) if note else (),
    )


def _label(frame: int, hand: int, single: bool, n_hands: int) -> str:
    return ("" if single else f":{frame:06d}") + (f":h{hand}" if n_hands > 1 else "")


def _columns(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, str]:
    """(n, 21, 2|3) to points with confidence, (n, 21) depth or None, and a note on what the third column means."""
    if rows.shape[-1] == 2:
        return with_confidence(rows), None, ""
    present = rows[np.nan_to_num(rows).any((1, 2))]
    third = present[..., 2][np.isfinite(present[..., 2])]
    if not third.size:
        return rows, None, ""
    if _third_is_depth(present, third):
        _refuse_metres(present)
        points = with_confidence(rows[..., :2])
        return points, rows[..., 2], "the third column was taken as depth (z, smaller is nearer), not as confidence."
    return rows, None, "the third column was taken as confidence."


def _third_is_depth(present: np.ndarray, third: np.ndarray) -> bool:
    """Confidences lie in 0..1; depth goes beyond, or is 0 at the wrist alone (MediaPipe's is 1e-7 there)."""
    if third.min() < 0 or third.max() > _MAX_CONFIDENCE or not third.any():
        return True
    wrist, others = present[:, 0], present[:, 1:, 2]
    at_wrist = (wrist[:, :2] != 0).any(-1) & (wrist[:, 2] < 1e-3)
    return bool(at_wrist.all() and (others > 0).mean() > 0.5 and third.max() < _MAX_UNIT_DEPTH)


def _refuse_metres(present: np.ndarray) -> None:
    """Points about the hand's own origin are not points of a picture."""
    xy = present[..., :2]
    negative = float((xy < 0).mean())
    largest = float(np.nanmax(np.abs(xy)))
    at_wrist = bool((present[:, 0] == 0).all())
    if at_wrist or (largest < _METRES and negative > _NEGATIVE_METRES) or negative > _NEGATIVE_OTHER:
        unit = "metres" if largest < _METRES else "a length"
        raise FileFormatError(
            f"the array looks like 3D points in {unit} about the hand (world landmarks), not like points of a picture; "
            "give the 2D landmarks."
        )


def _holistic(array: np.ndarray) -> FileHands:
    vectors = array.reshape(-1, _HOLISTIC)
    hands = np.stack([vectors[:, _HOLISTIC_LEFT], vectors[:, _HOLISTIC_RIGHT]], 1).reshape(-1, 21, 3)
    n, single = len(vectors), array.ndim == 1
    labels = [("" if single else f":{t:06d}") + side for t in range(n) for side in (":left", ":right")]
    return FileHands(
        "mediapipe",
        with_confidence(hands[..., :2]),
        tuple(labels),
        (False, True) * n,
        depth=hands[..., 2],
        frames=None if single else np.repeat(np.arange(n), 2),
    )
