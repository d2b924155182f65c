"""Does the loop improve a network and its fits, from 2D keypoints alone? Real hands that neither has seen.

    HANDLOOP_REAL_DATA=... python -m benchmarks.loop [--hands 4000] [--steps 1500] [--ways in_loop static]

FPHA: subjects 1 and 2 give hands as projections with 2 px of noise at a 224-px box, never their 3D, but for the layout,
which is learned from the 3D of 1,000 others of their hands, as in benchmarks/accuracy.py. Subject 3 is measured, with
the same noise. Every way starts from the package's own lifter.

    in_loop     the loop with its defaults
    static      fits made once before, with the package's default number of starts; everything else as in_loop
    spin        SPIN's rule: a fit is kept where its reprojection is better, whatever else; the prior stays as it is
    synthetic   synthetic hands alone, for the processor time that in_loop took

Times are processor times, because others may use the machine. `--corrupt 0.2` moves that share of the teaching
keypoints by half a hand's box.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy_cases import SEED, disturb
from handloop.api import fit, prediction_recipe
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.results import FitResult
from handloop.evaluation.alignment import similarity
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.recipes import RECIPES
from handloop.fitting.solver import SolverOptions
from handloop.hand.load import embedded_hand
from handloop.loop.config import PRESETS, LoopConfig
from handloop.loop.hand_data import HandData
from handloop.loop.log import read_log
from handloop.loop.memory import FitMemory
from handloop.loop.train import LoopTraining
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.lifter import Lifter

DEFAULT = RECIPES["default"]
FEW = replace(DEFAULT, name="lifter, 4 steps", seeds=0, solver=SolverOptions(4, 1e-3), posterior=False)
WAYS = ("in_loop", "static", "spin", "synthetic")


class SpinMemory(FitMemory):
    """Keeps whatever meets the keypoints better."""

    def offered(self, result: FitResult) -> FitResult:
        """The reprojection alone, and nothing speaks against it."""
        term = result.energy_terms["reprojection"]
        plausible = result.fitted()
        return replace(result, energy=term, energy_terms={"reprojection": term}, plausible=plausible)


class Hands:
    """FPHA's hands."""

    def __init__(self, path: Path, teach: Sequence[int], measure: Sequence[int], n: int, corrupt: float) -> None:
        self._data = np.load(path, allow_pickle=False)
        rng = np.random.default_rng(SEED)
        hand = embedded_hand().right
        known = self._sample(rng, teach, 1000)
        self.layout: KeypointLayout = learn_from_joints(hand, known, torch.ones(1000, dtype=torch.bool), "fpha").layout
        self.teaching = self._seen(self._sample(rng, teach, n), corrupt, 1)
        self.truth = self._sample(rng, measure, 1000)
        self.measured = self._seen(self.truth, 0.0, 2)

    def _sample(self, rng: np.random.Generator, people: Sequence[int], count: int) -> Tensor:
        rows = np.flatnonzero(np.isin(self._data["subject"], people))
        chosen = np.sort(rng.choice(rows, count, replace=False))
        return torch.tensor(self._data["joints_cam_mm_x100"][chosen] / 1e5)

    def _seen(self, points: Tensor, corrupt: float, seed: int) -> tuple[Keypoints, Camera]:
        camera = Camera.from_matrix(self._data["K"]).select(torch.zeros(len(points), dtype=torch.int64))
        uv = disturb(camera.project(points), 2, corrupt, torch.Generator().manual_seed(seed))
        return Keypoints.from_arrays(uv), camera

    def error(self, result: FitResult) -> tuple[float, float]:
        """Mean error after similarity alignment, mm, and the share of hands above 20 mm, %."""
        found = result.keypoints_3d
        error = 1000 * (similarity(found, self.truth).apply(found) - self.truth).norm(dim=-1).mean(1)
        error = error.nan_to_num(100.0)
        return float(error.mean()), 100 * float((error > 20).double().mean())

    def row(self, name: str, lifter: Lifter, prior: PosePriorModel | None, seconds: float) -> list[float]:
        """Print and return the errors of the network alone, of fits of 4 steps from it, of 8 starts and it."""
        start, (keypoints, camera) = lifter.for_pair(embedded_hand()), self.measured
        errors = []
        for recipe in (prediction_recipe(DEFAULT, False), FEW, replace(DEFAULT, posterior=False)):
            errors.append(
                self.error(fit(keypoints, camera, layout=self.layout, recipe=recipe, start=start, prior=prior))
            )
        text = " | ".join(f"{pa:.2f} ({over:.1f})" for pa, over in errors)
        print(f"| {name} | {text} | {seconds / 60:.1f} |", flush=True)
        return [pa for pa, _ in errors]


