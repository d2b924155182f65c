"""A mixture of Gaussians as a prior on the pose, for least squares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.priors.gaussian import TYPICAL, GaussianPosePrior

MAX_COMPONENTS = 64
"""What the compiled fit has room for, and more than any set of poses has been shown to need."""


@dataclass(frozen=True, eq=False)
class MixturePosePrior:
    """K Gaussians on flat-mean axis-angle poses; a pose's energy is the least of its components' (SMPLify's E_theta).

    The energy of component k is -log w_k + 1/2 log det S_k + 1/2 (pose - m_k)^T S_k^-1 (pose - m_k), shifted so that
    the best any pose can have is zero. Taking the least one in place of the logarithm of the sum leaves a sum of
    squares (a max-mixture: Olson and Agarwal, "Inference on networks of mixtures for robust robot mapping", IJRR 2013).
    The component is picked where the term is linearised, and may be another one after the next step.
    """

    means: Tensor
    """(K, 45) rad."""
    precision_factors: Tensor
    """(K, 45, 45) L, lower triangular, so that L^T (pose - mean) is white under the component."""
    offsets: Tensor
    """(K,) energy at each component's mean: -log w_k + 1/2 log det S_k, the smallest of them 0."""
    name: str = "unnamed"
    """What it was made from; written into results."""
    model_digest: str = ""
    """Digest of the right-hand model its poses belong to; "" fits any."""

    @classmethod
    def of(
        cls, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, name: str = "unnamed", digest: str = ""
    ) -> MixturePosePrior:
        """From K weights that sum to one, means (K, 45) rad and covariances (K, 45, 45).

        Raises:
            InputError: other shapes, weights that are no shares, or covariances that are not positive definite.
        """
        k = len(means)
        if k == 0 or weights.shape != (k,) or means.shape != (k, 45) or covariances.shape != (k, 45, 45):
            raise InputError(
                f"weights {weights.shape}, means {means.shape} and covariances {covariances.shape} were given, "
                "expected (K,), (K, 45) and (K, 45, 45)."
            )
        if k > MAX_COMPONENTS:
            raise InputError(f"a mixture of {k} components was given, expected at most {MAX_COMPONENTS}.")
        if not (weights > 0).all() or abs(weights.sum() - 1) > 1e-6:
            raise InputError(f"the weights are {weights.tolist()}, expected positive shares that sum to 1.")
        try:
            np.linalg.cholesky(covariances)
            factors = np.linalg.cholesky(np.linalg.inv(covariances))
        except np.linalg.LinAlgError as error:
            raise InputError("a covariance of the mixture is not positive definite.") from error
        log_det = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
        offsets = -np.log(weights) - log_det
        return cls(torch.tensor(means), torch.tensor(factors), torch.tensor(offsets - offsets.min()), name, digest)

    @property
    def mean(self) -> Tensor:
        """(45,) the pose of least energy: the mean of the component without offset."""
        return self.means[int(self.offsets.argmin())]

    @property
    def precision_factor(self) -> Tensor:
        """(45, 45) of the same component."""
        return self.precision_factors[int(self.offsets.argmin())]

    @property
    def weights(self) -> Tensor:
        """(K,) shares of the components, which the offsets and determinants imply."""
        log_det = torch.diagonal(self.precision_factors, dim1=1, dim2=2).log().sum(1)
        return torch.softmax(-self.offsets - log_det, 0)

    @cached_property
    def energy_limit(self) -> float:
        """At least 99.9 % of poses drawn from the prior have less energy.

        A pose of component k costs no more than the component's offset plus half a chi-squared number of 45 degrees of
        freedom; broad components have large offsets, so that the limit of a single Gaussian would condemn all theirs.
        """
        from scipy.optimize import brentq
        from scipy.special import gammainc, gammaincinv

        weights, offsets = self.weights.double().cpu().numpy(), self.offsets.double().cpu().numpy()

        def excess(energy: float) -> float:
            return float(weights @ gammainc(45 / 2, np.maximum(energy - offsets, 0.0))) - TYPICAL

        return float(brentq(excess, 0.0, gammaincinv(45 / 2, TYPICAL) + offsets.max() + 1.0))

    def to(self, like: Tensor) -> MixturePosePrior:
        """The same on the device and in the dtype of `like`."""
        return replace(
            self,
            means=self.means.to(like),
            precision_factors=self.precision_factors.to(like),
            offsets=self.offsets.to(like),
        )

    def scaled(self, weight: float) -> MixturePosePrior:
        """With energies times `weight` squared, as the weights of published recipes act."""
        return replace(self, precision_factors=self.precision_factors * weight, offsets=self.offsets * weight**2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 45) poses drawn from the mixture."""
        component = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        poses = torch.randn(n, 45, dtype=self.means.dtype, generator=generator)
        for k, (mean, factor) in enumerate(zip(self.means, self.precision_factors, strict=True)):
            rows = component == k
            poses[rows] = mean + torch.linalg.solve_triangular(factor.T, poses[rows].T, upper=True).T
        return poses

    def whiten(self, pose: Tensor) -> Tensor:
        """(B, 45) poses to (B, K, 45) coordinates that are standard normal under each component."""
        parts = []
        for mean, factor in zip(self.means.to(pose), self.precision_factors.to(pose), strict=True):
            parts.append(torch.bmm(factor.T.expand(len(pose), 45, 45), (pose - mean)[..., None])[..., 0])
        return torch.stack(parts, 1)

    def nearest(self, pose: Tensor) -> Tensor:
        """(B,) the component of least energy at poses (B, 45)."""
        return self._energies(self.whiten(pose)).argmin(1)

    def linearise(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (B, 46) of poses (B, 45) under the component of least energy, and their derivative (B, 46, 45).

        The last residual is constant, the root of twice the component's offset: energies of components compare.
        """
        white = self.whiten(pose)
        component = self._energies(white).argmin(1)
        rows = torch.arange(len(pose), device=pose.device)
        constant = (2 * self.offsets.to(pose)[component]).sqrt()
        slope = self.precision_factors.to(pose)[component].mT
        return torch.cat([white[rows, component], constant[:, None]], 1), torch.nn.functional.pad(slope, (0, 0, 0, 1))

    def quadratic(self, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (B,) at poses (B, 45), gradient (B, 45) and second derivative (B, 45, 45) of the nearest component."""
        white = self.whiten(pose)
        energy, component = self._energies(white).min(1)
        factors = self.precision_factors.to(pose)
        mine = white.take_along_dim(component[:, None, None], 1)[:, 0]
        gradient = torch.bmm(factors[component], mine[..., None])[..., 0]
        return energy, gradient, (factors @ factors.mT)[component]

    def _energies(self, white: Tensor) -> Tensor:
        return 0.5 * white.square().sum(2) + self.offsets.to(white)


PosePriorModel = GaussianPosePrior | MixturePosePrior
"""What the term `PosePrior` and the fits take."""


def check_model(prior: PosePriorModel, digest: str) -> None:
    """Refuse another hand model than the one a prior's poses belong to.

    Raises:
        InputError: the digest differs.
    """
    if prior.model_digest and prior.model_digest != digest:
        raise InputError(
            f"the pose prior {prior.name!r} was learned with the hand model {prior.model_digest}, not with {digest}; "
            "learn it again for this model or use the model it was made for."
        )
