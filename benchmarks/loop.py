"""Does the loop improve a network and its fits, from 2D keypoints alone? Real hands that neither has seen.

    HANDLOOP_REAL_DATA=... python -m benchmarks.loop [--hands 4000] [--steps 1500] [--ways in_loop static]

FPHA: subjects 1 and 2 give hands as projections with 2 px of noise at a 224-px box, never their 3D, but for the layout,
which is learned from the 3D of 1,000 others of their hands, as in benchmarks/accuracy.py; `--layout 2d` learns it from
the teaching keypoints, so that no 3D is used at all. Subject 3 is measured, with the same noise. Every way starts from
the package's own lifter.

    in_loop     the loop with its defaults
    static      fits made once before, with the package's default number of starts; everything else as in_loop
    spin        SPIN's rule: a fit is kept where its reprojection is better, whatever else, and every fit that meets the
                keypoints within 10 px counts in full; the prior stays as it is
    synthetic   synthetic hands alone, for the processor time that in_loop took

Times are processor times, because others may use the machine. `--corrupt 0.2` spoils the keypoints of that share of the
teaching hands (see `loop_hands.spoiled`), does every way with and without, and prints what that costs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from benchmarks.loop_hands import Errors, LoopHands
from handloop.api import fit, prediction_recipe
from handloop.core.layout import KeypointLayout
from handloop.core.results import FitResult
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.recipes import RECIPES
from handloop.fitting.solver import SolverOptions
from handloop.hand.load import embedded_hand
from handloop.loop.config import PRESETS, LoopConfig, TrustOptions, read_config
from handloop.loop.hand_data import HandData
from handloop.loop.log import read_log
from handloop.loop.memory import FitMemory
from handloop.loop.train import LoopTraining, Progress
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.lifter import Lifter

DEFAULT = RECIPES["default"]
FEW = replace(DEFAULT, name="lifter, 4 steps", seeds=0, solver=SolverOptions(4, 1e-3), posterior=False)
WAYS = ("in_loop", "static", "spin", "synthetic")
# A mean square error of 100 px^2 at a crop of 224 px, as published, in half squared sigmas of 3 px, of 21 points.
SPIN_TRUST = TrustOptions(max_energy=0.5 * 21 * 100 / 3**2, error_mm=1e9, relative_depth=1e9)


class SpinMemory(FitMemory):
    """Keeps whatever meets the keypoints better."""

    def offered(self, result: FitResult) -> FitResult:
        """The reprojection alone, and nothing speaks against it."""
        term = result.energy_terms["reprojection"]
        plausible = result.fitted()
        return replace(result, energy=term, energy_terms={"reprojection": term}, plausible=plausible)


@dataclass(frozen=True)
class Case:
    """Hands, what is known of their source, and how to train on them."""

    hands: LoopHands
    layout: KeypointLayout
    config: LoopConfig

    def row(self, name: str, lifter: Lifter, prior: PosePriorModel | None, seconds: float) -> list[Errors]:
        """Print and return the errors of the network alone, of fits of 4 steps from it, of 8 starts and it."""
        start, (keypoints, camera) = lifter.for_pair(embedded_hand()), self.hands.measured
        errors = []
        for recipe in (prediction_recipe(DEFAULT, False), FEW, replace(DEFAULT, posterior=False)):
            result = fit(keypoints, camera, layout=self.layout, recipe=recipe, start=start, prior=prior)
            errors.append(self.hands.error(result))
        print(f"| {name} | {' | '.join(map(str, errors))} | {seconds / 60:.1f} |", flush=True)
        return errors

    def of_way(self, way: str, per_step: float, budget: float) -> Case:
        """The same with a way's configuration; the synthetic one gets as many steps as the time allows."""
        base = self.config
        if way == "static":
            base = replace(base, mode="static")
        if way == "spin":
            base = replace(base, prior=replace(base.prior, every=0), trust=SPIN_TRUST)
        if way == "synthetic":
            base = replace(PRESETS["lifter-synthetic"], steps=max(1, int(budget / per_step)))
        return replace(self, config=base)


