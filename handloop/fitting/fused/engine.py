"""The fused engine's face to the rest of handloop: torch tensors in, torch tensors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from handloop.compiler import ensure_compiled, share_out
from handloop.core.joints import PALM_POINTS
from handloop.core.rotations import so3_log
from handloop.core.terms import POSE, HandState
from handloop.fitting.anchor import Anchor
from handloop.fitting.fused.finish import finish_range, points_range
from handloop.fitting.fused.math import CAUCHY, GEMAN_MCCLURE, HUBER
from handloop.fitting.fused.records import ARENA, STRIDE, WIDTH, Model, N, Seen
from handloop.fitting.fused.solve import solve_range
from handloop.fitting.fused.starts import starts_range
from handloop.fitting.observe import Observations
from handloop.fitting.posterior import DIRECTIONS, Posterior
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Finish, Solution, SolverOptions
from handloop.fitting.starts import Views
from handloop.hand.kinematics import CHAINS, Kinematics

TERM_NAMES = ("reprojection", "pose_prior", "limits", "shape", "size", "focal", "points_3d")
"""The kernel's terms that every fit has, in the order of its energies."""

_EXTRA_NAMES = ("flexion_coupling", "spread", "hyperextension")

_KERNELS = {"geman_mcclure": GEMAN_MCCLURE, "huber": HUBER, "cauchy": CAUCHY}

_FIRST_EXTRA = Model._fields.index("coupling_scale")

_RUN = 32
"""Hands a thread takes at a time: small, so that cores stay busy where some hands take longer."""


@dataclass(frozen=True, eq=False)
class FusedEngine:
    """The standard recipe for B hands in compiled code, float64 on the CPU."""

    model: Model
    many: Seen
    anchor: Anchor | None

    @classmethod
    def of(
        cls, model: FitModel, seen: Observations, recipe: Recipe, free: Tensor, anchor: Anchor | None = None
    ) -> FusedEngine:
        """Copy what is needed into contiguous float64 arrays."""
        ensure_compiled()
        many = Seen(
            _array(seen.uv),
            _array(seen.inverse_sigma(recipe)),
            _array(seen.focal),
            _array(seen.princpt),
            _array(seen.length),
            _array(seen.xyz),
            _array(seen.inverse_sigma_3d),
            _array(seen.inverse_focal_sigma),
            *_anchor_arrays(anchor),
        )
        return cls(_model_for(model, recipe, free, anchor is not None), many, anchor)

    def starts(self, kinematics: Kinematics, seeds: Tensor, views: Views) -> HandState:
        """As `fitting.robust_starts.robust_starts`; which flip comes first may differ."""
        s, n = len(seeds), len(views.rays)
        rot, root = np.empty((2 * s * n, 144)), np.empty((2 * s * n, 3))
        posed = _seed_arrays(kinematics, seeds)
        given = _array(views.rays), _array(views.weight), np.array(PALM_POINTS)
        _share_out(starts_range, (self.model, self.many, *posed, *given, rot, root), n)
        flat = torch.zeros(2 * s * n, 10, dtype=torch.float64)
        placed = torch.from_numpy(rot).reshape(-1, 16, 3, 3)
        return HandState(placed, flat, torch.from_numpy(root), flat[:, 0].clone())

    def points(self, state: HandState) -> tuple[Tensor, Tensor]:
        """As `fitting.engines.Engine.points`."""
        n = len(state)
        meant, plain = np.empty((n, 63)), np.empty((n, 63))
        arrays = (_array(state.rotations.reshape(-1, 144)), _array(state.betas), _array(state.root))
        _share_out(points_range, (self.model, *arrays, meant, plain), n)
        return torch.from_numpy(meant).reshape(n, 21, 3), torch.from_numpy(plain).reshape(n, 21, 3)

    def solve(self, start: HandState, hand: Tensor, options: SolverOptions) -> Solution:
        """As `fitting.solver.solve`, from starts that belong to the hands numbered `hand`."""
        rot, betas, root, log_focal = (
            _array(t).copy() for t in (start.rotations.reshape(-1, 144), start.betas, start.root, start.log_focal)
        )
        n = len(rot)
        energy, converged, steps = np.full(n, np.inf), np.zeros(n, np.bool_), np.zeros(n, np.int64)
        settings = (int(options.max_steps), float(options.tolerance), float(options.damping))
        _share_out(
            solve_range,
            (self.model, self.many, hand.numpy(), rot, betas, root, log_focal, *settings, energy, converged, steps),
            n,
        )
        state = HandState(*(torch.from_numpy(a) for a in (rot.reshape(n, 16, 3, 3), betas, root, log_focal)))
        return Solution(state, torch.from_numpy(energy), torch.from_numpy(converged), torch.from_numpy(steps))

    def finish(self, state: HandState, posterior: bool) -> Finish:
        """As `fitting.engines.Engine.finish`."""
        arrays = [_array(t) for t in (state.rotations.reshape(-1, 144), state.betas, state.root, state.log_focal)]
        n = len(state)
        parts = np.zeros((n, 11))
        variances, scales, directions = np.empty((n, 21, 3)), np.empty((n, 3)), np.empty((n, len(DIRECTIONS)))
        _share_out(finish_range, (self.model, self.many, *arrays, parts, posterior, variances, scales, directions), n)
        extra = [n for n, scale in zip(_EXTRA_NAMES, self.model[_FIRST_EXTRA:], strict=False) if scale > 0]
        names = [*TERM_NAMES, *_EXTRA_NAMES] + ([] if self.anchor is None else [self.anchor.name])
        shown = {*TERM_NAMES, *extra} | ({self.anchor.name} if self.anchor else set())
        terms = {name: torch.from_numpy(parts[:, i].copy()) for i, name in enumerate(names) if name in shown}
        if not posterior:
            return Finish(terms, None)
        depth, aligned, condition = torch.from_numpy(scales).unbind(1)
        points, along = torch.from_numpy(variances), torch.from_numpy(directions)
        return Finish(terms, Posterior(points, depth, aligned, along, condition))


