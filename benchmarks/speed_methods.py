"""The methods of benchmarks.speed, each from the same one start per hand to an end state on the standard energy.

Only "fused" and "tensor" minimise with handloop's own solver. Methods too slow for a whole set take its first hands.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed_clock import timed
from handloop.core.camera import Camera
from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.core.keypoints import Keypoints
from handloop.core.rotations import right_jacobian, so3_exp, so3_log
from handloop.core.terms import N_PARAMS, ROOT, ROTATIONS, HandState, Huber, PosedHand, Term
from handloop.fitting.baselines import SmplifyOptions, SpinOptions, fit_baseline
from handloop.fitting.engines import TensorEngine, free_parameters, standard_terms
from handloop.fitting.fused.engine import FusedEngine
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.terms import Reprojection

RECIPE = Recipe()
SPIN_BATCHES = (64, 256, 1024)
"""Batch sizes among which the joints-only SPIN takes its fastest."""
TENSOR_BATCH = 64
_LBFGS_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Problem:
    """B right hands, what is seen of them and where every method starts."""

    model: FitModel
    seen: Observations
    truth: Tensor
    """(B, 21, 3) m."""
    start: HandState

    @classmethod
    def of(cls, model: FitModel, keypoints: Keypoints, camera: Camera, truth: Tensor) -> Problem:
        """The better flip, by the standard energy, of the closed-form start with the prior's mean pose."""
        seen = Observations.of(keypoints, camera, RECIPE, None, model.like)
        n = len(keypoints)
        two = fused(model, seen).starts(model.kinematics, model.seeds[:1], seen.views())
        twice = fused(model, seen.select(torch.arange(n).repeat_interleave(2)))
        at = torch.arange(n) * 2 + energy(twice, two).reshape(n, 2).argmin(1)
        return cls(model, seen, truth, two.select(at))

    def __len__(self) -> int:
        return len(self.truth)

    def first(self, n: int) -> Problem:
        """The first n hands."""
        at = torch.arange(min(n, len(self)))
        return Problem(self.model, self.seen.select(at), self.truth[at], self.start.select(at))


@dataclass(frozen=True, eq=False)
class End:
    """Where a method ended."""

    state: HandState
    steps: float
    """Steps or evaluations, mean over hands."""


def fused(model: FitModel, seen: Observations) -> FusedEngine:
    """The compiled engine with the standard recipe's terms."""
    return FusedEngine.of(model, seen, RECIPE, free_parameters(RECIPE, model.like.device))


def energy(engine: FusedEngine, state: HandState) -> Tensor:
    """(B,) of the standard recipe."""
    return torch.stack(list(engine.finish(state, posterior=False).terms.values())).sum(0)


def joined(states: list[HandState]) -> HandState:
    """Several batches behind each other."""
    parts = [(s.rotations, s.betas, s.root, s.log_focal) for s in states]
    return HandState(*(torch.cat(column) for column in zip(*parts, strict=True)))


def by_fused(problem: Problem) -> End:
    """handloop's engine on the CPU."""
    engine = fused(problem.model, problem.seen)
    done = engine.solve(problem.start, torch.arange(len(problem)), RECIPE.solver)
    return End(done.state, float(done.steps.double().mean()))


def by_tensor(problem: Problem) -> End:
    """The reference in torch, in the batches that handloop gives it on a CPU."""
    free, states, steps = free_parameters(RECIPE, torch.device("cpu")), [], 0
    for at in torch.arange(len(problem)).split(TENSOR_BATCH):
        engine = TensorEngine(
            problem.model.kinematics, standard_terms(problem.model, problem.seen.select(at), RECIPE), free
        )
        done = engine.solve(problem.start.select(at), torch.arange(len(at)), RECIPE.solver)
        states.append(done.state)
        steps += int(done.steps.sum())
    return End(joined(states), steps / len(problem))


def by_classic(options: SpinOptions | SmplifyOptions, batch: int, problem: Problem) -> End:
    """A published method in batches."""
    states, steps = [], 0
    for at in torch.arange(len(problem)).split(batch):
        seen, start = problem.seen.select(at), problem.start.select(at)
        done = fit_baseline(problem.model, seen, options, start, 1, problem.model.hand)
        states.append(done.state)
        steps += int(done.steps.sum())
    return End(joined(states), steps / len(problem))


