"""Poses from the model's own prior, within the joint limits and without fingers through each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from handloop.core.rotations import so3_exp, so3_log
from handloop.hand.kinematics import CHAINS
from handloop.hand.model import Hand
from handloop.priors.anatomy import JointLimits, anatomical_angles, rotations_from_angles
from handloop.priors.gaussian import GaussianPosePrior

_OVERLAP = 0.75
"""Fingers count as passed through each other where their axes come nearer than this share of their radii's sum. Of 100
drawn poses it caught nine in ten of those with 40 and more vertices under another part's skin, and hardly any other."""

_PALM_FINGERS = (1, 4, 7, 10)
"""MANO joints at the ends of the palm's bones."""


@dataclass(frozen=True, eq=False)
class PoseSource:
    """Random poses of one hand model's right-hand frame."""

    mean: np.ndarray
    """(45,) rad."""
    spread: np.ndarray
    """(45, 45): standard normal rows times this are deviations from the mean."""
    limits: JointLimits
    """Joint limits of the model."""

    @classmethod
    def of(cls, hand: Hand) -> PoseSource:
        """From the poses inside a right hand's model."""
        prior = GaussianPosePrior.from_hand(hand)
        return cls(prior.mean.numpy(), np.linalg.inv(prior.precision_factor.numpy()), JointLimits.from_hand(hand))

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """(45,) one pose, rad, right-hand frame, moved to the nearest allowed angles."""
        pose = torch.from_numpy(self.mean + generator.standard_normal(45) @ self.spread)
        angles = anatomical_angles(so3_exp(pose.reshape(1, 15, 3)), self.limits.axes)
        # Uniformly a little inside, so that poses at a limit differ from each other.
        span = (self.limits.high - self.limits.low) * torch.from_numpy(generator.uniform(0, 0.08, (15, 3)))
        inside = angles.clamp(self.limits.low + span, self.limits.high - span)
        return so3_log(rotations_from_angles(inside, self.limits.axes)).reshape(45).numpy()


@dataclass(frozen=True, eq=False)
class Thickness:
    """Radii of the fingers, to tell whether they pass through each other or the palm."""

    radii: np.ndarray
    """(5, 3) m of the three phalanges, thumb first."""
    palm: float
    """m, half the palm's thickness."""

    @classmethod
    def of(cls, hand: Hand) -> Thickness:
        """Median distances of a model's vertices from its bones, at rest."""
        joints, vertices = hand.joints_rest, hand.v_template
        owner = hand.weights.argmax(1)
        radii = np.zeros((5, 3))
        for finger, chain in enumerate(CHAINS):
            ends = [*joints[list(chain)], vertices[hand.tip_ids[finger]]]
            for k, joint in enumerate(chain):
                radii[finger, k] = np.median(_from_segment(vertices[owner == joint], ends[k], ends[k + 1]))
        palm = [_from_segment(vertices[owner == 0], joints[0], joints[k]) for k in _PALM_FINGERS]
        return cls(radii, float(np.median(np.min(palm, axis=0))))

    def has_overlap(self, joints: np.ndarray, tips: np.ndarray) -> bool:
        """Whether a posed hand's fingers pass through each other or the palm.

        Args:
            joints: (16, 3) m, MANO order.
            tips: (5, 3) m, thumb first.
        """
        points, radii, fingers = [], [], []
        for finger, chain in enumerate(CHAINS):
            ends = [*joints[list(chain)], tips[finger]]
            for k in range(3):
                # Not the base of a finger: neighbouring knuckles share their flesh.
                for share in (0.6,) if k == 0 else (0.1, 0.5, 0.9):
                    points.append(ends[k] + share * (ends[k + 1] - ends[k]))
                    radii.append(self.radii[finger, k])
                    fingers.append(finger)
        where, radius, finger_of = np.array(points), np.array(radii), np.array(fingers)
        apart = np.linalg.norm(where[:, None] - where[None], axis=2)
        allowed = _OVERLAP * (radius[:, None] + radius[None])
        if bool(((apart < allowed) & (finger_of[:, None] != finger_of[None])).any()):
            return True
        shares = np.array([0.35, 0.6, 0.85])[:, None]
        palm = np.concatenate([joints[0] + shares * (joints[k] - joints[0]) for k in _PALM_FINGERS])
        # The thumb's inner phalanges belong to the palm's edge.
        outer = np.array([k for k in range(len(radius)) if k % 7 >= 4])
        gap = np.linalg.norm(where[outer][:, None] - palm[None], axis=2)
        return bool((gap < _OVERLAP * (radius[outer][:, None] + self.palm)).any())


def _from_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) distances of points (n, 3) from the segment a b."""
    along = b - a
    share = np.clip((points - a) @ along / (along @ along), 0, 1)
    return np.asarray(np.linalg.norm(points - a - share[:, None] * along, axis=1))
