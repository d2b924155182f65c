"""What a prediction of the image regressor costs: labelled parts are compared, missing labels cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.hand.kinematics import Kinematics
from handloop.hand.mesh import MeshLayer
from handloop.hand.model import Hand
from handloop.loop.picture_batches import TrainingBatch
from handloop.losses.biomechanical import biomechanical_loss
from handloop.losses.deviations import Groups, deviations_nll, hand_errors
from handloop.losses.keypoints import points_loss, reprojection_loss, vertices_loss
from handloop.losses.mask import mask_loss
from handloop.losses.parameters import betas_loss, log_depth_loss, rotation_loss
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.regressors.image_heads import TAUGHT_SD, middles
from handloop.regressors.image_network import Regressed
from handloop.regressors.view import fingers_direction

_MASK_STEP = 4
"""Every fourth vertex is held against the mask: 195 of them leave no gap of a pixel in a crop of 100."""
_KNUCKLE = 9
"""Of the middle finger: depths of points are relative to it."""
_CLEAR = 1.5
"""`fingers_direction` of a hand in halves of the crop beyond which the direction counts in full."""
_NEAREST_M = 0.02
"""Points nearer than this are projected as if they were there."""


@dataclass(frozen=True)
class ImageLossWeights:
    """What an error costs; 0 leaves a part out. Points, fingers and vertices are per cm, or cm squared."""

    points: float = 1.0
    """Of the 21 points relative to the wrist."""
    squared: bool = False
    """Squared distances of the points instead of L1."""
    fingers: float = 1.0
    """Of the points in the wrist's own frame, where a wrong view of the whole hand does not count."""
    rotations: float = 1.0
    """Per squared rad."""
    betas: float = 0.05
    """Per squared population deviation."""
    log_depth: float = 1.0
    reprojection: float = 3.0
    """Of the points in the picture, in halves of the hand's box."""
    located: float = 5.0
    """Of the points that the network sees in the picture before it thinks of a hand, in halves of the crop."""
    heat: float = 0.3
    """Of the maps that these points come from, in a head that is taught them: the divergence from a Gaussian about
    the true point."""
    heading: float = 1.0
    """Of the direction of the fingers in the picture, from a head that turns crops by it."""
    depths: float = 2.0
    """Of the points' depths, in the same unit, from a head that gives them."""
    vertices: float = 0.0
    mask: float = 0.0
    """Per side of the crop, see `losses.mask`."""
    biomechanical: float = 0.0
    """Times the weights of Spurr et al.; needs no labels."""
    usual_pose: float = 0.0
    """Per squared coefficient of the fingers' principal components: pulls to the mean pose."""
    usual_betas: float = 0.01
    """Per squared beta of hands without parameters: pulls to the mean shape."""
    deviations: float = 0.1
    """Of the negative log likelihood; it trains the deviations only."""

    def __post_init__(self) -> None:
        if any(value < 0 for value in vars(self).values()):
            raise InputError("a weight of a loss is negative, expected 0 or more.")


