"""Learn a `KeypointLayout` from 2D keypoints alone, over many hands.

One Gauss-Newton step on the offsets, with every hand's own 62 parameters eliminated (Schur complement), alternates with
refitting the hands. Eliminating instead of alternating blindly lets an offset move as far as the hands can follow it.

The mean shape stays the model's: in 2D a hand's size cannot be seen, and left free it drifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.joints import PALM_POINTS
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.structured import ROW_RESIDUAL, PointTerm
from handloop.core.terms import GemanMcClure, HandState, PosedHand
from handloop.fitting.engines import choose_engine, free_parameters, standard_terms
from handloop.fitting.fit import fit_from
from handloop.fitting.normal import Assembly, by_parameter
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import SolverOptions
from handloop.fitting.starts import closed_form_starts
from handloop.hand.kinematics import STARTING_JOINT
from handloop.hand.model import Hand

_PALM_SIGMA_M, _FINGER_SIGMA_M = 0.015, 0.003
"""Standard deviations of offsets before anything is known: wrist, thumb base and knuckles differ between sources by
centimetres, the other finger joints and tips by millimetres. Freer finger joints would buy a lower energy with a hand
that is turned and bent in depth (bas-relief): measured on FPHA, 20 mm for all gives 25 mm of error instead of 6."""

_INDEPENDENT_HANDS = 2.0
"""How many independent hands the whole sample is worth. Model errors are common to all hands, so their number does not
make an offset surer; 2 to 10 did equally well."""

_RECIPE = Recipe(noise_px=2.0, robust=9.0, explore_steps=8)
"""A layout shows in what the hands cannot follow; the standard recipe's wider noise hides some of it. `MIN_GAIN` holds
for this one: under the standard recipe the two gains measured would be 0.61 and 0.35."""

THUMB_BASE = 1
"""Canonical point of the thumb's CMC."""

_REACH_M = 0.01
"""An offset moves by at most this much in a round: farther, the hands' linearisation does not hold."""

MIN_HANDS = 200
"""Fewer hands do not tell a layout from their own poses."""

MIN_GAIN = 0.55
"""Share of the mean energy a layout must take away to be believed. Measured: 0.70 on many views of two people whose
wrists lie 25 mm off, 0.42 on one person in narrow views, where the layout bends to the views."""

_WORST = 0.1
"""Share of the hands, those of highest energy, that an update leaves out: many are in a wrong mode."""


@dataclass(frozen=True, eq=False)
class LayoutFrom2d:
    """A layout learned without 3D, or the reason why there is none."""

    layout: KeypointLayout
    """The identity where it was refused."""
    refused: str
    """Why, in a sentence; "" where it was accepted."""
    energy: tuple[float, ...]
    """Mean energy of the better hands after each round, the first under the identity."""


def learn_from_keypoints(
    hand: Hand,
    keypoints: Keypoints,
    camera: Camera,
    name: str,
    recipe: Recipe | None = None,
    max_rounds: int = 30,
    progress: Callable[[int, float], None] | None = None,
) -> LayoutFrom2d:
    """Learn from N hands with known cameras.

    Args:
        hand: the right-hand model.
        keypoints, camera: N hands, spread over people, poses and views; 500 to 2000 are enough.
        name: of the source.
        recipe: the standard recipe with firmer keypoints by default.
        max_rounds: rounds at most; it stops when the energy no longer falls by half a per cent.
        progress: called with the round and its mean energy.

    Raises:
        InputError: too few hands.
    """
    n = len(keypoints)
    if n < MIN_HANDS:
        raise InputError(f"{n} hands were given; a layout from 2D alone needs at least {MIN_HANDS}.")
    recipe = replace(_RECIPE if recipe is None else recipe, posterior=False)
    seen = Observations.of(keypoints, camera, recipe, None, torch.zeros(0, dtype=torch.float64))
    layout = replace(KeypointLayout.identity(), name=name, model_digest=hand.digest, tip_set=hand.tip_set)
    few = replace(recipe, solver=SolverOptions(max_steps=8, tolerance=1e-4))
    model = FitModel.of(hand, torch.float64, "cpu", layout)
    state, energy = _search(model, seen, recipe)
    history = [_mean_of_better(energy)]
    reach = _REACH_M
    for round_ in range(1, max_rounds + 1):
        trial = _update(model, layout, seen, recipe, state, energy, reach)
        trial_model = FitModel.of(hand, torch.float64, "cpu", trial)
        # Now and then hands may leave modes that only a wrong layout made attractive.
        if round_ % 4 == 0:
            trial_state, trial_energy = _search(trial_model, seen, recipe)
        else:
            found = fit_from(choose_engine(trial_model, seen, few, []), state, 1, few)
            trial_state, trial_energy = found.solution.state, found.solution.energy
        mean = _mean_of_better(trial_energy)
        if mean > history[-1]:
            reach /= 3
            if reach < _REACH_M / 20:
                break
            continue
        layout, model, state, energy = trial, trial_model, trial_state, trial_energy
        history.append(mean)
        if progress is not None:
            progress(round_, mean)
        if len(history) > 4 and mean > 0.98 * history[-4]:
            break
    gain = 1 - history[-1] / history[0]
    refused = ""
    if gain < MIN_GAIN:
        refused = (
            f"a layout would lower the mean energy by only {100 * gain:.0f} %; below {100 * MIN_GAIN:.0f} % it bends "
            "to the views at hand instead of describing the source. Give hands of more people, poses and views, or "
            "some 3D."
        )
    return LayoutFrom2d(KeypointLayout.identity() if refused else layout, refused, tuple(history))


