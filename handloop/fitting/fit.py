"""Fit hands to keypoints: observations to the canonical frame, starts, pruning, solving, results back to each side."""

from __future__ import annotations

from dataclasses import replace

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
    device = starts.betas.device
    hand = torch.arange(n, device=device).repeat_interleave(per_hand)
    if per_hand > 1:
        short = SolverOptions(recipe.explore_steps, recipe.solver.tolerance, recipe.solver.damping)
        explored = engine.solve(starts, hand, short)
        tried = _in_palm(engine, explored.state).unflatten(0, (n, per_hand))
        keep = min(recipe.finalists, per_hand)
        order = pick_finalists(explored.energy.reshape(n, per_hand), start_flips(starts, per_hand), keep)
        at = (torch.arange(n, device=device)[:, None] * per_hand + order).flatten()
        starts, before = explored.state.select(at), explored.steps[at]
        hand = torch.arange(n, device=device).repeat_interleave(keep)
    else:
        keep, before = 1, torch.zeros(n, dtype=torch.int64, device=device)
        tried = starts.betas.new_zeros(n, 0, 21, 3)
    done = engine.solve(starts, hand, recipe.solver)
    energy = done.energy.reshape(n, keep)
    best = energy.argmin(1)
    hands = torch.arange(n, device=device)
    at = hands * keep + best
    points, own = engine.points(done.state)
    local = (points - points[:, :1]).reshape(n, keep, 21, 3)
    apart = (local - local[hands, best][:, None]).norm(dim=-1).mean(-1)
    other = torch.where(apart > _DISTINCT_M, energy, torch.full_like(energy, float("inf")))
    runner_up = other.argmin(1)
    gap = other.amin(1) - energy.amin(1)
    distance = apart[hands, runner_up]
    distance = torch.where(torch.isfinite(gap), distance, torch.zeros_like(distance))
    solution = Solution(done.state.select(at), done.energy[at], done.converged[at], (before + done.steps)[at])
    others = torch.einsum("bij,bmpj->bmpi", solution.state.rotations[:, 0], tried) - local[hands, best][:, None]
    above = (explored.energy.reshape(n, per_hand) if per_hand > 1 else energy[:, :0]) - solution.energy[:, None]
    points, own = points[at], own[at]
    return Best(solution, points, own, gap.nan_to_num(float("inf"), float("inf")), distance, others, above)


def _in_palm(engine: Engine, state: HandState) -> Tensor:
    """(B, 21, 3) m, points in the wrist's own frame."""
    points, _ = engine.points(state)
    return (points - points[:, :1]) @ state.rotations[:, 0]


def start_flips(starts: HandState, per_hand: int) -> Tensor:
    """(B, S) 0 or 1, the depth flip of each start: they alternate along the columns. A proposal, the last of an odd
    number, has that of the first two starts whose palm is turned more like its own."""
    turn = starts.rotations[:, 0].unflatten(0, (-1, per_hand))
    flips = torch.arange(per_hand, device=turn.device).remainder(2).repeat(len(turn), 1)
    if per_hand % 2:
        flips[:, -1] = (turn[:, :2] * turn[:, -1:]).sum((2, 3)).argmax(1)
    return flips


def pick_finalists(energy: Tensor, flips: Tensor, keep: int) -> Tensor:
    """(B, keep) columns of the explored starts (B, S) to finish: the best, and among them the best of each depth flip.

    Without the second flip a hand's only real alternative would often be pruned, and its gap would say that there is
    none.
    """
    chosen = energy.argsort(dim=1, stable=True)[:, :keep].clone()
    if keep > 1:
        flip = flips.gather(1, chosen)
        other = energy.masked_fill(flips == flip[:, :1], float("inf"))
        lacking = (flip == flip[:, :1]).all(1)
        chosen[lacking, -1] = other.argmin(1)[lacking]
    return chosen


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
    usable = ((keypoints.conf > 0).sum(1) >= MIN_POINTS) & (keypoints.box_size() >= MIN_BOX_PX)
    if points_3d is not None:
        usable |= (torch.isfinite(points_3d).all(-1) & (points_3d[..., 3] > 0)).sum(1) >= MIN_POINTS
    out.status[~usable] = int(Status.TOO_FEW_POINTS)
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
            _keep_proposed(model, keypoints, camera, recipe, proposal, rows[~usable[rows]], out)
        rows = rows[usable[rows]]
        chunk = _chunk(model, recipe)
        for start in range(0, len(rows), chunk):
            at = rows[start : start + chunk]
            length = None if hand_length is None else hand_length[at]
            given = None if points_3d is None else points_3d[at]
            seen = Observations.of(keypoints.select(at), camera.select(at), recipe, length, model.like, given)
            starts = None if proposal is None else proposal_starts(model, proposal.select(at), camera.select(at), seen)
            _fit_chunk(model, seen, recipe, at, out, starts)
    if not out.terms:
        # Not one hand could be fitted; the result still names every term, as the other parts of a run do.
        none = torch.zeros(0, dtype=torch.int64)
        seen = Observations.of(keypoints.select(none), camera.select(none), recipe, None, like)
        _fit_chunk(models.right, seen, replace(recipe, seeds=max(recipe.seeds, 1)), none, out, None)
    if recipe.solver.max_steps == 0:
        out.status[out.status == int(Status.MAX_STEPS)] = int(Status.PREDICTED)
    return result_of(models, keypoints, camera, recipe, out, _starts_of(recipe, proposal))


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
