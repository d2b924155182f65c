"""Settling which side each hand is: what the user says, what the file says, what the thumb shows, or right."""

from __future__ import annotations

import numpy as np

from handloop.core.words import counted
from handloop.formats.handedness import thumb_side
from handloop.formats.notes import Notes
from handloop.formats.options import ReadOptions
from handloop.formats.rows import Rows

_CLEAR = 0.1
"""Sine of the thumb's angle to the palm from which the side counts as decided. Of 440 MediaPipe hands of known side it
decided 389, one of them wrongly, with z scaled for a square picture, and 404, five of them wrongly, for 16:9."""

_MAJORITY = 0.8
"""Share of decided frames that must agree for a whole track to take their side."""


def settle_sides(rows: Rows, options: ReadOptions, notes: Notes) -> np.ndarray:
    """(N,) bool, True for right; assumptions and contradictions go to `notes`."""
    said = np.array([_said(rows, i) for i in range(len(rows))], dtype=np.int64)
    labelled = rows.per_file([hands.side_labels for _, hands in rows.files])
    thumb = _thumb_votes(rows)
    if options.mediapipe_handedness == "mirrored":
        said = np.where(labelled & (said != 0), -said, said)
    if options.side is not None:
        return _forced(said, 1 if options.side == "right" else -1, notes)
    _check_labels(said, labelled, thumb, options, notes)
    return _filled(rows, said, thumb, notes) > 0


def _said(rows: Rows, i: int) -> int:
    side = rows.files[rows.file[i]][1].sides[rows.row[i]]
    return 0 if side is None else 1 if side else -1


def _thumb_votes(rows: Rows) -> np.ndarray:
    """(N,) 1 right, -1 left, 0 undecided or no depth."""
    depth = np.where(rows.visible(), rows.depth, np.nan)
    sine = thumb_side(np.concatenate([rows.points[..., :2], depth[..., None]], -1))
    return np.where(np.abs(sine) < _CLEAR, 0, np.sign(sine)).astype(np.int64)


def _forced(said: np.ndarray, side: int, notes: Notes) -> np.ndarray:
    against = int((said == -side).sum())
    if against:
        given, other = ("right", "left") if side > 0 else ("left", "right")
        notes.add(f"--hand {given} overrides {against} hands that the files call {other}.")
    return np.full(len(said), side > 0)


def _check_labels(
    said: np.ndarray, labelled: np.ndarray, thumb: np.ndarray, options: ReadOptions, notes: Notes
) -> None:
    """Compare MediaPipe's labels, whose meaning changed between its versions, with the thumb's side."""
    if not (labelled & (said != 0)).any():
        return
    compared = labelled & (said != 0) & (thumb != 0)
    against, total = int((said[compared] != thumb[compared]).sum()), int(compared.sum())
    assumed = options.mediapipe_handedness is None
    if assumed:
        notes.add(
            "MediaPipe's side labels were taken as the person's own sides (older versions mean the mirror image's): "
            + (f"the thumb agrees in {total - against} of {total} hands." if total else "nothing could check it.")
        )
    if total and against > _MAJORITY * total:
        other = "subject" if options.mediapipe_handedness == "mirrored" else "mirrored"
        notes.add(
            f"WARNING: the side of the thumb contradicts the side labels in {against} of {total} hands; "
            f"the sides are probably swapped, give --mediapipe-handedness {other}."
        )


def _filled(rows: Rows, said: np.ndarray, thumb: np.ndarray, notes: Notes) -> np.ndarray:
    """(N,) 1 right, -1 left: what the file says, else the thumb, else right."""
    unknown = said == 0
    if not unknown.any():
        return said
    guess = np.where(unknown, thumb, said)
    for members in _tracks(rows, unknown):
        votes = thumb[members]
        decided = int((votes != 0).sum())
        if decided and abs(int(votes.sum())) >= (2 * _MAJORITY - 1) * decided:
            guess[members] = np.sign(votes.sum())
    by_thumb, assumed = unknown & (guess != 0), guess == 0
    right, left = int((guess[by_thumb] > 0).sum()), int((guess[by_thumb] < 0).sum())
    from_thumb = f"the side is not given; the thumb shows {right} right and {left} left hands, --hand overrides it."
    n = counted(int(assumed.sum()), "right hand")
    from_nothing = f"the side is not given; {n} assumed, --hand left changes that."
    for sentence, these in ((from_thumb, by_thumb), (from_nothing, assumed)):
        for file in np.unique(rows.file[these]).tolist():
            notes.add(sentence, rows.path(file))
    return np.where(assumed, 1, guess)


def _tracks(rows: Rows, unknown: np.ndarray) -> list[np.ndarray]:
    """(M,) row indices of each hand that is known to be the same over several frames."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i in np.nonzero(unknown)[0].tolist():
        tracks = rows.files[rows.file[i]][1].tracks
        if tracks is not None:
            groups.setdefault((int(rows.file[i]), int(tracks[rows.row[i]])), []).append(i)
    return [np.array(members) for members in groups.values()]
