"""The fused engine's face to the rest of handloop: torch tensors in, torch tensors out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handloop.core.terms import N_PARAMS, POSE, HandState
from handloop.fitting.fused.compiler import ensure_compiled
from handloop.fitting.fused.records import Model, Seen
from handloop.fitting.fused.solve import finish_range, solve_range
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.solver import Finish, Solution, SolverOptions

TERM_NAMES = ("reprojection", "pose_prior", "limits", "shape", "size", "focal", "points_3d")
"""The kernel's terms, in the order of its energies."""

_RUN = 32
"""Hands a thread takes at a time: small, so that cores stay busy where some hands take longer."""


@dataclass(frozen=True, eq=False)
class FusedEngine:
    """The standard recipe for B hands in compiled code, float64 on the CPU."""

    model: Model
    many: Seen

    @classmethod
    def of(cls, model: FitModel, seen: Observations, recipe: Recipe, free: Tensor) -> FusedEngine:
        """Copy what is needed into contiguous float64 arrays."""
        ensure_compiled()
        return cls(
            _constants(model, recipe, free),
            Seen(
                _array(seen.uv),
                _array(seen.inverse_sigma(recipe)),
                _array(seen.focal),
                _array(seen.princpt),
                _array(seen.length),
                _array(seen.xyz),
                _array(seen.inverse_sigma_3d),
                _array(seen.inverse_focal_sigma),
            ),
        )

    def solve(self, start: HandState, hand: Tensor, options: SolverOptions) -> Solution:
        """As `fitting.solver.solve`, from starts that belong to the hands numbered `hand`."""
        rot, betas, root, log_focal = (
            _array(t).copy() for t in (start.rotations, start.betas, start.root, start.log_focal)
        )
        n = len(rot)
        energy, converged, steps = np.full(n, np.inf), np.zeros(n, np.bool_), np.zeros(n, np.int64)
        settings = np.array([options.max_steps, options.tolerance, options.damping])
        _share_out(
            solve_range,
            (self.model, self.many, hand.numpy(), rot, betas, root, log_focal, settings, energy, converged, steps),
            n,
        )
        state = HandState(*(torch.from_numpy(a) for a in (rot, betas, root, log_focal)))
        return Solution(
            state.orthonormalised(), torch.from_numpy(energy), torch.from_numpy(converged), torch.from_numpy(steps)
        )

    def finish(self, state: HandState, posterior: bool) -> Finish:
        """As `fitting.engines.Engine.finish`."""
        arrays = [_array(t) for t in (state.rotations, state.betas, state.root, state.log_focal)]
        n = len(state)
        parts = np.zeros((n, len(TERM_NAMES)))
        spread = np.zeros((n if posterior else 0, 63, N_PARAMS))
        _share_out(finish_range, (self.model, self.many, *arrays, parts, spread), n)
        terms = {name: torch.from_numpy(parts[:, i].copy()) for i, name in enumerate(TERM_NAMES)}
        return Finish(terms, torch.from_numpy(spread).unflatten(1, (21, 3)) if posterior else None)


def _share_out(kernel: Callable[..., Any], arguments: tuple[Any, ...], n: int) -> None:
    """Call a compiled loop over ranges of 0 .. n - 1 on as many threads as torch uses.

    Plain threads, because the kernels release the interpreter's lock: numba's own pools abort when two threads enter
    them at once, or hang after a fork.
    """
    threads = min(torch.get_num_threads(), -(-n // _RUN))
    if threads <= 1:
        kernel(*arguments, 0, n)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda first: kernel(*arguments, first, min(n, first + _RUN)), range(0, n, _RUN)))


def _constants(model: FitModel, recipe: Recipe, free: Tensor) -> Model:
    k, prior, limits, size = model.kinematics, model.pose_prior, model.limits, model.hand_length
    factor = prior.precision_factor
    # The kernel keeps the wrist's rotation behind the finger joints'.
    free = torch.cat([free[POSE], free[:3], free[48:]])
    return Model(
        _array(k.joints),
        _array(k.joints_dirs),
        _array(k.tips),
        _array(k.tips_dirs),
        _array(k.tips_pose.reshape(5, 3, 135)),
        _array(k.tips_weights),
        _array(prior.mean),
        _array(factor @ factor.T),
        _array(limits.axes),
        _array(limits.axes.mT),
        _array(limits.low),
        _array(limits.high),
        _array(size.template),
        _array(size.dirs),
        free.cpu().numpy(),
        np.zeros((21, 3)) if k.offsets is None else _array(k.offsets),
        _array(k.scale_dirs()),
        k.offsets is not None,
        _array(model.shape_mean),
        float(recipe.robust),
        float(180 / np.pi / recipe.limits_sigma_deg),
        float(1 / recipe.shape_sigma),
        float(1000 / recipe.length_sigma_mm),
    )


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float64)
