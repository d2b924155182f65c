"""What the classic fits minimise, on hands: the published terms of SMPLify and SPIN in pixels of a crop.

Bogo et al., "Keep it SMPL" (ECCV 2016); Kolotouros et al., "Learning to reconstruct 3D human pose and shape via
model-fitting in the loop" (ICCV 2019). With J projected, x found points and c confidences:

    E = sum_j c_j^2 sum_xy rho(J_j - x_j) + w_p^2 E_pose + w_b^2 |betas|^2 + w_a^2 sum_i exp(-flexion_i)^2

and rho(e) = s^2 e^2 / (s^2 + e^2) on each coordinate, s = 100 px. The terms here have energies in exactly these units,
not in sigmas: what a published weight multiplies is an energy 1/2 |r|^2, hence the square roots of 2.

From body to hand:

* E_pose was the smallest of eight Gaussians' negative log-likelihoods 1/2 d^T P d of 69 body angles, learned from
  motion capture; here it is that of the one Gaussian on a hand's 45 angles, learned from the model's own poses.
* E_a bent elbows and knees, the body's hinges, by exp of an axis-angle component whose natural bend is negative. A
  hand's hinges are the middle and end joints of the fingers and the thumb's end joint, nine in all; the component is
  the one along each joint's flexion axis, which differs from finger to finger.
* The torso (hips, and in SMPLify shoulders), by which both place the camera first, becomes the palm: the wrist and four
  knuckles.
* Body pictures are cropped around the person and resized to 224 px; so are hands. SMPLify used the picture's own
  pixels, which made its 100 px mean something else in every picture; here it too sees the 224-px crop.
* SMPLify's interpenetration term E_sp is left out: hands have no capsules made for it, and SPIN dropped it too.
* SMPLify gave hips no weight because detectors misplace them; no joint of a hand is treated so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handloop.core.joints import PALM_POINTS
from handloop.core.structured import PointResidual
from handloop.core.terms import POSE, ROOT, HandState, PosedHand, Residual, Term, residual
from handloop.fitting.problem import FitModel
from handloop.fitting.terms import PosePrior, Shape
from handloop.hand.kinematics import CHAINS

if TYPE_CHECKING:
    # Only a name here: observations know recipes, and a recipe may be one of these baselines.
    from handloop.fitting.observe import Observations

HINGES = tuple(sorted([CHAINS[0][2], *(joint for chain in CHAINS[1:] for joint in chain[1:])]))
"""MANO joints that are hinges: PIP and DIP of four fingers and the thumb's IP."""

PUBLISHED_FOCAL_PX = 5000.0
"""What SPIN takes for the focal length of every 224-px crop."""

_SQRT2 = 2**0.5


@dataclass(frozen=True)
class CropOptions:
    """The square picture the classic fits look at."""

    size: float = 224.0
    """Side, px: SPIN's."""
    padding: float = 1.2
    """Side of the crop over the longer side of the keypoints' box: `scaleFactor` of SPIN's data preparation."""
    published_camera: bool = False
    """False: the true camera, as the crop sees it. True: a focal length of 5000 px and the principal point in the
    middle of the crop, whatever the camera was, as SPIN has it; places are converted at the end as HMR's are."""


