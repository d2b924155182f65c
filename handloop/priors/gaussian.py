"""A Gaussian prior on the pose, learned from poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.hand.model import Hand

# Scatter of a joint that the poses never move, and the share of the poses' own scatter that sampling cannot pin down.
_FLOOR_DEG = 3.0


@dataclass(frozen=True, eq=False)
class GaussianPosePrior:
    """N(mean, (L L^T)^-1) on flat-mean axis-angle poses."""

    mean: Tensor
    """(45,) rad."""
    precision_factor: Tensor
    """(45, 45) L, so that L^T (pose - mean) is white."""

    @classmethod
    def from_poses(cls, poses: np.ndarray, floor_deg: float = _FLOOR_DEG) -> GaussianPosePrior:
        """Mean and covariance of poses (n, 45) plus an isotropic floor of `floor_deg` degrees.

        The floor stands for what the poses leave out: a few degrees that soft tissue and a model's ball joints allow
        in every direction. Without it, directions the sample never moves in would be infinitely stiff.

        Raises:
            InputError: fewer than 60 poses, or values that are not finite.
        """
        if poses.ndim != 2 or poses.shape[1] != 45:
            raise InputError(f"poses have shape {poses.shape}, expected (n, 45) flat-mean axis-angle.")
        if len(poses) < 60 or not np.isfinite(poses).all():
            raise InputError(f"a pose prior needs at least 60 finite poses, got {len(poses)}.")
        mean = poses.mean(0)
        centred = poses - mean
        covariance = centred.T @ centred / (len(poses) - 1) + np.deg2rad(floor_deg) ** 2 * np.eye(45)
        factor = np.linalg.cholesky(np.linalg.inv(covariance))
        return cls(torch.tensor(mean), torch.tensor(factor))

    @classmethod
    def from_hand(cls, hand: Hand) -> GaussianPosePrior:
        """From the poses inside a hand model (`hands_coeffs`)."""
        return cls.from_poses(hand.poses())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 45) poses drawn from the prior."""
        white = torch.randn(n, 45, dtype=self.mean.dtype, generator=generator)
        return self.mean + torch.linalg.solve_triangular(self.precision_factor.T, white.T, upper=True).T

    def whiten(self, pose: Tensor) -> Tensor:
        """(B, 45) poses to (B, 45) standard normal coordinates L^T (pose - mean)."""
        factor = self.precision_factor.to(pose).T.expand(pose.shape[0], 45, 45)
        return torch.bmm(factor, (pose - self.mean.to(pose))[..., None])[..., 0]