class _HandResiduals:
    """One hand for scipy: residuals whose half squared sum is the standard energy, by axis-angles, betas and wrist."""

    def __init__(self, problem: Problem, row: int) -> None:
        at = torch.tensor([row])
        self.kinematics = problem.model.kinematics
        self.terms: list[Term] = []
        for term in standard_terms(problem.model, problem.seen.select(at), RECIPE):
            # The kernel is put on here: scipy wants residuals, not weights.
            plain = isinstance(term, Reprojection)
            self.terms.append(replace(term, kernel=Huber(1e9)) if plain else term)
        start = problem.start.select(at)
        parts = (so3_log(start.rotations).flatten(), start.betas[0], start.root[0])
        self.start = torch.cat(parts).numpy()
        self.seen_at: bytes = b""

    def state(self, x: np.ndarray) -> HandState:
        """A state of one hand from 61 numbers."""
        v = torch.from_numpy(np.array(x))[None]
        return HandState(so3_exp(v[:, ROTATIONS].reshape(1, 16, 3)), v[:, 48:58], v[:, ROOT], v.new_zeros(1))

    def _evaluate(self, x: np.ndarray) -> None:
        if self.seen_at == x.tobytes():
            return
        state = self.state(x)
        posed = PosedHand.of(self.kinematics, state, jacobian=True)
        values, slopes = [], []
        for term in self.terms:
            part = term.linearise(posed)
            if part.jacobian is None:
                continue
            value, jac = part.value[0].numpy(), np.zeros((part.value.shape[1], N_PARAMS))
            if part.jacobian.ndim == 4:
                per_joint = part.jacobian[0].numpy()
                depth = per_joint.shape[1]
                for j in range(15):
                    jac[j * depth : (j + 1) * depth, 3 + 3 * j : 6 + 3 * j] = per_joint[j]
            else:
                jac[:, part.columns] = part.jacobian[0].numpy()
            if isinstance(term, Reprojection):
                value, jac = _geman_mcclure(value.reshape(21, 2), jac.reshape(21, 2, N_PARAMS), RECIPE.robust)
            values.append(value)
            slopes.append(jac)
        turn = right_jacobian(torch.from_numpy(x[:48].copy()).reshape(1, 16, 3))[0].numpy()
        wx, wy, wz = x[58:61]
        chain = np.zeros((N_PARAMS, 61))
        for j in range(16):
            chain[3 * j : 3 * j + 3, 3 * j : 3 * j + 3] = turn[j]
        chain[48:58, 48:58] = np.eye(10)
        # From the wrist's position to the increment's bearings and log depth.
        chain[58:61, 58:61] = [[1 / wz, 0, -wx / wz**2], [0, 1 / wz, -wy / wz**2], [0, 0, 1 / wz]]
        self.value, self.jacobian = np.concatenate(values), np.concatenate(slopes) @ chain
        self.seen_at = x.tobytes()

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """(R,)."""
        self._evaluate(x)
        return self.value

    def slope(self, x: np.ndarray) -> np.ndarray:
        """(R, 61)."""
        self._evaluate(x)
        return self.jacobian


