"""The side of a hand from the geometry of its points, where a depth is known."""

from __future__ import annotations

import numpy as np


def thumb_side(points: np.ndarray) -> np.ndarray:
    """How far the thumb's tip lies on the right hand's side of the palm.

    With n = (J5 - J0) x (J17 - J0) (x right, y down, z away from the viewer) the thumb tip of a right hand lies on the
    +n side.

    Args:
        points: (N, 21, 3) in one unit; NaN allowed.

    Returns:
        (N,) sine of the angle between palm and thumb tip, positive for right hands; 0 where it decides nothing.
    """
    # Unknown depths and absurd ones end as NaN or infinity, and decide nothing.
    with np.errstate(all="ignore"):
        at_wrist = points - points[:, :1]
        normal = np.cross(at_wrist[:, 5], at_wrist[:, 17])
        thumb = at_wrist[:, 4]
        length = np.linalg.norm(normal, axis=-1) * np.linalg.norm(thumb, axis=-1)
        sine = (normal * thumb).sum(-1) / length
    return np.where(np.isfinite(sine), sine, 0.0)
