"""Does the optimiser find the minima? Two figures on synthetic hands of the embedded model, exact truth known.

    python -m benchmarks.recovery --hands 4000

1. Local: exact keypoints, a noise model of 0.1 px, shape and size given, started 0.05 rad and 5 mm off: the share of
   hands recovered to 1 mm, root-relative (target 99 %).
2. Global: the standard recipe from its own starts, against a refinement of the same energy from the true pose: the
   share of hands where the latter is lower by more than 1 % (target at most 2 %).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.api import fit
from handloop.core.rotations import so3_exp
from handloop.core.terms import BETAS, FOCAL, GemanMcClure, HandState, Term
from handloop.fitting.problem import FitModel, HandModels
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.solver import SolverOptions, solve
from handloop.fitting.terms import Limits, PosePrior, Reprojection, Shape
from handloop.hand.load import embedded_hand

F64 = torch.float64
FOCAL_PX = 600.0
K = [[FOCAL_PX, 0.0, 320.0], [0.0, FOCAL_PX, 240.0], [0.0, 0.0, 1.0]]
CHUNK = 500


@dataclass(frozen=True, eq=False)
class Truth:
    """Synthetic hands."""

    state: HandState
    points: Tensor
    """(n, 21, 3) m."""
    uv: Tensor
    """(n, 21, 2) px, exact."""


def draw(model: FitModel, poses: np.ndarray, n: int, g: torch.Generator) -> Truth:
    """The model's own poses, betas ~ N(0, 1), seen from everywhere at 0.45 to 0.75 m with f = 600 px."""
    pose = torch.tensor(poses)[torch.randint(len(poses), (n,), generator=g)]
    q, r = np.linalg.qr(torch.randn(n, 3, 3, dtype=F64, generator=g).numpy())
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    q[:, :, 0] *= np.linalg.det(q)[:, None]
    rotations = torch.cat([torch.tensor(q)[:, None], so3_exp(pose.reshape(n, 15, 3))], 1)
    betas = torch.randn(n, 10, dtype=F64, generator=g)
    across = 0.1 * torch.randn(n, 2, dtype=F64, generator=g)
    root = torch.cat([across, 0.45 + 0.3 * torch.rand(n, 1, dtype=F64, generator=g)], 1)
    points = model.kinematics.points(rotations, betas, root)
    uv = FOCAL_PX * points[..., :2] / points[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64)
    return Truth(HandState(rotations, betas, root, torch.zeros(n, dtype=F64)), points, uv)


def sight(uv: Tensor, sigma: Tensor, c: float) -> Reprojection:
    """A reprojection term for all 21 points with noise sigma (n,) px."""
    n = len(uv)
    focal = torch.full((n, 2), FOCAL_PX, dtype=F64)
    centre = torch.tensor([320.0, 240.0], dtype=F64).repeat(n, 1)
    return Reprojection(uv, (1 / sigma)[:, None].repeat(1, 21), focal, centre, GemanMcClure(c))


def local_error(model: FitModel, truth: Truth, g: torch.Generator) -> Tensor:
    """(n,) mm, mean root-relative error of the 21 points after a fit from nearby."""
    n = len(truth.uv)
    spin = torch.nn.functional.normalize(torch.randn(n, 16, 3, dtype=F64, generator=g), dim=-1) * 0.05
    shift = torch.nn.functional.normalize(torch.randn(n, 3, dtype=F64, generator=g), dim=-1) * 0.005
    s = truth.state
    start = HandState(s.rotations @ so3_exp(spin), s.betas, s.root + shift, s.log_focal)
    # A start 5 mm off is 50 sigmas off: the kernel must not take it for an outlier.
    seen = sight(truth.uv, torch.full((n,), 0.1, dtype=F64), 1e4)
    terms: list[Term] = [seen, PosePrior(model.pose_prior), Limits(model.limits, RECIPES["default"].limits_sigma_deg)]
    free = torch.ones(62, dtype=torch.bool)
    free[BETAS], free[FOCAL] = False, False
    out = solve(model.kinematics, terms, start, free, SolverOptions(60, 1e-6)).state
    points = model.kinematics.points(out.rotations, out.betas, out.root)
    ours, theirs = points - points[:, :1], truth.points - truth.points[:, :1]
    return (ours - theirs).norm(dim=-1).mean(1) * 1000


def energy_excess(models: HandModels, truth: Truth, recipe: Recipe) -> Tensor:
    """(n,) how much lower the energy gets from the true pose, as a share of the recipe's own result."""
    model = models.right
    result = fit(truth.uv, K, hand=models.pair, recipe=recipe, device="cpu")
    seen = sight(truth.uv, recipe.noise_px * result.keypoints.box_size() / 224, recipe.robust)
    limits = Limits(model.limits, recipe.limits_sigma_deg)
    terms: list[Term] = [seen, PosePrior(model.pose_prior), limits, Shape(recipe.shape_sigma)]
    free = torch.ones(62, dtype=torch.bool)
    free[FOCAL] = False
    from_truth = solve(model.kinematics, terms, truth.state, free, SolverOptions(60, 1e-6))
    return 1 - from_truth.energy / result.energy


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=2000, help="how many hands (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="default")
    options = parser.parse_args()
    models = HandModels.of(embedded_hand())
    poses = models.pair.right.poses()
    g = torch.Generator().manual_seed(options.seed)
    errors, excess = [], []
    begin = time.perf_counter()
    for first in range(0, options.hands, CHUNK):
        truth = draw(models.right, poses, min(CHUNK, options.hands - first), g)
        errors.append(local_error(models.right, truth, g))
        excess.append(energy_excess(models, truth, RECIPES[options.recipe]))
    error, lower = torch.cat(errors), torch.cat(excess)
    n = len(error)
    recovered, missed = float((error < 1).double().mean()), float((lower > 0.01).double().mean())
    print(f"{n} hands, embedded hand, seed {options.seed}, {time.perf_counter() - begin:.0f} s")
    print(
        f"local:  {100 * recovered:.2f} % recovered to 1 mm from 0.05 rad and 5 mm off "
        f"(target 99 %; median {float(error.median()):.3f} mm, worst {float(error.max()):.2f} mm)"
    )
    print(
        f"global: {100 * missed:.2f} % have an energy more than 1 % lower from the true pose than by the recipe "
        f"'{options.recipe}' (target at most 2 %; +- {100 * (missed * (1 - missed) / n) ** 0.5:.2f})"
    )


if __name__ == "__main__":
    main()
