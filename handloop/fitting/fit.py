"""Fit hands to keypoints: observations to the canonical frame, starts, pruning, solving, results back to each side."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.proposal import Proposal
from handloop.core.results import FitResult, Status
from handloop.core.terms import HandState
from handloop.fitting.baselines import BASELINE_SEEDS, fit_baseline
from handloop.fitting.collect import Best, Output, result_of
from handloop.fitting.engines import Engine, choose_engine, uses_fused_engine
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.proposals import proposal_starts, with_one_more
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Solution, SolverOptions
from handloop.fitting.starts import closed_form_starts, point_starts

_Rows = TypeVar("_Rows", Keypoints, Camera, Proposal)

MIN_POINTS = 4
"""Fewer visible points than this are not fitted: three fix the palm's place, not even its orientation."""

MIN_BOX_PX = 1.0
"""Points in a smaller box are one place, not a hand (or no pixels); a fit would be a hand kilometres away."""

_NUMBERS_PER_START = 30_000
"""What the tensor engine holds at a time for each start, measured 22,000: rows of the 21 points, the fingers' products,
four 64 x 64 matrices for the current state, the trial and the factor, and copies while they are put together."""

_NUMBERS_OF_SPHERES = 35_000
"""What self-penetration adds to that."""

_STARTS_AT_A_TIME = 65_536
"""More starts than this make no GPU faster, and hold memory that others may want: float32 takes 8 GB for so many."""

# Two solutions are different when their points, wrist on wrist, are this far apart on average.
_DISTINCT_M = 0.01


def _chunk(model: FitModel, recipe: Recipe) -> int:
    """Hands fitted at a time. The tensor engine is fastest on a CPU while its Jacobians stay small, on a GPU with much
    to do at once; the fused engine only needs enough hands to share out."""
    if model.like.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.like.device)
        return hands_within(0.5 * free, recipe, model.like.element_size())
    return 1024 if uses_fused_engine(model, recipe) else 64


