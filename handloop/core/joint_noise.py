"""How exact each of the 21 points is compared with the others, by where the points come from."""

from __future__ import annotations

import math

# Standard deviations of repeated annotations over the size of the object, of both hands alike, from the evaluation code
# of COCO-WholeBody (Jin et al., "Whole-body human pose estimation in the wild", ECCV 2020).
_COCO_WHOLEBODY = (
    *(0.029,),
    *(0.022, 0.035, 0.037, 0.047),
    *(0.026, 0.025, 0.024, 0.035),
    *(0.018, 0.024, 0.022, 0.026),
    *(0.017, 0.021, 0.021, 0.032),
    *(0.020, 0.019, 0.022, 0.031),
)


def _relative(sds: tuple[float, ...]) -> tuple[float, ...]:
    """Divided by their root mean square, so that a noise level means the same with every preset."""
    rms = math.sqrt(sum(sd * sd for sd in sds) / len(sds))
    return tuple(sd / rms for sd in sds)


JOINT_NOISE: dict[str, tuple[float, ...]] = {
    "uniform": (1.0,) * 21,
    "coco_wholebody": _relative(_COCO_WHOLEBODY),
}
"""Noise of each point relative to the hand's noise level, OpenPose order (wrist, thumb to pinky, base to tip), by name.

"coco_wholebody" is for detectors trained on these annotations, as the whole-body models of RTMPose and DWPose are. For
MediaPipe and OpenPose no figures by joint were found; measure and give your own."""
