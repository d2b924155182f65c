"""Fit hands to keypoints: observations to the canonical frame, starts, pruning, solving, results back to each side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from handloop._version import __version__
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult, Status
from handloop.core.terms import BETAS, FOCAL, POSE, ROOT, GemanMcClure, HandState, Term
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Finish, Solution, SolverOptions, finish, solve
from handloop.fitting.starts import closed_form_starts
from handloop.fitting.terms import FocalPrior, Limits, Points3d, PosePrior, Reprojection, Shape, Size
from handloop.fitting.trust import judge, reasons_against
from handloop.hand.kinematics import Kinematics

MIN_POINTS = 4
"""Fewer visible points than this are not fitted: three fix the palm's place, not even its orientation."""

MIN_BOX_PX = 1.0
"""Points in a smaller box are one place, not a hand (or no pixels); a fit would be a hand kilometres away."""

# Two solutions are different when their points, wrist on wrist, are this far apart on average.
_DISTINCT_M = 0.01


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
        terms.append(FocalPrior(recipe.focal_sigma))
    return terms


def free_parameters(recipe: Recipe, device: torch.device) -> Tensor:
    """(62,) bool, which parameters a recipe lets move."""
    free = torch.ones(62, dtype=torch.bool, device=device)
    groups = {"pose": POSE, "orient": slice(0, 3), "betas": BETAS, "root": ROOT}
    for name in recipe.fixed:
        free[groups[name]] = False
    free[FOCAL] = recipe.focal_sigma is not None
    return free


@dataclass(frozen=True, eq=False)
class Best:
    """The best solution of each hand and how far the next different one is."""

    solution: Solution
    gap: Tensor
    """(B,) energy; inf where no other solution was found."""
    apart: Tensor
    """(B,) m, mean distance of the next different solution's points, wrist on wrist; 0 where there is none."""


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
    """Whether the compiled engine does this fit: on a CPU, in float64, with the standard terms only."""
    return model.like.device.type == "cpu" and model.like.dtype == torch.float64 and not recipe.extra_terms


def _chunk(model: FitModel, recipe: Recipe) -> int:
    """Hands fitted at a time. The tensor engine is fastest on a CPU while its Jacobians stay small, on a GPU with much
    to do at once; the fused engine only needs enough hands to share out."""
    if model.like.device.type != "cpu":
        return 8192
    return 1024 if uses_fused_engine(model, recipe) else 64


def choose_engine(model: FitModel, seen: Observations, recipe: Recipe, extra: list[Term]) -> Engine:
    """The fused engine where it can do the job, else the tensor engine."""
    free = free_parameters(recipe, model.like.device)
    if uses_fused_engine(model, recipe):
        from handloop.fitting.fused.engine import FusedEngine

        return FusedEngine.of(model, seen, recipe, free)
    return TensorEngine(model.kinematics, standard_terms(model, seen, recipe) + extra, free)


def fit_from(engine: Engine, kinematics: Kinematics, starts: HandState, per_hand: int, recipe: Recipe) -> Best:
    """Fit each hand from `per_hand` starts: a few steps for all, then the best few to convergence.

    Args:
        starts: (B * per_hand) states, hands outermost.
    """
    n = len(starts) // per_hand
    device = starts.betas.device
    hand = torch.arange(n, device=device).repeat_interleave(per_hand)
    if per_hand > 1:
        short = SolverOptions(recipe.explore_steps, recipe.solver.tolerance, recipe.solver.damping)
        explored = engine.solve(starts, hand, short)
        keep = min(recipe.finalists, per_hand)
        order = _finalists(explored.energy.reshape(n, per_hand), keep)
        at = (torch.arange(n, device=device)[:, None] * per_hand + order).flatten()
        starts, before = explored.state.select(at), explored.steps[at]
        hand = torch.arange(n, device=device).repeat_interleave(keep)
    else:
        keep, before = 1, torch.zeros(n, dtype=torch.int64, device=device)
    done = engine.solve(starts, hand, recipe.solver)
    energy = done.energy.reshape(n, keep)
    best = energy.argmin(1)
    at = torch.arange(n, device=device) * keep + best
    points = kinematics.points(done.state.rotations, done.state.betas, done.state.root)
    local = (points - points[:, :1]).reshape(n, keep, 21, 3)
    apart = (local - local[torch.arange(n, device=device), best][:, None]).norm(dim=-1).mean(-1)
    other = torch.where(apart > _DISTINCT_M, energy, torch.full_like(energy, float("inf")))
    runner_up = other.argmin(1)
    gap = other.amin(1) - energy.amin(1)
    distance = apart[torch.arange(n, device=device), runner_up]
    distance = torch.where(torch.isfinite(gap), distance, torch.zeros_like(distance))
    solution = Solution(done.state.select(at), done.energy[at], done.converged[at], (before + done.steps)[at])
    return Best(solution, gap.nan_to_num(float("inf"), float("inf")), distance)


