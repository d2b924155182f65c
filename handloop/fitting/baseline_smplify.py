"""SMPLify (Bogo et al., ECCV 2016) on hands: the camera first, then four stages of weakening priors.

See `baseline_terms` for the objective and what was changed from body to hand. Beyond that:

* Powell's dogleg becomes this project's Levenberg-Marquardt, at most 100 steps a stage as there, on the published
  residuals: both are trust-region Gauss-Newton methods and stop at the same minima.
* SMPLify turned a body by 180 degrees about the vertical where the shoulders lay within 25 px of each other, fitted
  both and kept the one with the lower joint error. A palm seen from one side is always ambiguous, in its tilt: each
  hand is fitted from every start it is given (both flips in depth), and the lower joint error wins.
* Depth by similar triangles is that of the closed-form palm start, scaled orthography of the same five points.
* The wrist's position plays the part of the camera translation and stays where the camera stage left it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from handloop.core.terms import BETAS, POSE, ROOT, HandState
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
from handloop.fitting.solver import Solution, SolverOptions, solve

_ORIENT = slice(0, 3)

# The tensor engine is fastest on a CPU while its Jacobians stay small (as in fit.py).
_CHUNK_CPU, _CHUNK_GPU = 64, 8192


@dataclass(frozen=True)
class SmplifyStage:
    """One minimisation."""

    prior_weight: float
    """Pose prior; squared, like the other weights."""
    shape_weight: float
    """Betas."""


@dataclass(frozen=True)
class SmplifyOptions:
    """SMPLify's settings; defaults as published (`fit_3d.py`)."""

    stages: tuple[SmplifyStage, ...] = (
        SmplifyStage(404.0, 100.0),
        SmplifyStage(404.0, 50.0),
        SmplifyStage(57.4, 10.0),
        SmplifyStage(4.78, 5.0),
    )
    """In order."""
    gmof_px: float = 100.0
    """Scale of the robust kernel, crop px."""
    limits_ratio: float = 3.17
    """Weight of hyperextension over that of the pose prior: 0.317 times the factor 10 inside its residual."""
    depth_weight: float = 100.0
    """Pull to the first depth while the camera is placed, 1/m."""
    crop: CropOptions = field(default_factory=CropOptions)
    """The picture."""
    solver: SolverOptions = field(default_factory=lambda: SolverOptions(100, 1e-4))
    """For the camera and each stage: at most 100 steps, stop at a relative decrease of 1e-4 (SMPLify's `e_3`)."""

    def weights(self, stage: SmplifyStage) -> BaselineWeights:
        """What a stage's energies are multiplied by, before squaring."""
        return BaselineWeights(stage.prior_weight, stage.shape_weight, self.limits_ratio * stage.prior_weight)


def fit_smplify(model: FitModel, crop: Crop, options: SmplifyOptions, starts: HandState, per_hand: int) -> Solution:
    """Fit B hands; `starts` are (B * per_hand) states in the crop's camera.

    Returns:
        States in the crop's camera, the last stage's energy and convergence, the steps of all stages.
    """
    chunk = per_hand * (_CHUNK_CPU if starts.betas.device.type == "cpu" else _CHUNK_GPU)
    hand = torch.arange(len(crop.uv), device=crop.uv.device).repeat_interleave(per_hand)
    every = torch.arange(len(starts), device=starts.betas.device)
    done = [_fit(model, crop.select(hand[at]), options, starts.select(at), per_hand) for at in every.split(chunk)]
    return Solution(
        HandState(
            torch.cat([d.state.rotations for d in done]),
            torch.cat([d.state.betas for d in done]),
            torch.cat([d.state.root for d in done]),
            torch.cat([d.state.log_focal for d in done]),
        ),
        torch.cat([d.energy for d in done]),
        torch.cat([d.converged for d in done]),
        torch.cat([d.steps for d in done]),
    )


def _fit(model: FitModel, crop: Crop, options: SmplifyOptions, start: HandState, per_hand: int) -> Solution:
    """One row per start; the best of each hand comes back."""
    out = solve(
        model.kinematics,
        camera_terms(crop, start.root[:, 2], options.depth_weight),
        start,
        _free(crop.uv, _ORIENT, ROOT),
        options.solver,
    )
    steps = out.steps
    for stage in options.stages:
        terms = body_terms(model, crop, options.gmof_px, options.weights(stage))
        out = solve(model.kinematics, terms, out.state, _free(crop.uv, _ORIENT, POSE, BETAS), options.solver)
        steps = steps + out.steps
    error = total_energy(model, [CropReprojection(crop, crop.conf, options.gmof_px)], out.state)
    at = lowest(error, per_hand)
    return Solution(out.state.select(at), out.energy[at], out.converged[at], steps[at])


def _free(like: Tensor, *groups: slice) -> Tensor:
    """(62,) bool, True for the groups."""
    free = torch.zeros(62, dtype=torch.bool, device=like.device)
    for group in groups:
        free[group] = True
    return free
