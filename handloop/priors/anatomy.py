"""Anatomical joint axes of a hand model, flexion, abduction and twist angles, and their limits.

At each finger joint: b along the bone at rest, d towards the back of the hand and square to b, f = d x b the flexion
axis. A joint's rotation is R = Rot(f, flexion) Rot(d, abduction) Rot(b, twist); positive flexion curls to the palm.
The angles are those of A^T R A with A = [f d b], never components of axis-angle vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import ModelError
from handloop.core.rotations import angle_from_sides, so3_exp
from handloop.hand.kinematics import CHAINS
from handloop.hand.model import Hand

# Ranges in degrees (flexion, abduction, twist) x (low, high): goniometric consensus (Eaton's e-Hand tables), with
# MCP and PIP flexion as tuned on real hands; abduction and twist are wide because models put their zeros elsewhere.
_RANGES = {
    "finger1": ((-15, 95), (-25, 25), (-15, 15)),
    "finger2": ((-8, 115), (-8, 8), (-8, 8)),
    "finger3": ((-15, 90), (-8, 8), (-8, 8)),
    "thumb1": ((-45, 45), (-45, 45), (-35, 35)),
    "thumb2": ((-15, 60), (-15, 15), (-15, 15)),
    "thumb3": ((-20, 80), (-8, 8), (-8, 8)),
}


def anatomical_ranges() -> np.ndarray:
    """(15, 3, 2) rad, lowest and highest flexion, abduction and twist of the finger joints in MANO order."""
    ranges = np.zeros((15, 3, 2))
    for finger, chain in enumerate(CHAINS):
        for depth, joint in enumerate(chain):
            ranges[joint - 1] = np.deg2rad(_RANGES[f"{'thumb' if finger == 0 else 'finger'}{depth + 1}"])
    return ranges


def anatomical_axes(hand: Hand) -> np.ndarray:
    """(15, 3, 3) matrices A with columns f, d, b for the finger joints in MANO order, from the rest pose alone.

    For the thumb, whose nail looks aside, d is the mean of the directions proximal, dorsal and radial.

    Raises:
        ModelError: a left hand; fits run in the right-hand canonical frame, so mirror it first.
    """
    if not hand.is_right:
        raise ModelError(f"{hand.name} is a left hand; anatomical axes are defined for the right-hand canonical frame.")
    joints, tips = hand.joints_rest, hand.v_template[hand.tip_ids]
    wrist, middle = joints[0], joints[4]
    distal = _unit(middle - wrist)
    # (index - wrist) x (pinky - wrist) points out of the palm of a right hand.
    dorsal = _unit(np.cross(joints[7] - wrist, joints[1] - wrist))
    across = joints[1] - joints[7]
    radial = _unit(across - distal * (across @ distal))
    axes = np.zeros((15, 3, 3))
    for finger, chain in enumerate(CHAINS):
        towards = _unit(dorsal + radial - distal) if finger == 0 else dorsal
        ends = [*joints[list(chain)], tips[finger]]
        for depth, joint in enumerate(chain):
            b = _unit(ends[depth + 1] - ends[depth])
            d = _unit(towards - b * (towards @ b))
            axes[joint - 1] = np.stack([np.cross(d, b), d, b], 1)
    return axes


def anatomical_angles(rotations: Tensor, axes: Tensor) -> Tensor:
    """(B, 15, 3, 3) joint rotations to (B, 15, 3) flexion, abduction, twist in rad; `axes` (15, 3, 3)."""
    return angles_of(axes.mT @ rotations @ axes)


def angles_of(m: Tensor) -> Tensor:
    """Flexion, abduction, twist (..., 3) of (..., 3, 3) = Rx(flexion) Ry(abduction) Rz(twist)."""
    across = _hypot(m[..., 1, 2], m[..., 2, 2])
    along = _hypot(m[..., 0, 1], m[..., 0, 0])
    flexion = angle_from_sides(-m[..., 1, 2], m[..., 2, 2], across)
    abduction = angle_from_sides(m[..., 0, 2], across, _hypot(m[..., 0, 2], across))
    twist = angle_from_sides(-m[..., 0, 1], m[..., 0, 0], along)
    return torch.stack([flexion, abduction, twist], -1)


def angles_and_jacobian(rotations: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """`anatomical_angles` and (B, 15, 3, 3), their derivative by d in R exp(d)."""
    angles = anatomical_angles(rotations, axes)
    sin_t, cos_t = angles[..., 2].sin(), angles[..., 2].cos()
    sin_a, cos_a = angles[..., 1].sin(), angles[..., 1].cos()
    # Flexion and twist part company at 90 degrees of abduction; no joint comes near, the bound only keeps it finite.
    inverse = 1 / cos_a.clamp(min=0.05)
    zero, one = torch.zeros_like(sin_t), torch.ones_like(sin_t)
    flexion = torch.stack([cos_t * inverse, -sin_t * inverse, zero], -1)
    abduction = torch.stack([sin_t, cos_t, zero], -1)
    twist = torch.stack([-sin_a * cos_t * inverse, sin_a * sin_t * inverse, one], -1)
    return angles, torch.stack([flexion, abduction, twist], -2) @ axes.mT


def rotations_from_angles(angles: Tensor, axes: Tensor) -> Tensor:
    """(B, 15, 3) flexion, abduction, twist in rad to (B, 15, 3, 3) joint rotations."""
    sf, sa, st = angles.sin().unbind(-1)
    cf, ca, ct = angles.cos().unbind(-1)
    m = torch.stack(
        [
            *(ca * ct, -ca * st, sa),
            *(cf * st + sf * sa * ct, cf * ct - sf * sa * st, -sf * ca),
            *(sf * st - cf * sa * ct, sf * ct + cf * sa * st, cf * ca),
        ],
        -1,
    ).unflatten(-1, (3, 3))
    return axes @ m @ axes.mT


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Ranges of the anatomical angles."""

    axes: Tensor
    """(15, 3, 3) A, MANO order."""
    low: Tensor
    """(15, 3) rad."""
    high: Tensor
    """(15, 3) rad."""

    @classmethod
    def from_hand(cls, hand: Hand) -> JointLimits:
        """Anatomical ranges, widened where the model's own poses go further.

        A model's zero pose is not the anatomical zero (its thumb least of all), so each range also holds the central
        99 % of the poses inside the model.
        """
        axes = torch.tensor(anatomical_axes(hand))
        limits = anatomical_ranges()
        poses = torch.tensor(hand.poses()).reshape(-1, 15, 3)
        if len(poses):
            angles = anatomical_angles(so3_exp(poses), axes).numpy()
            limits[..., 0] = np.minimum(limits[..., 0], np.quantile(angles, 0.005, axis=0))
            limits[..., 1] = np.maximum(limits[..., 1], np.quantile(angles, 0.995, axis=0))
        return cls(axes, torch.tensor(limits[..., 0]), torch.tensor(limits[..., 1]))

    def to(self, like: Tensor) -> JointLimits:
        """With the dtype and device of `like`."""
        return JointLimits(self.axes.to(like), self.low.to(like), self.high.to(like))

    def excess(self, angles: Tensor) -> Tensor:
        """(B, 15, 3) signed distance outside the range, rad; 0 inside."""
        low, high = self.low.to(angles), self.high.to(angles)
        return (angles - high).clamp(min=0) - (low - angles).clamp(min=0)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    """As torch.hypot, which rounds by place in the batch; with a floor, for both are 0 at 90 degrees of abduction."""
    return (a * a + b * b).clamp(min=1e-30).sqrt()


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)