def _finalists(energy: Tensor, keep: int) -> Tensor:
    """(B, keep) columns of the explored starts (B, S) to finish: the best, and among them the best of each depth flip.

    Flips alternate along the columns. Without the second flip a hand's only real alternative would often be pruned, and
    its gap would say that there is none.
    """
    order = energy.argsort(dim=1, stable=True)
    chosen = order[:, :keep].clone()
    if keep > 1:
        flip = chosen[:, :1] % 2
        other = energy.masked_fill((torch.arange(energy.shape[1], device=energy.device) % 2)[None] == flip, float("inf"))
        lacking = (chosen % 2 == flip).all(1)
        chosen[lacking, -1] = other.argmin(1)[lacking]
    return chosen


def fit_keypoints(
    models: HandModels,
    keypoints: Keypoints,
    camera: Camera,
    recipe: Recipe,
    hand_length: Tensor | None = None,
) -> FitResult:
    """Fit every hand; hands that cannot be fitted come back with NaN and a status, in their place.

    Args:
        models: what to fit, on the device and in the dtype to fit with.
        keypoints: N hands.
        camera: N cameras.
        recipe: how.
        hand_length: (N,) m, NaN where unknown.

    Raises:
        InputError: the numbers of hands, cameras or lengths differ.
    """
    n = len(keypoints)
    if len(camera) != n:
        raise InputError(f"{n} hands but {len(camera)} cameras were given.")
    if hand_length is not None and hand_length.shape != (n,):
        raise InputError(f"hand_length has shape {tuple(hand_length.shape)}, expected ({n},).")
    like = models.right.like
    out = _Output.empty(n, like)
    usable = ((keypoints.conf > 0).sum(1) >= MIN_POINTS) & (keypoints.box_size() >= MIN_BOX_PX)
    out.status[~usable] = int(Status.TOO_FEW_POINTS)
    extra = [t.name for t in recipe.extra_terms]
    if len(set(extra)) != len(extra):
        raise InputError(f"two extra terms share a name: {extra}.")
    for model, rows in models.split(keypoints.is_right):
        rows = rows[usable[rows]]
        chunk = _chunk(model, recipe)
        for start in range(0, len(rows), chunk):
            at = rows[start : start + chunk]
            length = None if hand_length is None else hand_length[at]
            _fit_chunk(model, keypoints.select(at), camera.select(at), recipe, length, at, out)
    if not out.terms:
        # Not one hand could be fitted; the result still names every term, as the other parts of a run do.
        none = torch.zeros(0, dtype=torch.int64)
        _fit_chunk(models.right, keypoints.select(none), camera.select(none), recipe, None, none, out)
    return _result(models, keypoints, camera, recipe, out)


def _fit_chunk(
    model: FitModel,
    keypoints: Keypoints,
    camera: Camera,
    recipe: Recipe,
    length: Tensor | None,
    at: Tensor,
    out: _Output,
) -> None:
    seen = Observations.of(keypoints, camera, recipe, length, model.like)
    engine = choose_engine(model, seen, recipe, [t.select(at) for t in recipe.extra_terms])
    seeds = model.seeds[: recipe.seeds]
    starts = closed_form_starts(model.kinematics, seeds, seen.views())
    best = fit_from(engine, model.kinematics, starts, 2 * len(seeds), recipe)
    out.put(at, best, engine.finish(best.solution.state, recipe.posterior), model.kinematics, (seen.conf > 0).sum(1))


