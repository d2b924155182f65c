"""The two engines that minimise a recipe's energy, and which one does which fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from handloop.core.terms import BETAS, FOCAL, KERNELS, POSE, ROOT, HandState, Term
from handloop.fitting.anchor import Anchor
from handloop.fitting.coupling_terms import FlexionCoupling, Spread
from handloop.fitting.hyperextension import HingeExtension
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.robust_starts import robust_starts
from handloop.fitting.self_penetration import SelfPenetration
from handloop.fitting.solver import Finish, Solution, SolverOptions, finish, solve
from handloop.fitting.starts import Views
from handloop.fitting.terms import FocalPrior, Limits, Points3d, PosePrior, Reprojection, Shape, Size
from handloop.hand.kinematics import Kinematics
from handloop.priors.spheres import hand_spheres


def standard_terms(model: FitModel, seen: Observations, recipe: Recipe) -> list[Term]:
    """The standard recipe's terms for these hands."""
    kernel = KERNELS[recipe.kernel](recipe.robust)
    terms: list[Term] = [
        Reprojection(seen.uv, seen.inverse_sigma(recipe), seen.focal, seen.princpt, kernel),
        PosePrior(model.pose_prior),
        Limits(model.limits, recipe.limits_sigma_deg),
        Shape(recipe.shape_sigma, model.shape_mean),
        Points3d(seen.xyz, seen.inverse_sigma_3d, kernel),
    ]
    terms.append(Size(model.hand_length, seen.length, recipe.length_sigma_mm / 1000))
    if recipe.focal_sigma is not None:
        terms.append(FocalPrior(seen.inverse_focal_sigma))
    if recipe.coupling_sigma_deg is not None:
        terms.append(FlexionCoupling(model.couplings, recipe.coupling_sigma_deg))
    if recipe.spread:
        terms.append(Spread(model.couplings, recipe.limits_sigma_deg))
    if recipe.hyperextension is not None:
        terms.append(HingeExtension(model.couplings, recipe.hyperextension))
    if recipe.self_penetration is not None:
        terms.append(SelfPenetration(hand_spheres(model.hand).to(model.like), recipe.self_penetration))
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

    def starts(self, kinematics: Kinematics, seeds: Tensor, views: Views) -> HandState:
        """Robust starts in closed form, see `fitting.robust_starts`."""
        ...

    def points(self, state: HandState) -> tuple[Tensor, Tensor]:
        """(B, 21, 3) m, twice: the points as the source means them, and the model's own."""
        ...

    def solve(self, start: HandState, hand: Tensor, options: SolverOptions) -> Solution:
        """From each start, which belongs to the hand of that number."""
        ...

    def finish(self, state: HandState, posterior: bool) -> Finish:
        """Energies by term at one solution per hand and, if wanted, the posterior there."""
        ...


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """All products in their tensors' own precision, whatever a training around the fit has chosen.

    A step in bfloat16, or in TensorFloat-32 with its ten bits, lowers no energy near a minimum.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True, eq=False)
class TensorEngine:
    """torch on any device, with any terms: the reference."""

    kinematics: Kinematics
    terms: list[Term]
    free: Tensor

    def starts(self, kinematics: Kinematics, seeds: Tensor, views: Views) -> HandState:
        """See `Engine.starts`."""
        with full_precision(seeds.device):
            return robust_starts(self, kinematics, seeds, views)

    def points(self, state: HandState) -> tuple[Tensor, Tensor]:
        """See `Engine.points`."""
        meant = self.kinematics.points(state.rotations, state.betas, state.root)
        if self.kinematics.offsets is None:
            return meant, meant
        own = self.kinematics.with_offsets(None)
        return meant, own.points(state.rotations, state.betas, state.root)

    def solve(self, start: HandState, hand: Tensor, options: SolverOptions) -> Solution:
        """See `Engine.solve`."""
        idle = [isinstance(t, Points3d) and t.knows_nothing() for t in self.terms]
        terms = [t.select(hand) for t, left_out in zip(self.terms, idle, strict=True) if not left_out]
        with full_precision(start.betas.device):
            return solve(self.kinematics, terms, start, self.free, options)

    def finish(self, state: HandState, posterior: bool) -> Finish:
        """See `Engine.finish`."""
        with full_precision(state.betas.device):
            return finish(self.kinematics, self.terms, state, self.free, posterior)


def uses_fused_engine(model: FitModel, recipe: Recipe) -> bool:
    """Whether the compiled engine does this fit: on a CPU, in float64, with the terms and the kernel it knows."""
    if model.like.device.type != "cpu" or model.like.dtype != torch.float64:
        return False
    return recipe.self_penetration is None and (not recipe.extra_terms or _only_anchor(recipe.extra_terms) is not None)


def _only_anchor(extra: Sequence[Term]) -> Anchor | None:
    """The anchor, where it is all that a recipe adds."""
    return extra[0] if len(extra) == 1 and isinstance(extra[0], Anchor) else None


def choose_engine(model: FitModel, seen: Observations, recipe: Recipe, extra: list[Term]) -> Engine:
    """The fused engine where it can do the job, else the tensor engine."""
    free = free_parameters(recipe, model.like.device)
    if uses_fused_engine(model, recipe):
        from handloop.fitting.fused.engine import FusedEngine

        return FusedEngine.of(model, seen, recipe, free, _only_anchor(extra))
    return TensorEngine(model.kinematics, standard_terms(model, seen, recipe) + extra, free)