@dataclass(frozen=True, eq=False)
class ImageLoss:
    """The weighted losses for one hand model on one device."""

    weights: ImageLossWeights
    kinematics: Kinematics
    """Of the right hand, float32."""
    mesh: MeshLayer | None
    """None where neither vertices nor masks count."""
    limits: BiomechanicalLimits | None

    @classmethod
    def of(cls, hand: Hand, weights: ImageLossWeights, device: torch.device) -> ImageLoss:
        """For a right hand."""
        kinematics = Kinematics.from_hand(hand, torch.float32, device)
        mesh = MeshLayer(hand, torch.float32, device) if weights.vertices or weights.mask else None
        limits = None
        if weights.biomechanical:
            limits = BiomechanicalLimits.from_hand(hand, generator=torch.Generator().manual_seed(0)).to(
                kinematics.joints
            )
        return cls(weights, kinematics, mesh, limits)

    def parts(self, out: Regressed, batch: TrainingBatch, size: int, deviations: bool) -> dict[str, Tensor]:
        """Weighted losses by name, each () the mean over the hands; their sum is what to minimise.

        Args:
            out: the prediction.
            batch: the labels.
            size: side of the crops, px.
            deviations: whether the standard deviations are trained yet.
        """
        w, has = self.weights, batch.has_params
        camera = batch.camera()
        root = out.root(camera, size)
        points = self.kinematics.points(out.rotations, out.betas, root)
        box = _half_box(batch.points, batch.conf)
        costs: dict[str, tuple[float, Callable[[], Tensor]]] = {
            "points": (
                w.points,
                lambda: self._unit * points_loss(points, batch.joints, batch.joints_weight, w.squared),
            ),
            "fingers": (w.fingers, lambda: self._unit * self._fingers(points, out, batch)),
            "rotations": (w.rotations, lambda: rotation_loss(out.rotations, batch.rotations, has)),
            "betas": (w.betas, lambda: betas_loss(out.betas, batch.betas, has)),
            "log_depth": (
                w.log_depth,
                lambda: log_depth_loss(root[:, 2].log(), batch.root[:, 2].clamp(min=_NEAREST_M).log(), batch.has_root),
            ),
            "reprojection": (
                w.reprojection,
                lambda: reprojection_loss(_project(points, batch), batch.points, batch.conf, box, cap=2.0),
            ),
            "located": (w.located, lambda: located_loss(out, batch, size)),
            "heat": (w.heat * bool(out.heat.shape[2]), lambda: heat_loss(out, batch, size)),
            "heading": (w.heading * bool(out.heading.shape[1]), lambda: heading_loss(out.heading, batch, size)),
            "depths": (w.depths * bool(out.depths.shape[1]), lambda: _known_depths(out, batch, size)),
            "vertices": (w.vertices, lambda: self._vertices(out, root, batch)),
            "mask": (w.mask, lambda: self._mask(out, root, batch)),
            "biomechanical": (w.biomechanical, lambda: self._biomechanical(points)),
            "usual_pose": (w.usual_pose, lambda: out.coefficients.square().sum(1)),
            "usual_betas": (w.usual_betas, lambda: torch.where(has, 0.0, out.betas.square().mean(1))),
            "deviations": (w.deviations * deviations, lambda: _deviations(out, root, batch)),
        }
        return {name: weight * cost().mean() for name, (weight, cost) in costs.items() if weight}

    def heading_alone(self, heading: Tensor, batch: TrainingBatch, size: int) -> dict[str, Tensor]:
        """The loss of the direction (B, 2) of the fingers, as one of `parts`."""
        return {"heading": self.weights.heading * heading_loss(heading, batch, size).mean()}

    @property
    def _unit(self) -> float:
        return 1e4 if self.weights.squared else 1e2

    def _fingers(self, points: Tensor, out: Regressed, batch: TrainingBatch) -> Tensor:
        weight = batch.joints_weight * batch.has_params[:, None]
        ours, theirs = points @ out.rotations[:, 0], batch.joints @ batch.rotations[:, 0]
        return points_loss(ours, theirs, weight, self.weights.squared)

    def _vertices(self, out: Regressed, root: Tensor, batch: TrainingBatch) -> Tensor:
        ours = self._skin(out.rotations, out.betas, root)
        with torch.no_grad():
            theirs = self._skin(batch.rotations, batch.betas, batch.root)
        return 100 * vertices_loss(ours, theirs, batch.has_params)

    def _mask(self, out: Regressed, root: Tensor, batch: TrainingBatch) -> Tensor:
        vertices = self._skin(out.rotations, out.betas, root)[:, ::_MASK_STEP]
        return mask_loss(_project(vertices, batch), batch.field, batch.pixels, batch.has_mask)

    def _biomechanical(self, points: Tensor) -> Tensor:
        assert self.limits is not None
        return biomechanical_loss(points, self.limits)

    def _skin(self, rotations: Tensor, betas: Tensor, root: Tensor) -> Tensor:
        assert self.mesh is not None
        return self.mesh.skin_rotations(rotations, betas, root - self.kinematics.root_offset(betas))[0]


def errors_of(out: Regressed, root: Tensor, batch: TrainingBatch) -> Groups:
    """Errors (B, groups, components) of rotations, betas, bearing and log depth."""
    return hand_errors(out.rotations, out.betas, root, batch.rotations, batch.betas, batch.root)


def _to_locate(batch: TrainingBatch, size: int) -> tuple[Tensor, Tensor]:
    """(B, 21, 2) true points in halves of the crop, from its middle, and (B, 21) how much each counts."""
    seen = (2 * batch.points + 1) / size - 1
    # Points beyond the crop's edge cannot be located.
    return seen, batch.conf * (seen.abs() < 1).all(2)