def hands_within(size: float, recipe: Recipe, item: int) -> int:
    """How many hands the tensor engine fits at a time in `size` bytes, of numbers of `item` bytes."""
    numbers = _NUMBERS_PER_START + (_NUMBERS_OF_SPHERES if recipe.self_penetration is not None else 0)
    starts = min(int(size / (numbers * item)), _STARTS_AT_A_TIME)
    return max(1, starts // (2 * max(recipe.seeds, 1) + 1))


def fit_from(engine: Engine, starts: HandState, per_hand: int, recipe: Recipe) -> Best:
    """Fit each hand from `per_hand` starts: a few steps for all, then the best few to convergence.

    Args:
        starts: (B * per_hand) states, hands outermost.
    """
    n = len(starts) // per_hand
    device, hands = starts.betas.device, np.arange(n)

    def index(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows.ravel()).to(device)

    # What is compared between solutions is few numbers per hand: numpy takes a third of torch's time for one hand's.
    if per_hand > 1:
        short = SolverOptions(recipe.explore_steps, recipe.solver.tolerance, recipe.solver.damping)
        explored = engine.solve(starts, index(hands.repeat(per_hand)), short)
        tried, tried_energy = _in_palm(engine, explored.state), explored.energy.numpy(force=True).reshape(n, per_hand)
        keep = min(recipe.finalists, per_hand)
        order = pick_finalists(tried_energy, start_flips(starts, per_hand), keep)
        at = index(hands[:, None] * per_hand + order)
        starts, before = explored.state.select(at), explored.steps[at]
    else:
        keep, before = 1, torch.zeros(n, dtype=torch.int64, device=device)
        tried, tried_energy = np.zeros((0, 21, 3)), np.zeros((n, 0))
    done = engine.solve(starts, index(hands.repeat(keep)), recipe.solver)
    energy = done.energy.numpy(force=True).reshape(n, keep)
    best = energy.argmin(1)
    at = index(hands * keep + best)
    points, own = engine.points(done.state)
    local = _from_wrist(points).reshape(n, keep, 21, 3)
    away = local - local[hands, best][:, None]
    apart = np.sqrt((away * away).sum(-1)).mean(-1)
    other = np.where(apart > _DISTINCT_M, energy, np.inf)
    runner_up, least = other.argmin(1), energy[hands, best]
    with np.errstate(invalid="ignore"):  # Nothing finite was found for some hands.
        gap = other[hands, runner_up] - least
        above = tried_energy - least[:, None]
    distance = np.where(np.isfinite(gap), apart[hands, runner_up], 0.0)
    gap = np.where(np.isnan(gap), np.inf, gap)
    solution = Solution(done.state.select(at), done.energy[at], done.converged[at], (before + done.steps)[at])
    wrist = solution.state.rotations[:, 0].numpy(force=True)[:, None, None]
    # Sums of three, in one order: no hand's may depend on the others.
    x, y, z = (tried.reshape(*tried_energy.shape, 21, 3)[..., i, None] for i in range(3))
    others = x * wrist[..., 0] + y * wrist[..., 1] + z * wrist[..., 2] - local[hands, best][:, None]
    parts = (torch.from_numpy(part).to(starts.betas) for part in (gap, distance, others, above))
    return Best(solution, points[at], own[at], *parts)


def _from_wrist(points: Tensor) -> np.ndarray:
    array = points.numpy(force=True)
    return array - array[:, :1]


def _in_palm(engine: Engine, state: HandState) -> np.ndarray:
    """(B, 21, 3) m, points in the wrist's own frame."""
    x, y, z = _from_wrist(engine.points(state)[0])[..., None].transpose(2, 0, 1, 3)
    wrist = state.rotations[:, 0].numpy(force=True)[:, None]
    return x * wrist[:, :, 0] + y * wrist[:, :, 1] + z * wrist[:, :, 2]


def start_flips(starts: HandState, per_hand: int) -> np.ndarray:
    """(B, S) 0 or 1, the depth flip of each start: they alternate along the columns. A proposal, the last of an odd
    number, has that of the first two starts whose palm is turned more like its own."""
    turn = starts.rotations[:, 0].numpy(force=True).reshape(-1, per_hand, 9)
    flips = np.arange(per_hand) % 2 + np.zeros((len(turn), 1), np.int64)
    if per_hand % 2:
        flips[:, -1] = (turn[:, :2] * turn[:, -1:]).sum(2).argmax(1)
    return flips


def pick_finalists(energy: np.ndarray, flips: np.ndarray, keep: int) -> np.ndarray:
    """(B, keep) columns of the explored starts (B, S) to finish: the best, and among them the best of each depth flip.

    Without the second flip a hand's only real alternative would often be pruned, and its gap would say that there is
    none.
    """
    chosen = energy.argsort(axis=1, kind="stable")[:, :keep]
    if keep > 1:
        flip = flips[np.arange(len(flips))[:, None], chosen]
        other = np.where(flips == flip[:, :1], np.inf, energy)
        lacking = (flip == flip[:, :1]).all(1)
        chosen[:, -1] = np.where(lacking, other.argmin(1), chosen[:, -1])
    return chosen


# Bad hands end in infinity or NaN and a status, not in warnings.
@np.errstate(all="ignore")
def fit_keypoints(
    models: HandModels,
    keypoints: Keypoints,
    camera: Camera,
    recipe: Recipe,
    hand_length: Tensor | None = None,
    points_3d: Tensor | None = None,
    proposal: Proposal | None = None,
) -> FitResult:
    """Fit every hand; hands that cannot be fitted come back with NaN and a status, in their place.

    Args:
        models: what to fit, on the device and in the dtype to fit with.
        keypoints: N hands.
        camera: N cameras.
        recipe: how.
        hand_length: (N,) m, NaN where unknown.
        points_3d: (N, 21, 4) x, y, z in m, camera frame, and weight 0..1, where 3D points are known.
        proposal: N hands, one more start each beside half the recipe's seeds; the only one where it has none.

    Raises:
        InputError: the numbers of hands, cameras, lengths or proposals differ.
    """
    n = len(keypoints)
    if len(camera) != n:
        raise InputError(f"{n} hands but {len(camera)} cameras were given.")
    if hand_length is not None and hand_length.shape != (n,):
        raise InputError(f"hand_length has shape {tuple(hand_length.shape)}, expected ({n},).")
    like = models.right.like
    out = Output.empty(n, like)
    usable = ((keypoints.conf.numpy() > 0).sum(1) >= MIN_POINTS) & (keypoints.box_size().numpy() >= MIN_BOX_PX)
    if points_3d is not None:
        usable |= (torch.isfinite(points_3d).all(-1) & (points_3d[..., 3] > 0)).sum(1).numpy() >= MIN_POINTS
    out.status.numpy()[~usable] = int(Status.TOO_FEW_POINTS)
    extra = [t.name for t in recipe.extra_terms]
    if len(set(extra)) != len(extra):
        raise InputError(f"two extra terms share a name: {extra}.")
    if recipe.baseline is not None:
        _check_baseline(recipe, hand_length, points_3d, proposal)
    if recipe.seeds == 0 and proposal is None:
        raise InputError(f"the recipe {recipe.name!r} has no seeds and no proposal was given: there is no start.")
    if proposal is not None:
        proposal = proposal.rows_for(keypoints.ids, keypoints.is_right)
    for model, rows in models.split(keypoints.is_right):
        if proposal is not None and recipe.keep_proposal:
            without = rows[torch.from_numpy(~usable)[rows]]
            _keep_proposed(model, keypoints, camera, recipe, proposal, without, out)
        rows = rows[torch.from_numpy(usable)[rows]]
        chunk = _chunk(model, recipe)
        for start in range(0, len(rows), chunk):
            at = rows[start : start + chunk]
            length = None if hand_length is None else hand_length[at]
            given = None if points_3d is None else points_3d[at]
            cameras = _rows(camera, at)
            seen = Observations.of(_rows(keypoints, at), cameras, recipe, length, model.like, given)
            starts = None if proposal is None else proposal_starts(model, _rows(proposal, at), cameras, seen)
            _fit_chunk(model, seen, recipe, at, out, starts)
    if not out.terms:
        # Not one hand could be fitted; the result still names every term, as the other parts of a run do.
        none = torch.zeros(0, dtype=torch.int64)
        seen = Observations.of(keypoints.select(none), camera.select(none), recipe, None, like)
        _fit_chunk(models.right, seen, replace(recipe, seeds=max(recipe.seeds, 1)), none, out, None)
    if recipe.solver.max_steps == 0:
        out.status[out.status == int(Status.MAX_STEPS)] = int(Status.PREDICTED)
    return result_of(models, keypoints, camera, recipe, out, _starts_of(recipe, proposal))


def _rows(of: _Rows, at: Tensor) -> _Rows:
    """The rows `at`, which ascend; as they are where that is all of them."""
    return of if len(at) == len(of) else of.select(at)


def _starts_of(recipe: Recipe, proposal: Proposal | None) -> str:
    """What fits began from, for their provenance."""
    seeds = BASELINE_SEEDS if recipe.baseline is not None else recipe.seeds_beside(proposal is not None)
    parts = [proposal.source] if proposal is not None else []
    if seeds:
        parts.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
    return " + ".join(parts)


def _keep_proposed(
    model: FitModel, keypoints: Keypoints, camera: Camera, recipe: Recipe, proposal: Proposal, at: Tensor, out: Output
) -> None:
    """Proposals as results of the hands `at`, where they have a pose and a place."""
    chosen = proposal.select(at)
    whole = torch.stack([torch.isfinite(t).all(1) for t in chosen.params.tensors()]).all(0)
    at, chosen = at[whole], chosen.select(whole)
    seen = Observations.of(keypoints.select(at), camera.select(at), recipe, None, model.like, None)
    state = proposal_starts(model, chosen, camera.select(at), seen)
    where = (state.rotations, state.betas, state.root)
    out.put_proposed(at, state, model.kinematics.points(*where), model.kinematics.with_offsets(None).points(*where))


def _check_baseline(
    recipe: Recipe, hand_length: Tensor | None, points_3d: Tensor | None, proposal: Proposal | None
) -> None:
    """Refuse what the published methods have no place for, rather than leave it aside in silence."""
    given = {
        "3D points": points_3d is not None,
        "a hand length": hand_length is not None,
        "a free focal length": recipe.focal_sigma is not None,
        "fixed parameters": bool(recipe.fixed),
        "extra terms": bool(recipe.extra_terms),
        "another start": proposal is not None,
    }
    asked = [*(name for name, there in given.items() if there), *recipe.optional_terms()]
    if asked:
        raise InputError(
            f"the recipe {recipe.name!r} is a published method that knows nothing of {', '.join(asked)}; "
            "use the recipe default, fast or careful."
        )


def _fit_chunk(
    model: FitModel, seen: Observations, recipe: Recipe, at: Tensor, out: Output, proposed: HandState | None
) -> None:
    engine = choose_engine(model, seen, recipe, [t.select(at) for t in recipe.extra_terms])
    if recipe.baseline is not None:
        starts = closed_form_starts(model.kinematics, model.seeds[:BASELINE_SEEDS], seen.views())
        found = fit_baseline(model, seen, recipe.baseline, starts, 2 * BASELINE_SEEDS, model.hand)
        ends = engine.finish(found.state, recipe.posterior)
        energy = torch.stack(list(ends.terms.values())).sum(0)
        none = torch.full_like(energy, float("nan"))  # It looks for no other solution.
        no_others = energy.new_zeros(len(energy), 0, 21, 3)
        found = replace(found, energy=energy)
        best = Best(found, *engine.points(found.state), none, torch.zeros_like(energy), no_others, no_others[..., 0, 0])
        out.put(at, best, ends, seen)
        return
    if proposed is not None and recipe.seeds == 0:
        best = fit_from(engine, proposed, 1, recipe)
        out.put(at, best, engine.finish(best.solution.state, recipe.posterior), seen)
        return
    if proposed is None:
        recipe = replace(recipe, explore_steps=2 * recipe.explore_steps)
    seeds = model.seeds[: recipe.seeds_beside(proposed is not None)]
    starts = engine.starts(model.kinematics, seeds, seen.views())
    in_3d = (seen.inverse_sigma_3d > 0).sum(1) >= MIN_POINTS
    if bool(in_3d.any()):
        placed = point_starts(model.kinematics, seeds, seen.xyz, seen.inverse_sigma_3d)
        starts = placed.where(in_3d.repeat_interleave(2 * len(seeds)), starts)
    per_hand = 2 * len(seeds)
    if proposed is not None:
        starts, per_hand = with_one_more(starts, per_hand, proposed), per_hand + 1
    best = fit_from(engine, starts, per_hand, recipe)
    out.put(at, best, engine.finish(best.solution.state, recipe.posterior), seen)