_MODELS: WeakKeyDictionary[FitModel, dict[tuple[object, ...], Model]] = WeakKeyDictionary()
_SEEDS: WeakKeyDictionary[Kinematics, dict[int, tuple[Tensor, tuple[np.ndarray, ...]]]] = WeakKeyDictionary()
"""What was prepared before, for as long as the model lives: a fit of a single hand would be mostly this."""


def _seed_arrays(kinematics: Kinematics, seeds: Tensor) -> tuple[np.ndarray, ...]:
    """Seed poses (S, 15, 3, 3) as (S, 135), their axis-angles (S, 45) and their points (S, 21, 3), wrist at zero."""
    s, known = len(seeds), _SEEDS.setdefault(kinematics, {})
    if s not in known or not torch.equal(known[s][0], seeds):
        rotations = torch.cat([torch.eye(3, dtype=torch.float64).expand(s, 1, 3, 3), seeds], 1)
        zeros = torch.zeros(s, 10, dtype=torch.float64)
        points = kinematics.points(rotations, zeros, zeros[:, :3])
        arrays = _array(seeds.reshape(s, 135)), _array(so3_log(seeds).reshape(s, 45)), _array(points)
        known[s] = seeds.clone(), arrays
    return known[s][1]


def _model_for(model: FitModel, recipe: Recipe, free: Tensor, has_anchor: bool) -> Model:
    """The kernel's constants, made once for each model and objective."""
    key = (
        *(recipe.kernel, recipe.robust, recipe.limits_sigma_deg, recipe.shape_sigma, recipe.length_sigma_mm),
        *(recipe.coupling_sigma_deg, recipe.spread, recipe.hyperextension, has_anchor, *free.tolist()),
    )
    known = _MODELS.setdefault(model, {})
    if key not in known:
        known[key] = _constants(model, recipe, free, has_anchor)
    return known[key]


def _share_out(kernel: Callable[..., Any], arguments: tuple[Any, ...], n: int) -> None:
    """Call a compiled loop over ranges of 0 .. n - 1, each with a working set of its own."""
    share_out(lambda first, last: kernel(*arguments, np.zeros(ARENA), first, last), n, _RUN)


