"""The terms of the standard recipe: reprojection, pose prior, joint limits, shape, size, focal length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.structured import PointResidual, Quadratic
from handloop.core.terms import BETAS, FOCAL, POSE, Kernel, PosedHand, Residual, residual
from handloop.priors.anatomy import JointLimits, anatomical_angles, angles_and_jacobian
from handloop.priors.mixture import PosePriorModel
from handloop.priors.shape import HandLength


@dataclass(frozen=True, eq=False)
class Reprojection:
    """SMPLify's E_J (Bogo et al. 2016): robust distance of projected joints to keypoints, in sigmas.

    A residual pair is conf (projected - found) / sigma, so a point of confidence 1/2 counts as one of twice the noise.
    """

    uv: Tensor
    """(B, 21, 2) keypoints, px, lens distortion removed; anything finite where `inverse_sigma` is 0."""
    inverse_sigma: Tensor
    """(B, 21) conf / sigma, 1/px; 0 for missing points."""
    focal: Tensor
    """(B, 2) px."""
    princpt: Tensor
    """(B, 2) px."""
    kernel: Kernel
    """Acts on the norm of a point's residual pair."""
    name: str = "reprojection"

    def linearise(self, posed: PosedHand) -> Residual:
        """Residual pairs (B, 42); a hand with a visible point behind the camera has infinite energy."""
        sight = self._see(posed)
        out = residual(sight.pairs, sight.jacobian(posed.points_jacobian), self.kernel)
        return Residual(sight.guarded(out.energy), out.value, out.jacobian)

    def by_point(self, posed: PosedHand) -> PointResidual:
        """See `PointTerm`."""
        sight = self._see(posed)
        jac = sight.jacobian(posed.rows)
        assert jac is not None
        out = PointResidual.of(sight.pairs, jac, self.kernel)
        return PointResidual(sight.guarded(out.energy), out.rows)

    def _see(self, posed: PosedHand) -> _Sight:
        x, y, z = posed.points.unbind(-1)
        behind = ((self.inverse_sigma > 0) & (z <= 1e-3)).any(1)
        z = z.clamp(min=1e-3)
        focal = self.focal * posed.state.log_focal.exp()[:, None]
        normalised = torch.stack([x / z, y / z], -1)
        scale = focal[:, None] * self.inverse_sigma[..., None]
        offset = (self.princpt[:, None] - self.uv) * self.inverse_sigma[..., None]
        return _Sight(normalised, scale, z, normalised * scale + offset, behind)

    def select(self, index: Tensor) -> Reprojection:
        """See `Term.select`."""
        return Reprojection(
            self.uv[index], self.inverse_sigma[index], self.focal[index], self.princpt[index], self.kernel
        )


@dataclass(frozen=True, eq=False)
class _Sight:
    """Points as a camera sees them, (B, 21, ...)."""

    normalised: Tensor
    """x/z and y/z."""
    scale: Tensor
    """Focal lengths in sigmas."""
    z: Tensor
    """m, positive."""
    pairs: Tensor
    """Residuals, sigmas."""
    behind: Tensor
    """(B,) whether a visible point is behind the camera."""

    def jacobian(self, by_point: Tensor | None) -> Tensor | None:
        """(B, 21, 2, C + 1) of the pairs from the points' (B, 21, 3, C), the focal length's column behind."""
        if by_point is None:
            return None
        jac = by_point.new_empty(*self.pairs.shape, by_point.shape[-1] + 1)
        across = torch.addcmul(by_point[:, :, :2], self.normalised[..., None], by_point[:, :, 2:], value=-1)
        torch.mul(across, (self.scale / self.z[..., None])[..., None], out=jac[..., :-1])
        jac[..., -1] = self.normalised * self.scale
        return jac

    def guarded(self, energy: Tensor) -> Tensor:
        """Infinite where points are behind the camera."""
        return energy.masked_fill(self.behind, float("inf"))


@dataclass(frozen=True, eq=False)
class PosePrior:
    """Mahalanobis distance of the pose under a Gaussian, or under the nearest one of a mixture (SMPLify's E_theta)."""

    prior: PosePriorModel
    name: str = "pose_prior"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 45) white pose coordinates; of a mixture (B, 46), with the component's constant behind them."""
        value, slope = self.prior.linearise(posed.pose)
        jac = None
        if posed.pose_jacobian is not None:
            by_joint = slope.unflatten(-1, (15, 3)).transpose(-3, -2)
            jac = (by_joint @ posed.pose_jacobian).transpose(1, 2).reshape(*value.shape, 1, 45)
        return residual(value[..., None], jac, columns=POSE)

    def quadratic(self, posed: PosedHand) -> Quadratic:
        """See `QuadraticTerm`: in axis-angles the prior's own precision."""
        return Quadratic(*self.prior.quadratic(posed.pose), POSE)

    def select(self, index: Tensor) -> PosePrior:
        """See `Term.select`: the prior is the same for every hand."""
        return self