@dataclass(frozen=True, eq=False)
class Crop:
    """B hands in pixels of their own crops."""

    uv: Tensor
    """(B, 21, 2) crop px."""
    conf: Tensor
    """(B, 21)."""
    focal: Tensor
    """(B, 2) crop px."""
    princpt: Tensor
    """(B, 2) crop px."""
    stretch: Tensor
    """(B,) depth in the crop's camera over depth in the true one; 1 where the camera is the true one."""
    shift: Tensor
    """(B, 2) what the ray of the crop's principal point has in x/z, y/z in the true camera; 0 for the true camera."""

    @classmethod
    def of(cls, seen: Observations, options: CropOptions) -> Crop:
        """Crop around the visible points."""
        inf = torch.full_like(seen.uv, float("inf"))
        visible = (seen.conf > 0)[..., None]
        low = torch.where(visible, seen.uv, inf).amin(1)
        high = torch.where(visible, seen.uv, -inf).amax(1)
        # The bound only keeps hands whose points coincide finite.
        scale = (options.size / (options.padding * (high - low).amax(1).clamp(min=1e-3)))[:, None]
        middle, half = (low + high) / 2, options.size / 2
        uv = (seen.uv - middle[:, None]) * scale[:, None] + half
        focal, princpt = seen.focal * scale, (seen.princpt - middle) * scale + half
        if not options.published_camera:
            still = torch.zeros_like(princpt)
            return cls(uv, seen.conf, focal, princpt, torch.ones_like(scale[:, 0]), still)
        shift = (middle - seen.princpt) / seen.focal
        stretch = PUBLISHED_FOCAL_PX / focal.mean(1)
        fixed = torch.full_like(focal, PUBLISHED_FOCAL_PX)
        return cls(uv, seen.conf, fixed, torch.full_like(princpt, half), stretch, shift)

    def select(self, index: Tensor) -> Crop:
        """The crops of the hands named by an integer index (B',), repetitions allowed."""
        return Crop(
            *(self.uv[index], self.conf[index], self.focal[index], self.princpt[index]),
            *(self.stretch[index], self.shift[index]),
        )

    def enter(self, root: Tensor) -> Tensor:
        """(B, 3) wrist positions in the true camera to the crop's."""
        x, y, z = root.unbind(1)
        return torch.stack([x - self.shift[:, 0] * z, y - self.shift[:, 1] * z, z * self.stretch], 1)

    def leave(self, root: Tensor) -> Tensor:
        """Inverse of `enter`."""
        x, y, z = root.unbind(1)
        z = z / self.stretch
        return torch.stack([x + self.shift[:, 0] * z, y + self.shift[:, 1] * z, z], 1)

    def palm_weight(self) -> Tensor:
        """(B, 21) 1 for visible points of the palm; of the whole hand where fewer than three are."""
        visible = (self.conf > 0).to(self.conf)
        palm = torch.zeros_like(visible)
        palm[:, list(PALM_POINTS)] = 1.0
        palm = palm * visible
        return torch.where((palm.sum(1) >= 3)[:, None], palm, visible)


@dataclass(frozen=True, eq=False)
class CropReprojection:
    """sum_j w_j^2 sum_xy rho(e), e in crop px, rho Geman and McClure's on each coordinate alone."""

    crop: Crop
    weight: Tensor
    """(B, 21) w, 0 for missing points."""
    gmof_px: float | None
    """s; None for rho(e) = e^2."""
    name: str = "reprojection"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 42); SMPLify's own residual e s / sqrt(s^2 + e^2), whose square is rho.

        A hand with a weighted point behind the camera has infinite energy and a finite residual.
        """
        value, jac, behind = self._see(posed, posed.points_jacobian)
        out = residual(value, jac)
        return Residual(out.energy.masked_fill(behind, float("inf")), out.value, out.jacobian)

    def by_point(self, posed: PosedHand) -> PointResidual:
        """See `PointTerm`."""
        value, jac, behind = self._see(posed, posed.rows)
        assert jac is not None
        out = PointResidual.of(value, jac, None)
        return PointResidual(out.energy.masked_fill(behind, float("inf")), out.rows)

    def _see(self, posed: PosedHand, by_point: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Residuals (B, 21, 2), their Jacobian (B, 21, 2, C + 1) from the points' (B, 21, 3, C), the focal length's
        column of zeros behind, and who (B,) is behind the camera."""
        x, y, z = posed.points.unbind(-1)
        behind = ((self.weight > 0) & (z <= 1e-3)).any(1)
        z = z.clamp(min=1e-3)
        normalised = torch.stack([x, y], -1) / z[..., None]
        focal = self.crop.focal[:, None]
        error = normalised * focal + self.crop.princpt[:, None] - self.crop.uv
        scale = _SQRT2 * self.weight[..., None]
        value, slope = error * scale, scale.expand_as(error)
        if self.gmof_px is not None:
            shrink = (1 + (error / self.gmof_px).square()).rsqrt()
            value, slope = value * shrink, slope * shrink**3
        if by_point is None:
            return value, None, behind
        per_z = (slope * focal / z[..., None])[..., None]
        jac = (by_point[:, :, :2] - normalised[..., None] * by_point[:, :, 2:]) * per_z
        return value, torch.nn.functional.pad(jac, (0, 1)), behind

    def select(self, index: Tensor) -> CropReprojection:
        """See `Term.select`."""
        return CropReprojection(self.crop.select(index), self.weight[index], self.gmof_px, self.name)


