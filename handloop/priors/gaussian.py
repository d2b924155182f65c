"""A Gaussian prior on the pose, learned from poses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.hand.model import Hand

FLOOR_DEG = 3.0
"""Scatter of a joint that the poses never move, and the part of their scatter that sampling cannot pin down."""

TYPICAL = 0.999
"""Share of a prior's own poses whose energy stays below its `energy_limit`."""

_TYPICAL_ENERGY = 40.03836600540951
"""Half the `TYPICAL` quantile of chi-squared with 45 degrees of freedom: scipy.special.gammaincinv(45 / 2, TYPICAL),
written out because importing scipy.special takes a tenth of a second of every first fit."""


@dataclass(frozen=True, eq=False)
class GaussianPosePrior:
    """N(mean, (L L^T)^-1) on flat-mean axis-angle poses."""

    mean: Tensor
    """(45,) rad."""
    precision_factor: Tensor
    """(45, 45) L, lower triangular, so that L^T (pose - mean) is white."""
    name: str = "unnamed"
    """What it was made from; written into results."""
    model_digest: str = ""
    """Digest of the right-hand model its poses belong to; "" fits any."""

    @classmethod
    def from_poses(cls, poses: np.ndarray, floor_deg: float = FLOOR_DEG) -> GaussianPosePrior:
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
        return replace(cls.from_poses(hand.poses()), name="poses of the hand model", model_digest=hand.digest)

    @classmethod
    def from_pca(cls, hand: Hand, n: int, residual_deg: float = FLOOR_DEG) -> GaussianPosePrior:
        """A whitened prior on the first `n` PCA coefficients of MANO's pose space (`hands_components`, `hands_mean`).

        The energy is 1/2 sum_i (c_i / sd_i)^2 over the coefficients c = components (pose - hands_mean), plus 1/2 of the
        squared distance from their subspace in units of `residual_deg`: without the second part, poses off the subspace
        would cost nothing. sd_i is the root mean square of `hands_coeffs`, but no less than `residual_deg`, so that
        nothing inside the subspace is stiffer than what lies outside. Unlike an L2 penalty on the coefficients it knows
        that the first components vary tenfold as much as the later ones. All this is one Gaussian: the class and both
        engines are those of any other.

        Raises:
            InputError: `n` outside 1 to 45, a residual that is not positive, or components that are not orthonormal.
        """
        if not 1 <= n <= 45:
            raise InputError(f"{n} PCA components were asked for, expected 1 to 45.")
        if not residual_deg > 0:
            raise InputError(f"the residual deviation is {residual_deg} degrees, expected a positive number.")
        basis = hand.hands_components[:n]
        if np.abs(basis @ basis.T - np.eye(n)).max() > 1e-4:
            raise InputError(
                f"the PCA components of {hand.name} are not orthonormal, so they cannot be whitened one by one."
            )
        residual = np.deg2rad(residual_deg)
        sd = np.sqrt(np.square(hand.hands_coeffs[:, :n]).mean(0)).clip(min=residual)
        precision = np.eye(45) / residual**2 + (basis.T * (1 / sd**2 - 1 / residual**2)) @ basis
        name = f"{n} whitened PCA components of the hand model, {residual_deg:g} degrees beside them"
        factor = torch.tensor(np.linalg.cholesky(precision))
        return cls(torch.tensor(hand.hands_mean), factor, name, hand.digest)

    @property
    def means(self) -> Tensor:
        """(1, 45): the mean, stacked as in `MixturePosePrior`."""
        return self.mean[None]

    @property
    def precision_factors(self) -> Tensor:
        """(1, 45, 45)."""
        return self.precision_factor[None]

    @property
    def offsets(self) -> Tensor:
        """(1,) zero: the mean costs nothing."""
        return self.mean.new_zeros(1)

    @property
    def energy_limit(self) -> float:
        """99.9 % of poses drawn from the prior have less energy (chi-squared with 45 degrees of freedom)."""
        return _TYPICAL_ENERGY

    def to(self, like: Tensor) -> GaussianPosePrior:
        """The same on the device and in the dtype of `like`."""
        return replace(self, mean=self.mean.to(like), precision_factor=self.precision_factor.to(like))

    def scaled(self, weight: float) -> GaussianPosePrior:
        """With energies times `weight` squared, as the weights of published recipes act."""
        return replace(self, precision_factor=self.precision_factor * weight)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 45) poses drawn from the prior."""
        white = torch.randn(n, 45, dtype=self.mean.dtype, generator=generator)
        return self.mean + torch.linalg.solve_triangular(self.precision_factor.T, white.T, upper=True).T

    def whiten(self, pose: Tensor) -> Tensor:
        """(B, 45) poses to (B, 45) standard normal coordinates L^T (pose - mean)."""
        factor = self.precision_factor.to(pose).T.expand(pose.shape[0], 45, 45)
        return torch.bmm(factor, (pose - self.mean.to(pose))[..., None])[..., 0]

    def linearise(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (B, 45) of poses (B, 45), and their derivative by the pose (45, 45), the same for all."""
        return self.whiten(pose), self.precision_factor.to(pose).T

    def quadratic(self, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (B,) at poses (B, 45), its gradient (B, 45) and its second derivative (45, 45), the same for all."""
        white, factor = self.whiten(pose), self.precision_factor.to(pose)
        gradient = torch.bmm(factor.expand(len(pose), 45, 45), white[..., None])[..., 0]
        return 0.5 * white.square().sum(1), gradient, factor @ factor.T
