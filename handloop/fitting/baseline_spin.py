"""SPIN's in-the-loop SMPLify (Kolotouros et al., ICCV 2019) on hands: Adam for a fixed number of steps.

See `baseline_terms` for the objective and what was changed from body to hand. Beyond that:

* One start per hand: the palm's closed-form pose with the prior's mean pose, of its two flips in depth the one whose
  points lie nearer the keypoints. SPIN starts from a network's proposal.
* The wrist's position plays the part of the camera translation, in metres as there. Hands do not interact: their losses
  are summed, and Adam treats each number by itself.
* Gradients come from automatic differentiation as there, but through the 21 points alone; `full_mesh` skins all 778
  vertices in every step as published, which gives the same hands and takes longer.
* Not repeated: the confidences are not overwritten, and near-zero rotations need no rescue from NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.core.rotations import so3_exp, so3_log
from handloop.core.terms import HandState, PosedHand, Term
from handloop.fitting.baseline_terms import (
    BaselineWeights,
    Crop,
    CropOptions,
    CropReprojection,
    body_terms,
    camera_terms,
    lowest,
    total_energy,
)
from handloop.fitting.problem import FitModel
from handloop.fitting.solver import Solution
from handloop.hand.mesh import mesh_layer
from handloop.hand.model import Hand

Points = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rotations (B, 16, 3, 3), betas (B, 10), wrist (B, 3) to the 21 points (B, 21, 3)."""


@dataclass(frozen=True)
class SpinOptions:
    """SPIN's settings; defaults as published (`smplify/smplify.py`, `smplify/losses.py`)."""

    steps_camera: int = 100
    """Adam steps on orientation and place."""
    steps_all: int = 100
    """Adam steps on pose, shape and orientation."""
    learning_rate: float = 1e-2
    """rad, m and population sd alike."""
    gmof_px: float = 100.0
    """Scale of the robust kernel, crop px."""
    prior_weight: float = 4.78
    """Pose prior; squared, like the other weights."""
    shape_weight: float = 5.0
    """Betas."""
    limits_weight: float = 15.2
    """Hyperextension of the hinges."""
    depth_weight: float = 100.0
    """Pull to the first depth while the camera is placed, 1/m."""
    crop: CropOptions = field(default_factory=CropOptions)
    """The picture."""
    full_mesh: bool = False
    """Skin the whole mesh in every step."""


def fit_spin(
    model: FitModel, crop: Crop, options: SpinOptions, starts: HandState, per_hand: int, hand: Hand | None
) -> Solution:
    """Fit B hands; `starts` are (B * per_hand) states in the crop's camera.

    Args:
        hand: the model's mesh, a right hand; needed for `full_mesh` only.

    Returns:
        States in the crop's camera; `converged` is False throughout, for nothing is tested.
    """
    points = _mesh_points(model, hand) if options.full_mesh else None
    start = starts.select(_better_flip(model, crop, options, starts, per_hand))
    parts = (so3_log(start.rotations), start.betas, start.root)
    aa, betas, root = (part.detach() for part in parts)
    terms = camera_terms(crop, root[:, 2], options.depth_weight)
    orient = aa[:, :1].clone()
    fingers = aa[:, 1:].clone()
    # Without the mesh the hand is rigid while the camera is placed, and need be posed only once.
    still = _rigid(model, fingers, betas) if points is None else points

    def camera_loss() -> Tensor:
        return _loss(model, terms, still, torch.cat([orient, fingers], 1), betas, root)

    _adam(camera_loss, [orient, root], options.steps_camera, options.learning_rate)
    weights = BaselineWeights(options.prior_weight, options.shape_weight, options.limits_weight)
    all_terms = body_terms(model, crop, options.gmof_px, weights)
    moving = points or model.kinematics.points

    def body_loss() -> Tensor:
        return _loss(model, all_terms, moving, torch.cat([orient, fingers], 1), betas, root)

    _adam(body_loss, [orient, fingers, betas], options.steps_all, options.learning_rate)
    state = HandState(so3_exp(torch.cat([orient, fingers], 1)), betas, root, start.log_focal)
    n = len(state)
    steps = torch.full((n,), options.steps_camera + options.steps_all, dtype=torch.int64, device=root.device)
    return Solution(state, total_energy(model, all_terms, state), torch.zeros_like(steps, dtype=torch.bool), steps)


def _better_flip(model: FitModel, crop: Crop, options: SpinOptions, starts: HandState, per_hand: int) -> Tensor:
    """(B,) index of each hand's start that the keypoints fit best, before any step."""
    rows = torch.arange(len(crop.uv), device=crop.uv.device).repeat_interleave(per_hand)
    term = CropReprojection(crop, crop.conf, options.gmof_px).select(rows)
    return lowest(total_energy(model, [term], starts), per_hand)


def _loss(model: FitModel, terms: list[Term], points: Points, aa: Tensor, betas: Tensor, root: Tensor) -> Tensor:
    """Sum of all hands' energies at axis-angles (B, 16, 3), betas (B, 10), wrist (B, 3)."""
    rotations = so3_exp(aa)
    state = HandState(rotations, betas, root, root.new_zeros(len(root)))
    # The prior sees the very numbers that Adam moves, not the logarithm of their exponential.
    posed = PosedHand(model.kinematics, state, points(rotations, betas, root), aa[:, 1:].flatten(1))
    # Not the terms' energies: those are infinite, and flat, where a point is behind the camera.
    return torch.stack([0.5 * term.linearise(posed).value.square().sum() for term in terms]).sum()


def _adam(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int, learning_rate: float) -> None:
    """Move the parameters in place; they take no gradients afterwards."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimiser = torch.optim.Adam(parameters, learning_rate, betas=(0.9, 0.999))
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def _rigid(model: FitModel, fingers: Tensor, betas: Tensor) -> Points:
    """The points of hands whose fingers (B, 15, 3) and betas (B, 10) do not move."""
    upright = torch.cat([torch.zeros_like(fingers[:, :1]), fingers], 1)
    local = model.kinematics.points(so3_exp(upright), betas, betas.new_zeros(len(betas), 3))

    def points(rotations: Tensor, betas: Tensor, root: Tensor) -> Tensor:
        # A sum of three, not a product: its rounding does not depend on how many hands there are.
        return (rotations[:, :1] * local[:, :, None]).sum(-1) + root[:, None]

    return points


def _mesh_points(model: FitModel, hand: Hand | None) -> Points:
    """The points read from the skinned mesh: 16 joints of the chain and five vertices."""
    if hand is None or not hand.is_right:
        raise InputError("full_mesh needs the hand model in the right-hand canonical frame, none or a left was given.")
    if model.kinematics.offsets is not None:
        raise InputError("full_mesh knows no keypoint layouts; set it to False.")
    layer = mesh_layer(hand, model.like.dtype, model.like.device)
    tips, order = list(hand.tip_ids), list(CANONICAL_FROM_MANO)

    def points(rotations: Tensor, betas: Tensor, root: Tensor) -> Tensor:
        transl = root - model.kinematics.root_offset(betas)
        vertices, joints = layer.skin_rotations(rotations, betas, transl)
        return torch.cat([joints, vertices[:, tips]], 1)[:, order]

    return points