@dataclass(frozen=True, eq=False)
class DepthAnchor:
    """w^2 (z - z_0)^2: the camera stage's pull to the depth of similar triangles."""

    depth: Tensor
    """(B,) m, z_0, in the crop's camera."""
    weight: float
    """w, 1/m."""
    name: str = "depth"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 1); bearing leaves the depth alone, log depth moves it by itself."""
        z = posed.state.root[:, 2]
        value = _SQRT2 * self.weight * (z - self.depth)
        jac = torch.stack([torch.zeros_like(z), torch.zeros_like(z), _SQRT2 * self.weight * z], 1)
        return residual(value[:, None, None], jac[:, None, None], columns=ROOT)

    def select(self, index: Tensor) -> DepthAnchor:
        """See `Term.select`."""
        return DepthAnchor(self.depth[index], self.weight, self.name)


@dataclass(frozen=True, eq=False)
class Hyperextension:
    """SMPLify's E_a: w^2 sum_i exp(-flexion_i)^2 over the hinges, growing as a finger bends backwards.

    As published it also pushes a straight finger to bend; and flexion is an axis-angle component, not an angle.
    """

    axes: Tensor
    """(15, 3) flexion axis of each finger joint, MANO order."""
    weight: float
    """w."""
    name: str = "hyperextension"

    def linearise(self, posed: PosedHand) -> Residual:
        """(B, 15), 0 for joints that are no hinges."""
        hinge = torch.zeros(15, dtype=self.axes.dtype, device=self.axes.device)
        hinge[[joint - 1 for joint in HINGES]] = _SQRT2 * self.weight
        flexion = (posed.pose.unflatten(1, (15, 3)) * self.axes).sum(-1)
        value = hinge * (-flexion).exp()
        energy = 0.5 * value.square().sum(1)
        if posed.pose_jacobian is None:
            return Residual(energy, value, None, POSE)
        by_joint = (self.axes[:, None] @ posed.pose_jacobian)[:, :, 0]
        return Residual(energy, value, (-value[..., None] * by_joint)[:, :, None])

    def select(self, index: Tensor) -> Hyperextension:
        """See `Term.select`: the same for every hand."""
        return self


@dataclass(frozen=True)
class BaselineWeights:
    """The published weights; energies take their squares."""

    pose: float
    """w_p on the pose prior."""
    shape: float
    """w_b on the betas."""
    limits: float
    """w_a on hyperextension."""


def camera_terms(crop: Crop, depth: Tensor, depth_weight: float) -> list[Term]:
    """The camera stage: plain squared distances of the palm, all alike, and the pull to a depth (B,)."""
    return [CropReprojection(crop, crop.palm_weight(), None), DepthAnchor(depth, depth_weight)]


def body_terms(model: FitModel, crop: Crop, gmof_px: float, weights: BaselineWeights) -> list[Term]:
    """The stages that move everything but the camera."""
    axes = model.limits.axes.to(crop.uv)[:, :, 0]
    return [
        CropReprojection(crop, crop.conf, gmof_px),
        PosePrior(model.pose_prior.scaled(weights.pose)),
        Shape(sigma=1 / (_SQRT2 * weights.shape)),
        Hyperextension(axes, weights.limits),
    ]


def total_energy(model: FitModel, terms: list[Term], state: HandState) -> Tensor:
    """(B,) sum of the terms; inf where it is not finite."""
    posed = PosedHand.of(model.kinematics, state, jacobian=False)
    energy = torch.stack([term.linearise(posed).energy for term in terms]).sum(0)
    return torch.where(torch.isfinite(energy), energy, torch.full_like(energy, float("inf")))


def lowest(energy: Tensor, per_hand: int) -> Tensor:
    """(B,) index of the lowest of each hand's `per_hand` energies (B * per_hand,), hands outermost."""
    n = len(energy) // per_hand
    best = energy.nan_to_num(float("inf"), float("inf")).reshape(n, per_hand).argmin(1)
    return torch.arange(n, device=energy.device) * per_hand + best