@dataclass(frozen=True, eq=False)
class Limits:
    """Soft ranges of flexion, abduction and twist: zero inside, quadratic outside."""

    limits: JointLimits
    sigma_deg: float
    """Standard deviation of an excess."""
    name: str = "limits"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 45) excesses; each depends on its own joint's rotation only."""
        rotations = posed.state.rotations[:, 1:]
        axes = self.limits.axes.to(rotations)
        scale = 180 / (torch.pi * self.sigma_deg)
        if not posed.wants_jacobian:
            value = self.limits.excess(anatomical_angles(rotations, axes)) * scale
            return Residual(0.5 * value.square().sum((1, 2)), value.flatten(1), None)
        angles, by_rotation = angles_and_jacobian(rotations, axes)
        value = self.limits.excess(angles) * scale
        jac = by_rotation * ((value != 0) * scale)[..., None]
        return Residual(0.5 * value.square().sum((1, 2)), value.flatten(1), jac)

    def select(self, index: Tensor) -> Limits:
        """See `Term.select`: the limits are the same for every hand."""
        return self


@dataclass(frozen=True, eq=False)
class Shape:
    """betas ~ N(mean, 1): the model's shape coefficients are in population standard deviations (SMPLify's E_beta)."""

    sigma: float = 1.0
    mean: Tensor | None = None
    """(10,) what a source's hands have in common (see `KeypointLayout`); None for zero."""
    name: str = "shape"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 10) (betas - mean) / sigma."""
        away = posed.state.betas if self.mean is None else posed.state.betas - self.mean
        value = away / self.sigma
        eye = torch.eye(10, dtype=value.dtype, device=value.device) / self.sigma
        return residual(value[..., None], eye.expand(len(posed.state), 10, 10)[:, :, None], columns=BETAS)

    def quadratic(self, posed: PosedHand) -> Quadratic:
        """See `QuadraticTerm`."""
        away = posed.state.betas if self.mean is None else posed.state.betas - self.mean
        eye = torch.eye(10, dtype=away.dtype, device=away.device)
        precision = self.sigma**-2
        return Quadratic(0.5 * precision * away.square().sum(1), precision * away, precision * eye, BETAS)

    def select(self, index: Tensor) -> Shape:
        """See `Term.select`: the same for every hand."""
        return self


@dataclass(frozen=True, eq=False)
class Size:
    """A measured hand length, wrist joint to middle fingertip with straight fingers."""

    model: HandLength
    length: Tensor
    """(B,) m; NaN for hands whose length is unknown."""
    sigma: float
    """m."""
    name: str = "size"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 1) length error / sigma."""
        length, gradient = self.model.length_and_gradient(posed.state.betas)
        known = torch.isfinite(self.length)
        value = torch.where(known, (length - self.length.nan_to_num()) / self.sigma, torch.zeros_like(length))
        jac = gradient * (known / self.sigma)[:, None]
        return residual(value[:, None, None], jac[:, None, None], columns=BETAS)

    def select(self, index: Tensor) -> Size:
        """See `Term.select`."""
        return Size(self.model, self.length[index], self.sigma)


@dataclass(frozen=True, eq=False)
class FocalPrior:
    """log of the focal length factor ~ N(0, sigma): for cameras whose focal length is a free parameter."""

    inverse_sigma: Tensor
    """(B,) one over the relative standard deviation of the given focal length; very large where it is known."""
    name: str = "focal"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 1)."""
        scale = self.inverse_sigma.to(posed.state.log_focal)
        value = (posed.state.log_focal * scale)[:, None]
        return residual(value[..., None], scale[:, None, None, None], columns=FOCAL)

    def quadratic(self, posed: PosedHand) -> Quadratic:
        """See `QuadraticTerm`."""
        precision = self.inverse_sigma.to(posed.state.log_focal).square()
        pull = precision * posed.state.log_focal
        return Quadratic(0.5 * pull * posed.state.log_focal, pull[:, None], precision[:, None, None], FOCAL)

    def select(self, index: Tensor) -> FocalPrior:
        """See `Term.select`."""
        return FocalPrior(self.inverse_sigma[index])


@dataclass(frozen=True, eq=False)
class Points3d:
    """Robust distance to known 3D points: sparse, weighted, alone or beside 2D keypoints."""

    xyz: Tensor
    """(B, 21, 3) m, right-hand canonical camera frame."""
    inverse_sigma: Tensor
    """(B, 21) 1/m; 0 for unknown points."""
    kernel: Kernel
    """Acts on the norm of a point's residual triple."""
    name: str = "points_3d"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 63) (model - given) / sigma."""
        triples = (posed.points - self.xyz) * self.inverse_sigma[..., None]
        jac = None
        if posed.points_jacobian is not None:
            jac = posed.points_jacobian * self.inverse_sigma[..., None, None]
        return residual(triples, jac, self.kernel, columns=slice(0, 61))

    def by_point(self, posed: PosedHand) -> PointResidual:
        """See `PointTerm`."""
        assert posed.rows is not None
        triples = (posed.points - self.xyz) * self.inverse_sigma[..., None]
        return PointResidual.of(triples, posed.rows * self.inverse_sigma[..., None, None], self.kernel)

    def knows_nothing(self) -> bool:
        """Whether no hand has a 3D point: a solver need not look at the term then."""
        return not bool((self.inverse_sigma > 0).any())

    def select(self, index: Tensor) -> Points3d:
        """See `Term.select`."""
        return Points3d(self.xyz[index], self.inverse_sigma[index], self.kernel)
