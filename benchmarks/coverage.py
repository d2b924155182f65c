"""Are the intervals honest? Synthetic hands drawn from the priors the fit uses, at several noise levels.

    python -m benchmarks.coverage --hands 1000

For each noise level: the share of the 63 coordinates inside their 68 % and 95 % intervals, the same for the hand's
distance, the mean expected and true PA error, and how much of the worst tenth the worst-ranked fifth holds. The poses
and seeds differ from those `INFLATION` was fitted on (seed 3).
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from benchmarks.recovery import F64, FOCAL_PX, K, draw
from handloop.api import fit
from handloop.core.errors import InputError
from handloop.evaluation.alignment import similarity
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import RECIPES
from handloop.hand.load import embedded_hand


def main() -> None:
    """Print a line per noise level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hands", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    if options.hands < 50:
        raise InputError("coverage needs at least 50 hands.")
    pair = embedded_hand()
    model = HandModels.of(pair).right
    generator = torch.Generator().manual_seed(options.seed)
    poses = model.pose_prior.sample(options.hands, generator).numpy()
    for noise in (1.0, 2.0, 4.0, 8.0):
        truth = draw(model, poses, options.hands, generator)
        box = (truth.uv.amax(1) - truth.uv.amin(1)).amax(1)[:, None, None]
        seen = truth.uv + noise / 224 * box * torch.randn(truth.uv.shape, dtype=F64, generator=generator)
        result = fit(seen, K=K, hand=pair, recipe=replace(RECIPES["default"], noise_px=noise))
        z = ((result.keypoints_3d - truth.points) / result.keypoints_3d_sd).abs()
        far = (result.joints[..., 2].mean(1) - truth.points[..., 2].mean(1)).abs() / result.depth_sd
        error = 1000 * (similarity(result.joints, truth.points).apply(result.joints) - truth.points).norm(dim=-1).mean(
            1
        )
        ranked = set(result.expected_error_mm.argsort(descending=True)[: options.hands // 5].tolist())
        worst = error.argsort(descending=True)[: options.hands // 10].tolist()
        expected = float(result.expected_error_mm.mean())
        print(
            f"{noise:.0f} px: 68 % intervals hold {_share(z, 1)}, 95 % {_share(z, 1.96)}; distance {_share(far, 1)}, "
            f"{_share(far, 1.96)}; PA {float(error.mean()):.1f} mm, expected {expected:.1f}; "
            f"worst-ranked fifth holds {100 * sum(i in ranked for i in worst) / len(worst):.0f} % of the worst tenth"
        )
    print(f"{options.hands} hands each, f = {FOCAL_PX:.0f} px, 0.45 to 0.75 m, embedded hand, seed {options.seed}")


def _share(z: torch.Tensor, k: float) -> str:
    return f"{100 * float((z < k).double().mean()):.1f} %"


if __name__ == "__main__":
    main()
