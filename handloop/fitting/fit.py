"""Fit hands to keypoints: observations to the canonical frame, starts, pruning, solving, results back to each side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop._version import __version__
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult, Status
from handloop.core.terms import BETAS, FOCAL, POSE, ROOT, GemanMcClure, HandState, Term
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Solution, SolverOptions, energies, solve
from handloop.fitting.starts import Views, closed_form_starts
from handloop.fitting.terms import FocalPrior, Limits, PosePrior, Reprojection, Shape, Size

MIN_POINTS = 4
"""Fewer visible points than this are not fitted: three fix the palm's place, not even its orientation."""

# Two solutions are different when their points, wrist on wrist, are this far apart on average.
_DISTINCT_M = 0.01


@dataclass(frozen=True, eq=False)
class Observations:
    """Keypoints and cameras of one side's hands as the solver wants them: right-hand canonical, distortion removed."""

    uv: Tensor
    """(B, 21, 2) px."""
    conf: Tensor
    """(B, 21)."""
    focal: Tensor
    """(B, 2) px."""
    princpt: Tensor
    """(B, 2) px."""
    sigma: Tensor
    """(B,) px, noise of a point of confidence 1."""
    length: Tensor
    """(B,) m, known hand length or NaN."""
    focal_free: Tensor
    """(B,) bool."""

    def views(self) -> Views:
        """Rays for the closed-form starts."""
        return Views((self.uv - self.princpt[:, None]) / self.focal[:, None], self.conf)

    def select(self, index: Tensor) -> Observations:
        """Rows by an integer index."""
        return Observations(
            self.uv[index],
            self.conf[index],
            self.focal[index],
            self.princpt[index],
            self.sigma[index],
            self.length[index],
            self.focal_free[index],
        )


def observe(
    keypoints: Keypoints, camera: Camera, recipe: Recipe, hand_length: Tensor | None, like: Tensor
) -> Observations:
    """Bring hands into the right-hand canonical frame: undistort, and mirror left hands about the principal axis."""
    uv = camera.undistort(keypoints.xy)
    conf = torch.where(torch.isfinite(uv).all(-1), keypoints.conf, torch.zeros_like(keypoints.conf))
    uv = torch.where((conf > 0)[..., None], uv, camera.princpt[:, None].expand_as(uv))
    mirror = torch.where(keypoints.is_right, 1.0, -1.0).to(uv)[:, None]
    uv = torch.stack([camera.princpt[:, :1] + (uv[..., 0] - camera.princpt[:, :1]) * mirror, uv[..., 1]], -1)
    # A box that collapses to nothing (coincident points) still needs a noise level.
    sigma = (recipe.noise_px * keypoints.box_size() / 224).clamp(min=0.05)
    length = torch.full((len(keypoints),), float("nan")) if hand_length is None else hand_length
    focal_free = ~camera.is_known() if recipe.focal_sigma is not None else torch.zeros(len(keypoints), dtype=torch.bool)
    return Observations(
        uv.to(like),
        conf.to(like),
        camera.focal.to(like),
        camera.princpt.to(like),
        sigma.to(like),
        length.to(like),
        focal_free.to(like.device),
    )


def standard_terms(model: FitModel, seen: Observations, recipe: Recipe) -> list[Term]:
    """The standard recipe's terms for these hands."""
    noise = torch.tensor(recipe.joint_noise).to(seen.uv)
    inverse_sigma = seen.conf / (seen.sigma[:, None] * noise)
    terms: list[Term] = [
        Reprojection(seen.uv, inverse_sigma, seen.focal, seen.princpt, GemanMcClure(recipe.robust)),
        PosePrior(model.pose_prior),
        Limits(model.limits, recipe.limits_sigma_deg),
        Shape(recipe.shape_sigma),
    ]
    if bool(torch.isfinite(seen.length).any()):
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
    """(B,) energy."""


