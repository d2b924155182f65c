"""How good is the keypoint lifter, alone and as the start of a fit? Real hands, synthetic hands, speed.

    python -m benchmarks.lifter [--weights W] [--hands 500]

Real hands are used where HANDLOOP_REAL_DATA (default ../shared/data) holds keypoints_3d/fpha.npz and ge2019.npz: as in
benchmarks/accuracy.py, projections of 3D truth, on FPHA of subject 3 with the layout learned from subjects 1 and 2.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy_cases import SEED, Case, ge2019, synthetic
from handloop.api import fit, pick_lifter, prediction_recipe
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.results import FitResult
from handloop.evaluation.alignment import similarity
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.solver import SolverOptions
from handloop.hand.load import embedded_hand
from handloop.loop.supervise import standardised
from handloop.regressors.base import KeypointBatch
from handloop.regressors.lifter import Lifter
from handloop.synth.keypoints import KeypointSynth, SynthOptions

DEFAULT = RECIPES["default"]
ALONE = replace(DEFAULT, name="lifter, 4 steps", seeds=0, solver=SolverOptions(4, 1e-3))
WAYS: tuple[tuple[str, Recipe, bool], ...] = (
    ("lifter alone", prediction_recipe(DEFAULT, refine=False), True),
    ("lifter, 2 steps", replace(ALONE, solver=SolverOptions(2, 1e-3)), True),
    ("lifter, 4 steps", ALONE, True),
    ("lifter, to the end", replace(ALONE, solver=DEFAULT.solver), True),
    ("8 starts, to the end", replace(DEFAULT, lifter=False), False),
    ("lifter and 2 starts", replace(DEFAULT, seeds=2), True),
    ("lifter and 4 starts: the default", DEFAULT, True),
    ("8 starts, fast", replace(RECIPES["fast"], seeds=4, lifter=False), False),
)


def fpha(folder: Path, n: int) -> Iterator[Case]:
    """FPHA subject 3 with the layout of subjects 1 and 2."""
    data = np.load(folder / "fpha.npz")
    rng = np.random.default_rng(SEED)

    def sample(people: tuple[int, ...], count: int) -> Tensor:
        rows = rng.choice(np.flatnonzero(np.isin(data["subject"], people)), count, replace=False)
        return torch.tensor(data["joints_cam_mm_x100"][rows] / 1e5)

    taught, truth = sample((1, 2), 1000), sample((3,), n)
    layout = learn_from_joints(embedded_hand().right, taught, torch.ones(1000, dtype=torch.bool), "fpha").layout
    camera = Camera.from_matrix(data["K"]).select(torch.zeros(n, dtype=torch.int64))
    uv = camera.project(truth)
    for name, noise_px, outliers in (("exact", 0.0, 0.0), ("2 px", 2.0, 0.0), ("2 px, 5 % outliers", 2.0, 0.05)):
        keypoints = Keypoints.from_arrays(noisy(uv, noise_px, outliers))
        yield Case(f"FPHA subject 3, {name}", truth, keypoints, camera, layout)


def noisy(uv: Tensor, noise_px: float, outliers: float) -> Tensor:
    """Keypoints with noise at a 224-px box, and a share of them anywhere."""
    g = torch.Generator().manual_seed(SEED)
    box = (uv.amax(1) - uv.amin(1)).amax(1)[:, None, None]
    out = uv + noise_px / 224 * box * torch.randn(uv.shape, dtype=uv.dtype, generator=g)
    wild = torch.rand(len(uv), 21, 1, generator=g) < outliers
    return torch.where(wild, out + 0.5 * box * torch.randn(uv.shape, dtype=uv.dtype, generator=g), out)


def measure(result: FitResult, truth: Tensor) -> str:
    """PA error, share above 20 mm, root-relative error, reprojection."""
    found = result.keypoints_3d
    error = 1000 * (similarity(found, truth).apply(found) - truth).norm(dim=-1).mean(1)
    root = 1000 * ((found - found[:, :1]) - (truth - truth[:, :1])).norm(dim=-1).mean(1)
    relative = 100 * (result.rms_px / result.keypoints.box_size()).median()
    over = 100 * float((error > 20).double().mean())
    return f"{float(error.mean()):.2f} | {over:.1f} | {float(root.mean()):.1f} | {float(relative):.2f}"


def as_a_start(lifter: Lifter, cases: Iterable[Case]) -> None:
    """The table: the lifter alone, fits from it, and fits without it."""
    start = lifter.for_pair(embedded_hand())
    print("| hands | way | PA mm | > 20 mm % | root-relative mm | rms % of box | s |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        for way, recipe, lifted in WAYS:
            plain = replace(recipe, posterior=False)
            seconds = []
            for _ in range(3):
                begun = time.perf_counter()
                network = start if lifted else None
                result = fit(case.keypoints, case.camera, recipe=plain, layout=case.layout, start=network)
                seconds.append(time.perf_counter() - begun)
            print(f"| {case.name} | {way} | {measure(result, case.points)} | {min(seconds):.3f} |", flush=True)


def on_synthetic_hands(lifter: Lifter) -> None:
    """Calibration of the deviations, and the error of the points."""
    hand = embedded_hand().right
    g = torch.Generator().manual_seed(SEED)
    for name, options in (("all sources", SynthOptions()), ("the model's own points", SynthOptions(identity=1.0))):
        synth = KeypointSynth.of(hand, options)
        batch = synth.draw(20000, g)
        with torch.inference_mode():
            out = lifter.network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
            points = synth.kinematics.with_offsets(batch.offsets).points(out.rotations, out.betas, out.root)
            inside = [100 * float((z.abs() < 1).double().mean()) for z in standardised(out, batch)]
        error = 1000 * (similarity(points, batch.points).apply(points) - batch.points).norm(dim=-1).mean()
        groups = {"wrist": inside[:1], "fingers": inside[1:16], "betas": inside[16:26]}
        groups |= {"bearing": inside[26:27], "log depth": inside[27:]}
        text = ", ".join(f"{key} {min(v):.1f} to {max(v):.1f}" for key, v in groups.items())
        print(f"synthetic, {name}: PA {float(error):.2f} mm; inside 68.3 %: {text}")


def speed(lifter: Lifter) -> None:
    """Keypoint sets per second: the network alone, and proposals from keypoints."""
    batch = KeypointSynth.of(embedded_hand().right).draw(4096, torch.Generator().manual_seed(0))
    network: list[float] = []
    whole: list[float] = []
    keypoints = Keypoints.from_arrays(torch.cat([600 * batch.rays, batch.conf[..., None]], 2))
    camera = Camera(torch.full((4096, 2), 600.0).double(), torch.zeros(4096, 2).double())
    pair = lifter.for_pair(embedded_hand())
    for _ in range(10):
        begun = time.perf_counter()
        with torch.inference_mode():
            lifter.network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
        network.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        pair.propose(KeypointBatch(keypoints, camera, KeypointLayout.identity()))
        whole.append(time.perf_counter() - begun)
    threads = torch.get_num_threads()
    print(
        f"{threads} threads, batch 4096: network {4096 / min(network):.0f}/s, "
        f"keypoints to proposal {4096 / min(whole):.0f}/s"
    )


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--hands", type=int, default=500)
    options = parser.parse_args()
    lifter = pick_lifter(options.weights)
    folder = Path(os.environ.get("HANDLOOP_REAL_DATA", "../shared/data")) / "keypoints_3d"
    speed(lifter)
    on_synthetic_hands(lifter)
    as_a_start(lifter, (case for case in synthetic(options.hands) if " 2 px" in case.name))
    if (folder / "fpha.npz").is_file():
        as_a_start(lifter, fpha(folder, options.hands))
        as_a_start(lifter, ge2019(folder / "ge2019.npz"))


if __name__ == "__main__":
    main()