@dataclass(frozen=True, eq=False)
class _Output:
    """Growing results in the right-hand canonical frame, one row per input hand."""

    state: HandState
    energy: Tensor
    gap: Tensor
    status: Tensor
    steps: Tensor
    apart: Tensor
    points_sd: Tensor
    depth_sd: Tensor
    expected: Tensor
    weakest: list[str]
    terms: dict[str, Tensor]

    @classmethod
    def empty(cls, n: int, like: Tensor) -> _Output:
        nan = float("nan")
        state = HandState(
            torch.full((n, 16, 3, 3), nan, dtype=like.dtype),
            torch.full((n, 10), nan, dtype=like.dtype),
            torch.full((n, 3), nan, dtype=like.dtype),
            torch.full((n,), nan, dtype=like.dtype),
        )
        energy = torch.full((n,), nan, dtype=like.dtype)
        status = torch.full((n,), int(Status.FAILED))
        return cls(
            state=state,
            energy=energy,
            gap=energy.clone(),
            status=status,
            steps=torch.zeros(n, dtype=torch.int64),
            apart=energy.clone(),
            points_sd=torch.full((n, 21, 3), nan, dtype=like.dtype),
            depth_sd=energy.clone(),
            expected=energy.clone(),
            weakest=[""] * n,
            terms={},
        )

    def put(self, at: Tensor, best: Best, ends: Finish, kinematics: Kinematics, n_points: Tensor) -> None:
        """Take over the finite solutions; the rest keep NaN and the status "failed"."""
        solution = best.solution
        good = torch.isfinite(solution.energy) & torch.isfinite(solution.state.rotations).flatten(1).all(1)
        good &= torch.isfinite(solution.state.root).all(1) & torch.isfinite(solution.state.betas).all(1)
        keep = good.cpu()
        rows = at[keep]
        for into, value in (
            (self.state.rotations, solution.state.rotations),
            (self.state.betas, solution.state.betas),
            (self.state.root, solution.state.root),
            (self.state.log_focal, solution.state.log_focal),
            (self.energy, solution.energy),
            (self.gap, best.gap),
            (self.steps, solution.steps),
            (self.apart, best.apart),
        ):
            into[rows] = value[good].cpu()
        ended = torch.where(solution.converged, int(Status.CONVERGED), int(Status.MAX_STEPS))
        self.status[rows] = ended[good].cpu()
        if ends.spread is not None:
            points = kinematics.points(solution.state.rotations, solution.state.betas, solution.state.root)
            trust = judge(ends.spread, points, ends.terms, n_points, best.gap, best.apart)
            self.points_sd[rows] = trust.points_sd[good].cpu()
            self.depth_sd[rows] = trust.depth_sd[good].cpu()
            self.expected[rows] = trust.expected_error[good].cpu()
            for row, text, fine in zip(at.tolist(), trust.weakest, keep.tolist(), strict=True):
                self.weakest[row] = text if fine else ""
        for name, value in ends.terms.items():
            column = self.terms.setdefault(name, torch.full_like(self.energy, float("nan")))
            column[rows] = value[good].cpu()


def _result(models: HandModels, keypoints: Keypoints, camera: Camera, recipe: Recipe, out: _Output) -> FitResult:
    dtype = out.energy.dtype
    root_offset = torch.zeros(len(keypoints), 3, dtype=dtype)
    joints = torch.full((len(keypoints), 21, 3), float("nan"), dtype=dtype)
    meant = joints.clone()
    for model, rows in models.split(keypoints.is_right):
        kinematics = model.plain
        state = out.state.select(rows)
        root_offset[rows] = kinematics.root_offset(state.betas)
        joints[rows] = kinematics.points(state.rotations, state.betas, state.root)
        layout = kinematics.with_offsets(model.kinematics.offsets)
        meant[rows] = layout.points(state.rotations, state.betas, state.root)
    canonical = HandParams.from_rotation_matrices(out.state.rotations, out.state.betas, out.state.root - root_offset)
    mirrored = canonical.mirrored()
    side = keypoints.is_right[:, None]
    params = HandParams(*(torch.where(side, a, b) for a, b in zip(canonical.tensors(), mirrored.tensors(), strict=True)))
    sign = torch.where(keypoints.is_right, 1.0, -1.0).to(dtype)
    mirror = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)[:, None]
    joints, meant = joints * mirror, meant * mirror
    factor = out.state.log_focal.double().exp().nan_to_num(1.0)
    used = Camera(camera.focal * factor[:, None], camera.princpt, camera.dist, camera.known)
    fit_2d = used.project(meant.double())
    rms = weighted_rms(fit_2d - keypoints.xy, keypoints.conf)
    relative = rms / keypoints.box_size().clamp(min=1e-9)
    against = reasons_against(out.terms, params.betas, recipe.limits_sigma_deg, relative, out.gap, out.apart)
    usable = (out.status == Status.CONVERGED) | (out.status == Status.MAX_STEPS)
    return FitResult(
        params=params,
        joints=joints,
        keypoints_3d=meant,
        keypoints_3d_sd=out.points_sd,
        depth_sd=out.depth_sd,
        expected_error_mm=1000 * out.expected,
        weakest=tuple(out.weakest),
        doubts=tuple("; ".join(reasons) for reasons in against),
        plausible=usable & torch.tensor([not reasons for reasons in against], dtype=torch.bool),
        keypoints=keypoints,
        camera=used,
        keypoints_2d_fit=fit_2d,
        energy=out.energy,
        energy_terms=out.terms,
        rms_px=rms,
        status=out.status,
        steps=out.steps,
        hypothesis_gap=out.gap,
        hand=models,
        provenance={
            "handloop_version": __version__,
            "recipe": recipe.name,
            "noise_px_at_224": f"{recipe.noise_px:g}",
            "flat_hand_mean": "True",
            "joint_order": "openpose21",
            "joint_definition": "skinning",
            **models.provenance(),
        },
    )


def weighted_rms(error: Tensor, conf: Tensor) -> Tensor:
    """(N,) root of the confidence-weighted mean squared distance of (N, 21, 2) px errors; NaN without points."""
    sq = torch.where(conf > 0, error.square().sum(-1), torch.zeros_like(conf))
    return ((sq * conf).sum(1) / conf.sum(1)).sqrt()