def _geman_mcclure(pairs: np.ndarray, jac: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """r c / sqrt(c^2 + |r|^2), whose squares sum to the kernel's cost, and its exact Jacobian."""
    far = c**2 + (pairs**2).sum(-1)
    factor = (c / np.sqrt(far))[:, None]
    across = np.eye(2) - pairs[:, :, None] * pairs[:, None] / far[:, None, None]
    return (pairs * factor).ravel(), (factor[..., None] * (across @ jac)).reshape(-1, jac.shape[-1])


def by_scipy(problem: Problem) -> End:
    """scipy.optimize.least_squares (MINPACK), hand by hand, with handloop's residuals and closed-form Jacobian."""
    from scipy.optimize import least_squares

    states, evaluations = [], 0
    for row in range(len(problem)):
        hand = _HandResiduals(problem, row)
        done = least_squares(hand.residuals, hand.start, hand.slope, method="lm", x_scale="jac", ftol=1e-4, max_nfev=60)
        states.append(hand.state(done.x))
        evaluations += done.nfev
    return End(joined(states), evaluations / len(problem))


def by_lbfgs(problem: Problem) -> End:
    """As SMPLify-X: torch's LBFGS with strong Wolfe line search, one hand at a time, through smplx's full mesh."""
    layer = _smplx_layer()
    tips, order = list(problem.model.hand.tip_ids), list(CANONICAL_FROM_MANO)
    states, evaluations = [], 0
    for row in range(len(problem)):
        at = torch.tensor([row])
        terms = standard_terms(problem.model, problem.seen.select(at), RECIPE)
        start = problem.start.select(at)
        aa = so3_log(start.rotations)
        shift = start.root - problem.model.kinematics.root_offset(start.betas)
        free = [t.clone().requires_grad_() for t in (aa[:, 0], aa[:, 1:].flatten(1), start.betas, shift)]

        def hand(values: list[Tensor] = free) -> PosedHand:
            orient, pose, betas, transl = values
            out = layer(global_orient=orient, hand_pose=pose, betas=betas, transl=transl)
            points = torch.cat([out.joints[:, :16], out.vertices[:, tips]], 1)[:, order]
            rotations = so3_exp(torch.cat([orient[:, None], pose.reshape(1, 15, 3)], 1))
            state = HandState(rotations, betas, points[:, 0], betas.new_zeros(1))
            return PosedHand(problem.model.kinematics, state, points, pose)

        optimiser = torch.optim.LBFGS(free, lr=1.0, max_iter=30, line_search_fn="strong_wolfe")

        def closure(
            optimiser: torch.optim.LBFGS = optimiser,
            hand: Callable[[], PosedHand] = hand,
            terms: list[Term] = terms,
        ) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            optimiser.zero_grad()
            with torch.enable_grad():
                posed = hand()
                loss = torch.stack([t.linearise(posed).energy[0] for t in terms]).sum()
                loss.backward()
            return loss.detach()

        before = float("inf")
        for _ in range(_LBFGS_ROUNDS):
            now = float(optimiser.step(closure))
            if before - now < RECIPE.solver.tolerance * abs(now):
                break
            before = now
        with torch.no_grad():
            state = hand().state
        states.append(HandState(*(t.detach() for t in (state.rotations, state.betas, state.root, state.log_focal))))
    return End(joined(states), evaluations / len(problem))


def _smplx_layer() -> Any:
    """smplx's layer with the embedded hand, whose file has MANO's keys."""
    import smplx

    with (
        as_file(files("handloop.hand") / "data" / "embedded_right.npz") as path,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        return smplx.MANO(str(path), ext="npz", is_rhand=True, use_pca=False, flat_hand_mean=True, dtype=torch.float64)


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    run: Callable[[Problem], End]
    hands: int
    """How many it is timed on."""


def fastest_spin_batch(problem: Problem) -> int:
    """Of `SPIN_BATCHES`, the one with the least process time per hand over a tenth of the steps."""
    short = SpinOptions(steps_camera=10, steps_all=10)
    taken = {b: timed(partial(by_classic, short, b, problem.first(b))).cpu / min(b, len(problem)) for b in SPIN_BATCHES}
    return min(taken, key=lambda b: taken[b])


def methods(scale: float, spin_batch: int) -> list[Method]:
    """All that can run here, each on as many hands as its speed allows."""

    def hands(n: int) -> int:
        return max(2, round(scale * n))

    full = SpinOptions(full_mesh=True)
    long = SpinOptions(steps_camera=500, steps_all=500)
    out = [
        Method("fused", by_fused, hands(8192)),
        Method("tensor", by_tensor, hands(1024)),
        Method("spin, full mesh, batch 64", partial(by_classic, full, 64), hands(128)),
        Method("spin, joints", partial(by_classic, SpinOptions(), spin_batch), hands(1024)),
        Method("spin 500+500, joints", partial(by_classic, long, spin_batch), hands(512)),
        Method("smplify", partial(by_classic, SmplifyOptions(), 64), hands(256)),
        Method("scipy least_squares", by_scipy, hands(64)),
    ]
    if importlib.util.find_spec("smplx") is not None:
        out.append(Method("LBFGS, smplx mesh", by_lbfgs, hands(8)))
    return out