def _constants(model: FitModel, recipe: Recipe, free: Tensor, has_anchor: bool) -> Model:
    k, limits, size = model.kinematics, model.limits, model.hand_length
    # The kernel keeps the wrist's rotation behind the finger joints'.
    free = torch.cat([free[POSE], free[:3], free[48:]]).cpu()
    dirs = k.joints_dirs
    parents = [0] * 16
    for base, middle, distal in CHAINS:
        parents[middle], parents[distal] = base, middle
    weights = _array(k.tips_weights)
    order = np.argsort(weights == 0.0, axis=1, kind="stable")
    tip_dirs = _array(k.tips_dirs)[:, None] - _array(dirs)[order]
    tips = np.zeros((1 + 10 + 135, 16))
    tips[0, :15] = _array(k.tips).ravel()
    tips[1:11, :15] = _array(k.tips_dirs).reshape(15, 10).T
    tips[11:, :15] = _array(k.tips_pose).reshape(15, 135).T
    precision, mean, offset = _prior(model)
    rows = np.zeros((len(mean), 45, STRIDE))
    rows[:, :, :45] = precision
    return Model(
        joints=_array(k.joints).ravel(),
        joints_dirs=np.ascontiguousarray(_array(dirs).reshape(48, 10).T).ravel(),
        bone_dirs=_array(dirs - dirs[parents]).ravel(),
        tips=tips[0],
        tips_dirs=tips[1:11].ravel(),
        tips_pose=tips[11:].ravel(),
        tips_width=16,
        tip_share=weights,
        tip_joint=order,
        tip_weight=np.take_along_axis(weights, order, 1),
        tip_dirs=np.ascontiguousarray(tip_dirs).ravel(),
        tip_count=(weights != 0.0).sum(1),
        prior_mean=mean,
        prior_precision=rows.ravel(),
        prior_offset=offset,
        axes=_array(limits.axes).ravel(),
        low=_array(limits.low).ravel(),
        high=_array(limits.high).ravel(),
        length_bones=_array(size.template),
        length_dirs=_array(size.dirs),
        free=free.numpy(),
        offsets=np.zeros(63) if k.offsets is None else _array(k.offsets).ravel(),
        scale_dirs=_array(k.scale_dirs()),
        has_offsets=k.offsets is not None,
        has_fixed=not bool(free[: N - 1].all()),
        free_focal=bool(free[N - 1]),
        shape_mean=_array(model.shape_mean),
        width=WIDTH,
        kernel=_KERNELS[recipe.kernel],
        robust=float(recipe.robust),
        limits_scale=float(180 / np.pi / recipe.limits_sigma_deg),
        shape_scale=float(1 / recipe.shape_sigma),
        length_scale=float(1000 / recipe.length_sigma_mm),
        coupling_scale=float(180 / np.pi / recipe.coupling_sigma_deg) if recipe.coupling_sigma_deg else 0.0,
        spread_scale=float(180 / np.pi / recipe.limits_sigma_deg) if recipe.spread else 0.0,
        hinge_weight=float(recipe.hyperextension or 0.0),
        has_anchor=has_anchor,
        dip_per_pip=float(model.couplings.dip_per_pip),
        dip_offset=_array(model.couplings.dip_offset),
        open_spread=_array(model.couplings.open_spread),
        closed_spread=_array(model.couplings.closed_spread),
        closed_at=float(model.couplings.closed_at),
        straight=_array(model.couplings.straight),
    )


def _prior(model: FitModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precisions (K, 45, 45), means (K, 45) and constant energies (K,) of the pose prior."""
    prior = model.pose_prior
    factors = prior.precision_factors
    return _array(factors @ factors.mT), _array(prior.means), _array(prior.offsets)


def _anchor_arrays(anchor: Anchor | None) -> tuple[np.ndarray, ...]:
    if anchor is None:
        return np.zeros((1, 144)), np.zeros((1, 16)), np.zeros((1, 10)), np.zeros((1, 3)), np.zeros((1, 13))
    inverse = torch.cat([anchor.inverse_betas_sd, anchor.inverse_root_sd], 1)
    parts = (anchor.rotations.flatten(1), anchor.inverse_rotation_sd, anchor.betas, anchor.sight(), inverse)
    return tuple(_array(part) for part in parts)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy(force=True), dtype=np.float64)