def run(way: str, hands: Hands, config: LoopConfig, folder: Path, lifter: Lifter) -> tuple[LoopTraining, Lifter, float]:
    """Train one way; returns the training, its network, and processor time in s."""
    kind = SpinMemory if way == "spin" else FitMemory
    begun = time.process_time()
    data = HandData.of(*hands.teaching, held_out=config.held_out)
    training = LoopTraining(folder, data, embedded_hand(), config, lifter, hands.layout, memory=kind)
    found = training.run()
    return training, found, time.process_time() - begun


def config_of(way: str, steps: int, per_step: float, budget: float) -> LoopConfig:
    """What a way is; the synthetic one gets as many steps as the time allows."""
    base = replace(LoopConfig(), steps=steps)
    if way == "static":
        return replace(base, mode="static")
    if way == "spin":
        return replace(base, prior=replace(base.prior, every=0))
    if way == "synthetic":
        return replace(PRESETS["lifter-synthetic"], steps=max(1, int(budget / per_step)))
    return base


def synthetic_seconds(hands: Hands, lifter: Lifter) -> float:
    """Processor time of a step on synthetic hands alone."""
    folder = Path(tempfile.mkdtemp())
    config = replace(PRESETS["lifter-synthetic"], steps=20)
    data = HandData.of(*hands.teaching)
    training = LoopTraining(folder, data, embedded_hand(), config, lifter, hands.layout)
    at: list[float] = []
    training.run(lambda _: at.append(time.process_time()))
    training.close()
    shutil.rmtree(folder)
    return (at[-2] - at[0]) / (len(at) - 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=4000, help="to learn from")
    parser.add_argument("--steps", type=int, default=LoopConfig().steps)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--corrupt", type=float, default=0.0, help="share of the teaching keypoints moved far off")
    parser.add_argument("--teach", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--subjects", type=int, nargs="+", default=[3])
    options = parser.parse_args(arguments)
    path = Path(os.environ["HANDLOOP_REAL_DATA"]) / "keypoints_3d" / "fpha.npz"
    hands = Hands(path, options.teach, options.subjects, options.hands, options.corrupt)
    lifter = Lifter.shipped()
    print("| trained | network alone: PA mm (> 20 mm %) | fit from it, 4 steps | 8 starts and it | processor min |")
    print("|---|---|---|---|---|")
    before = hands.row("not yet", lifter, None, 0.0)
    budget = 0.0
    for way in options.ways:
        per_step = synthetic_seconds(hands, lifter) if way == "synthetic" else 1.0
        folder = Path(tempfile.mkdtemp())
        training, found, seconds = run(way, hands, config_of(way, options.steps, per_step, budget), folder, lifter)
        budget = seconds if way == "in_loop" else budget
        after = hands.row(way, found, training.memory.prior, seconds)
        change = ", ".join(f"{100 * (b / a - 1):+.0f} %" for a, b in zip(before, after, strict=True))
        lines = read_log(folder)
        spent = {k: sum(x.get(f"seconds_{k}", 0.0) for x in lines) for k in ("network", "fit")}
        print(
            f"  {way}: {change}; {training.step} steps; fit / network time {spent['fit'] / spent['network']:.2f}; "
            f"priors taken {training.prior_version}",
            flush=True,
        )
        training.close()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