def fit_from(
    model: FitModel, terms: list[Term], starts: HandState, per_hand: int, recipe: Recipe, free: Tensor
) -> Best:
    """Fit each hand from `per_hand` starts: a few steps for all, then the best few to convergence.

    Args:
        starts: (B * per_hand) states, hands outermost.
        terms: with B rows.
    """
    n = len(starts) // per_hand
    device = starts.betas.device
    hand = torch.arange(n, device=device).repeat_interleave(per_hand)
    kinematics = model.kinematics
    if per_hand > 1:
        explored = solve(
            kinematics,
            [t.select(hand) for t in terms],
            starts,
            free,
            SolverOptions(recipe.explore_steps, recipe.solver.tolerance, recipe.solver.damping),
        )
        keep = min(recipe.finalists, per_hand)
        order = explored.energy.reshape(n, per_hand).argsort(dim=1, stable=True)[:, :keep]
        at = (torch.arange(n, device=device)[:, None] * per_hand + order).flatten()
        starts, before = explored.state.select(at), explored.steps[at]
        hand = torch.arange(n, device=device).repeat_interleave(keep)
    else:
        keep, before = 1, torch.zeros(n, dtype=torch.int64, device=device)
    done = solve(kinematics, [t.select(hand) for t in terms], starts, free, recipe.solver)
    energy = done.energy.reshape(n, keep)
    best = energy.argmin(1)
    at = torch.arange(n, device=device) * keep + best
    points = kinematics.points(done.state.rotations, done.state.betas, done.state.root)
    local = (points - points[:, :1]).reshape(n, keep, 21, 3)
    apart = (local - local[torch.arange(n, device=device), best][:, None]).norm(dim=-1).mean(-1)
    other = torch.where(apart > _DISTINCT_M, energy, torch.full_like(energy, float("inf")))
    gap = other.amin(1) - energy.amin(1)
    solution = Solution(done.state.select(at), done.energy[at], done.converged[at], (before + done.steps)[at])
    return Best(solution, gap.nan_to_num(float("inf"), float("inf")))


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
    usable = (keypoints.conf > 0).sum(1) >= MIN_POINTS
    out.status[~usable] = int(Status.TOO_FEW_POINTS)
    extra = [t.name for t in recipe.extra_terms]
    if len(set(extra)) != len(extra):
        raise InputError(f"two extra terms share a name: {extra}.")
    for model, rows in models.split(keypoints.is_right):
        rows = rows[usable[rows]]
        for start in range(0, len(rows), models.chunk):
            at = rows[start : start + models.chunk]
            length = None if hand_length is None else hand_length[at]
            _fit_chunk(model, keypoints.select(at), camera.select(at), recipe, length, at, out)
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
    seen = observe(keypoints, camera, recipe, length, model.like)
    terms = standard_terms(model, seen, recipe)
    terms += [t.select(at) for t in recipe.extra_terms]
    seeds = model.seeds[: recipe.seeds]
    starts = closed_form_starts(model.kinematics, seeds, seen.views())
    free = free_parameters(recipe, model.like.device)
    best = fit_from(model, terms, starts, 2 * len(seeds), recipe, free)
    out.put(at, best, energies(model.kinematics, terms, best.solution.state))


@dataclass(frozen=True, eq=False)
class _Output:
    """Growing results in the right-hand canonical frame, one row per input hand."""

    state: HandState
    energy: Tensor
    gap: Tensor
    status: Tensor
    steps: Tensor
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
        return cls(state, energy, energy.clone(), status, torch.zeros(n, dtype=torch.int64), {})

    def put(self, at: Tensor, best: Best, parts: Mapping[str, Tensor]) -> None:
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
        ):
            into[rows] = value[good].cpu()
        ended = torch.where(solution.converged, int(Status.CONVERGED), int(Status.MAX_STEPS))
        self.status[rows] = ended[good].cpu()
        for name, value in parts.items():
            column = self.terms.setdefault(name, torch.full_like(self.energy, float("nan")))
            column[rows] = value[good].cpu()


def _result(models: HandModels, keypoints: Keypoints, camera: Camera, recipe: Recipe, out: _Output) -> FitResult:
    dtype = out.energy.dtype
    root_offset = torch.zeros(len(keypoints), 3, dtype=dtype)
    joints = torch.full((len(keypoints), 21, 3), float("nan"), dtype=dtype)
    for model, rows in models.split(keypoints.is_right):
        kinematics = model.cpu_kinematics
        state = out.state.select(rows)
        root_offset[rows] = kinematics.root_offset(state.betas)
        joints[rows] = kinematics.points(state.rotations, state.betas, state.root)
    canonical = HandParams.from_rotation_matrices(out.state.rotations, out.state.betas, out.state.root - root_offset)
    mirrored = canonical.mirrored()
    side = keypoints.is_right[:, None]
    params = HandParams(*(torch.where(side, a, b) for a, b in zip(canonical.tensors(), mirrored.tensors(), strict=True)))
    sign = torch.where(keypoints.is_right, 1.0, -1.0).to(dtype)
    joints = torch.stack([joints[..., 0] * sign[:, None], joints[..., 1], joints[..., 2]], -1)
    factor = out.state.log_focal.double().exp().nan_to_num(1.0)
    used = Camera(camera.focal * factor[:, None], camera.princpt, camera.dist, camera.known)
    fit_2d = used.project(joints.double())
    rms = weighted_rms(fit_2d - keypoints.xy, keypoints.conf)
    return FitResult(
        params=params,
        joints=joints,
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
