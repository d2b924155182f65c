"""The classic fits against handloop's own, on real hands of FPHA's subject 3: error and speed.

    python -m benchmarks.baselines --hands 300

Keypoints are exact projections of the recorded 3D joints, all methods see the same hand model and true camera. The
error is PA-MPJPE: mean distance of the 21 points after the best similarity transform, hand by hand. FPHA's points are
not the model's (its wrist lies 25 mm inside the hand) and no layout is learned here, which costs every method alike.
The data may not be shipped: set HANDLOOP_REAL_DATA to a folder with keypoints_3d/fpha.npz.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.api import fit
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.evaluation.metrics import hand_means, joint_errors
from handloop.fitting.baselines import BASELINE_SEEDS, SmplifyOptions, SpinOptions, fit_baseline
from handloop.fitting.observe import Observations
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.starts import closed_form_starts
from handloop.hand.load import load_hand

SEED = 20261120
"""Of the random sample, as in the trial."""

SUBJECT = 3


@dataclass(frozen=True, eq=False)
class Hands:
    """Real right hands before one camera."""

    points: Tensor
    """(n, 21, 3) m, camera frame."""
    uv: Tensor
    """(n, 21, 2) px."""
    K: np.ndarray
    """(3, 3)."""
    size: tuple[int, int]
    """Width, height, px."""


def load(folder: Path, n: int) -> Hands:
    """A random sample of `n` hands of the subject."""
    with np.load(folder / "keypoints_3d" / "fpha.npz") as data:
        rows = np.flatnonzero(data["subject"] == SUBJECT)
        rows = np.sort(np.random.default_rng(SEED).choice(rows, min(n, len(rows)), replace=False))
        points = torch.tensor(data["joints_cam_mm_x100"][rows].astype(np.float64) / 1e5)
        matrix = data["K"].astype(np.float64)
        width, height = map(int, data["image_size"])
    projected = points @ torch.tensor(matrix).T
    return Hands(points, projected[..., :2] / projected[..., 2:], matrix, (width, height))


def baseline(models: HandModels, hands: Hands, options: SpinOptions | SmplifyOptions) -> Tensor:
    """(n, 21, 3) m of a classic fit."""
    model, n = models.right, len(hands.uv)
    keypoints = Keypoints.from_arrays(hands.uv, True, hands.size)
    seen = Observations.of(keypoints, Camera.from_matrix(hands.K, n), Recipe(), None, model.like)
    starts = closed_form_starts(model.kinematics, model.seeds[:BASELINE_SEEDS], seen.views())
    state = fit_baseline(model, seen, options, starts, 2 * BASELINE_SEEDS, models.pair.right).state
    return model.kinematics.points(state.rotations, state.betas, state.root)


def ours(models: HandModels, hands: Hands, recipe: str) -> Tensor:
    """(n, 21, 3) m of one of handloop's recipes."""
    return fit(hands.uv, hands.K, image_size=hands.size, hand=models.pair, recipe=recipe, device="cpu").joints


def report(name: str, run: Callable[[], Tensor], hands: Hands) -> None:
    """Print one line of the table."""
    begin, used = time.perf_counter(), time.process_time()
    found = run()
    wall, cpu = time.perf_counter() - begin, time.process_time() - used
    n = len(hands.points)
    error, relative = (1000 * hand_means(joint_errors(found, hands.points, how)) for how in ("pa", "root"))
    projected = found @ torch.tensor(hands.K).T
    box = (hands.uv.amax(1) - hands.uv.amin(1)).amax(1)
    away = (projected[..., :2] / projected[..., 2:] - hands.uv).norm(dim=-1).mean(1) * 224 / box
    over = 100 * float((error > 20).double().mean())
    print(
        f"{name:<24}{float(error.mean()):6.2f}{float(error.median()):7.2f}{over:8.1f}"
        f"{float(relative.mean()):9.1f}{float(away.mean()):8.1f}{n / wall:11.0f}{1000 * cpu / n:10.1f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=300, help="how many hands (default: 300)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--mesh", action="store_true", help="also SPIN with the whole mesh in every step")
    options = parser.parse_args()
    folder = Path(os.environ.get("HANDLOOP_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "keypoints_3d" / "fpha.npz").is_file():
        sys.exit(f"{folder}: no keypoints_3d/fpha.npz; set HANDLOOP_REAL_DATA to the folder of real keypoints.")
    torch.set_num_threads(options.threads)
    hands = load(folder, options.hands)
    models = HandModels.of(load_hand(os.environ.get("HANDLOOP_MANO") or None))
    print(
        f"{len(hands.uv)} hands of FPHA subject {SUBJECT}, exact 2D, {models.pair.right.name}, {options.threads} thread"
    )
    print(
        f"{'method':<24}{'PA mm':>6}{'median':>7}{'>20 %':>8}{'rel. mm':>9}{'px@224':>8}{'hands/s':>11}{'cpu ms':>10}"
    )
    rows: list[tuple[str, SpinOptions | SmplifyOptions]] = [
        ("spin 100 + 100", SpinOptions()),
        ("  no hyperextension", SpinOptions(limits_weight=0.0)),
        ("spin 500 + 500", SpinOptions(500, 500)),
        ("smplify", SmplifyOptions()),
        ("  no hyperextension", SmplifyOptions(limits_ratio=0.0)),
    ]
    if options.mesh:
        rows.append(("spin 100 + 100, mesh", SpinOptions(full_mesh=True)))
    for name, settings in rows:
        report(name, partial(baseline, models, hands, settings), hands)
    # Compiling the fused engine is not fitting.
    ours(models, hands, "default")
    for recipe in ("fast", "default", "careful"):
        report(f"handloop {recipe}", partial(ours, models, hands, recipe), hands)


if __name__ == "__main__":
    main()
