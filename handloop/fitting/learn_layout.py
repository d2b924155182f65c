"""Learn a `KeypointLayout`: what a source means by its points, from hands whose 3D is known.

Alternates two closed steps: fit all hands to the points under the current layout, then put each offset at the mean,
over the hands, of the missing vector in its joint's frame. The common shape of the source's hands becomes the shape
prior's centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.terms import HandState
from handloop.fitting.engines import choose_engine
from handloop.fitting.fit import fit_from
from handloop.fitting.observe import Observations, before_the_camera
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import SolverOptions
from handloop.fitting.starts import point_starts
from handloop.hand.kinematics import STARTING_JOINT, Kinematics
from handloop.hand.model import Hand

_OFFSET_SIGMA_M = 0.03
"""Standard deviation of an offset before anything is known: sources differ by up to a few centimetres."""

MIN_HANDS = 20
"""Fewer hands leave the mean of 63 offsets to chance."""


@dataclass(frozen=True, eq=False)
class LearnedLayout:
    """A layout and how it came about."""

    layout: KeypointLayout
    error_mm: tuple[float, ...]
    """Mean distance of the points after each round, mm, the first under the identity."""


def learn_from_joints(
    hand: Hand,
    joints: Tensor,
    is_right: Tensor,
    name: str,
    rounds: int = 15,
    recipe: Recipe | None = None,
) -> LearnedLayout:
    """Learn offsets from (N, 21, 3) joints in m, NaN where unknown, in right-handed axes.

    Args:
        hand: the right-hand model; left hands are mirrored onto it.
        joints: N hands; spread the sample over people and poses.
        is_right: (N,) bool.
        name: of the source, written into the layout.
        rounds: alternations; the error has settled after about ten.
        recipe: its 3D noise and priors; the standard recipe by default.

    Raises:
        InputError: too few hands.
    """
    if joints.ndim != 3 or joints.shape[1:] != (21, 3):
        raise InputError(f"joints have shape {tuple(joints.shape)}, expected (N, 21, 3) m.")
    if len(joints) < MIN_HANDS:
        raise InputError(f"{len(joints)} hands were given; a layout needs at least {MIN_HANDS}, better a few hundred.")
    recipe = replace(Recipe() if recipe is None else recipe, seeds=2, posterior=False)
    seen = _observations(joints.double(), is_right, recipe)
    layout = replace(KeypointLayout.identity(), name=name, model_digest=hand.digest, tip_set=hand.tip_set)
    model = FitModel.of(hand, torch.float64, "cpu", layout)
    starts = point_starts(model.kinematics, model.seeds[: recipe.seeds], seen.xyz, seen.inverse_sigma_3d)
    engine = choose_engine(model, seen, recipe, [])
    state = fit_from(engine, starts, 2 * recipe.seeds, recipe).solution.state
    errors = [_error_mm(model.kinematics, state, seen)]
    few = replace(recipe, solver=SolverOptions(max_steps=8, tolerance=1e-4))
    for _ in range(rounds):
        layout = update_offsets(model.plain, layout, state, seen.xyz, seen.inverse_sigma_3d, recipe.noise_mm / 1000)
        model = FitModel.of(hand, torch.float64, "cpu", layout)
        engine = choose_engine(model, seen, few, [])
        state = fit_from(engine, state, 1, few).solution.state
        errors.append(_error_mm(model.kinematics, state, seen))
    return LearnedLayout(layout, tuple(errors))


def update_offsets(
    plain: Kinematics, layout: KeypointLayout, state: HandState, xyz: Tensor, weight: Tensor, sigma: float
) -> KeypointLayout:
    """One least-squares update of the offsets and the mean shape at fixed fits.

    Args:
        plain: the model's own points.
        layout: gives the names.
        state: B fits.
        xyz: (B, 21, 3) m, the source's points in the fits' frame.
        weight: (B, 21); 0 for unknown points.
        sigma: m, noise of a point, against which `_OFFSET_SIGMA_M` is weighed.
    """
    forward = plain.points(state.rotations, state.betas, state.root)
    frames = plain.frames(state.rotations)[:, list(STARTING_JOINT)]
    scale = (1 + (state.betas * plain.scale_dirs()).sum(1))[:, None, None]
    missing = (frames.mT @ (xyz - forward)[..., None])[..., 0]
    known = (weight > 0).to(missing)[..., None]
    ridge = (sigma / _OFFSET_SIGMA_M) ** 2
    offsets = (known * scale * missing).sum(0) / ((known * scale.square()).sum(0) + ridge)
    # A larger hand moves every point away from the wrist; kept out of the offsets, size stays with the betas.
    rest = plain.rest_points()
    offsets = offsets - rest * ((offsets * rest).sum() / rest.square().sum())
    n = len(state)
    mean = state.betas.sum(0) / (n + 1)
    return replace(layout, offsets=offsets, mean_betas=mean)


def _observations(joints: Tensor, is_right: Tensor, recipe: Recipe) -> Observations:
    points, _ = before_the_camera(torch.cat([joints, torch.ones_like(joints[..., :1])], 2))
    n = len(joints)
    keypoints = Keypoints.from_arrays(torch.zeros(n, 21, 3), is_right)
    camera = Camera.assumed(keypoints.image_size, keypoints.box())
    return Observations.of(keypoints, camera, recipe, None, torch.zeros(0, dtype=torch.float64), points)


def _error_mm(kinematics: Kinematics, state: HandState, seen: Observations) -> float:
    away = (kinematics.points(state.rotations, state.betas, state.root) - seen.xyz).norm(dim=-1)
    known = seen.inverse_sigma_3d > 0
    return 1000 * float(away[known].mean())