def _search(model: FitModel, seen: Observations, recipe: Recipe) -> tuple[HandState, Tensor]:
    starts = closed_form_starts(model.kinematics, model.seeds[: recipe.seeds], seen.views())
    found = fit_from(choose_engine(model, seen, recipe, []), starts, 2 * recipe.seeds, recipe)
    return found.solution.state, found.solution.energy


def _mean_of_better(energy: Tensor) -> float:
    kept = energy.sort().values[: int(len(energy) * (1 - _WORST))]
    return float(kept.mean())


def _update(
    model: FitModel,
    layout: KeypointLayout,
    seen: Observations,
    recipe: Recipe,
    state: HandState,
    energy: Tensor,
    reach: float,
) -> KeypointLayout:
    """One Gauss-Newton step on the 63 offsets, by at most `reach` m."""
    limit = energy.sort().values[int(len(energy) * (1 - _WORST))]
    information = torch.zeros(63, 63, dtype=torch.float64)
    pull = torch.zeros(63, dtype=torch.float64)
    rows = (torch.isfinite(energy) & (energy <= limit)).nonzero()[:, 0]
    for at in rows.split(128):
        a, b = _reduced(model, seen.select(at), recipe, state.select(at))
        information += a
        pull += b
    now = layout.offsets.flatten()
    share = _INDEPENDENT_HANDS / len(rows)
    precision = torch.full((21, 3), _FINGER_SIGMA_M**-2, dtype=torch.float64)
    precision[[THUMB_BASE, *PALM_POINTS]] = _PALM_SIGMA_M**-2
    precision = precision.flatten()
    information, pull = share * information + torch.diag(precision), share * pull + precision * now
    step = torch.linalg.solve(information, -pull)
    step = step * min(1.0, reach / float(step.abs().max()))
    offsets = (now + step).reshape(21, 3)
    rest = model.plain.rest_points()
    offsets = offsets - rest * ((offsets * rest).sum() / rest.square().sum())
    return replace(layout, offsets=offsets)


def _reduced(model: FitModel, seen: Observations, recipe: Recipe, state: HandState) -> tuple[Tensor, Tensor]:
    """Information (63, 63) and gradient (63,) of the offsets with the hands' own parameters eliminated."""
    terms = standard_terms(model, seen, recipe)
    free = free_parameters(recipe, state.betas.device)
    posed = PosedHand.of(model.kinematics, state, jacobian=True)
    own = Assembly.of(free, state.betas).equations(posed, terms)
    assert isinstance(terms[0], PointTerm)
    data = terms[0].by_point(posed).rows[:, 3:]
    n = len(state)
    frames = model.plain.frames(state.rotations)[:, list(STARTING_JOINT)]
    scale = (1 + (state.betas * model.plain.scale_dirs()).sum(1))[:, None, None, None]
    by_offset = frames * scale
    x, y, z = posed.points.unbind(-1)
    focal = seen.focal[:, None] * state.log_focal.exp()[:, None, None]
    normalised = torch.stack([x / z, y / z], -1)
    rays = (by_offset[:, :, :2] - normalised[..., None] * by_offset[:, :, 2:]) / z[..., None, None]
    pairs = (normalised * focal + seen.princpt[:, None] - seen.uv) * seen.inverse_sigma(recipe)[..., None]
    keep = GemanMcClure(recipe.robust).weight(pairs.square().sum(-1)).sqrt()
    weighted = rays * (focal * seen.inverse_sigma(recipe)[..., None] * keep[..., None])[..., None]
    shared = torch.zeros(n, 42, 63, dtype=torch.float64)
    for p in range(21):
        shared[:, 2 * p : 2 * p + 2, 3 * p : 3 * p + 3] = weighted[:, p]
    cross = by_parameter(data, free).mT @ shared
    damped = own.hessian + torch.diag_embed(1e-9 * torch.diagonal(own.hessian, dim1=1, dim2=2))
    through = torch.linalg.solve(damped, torch.cat([cross, own.gradient[..., None]], 2))
    information = shared.mT @ shared - cross.mT @ through[..., :63]
    pull = (shared.mT @ data[..., ROW_RESIDUAL].reshape(n, 42, 1) - cross.mT @ through[..., 63:])[..., 0]
    return information.sum(0), pull.sum(0)
