"""The bones: joint centres at rest and the anatomical axes of every joint.

Frame (as MANO's right hand): fingers point along -x, the back of the hand faces +y, the thumb is on +z. Millimetres
here, metres only in the written file.

Lengths are Buryanov & Kotiuk 2010 (radiographs, n = 66) times 1.04, which brings wrist to middle fingertip to 189 mm,
the pooled ANSUR II hand length. The palm's layout (wrist to MCP 92/92/87/83 mm) agrees with Buryanov's metacarpals plus
a 24 mm carpus.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
FINGERS = ("index", "middle", "pinky", "ring", "thumb")
"""Finger names in the joint order: finger f owns joints 3 f + 1, 3 f + 2, 3 f + 3."""
THUMB = 4

LENGTH_SCALE = 1.04
WRIST = np.array([90.0, 0.0, 0.0])

# Bone lengths in mm before scaling, proximal to distal, and the soft tissue beyond the last bone (Buryanov & Kotiuk
# 2010). The thumb's first bone is its metacarpal.
BONES_MM: dict[str, tuple[float, float, float]] = {
    "index": (39.78, 22.38, 15.82),
    "middle": (44.63, 26.33, 17.40),
    "ring": (41.37, 25.65, 17.30),
    "pinky": (32.74, 18.11, 15.96),
    "thumb": (46.22, 31.57, 21.67),
}
TIP_TISSUE_MM: dict[str, float] = {"index": 3.84, "middle": 3.95, "ring": 3.95, "pinky": 3.73, "thumb": 5.67}

# First joint of each finger relative to the wrist: (distal, dorsal, radial) mm. The lateral spacing makes the skin 83
# mm broad at the MCPs, the dorsal offsets are the transverse arch. The thumb's CMC sits beside the trapezium, 31 mm
# from the wrist's centre.
BASES_MM: dict[str, tuple[float, float, float]] = {
    "index": (88.0, 0.5, 26.5),
    "middle": (92.0, 1.5, 5.0),
    "ring": (85.8, -0.5, -14.5),
    "pinky": (76.0, -4.5, -32.5),
    "thumb": (19.0, -10.0, 22.5),
}

# Rest direction of the fingers in the palm's plane: degrees towards the thumb from straight distal. Slightly spread,
# so that neighbouring fingers are well apart in the template.
SPREAD_DEG: dict[str, float] = {"index": 7.0, "middle": 1.0, "ring": -6.0, "pinky": -16.0}

# The thumb: (distal, dorsal, radial) directions of its metacarpal and of its two phalanges. About 45 degrees out,
# slightly palmar.
THUMB_METACARPAL = (0.68, -0.30, 0.67)
THUMB_PHALANGES = (0.76, -0.27, 0.59)


@dataclass(frozen=True)
class Skeleton:
    """Joint centres and bone axes of the resting hand, in mm."""

    joints: Array
    """(16, 3) joint centres in MANO's order."""
    tips: Array
    """(5, 3) the skin's end on each finger's axis, in the order of ``FINGERS``."""
    axes: Array
    """(16, 3, 3) columns f, d, b: flexion axis, dorsal direction, bone direction; the wrist has the hand's frame."""
    lengths: Array
    """(16,) distance from a joint to its child or to the fingertip's skin; 0 for the wrist."""


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def _from_hand(triple: tuple[float, float, float]) -> Array:
    """(distal, dorsal, radial) to the file's axes."""
    return np.array([-triple[0], triple[1], triple[2]])


def bone_axes(bone: Array, dorsal: Array) -> Array:
    """Columns f, d, b: d is ``dorsal`` made orthogonal to ``bone``, f = d x b; positive flexion turns b to the palm."""
    b = _unit(bone)
    d = _unit(dorsal - (dorsal @ b) * b)
    return np.stack([np.cross(d, b), d, b], axis=1)


def build_skeleton() -> Skeleton:
    """The resting skeleton."""
    joints = np.zeros((16, 3))
    joints[0] = WRIST
    tips = np.zeros((5, 3))
    axes = np.zeros((16, 3, 3))
    axes[0] = bone_axes(_from_hand((1.0, 0.0, 0.0)), _from_hand((0.0, 1.0, 0.0)))
    lengths = np.zeros(16)
    for finger, name in enumerate(FINGERS):
        if name == "thumb":
            directions = [_from_hand(THUMB_METACARPAL)] + 2 * [_from_hand(THUMB_PHALANGES)]
            dorsal = np.ones(3)
        else:
            angle = np.deg2rad(SPREAD_DEG[name])
            directions = 3 * [_from_hand((float(np.cos(angle)), 0.0, float(np.sin(angle))))]
            dorsal = np.array([0.0, 1.0, 0.0])
        point = WRIST + _from_hand(BASES_MM[name])
        for bone in range(3):
            joint = 3 * finger + 1 + bone
            length = BONES_MM[name][bone] + (TIP_TISSUE_MM[name] if bone == 2 else 0.0)
            joints[joint] = point
            axes[joint] = bone_axes(directions[bone], dorsal)
            lengths[joint] = LENGTH_SCALE * length
            point = point + lengths[joint] * axes[joint, :, 2]
        tips[finger] = point
    return Skeleton(joints, tips, axes, lengths)
