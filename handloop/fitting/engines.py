"""The two engines that minimise a recipe's energy, and which one does which fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from handloop.core.terms import BETAS, FOCAL, POSE, ROOT, GemanMcClure, HandState, Term
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Finish, Solution, SolverOptions, finish, solve
from handloop.fitting.terms import FocalPrior, Limits, Points3d, PosePrior, Reprojection, Shape, Size
from handloop.hand.kinematics import Kinematics


def standard_terms(model: FitModel, seen: Observations, recipe: Recipe) -> list[Term]:
    """The standard recipe's terms for these hands."""
    terms: list[Term] = [
        Reprojection(seen.uv, seen.inverse_sigma(recipe), seen.focal, seen.princpt, GemanMcClure(recipe.robust)),
        PosePrior(model.pose_prior),
        Limits(model.limits, recipe.limits_sigma_deg),
        Shape(recipe.shape_sigma, model.shape_mean),
        Points3d(seen.xyz, seen.inverse_sigma_3d, GemanMcClure(recipe.robust)),
    ]
    terms.append(Size(model.hand_length, seen.length, recipe.length_sigma_mm / 1000))
    if recipe.focal_sigma is not None:
        terms.append(FocalPrior(seen.inverse_focal_sigma))
    return terms


def free_parameters(recipe: Recipe, device: torch.device) -> Tensor:
    """(62,) bool, which parameters a recipe lets move."""
    free = torch.ones(62, dtype=torch.bool, device=device)
    groups = {"pose": POSE, "orient": slice(0, 3), "betas": BETAS, "root": ROOT}
    for name in recipe.fixed:
        free[groups[name]] = False
    free[FOCAL] = recipe.focal_sigma is not None
    return free


class Engine(Protocol):
    """Something that minimises the energy of B hands."""

    def solve(self, start: HandState, hand: Tensor, options: SolverOptions) -> Solution:
        """From each start, which belongs to the hand of that number."""
        ...

    def finish(self, state: HandState, posterior: bool) -> Finish:
        """Energies by term at one solution per hand and, if wanted, the posterior there."""
        ...


@dataclass(frozen=True, eq=False)
class TensorEngine:
    """torch on any device, with any terms: the reference."""

    kinematics: Kinematics
    terms: list[Term]
    free: Tensor

    def solve(self, start: HandState, hand: Tensor, options: SolverOptions) -> Solution:
        """See `Engine.solve`."""
        return solve(self.kinematics, [t.select(hand) for t in self.terms], start, self.free, options)

    def finish(self, state: HandState, posterior: bool) -> Finish:
        """See `Engine.finish`."""
        return finish(self.kinematics, self.terms, state, self.free, posterior)


def uses_fused_engine(model: FitModel, recipe: Recipe) -> bool:
    """Whether the compiled engine does this fit: on a CPU, in float64, with the standard terms and a Gaussian prior."""
    plain = not recipe.extra_terms and len(model.pose_prior.offsets) == 1
    return model.like.device.type == "cpu" and model.like.dtype == torch.float64 and plain


def choose_engine(model: FitModel, seen: Observations, recipe: Recipe, extra: list[Term]) -> Engine:
    """The fused engine where it can do the job, else the tensor engine."""
    free = free_parameters(recipe, model.like.device)
    if uses_fused_engine(model, recipe):
        from handloop.fitting.fused.engine import FusedEngine

        return FusedEngine.of(model, seen, recipe, free)
    return TensorEngine(model.kinematics, standard_terms(model, seen, recipe) + extra, free)