class Trained:
    """A way's training, done."""

    def __init__(self, way: str, case: Case, folder: Path, lifter: Lifter) -> None:
        kind = SpinMemory if way == "spin" else FitMemory
        begun, looked = time.process_time(), 0.0
        data = HandData.of(*case.hands.teaching, held_out=case.config.held_out)
        self.training = LoopTraining(folder, data, embedded_hand(), case.config, lifter, case.layout, memory=kind)
        self.labels: list[float] = []
        """Error of the cached fits of the hands to learn from, mm: after each epoch."""
        epoch = 0

        def look(at: Progress) -> None:
            nonlocal epoch, looked
            now = data.epoch(at.step, case.config.batch)
            if now > epoch or at.step == at.steps:
                epoch, before = now, time.process_time()
                self.labels.append(case.hands.labels_error(self.training.memory.cache))
                looked += time.process_time() - before

        self.lifter = self.training.run(look)
        self.seconds = time.process_time() - begun - looked
        """Of the processor."""

    def about(self) -> list[str]:
        """Lines on how it went."""
        lines = read_log(self.training.folder)
        spent = {k: sum(x.get(f"seconds_{k}", 0.0) for x in lines) for k in ("network", "fit")}
        out = [f"{self.training.step} steps; priors taken {self.training.prior_version}"]
        known = [error for error in self.labels if error == error]
        if known:
            rises = max([100 * (b / a - 1) for a, b in pairwise(known)], default=0.0)
            series = " ".join(f"{error:.2f}" for error in known)
            out.append(f"error of the fits it learns from, mm after each epoch: {series}; largest rise {rises:.1f} %")
        if self.training.config.mode == "in_loop":
            per_step = spin_seconds(self.training) / (spent["network"] / len(lines))
            out.append(
                f"fits and cache take {spent['fit'] / spent['network']:.2f} of the time of forward and backward pass; "
                f"SPIN's 100 + 100 Adam steps would take {per_step:.1f}"
            )
        return out


def spin_seconds(training: LoopTraining) -> float:
    """Time in s of SPIN's fit of one batch with the model, prior and layout of a training."""
    data, config = training.data, training.config
    rows = data.rows(1, config.batch, config.seed)
    keypoints, camera = data.keypoints.select(rows), data.camera.select(rows)
    recipe = replace(RECIPES["spin"], posterior=False)
    fit_keypoints(training.memory.models, keypoints, camera, recipe)
    begun = time.perf_counter()
    fit_keypoints(training.memory.models, keypoints, camera, recipe)
    return time.perf_counter() - begun


def synthetic_seconds(case: Case, lifter: Lifter) -> float:
    """Processor time of a step on synthetic hands alone."""
    folder = Path(tempfile.mkdtemp())
    config = replace(PRESETS["lifter-synthetic"], steps=20)
    data = HandData.of(*case.hands.teaching)
    training = LoopTraining(folder, data, embedded_hand(), config, lifter, case.layout)
    at: list[float] = []
    training.run(lambda _: at.append(time.process_time()))
    training.close()
    shutil.rmtree(folder)
    return (at[-2] - at[0]) / (len(at) - 2)


def compare(ways: Sequence[str], case: Case, lifter: Lifter) -> dict[str, list[Errors]]:
    """Train in each way and print a row of each; returns the errors."""
    print("| trained | network alone: PA mm (> 20 mm %), wrist-relative mm | fit from it, 4 steps | 8 starts | min |")
    print("|---|---|---|---|---|")
    found = {"before": case.row("not yet", lifter, None, 0.0)}
    budget = 0.0
    for way in ways:
        per_step = synthetic_seconds(case, lifter) if way == "synthetic" else 1.0
        folder = Path(tempfile.mkdtemp())
        trained = Trained(way, case.of_way(way, per_step, budget), folder, lifter)
        budget = trained.seconds if way == "in_loop" else budget
        found[way] = case.row(way, trained.lifter, trained.training.memory.prior, trained.seconds)
        change = ", ".join(
            f"{100 * (b.pa / a.pa - 1):+.1f} %" for a, b in zip(found["before"], found[way], strict=True)
        )
        print("\n".join([f"  {way}: {change}", *(f"  {line}" for line in trained.about())]), flush=True)
        trained.training.close()
        shutil.rmtree(folder)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=4000, help="to learn from")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--config", default="lifter-loop", help="preset or file of the loop's settings")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--corrupt", type=float, default=0.0, help="share of the teaching hands that is spoiled")
    parser.add_argument("--layout", choices=("3d", "2d"), default="3d", help="what it is learned from")
    parser.add_argument("--teach", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--subjects", type=int, nargs="+", default=[3])
    options = parser.parse_args(arguments)
    path = Path(os.environ["HANDLOOP_REAL_DATA"]) / "keypoints_3d" / "fpha.npz"
    config, lifter = replace(read_config(options.config), steps=options.steps), Lifter.shipped()
    results = []
    for share in (0.0, options.corrupt)[: 1 + (options.corrupt > 0)]:
        hands = LoopHands(path, options.teach, options.subjects, options.hands, share)
        layout = hands.layout_from_3d() if options.layout == "3d" else hands.layout_from_2d()
        if options.corrupt > 0:
            print(f"\n{100 * share:.0f} % of the teaching hands spoiled")
        results.append(compare(options.ways, Case(hands, layout, config), lifter))
    for way in options.ways if len(results) > 1 else ():
        lost = [b.pa - a.pa for a, b in zip(results[0][way], results[1][way], strict=True)]
        print(f"{way} loses by the spoiled hands: " + ", ".join(f"{mm:+.3f} mm" for mm in lost))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