def located_loss(out: Regressed, batch: TrainingBatch, size: int) -> Tensor:
    """(B,) how far the located points are from those in the crops of `size` px, in halves of the crop."""
    seen, weight = _to_locate(batch, size)
    return reprojection_loss(out.located, seen, weight, torch.ones_like(weight[:, 0]), cap=2.0)


def heat_loss(out: Regressed, batch: TrainingBatch, size: int) -> Tensor:
    """Divergence of the maps from a Gaussian about each point: cross-entropy less the Gaussian's own entropy."""
    seen = _to_locate(batch, size)[0] @ out.turn.detach().mT
    weight = batch.conf * (seen.abs() < 1).all(2)
    h, w = out.heat.shape[2:]
    across, down = _gaussian(seen[..., 0], w), _gaussian(seen[..., 1], h)
    cross = out.heat.flatten(2).logsumexp(2) - torch.einsum("bph,bphw,bpw->bp", down, out.heat, across)
    own = -sum(torch.special.xlogy(p, p).sum(2) for p in (across, down))
    total = weight.sum(1)
    return ((cross - own) * weight).sum(1) / torch.where(total > 0, total, torch.ones_like(total))


def _gaussian(at: Tensor, n: int) -> Tensor:
    """(B, 21, n) shares of the cells along one axis for points (B, 21)."""
    away = (middles(n).to(at) - at.clamp(-1, 1)[..., None]) * n / 2
    return (-0.5 * (away / TAUGHT_SD).square()).softmax(2)


def heading_loss(heading: Tensor, batch: TrainingBatch, size: int) -> Tensor:
    """Squared distance to the unit direction: where it cannot be told, the best answer is a short one."""
    pull = fingers_direction((2 * batch.points + 1) / size - 1, batch.conf)
    length = pull.norm(dim=1, keepdim=True)
    error = (heading - pull / length.clamp(min=1e-6)).square().sum(1)
    # Hands seen along the fingers have no direction; fewer than four points tell none.
    return error * (length[:, 0] / _CLEAR).clamp(max=1) * ((batch.conf > 0).sum(1) > 3)


def depths_loss(out: Regressed, joints: Tensor, weight: Tensor, batch: TrainingBatch, size: int) -> Tensor:
    """(B,) how far the points' depths are from true ones, both from the middle knuckle's and in halves of the crop.

    Args:
        out: of a head that gives depths.
        joints: (B, 21, 3) m, the crops' camera frame.
        weight: (B, 21).
        batch: the crops.
        size: px of the crops.
    """
    per_metre = 2 * batch.focal.mean(1) / (size * joints[:, 0, 2].clamp(min=_NEAREST_M))
    z = joints[..., 2] * per_metre[:, None]
    error = (out.depths - (z - z[:, _KNUCKLE, None])).abs() * weight
    return error.sum(1) / weight.sum(1).clamp(min=1)


def _known_depths(out: Regressed, batch: TrainingBatch, size: int) -> Tensor:
    known = batch.joints_weight * (batch.joints_weight[:, _KNUCKLE] * batch.has_root)[:, None]
    joints = batch.joints - batch.joints[:, :1] + batch.root[:, None]
    return depths_loss(out, joints, known, batch, size)


def _deviations(out: Regressed, root: Tensor, batch: TrainingBatch) -> Tensor:
    with torch.no_grad():
        errors = errors_of(out, root, batch)
    return deviations_nll(errors, out.log_sd, batch.has_params & batch.has_root)


def _project(points: Tensor, batch: TrainingBatch) -> Tensor:
    """(B, P, 3) m to (B, P, 2) px of the crops; points behind the camera are taken for near ones."""
    seen = points[..., :2] / points[..., 2:].clamp(min=_NEAREST_M)
    return seen * batch.focal[:, None] + batch.princpt[:, None]


def _half_box(points: Tensor, conf: Tensor) -> Tensor:
    """(B,) half the longer side of the box of points that are there, px, at least 1."""
    there = (conf > 0)[..., None]
    low = torch.where(there, points, float("inf")).amin(1)
    high = torch.where(there, points, float("-inf")).amax(1)
    return torch.where(there.any(1), high - low, 2.0).amax(1).div(2).clamp(min=1.0)
