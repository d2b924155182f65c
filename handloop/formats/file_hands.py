"""`FileHands`: what a reader makes of one file, before scales, sides, pictures and ids are settled over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["openpose", "mediapipe", "array", "table"]
"""What sort of source: decides how a unit coordinate maps to px, and what may be assumed about the picture's size.

openpose: x / (W - 1), 0 at the first pixel's centre; mediapipe and array: x / W, 0 at the first pixel's outer edge, and
an unknown size is assumed; table (npz, csv): as mediapipe, but an unknown size is refused.
"""


@dataclass(frozen=True)
class FileHands:
    """n hands of one file."""

    kind: Kind
    """What sort of source."""
    points: np.ndarray
    """(n, 21, 3) float64 x, y in the file's unit, confidence (0 missing); NaN allowed, and taken as missing."""
    labels: tuple[str, ...]
    """n names within the file ("" for its only hand), or complete ids with `own_ids`."""
    sides: tuple[bool | None, ...]
    """n, True for right, None where the file does not say."""
    own_ids: bool = False
    """The labels are the file's own ids."""
    side_labels: bool = False
    """`sides` are MediaPipe handedness labels, which name the person's side or the mirror image's."""
    depth: np.ndarray | None = None
    """(n, 21) z in the unit of x, smaller is nearer, where the file has it."""
    tracks: np.ndarray | None = None
    """(n,) equal numbers where rows show one hand over time, so that they share a side; None for no such knowledge."""
    frames: np.ndarray | None = None
    """(n,) frame numbers; None for a file of one picture, whose name may end in a number."""
    image_size: np.ndarray | None = None
    """(n, 2) px, NaN where unknown."""
    images: tuple[str, ...] | None = None
    """n picture paths as written in the file."""
    sources: tuple[str, ...] | None = None
    """n file names the hands came from first; None means this file."""
    matrix: np.ndarray | None = None
    """(n, 3, 3) K, NaN where unknown."""
    dist: np.ndarray | None = None
    """(n, k) OpenCV distortion."""
    truth: np.ndarray | None = None
    """(n, 21, 3) true joints, m, camera frame."""
    notes: tuple[str, ...] = ()
    """Sentences about this file; the same sentence from several files is reported once, with their names."""


def no_hands(kind: Kind) -> FileHands:
    """A valid file without hands."""
    return FileHands(kind, np.zeros((0, 21, 3)), (), ())


def with_confidence(xy: np.ndarray) -> np.ndarray:
    """(..., 2) to (..., 3) with confidence 1, and 0 for points at exactly (0, 0): how tools write a missing point."""
    seen = (xy != 0).any(-1, keepdims=True)
    return np.concatenate([xy, seen.astype(np.float64)], -1)
