"""How the joints of a finger depend on each other: flexion that runs together, spread that closes, straight hinges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import CHAINS
from handloop.hand.model import Hand
from handloop.priors.anatomy import JointLimits, anatomical_angles, anatomical_ranges

FINGERS = CHAINS[1:]
MCP, PIP, DIP = ([chain[depth] - 1 for chain in FINGERS] for depth in range(3))
"""Rows among the 15 finger joints (MANO order) of the four long fingers' joints, index to pinky."""
HINGES = sorted([CHAINS[0][1] - 1, CHAINS[0][2] - 1, *PIP, *DIP])
"""Rows of the joints that only bend: PIP and DIP, the thumb's MCP and IP."""

# The classic rule of drawing and animation (Rijpkema and Girard 1991), which people follow to within 6 to 14 degrees
# when they handle things, 9 to 18 when they move freely (Roda-Sales et al. 2022, PeerJ 14051).
_DIP_PER_PIP = 2 / 3
# Collateral ligaments tighten as an MCP bends; at 70 degrees they leave no spread.
_CLOSED_AT_DEG = 70.0
# Except this much to either side: a model's flexion axis is not exactly the joint's, and bending alone moves the
# abduction by that much.
_REMAINDER_DEG = 5.0
# Fewer bent poses than this say nothing about the spread that is left.
_ENOUGH = 20


@dataclass(frozen=True, eq=False)
class JointCouplings:
    """Relations between the anatomical angles of a finger, with zeros where the model in use has them."""

    axes: Tensor
    """(15, 3, 3) A, MANO order, as in `JointLimits`."""
    dip_per_pip: float
    """Flexion of a DIP for each radian of its PIP."""
    dip_offset: Tensor
    """(4,) rad, flexion of the DIP with an unflexed PIP, index to pinky."""
    open_spread: Tensor
    """(4, 2) rad, lowest and highest abduction of an unflexed MCP."""
    closed_spread: Tensor
    """(4, 2) rad, the same of an MCP flexed by `closed_at` or more; between them the ends move linearly."""
    closed_at: float
    """rad."""
    straight: Tensor
    """(15,) rad, flexion at which each joint is straight."""

    @classmethod
    def from_hand(cls, hand: Hand, limits: JointLimits) -> JointCouplings:
        """Published relations, with their zeros from the model's own poses, whose zero is not the anatomical one.

        The DIP's offset is the median over the poses; the closed spread also holds the central 99 % of the poses so far
        bent; a joint is straight as far from the end of its range as anatomy has it.

        Args:
            hand: a right hand, or a left one mirrored.
            limits: of the same hand.
        """
        axes, closed_at = limits.axes.double(), np.deg2rad(_CLOSED_AT_DEG)
        poses = torch.tensor(hand.poses()).reshape(-1, 15, 3)
        offset = np.zeros(4)
        closed = np.deg2rad([[-_REMAINDER_DEG, _REMAINDER_DEG]] * 4)
        if len(poses):
            angles = anatomical_angles(so3_exp(poses), axes).numpy()
            offset = np.median(angles[:, DIP, 0] - _DIP_PER_PIP * angles[:, PIP, 0], axis=0)
            for finger, row in enumerate(MCP):
                left = angles[angles[:, row, 0] > closed_at, row, 1]
                if len(left) >= _ENOUGH:
                    middle, ends = np.median(left), np.quantile(left, [0.005, 0.995])
                    closed[finger, 0] = min(closed[finger, 0] + middle, ends[0])
                    closed[finger, 1] = max(closed[finger, 1] + middle, ends[1])
        low, high = limits.low.double(), limits.high.double()
        return cls(
            axes=axes,
            dip_per_pip=_DIP_PER_PIP,
            dip_offset=torch.tensor(offset),
            open_spread=torch.stack([low[MCP, 1], high[MCP, 1]], 1),
            closed_spread=torch.tensor(closed),
            closed_at=float(closed_at),
            straight=low[:, 0] - torch.tensor(anatomical_ranges()[:, 0, 0]),
        )

    def to(self, like: Tensor) -> JointCouplings:
        """With the dtype and device of `like`."""
        return JointCouplings(
            self.axes.to(like),
            self.dip_per_pip,
            self.dip_offset.to(like),
            self.open_spread.to(like),
            self.closed_spread.to(like),
            self.closed_at,
            self.straight.to(like),
        )
