"""The 21 points and 16 joints: names, orders, bones, fingertip vertices, annotation noise.

Canonical order (OpenPose, MediaPipe, FreiHAND): 0 wrist, 1-4 thumb base to tip, 5-8 index, 9-12 middle, 13-16 ring,
17-20 pinky. MANO order of the 16 joints: wrist, index 1-3, middle 1-3, pinky 1-3, ring 1-3, thumb 1-3.
"""

from __future__ import annotations

FINGERS = ("thumb", "index", "middle", "ring", "pinky")

JOINT_NAMES = (
    "wrist",
    *("thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip"),
    *(f"{finger}_{part}" for finger in FINGERS[1:] for part in ("mcp", "pip", "dip", "tip")),
)
"""Names of the 21 canonical points."""

MANO_JOINT_NAMES = (
    "wrist",
    *(f"{finger}{i}" for finger in ("index", "middle", "pinky", "ring", "thumb") for i in (1, 2, 3)),
)
"""Names of MANO's 16 joints, in MANO's order."""

MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parent of each of MANO's 16 joints."""

CANONICAL_FROM_MANO = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
"""Index into [16 MANO joints, tips of thumb, index, middle, ring, pinky] for each canonical point."""

PARENT_POINT = (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
"""Parent of each canonical point along the hand's skeleton."""

BONES = tuple((parent, child) for child, parent in enumerate(PARENT_POINT) if parent >= 0)
"""The 20 bones as (parent, child) canonical points."""

PALM_POINTS = (0, 5, 9, 13, 17)
"""Wrist and the four finger knuckles: the nearly rigid part of the hand."""

TIP_SETS: dict[str, tuple[int, int, int, int, int]] = {
    "smplx": (744, 320, 443, 554, 671),
    "freihand": (744, 320, 443, 555, 672),
    "manopth": (745, 317, 444, 556, 673),
    "manopth-left": (745, 317, 445, 556, 673),
    "ho3d": (744, 333, 444, 555, 672),
    "contactpose": (745, 333, 444, 555, 672),
    "728": (728, 353, 442, 576, 694),
}
"""Fingertip vertices (thumb, index, middle, ring, pinky) on the 778-vertex mesh, by the tool that uses them.

"smplx" is also HaMeR's and WiLoR's choice; "manopth" also manotorch's, ObMan's and (with 445) InterHand's.
"""

COCO_WHOLEBODY_SIGMAS = (
    *(0.029, 0.022, 0.035, 0.037, 0.047, 0.026, 0.025, 0.024, 0.035, 0.018, 0.024),
    *(0.022, 0.026, 0.017, 0.021, 0.021, 0.032, 0.020, 0.019, 0.022, 0.031),
)
"""Annotation noise of the 21 points relative to object scale (COCO-WholeBody, either hand)."""
