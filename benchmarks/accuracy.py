"""How accurate are the fits? Synthetic and real hands, every recipe side by side, against a committed baseline.

    python -m benchmarks.accuracy --hands 200            the tables
    python -m benchmarks.accuracy --check                fail where a figure is worse than the baseline allows
    python -m benchmarks.accuracy --hands 400 --write    renew docs/results.md and the baseline

Real hands are used where HANDLOOP_REAL_DATA names a folder that holds keypoints_3d/fpha.npz and ge2019.npz: 3D truth,
seen as exact projections unless the case's name says otherwise. On FPHA layouts are learned from subjects 1 and 2, and
subject 3 is measured (`--teach`, `--subjects` name others). `--only TEXT` takes the cases whose names hold the text.
`--check` runs with the number of hands the baseline was made with; cases without a baseline are listed, not failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.accuracy_cases import Case, real, synthetic
from benchmarks.accuracy_gate import Baseline, Figures, check, key
from benchmarks.results_page import renew
from handloop.api import fit
from handloop.evaluation.alignment import similarity
from handloop.fitting.baselines import SpinOptions
from handloop.fitting.recipes import RECIPES, Recipe

BASELINE = Path(__file__).parent / "baselines" / "accuracy.json"
SPIN_LONG = SpinOptions(steps_camera=500, steps_all=500)
METHODS: dict[str, Recipe] = {
    **RECIPES,
    "spin 500+500": replace(RECIPES["spin"], name="spin 500+500", baseline=SPIN_LONG),
}
HEAD = (
    "| hands | recipe | PA mm | > 20 mm % | root-relative mm | rms % of box | inside 68 % | inside 95 % "
    "| worst tenth found % | hands/s |\n|---|---|---|---|---|---|---|---|---|---|"
)


def measure(case: Case, recipe: Recipe) -> Figures:
    """Fit the case's hands and compare them with the truth."""
    started = time.perf_counter()
    result = fit(case.keypoints, case.camera, recipe=recipe, layout=case.layout)
    seconds = time.perf_counter() - started
    fitted, truth = result.keypoints_3d, case.points
    error = 1000 * (similarity(fitted, truth).apply(fitted) - truth).norm(dim=-1).mean(1)
    # A hand that could not be fitted counts among the failures, not out of the mean.
    error = error.nan_to_num(100.0)
    root = 1000 * ((fitted - fitted[:, :1]) - (truth - truth[:, :1])).norm(dim=-1).mean(1)
    z = ((fitted - truth) / result.keypoints_3d_sd).abs()
    ranked = set(result.expected_error_mm.argsort(descending=True)[: len(error) // 5].tolist())
    worst = error.argsort(descending=True)[: max(1, len(error) // 10)].tolist()
    return Figures(
        pa_mm=float(error.mean()),
        over_20_percent=100 * float((error > 20).double().mean()),
        root_relative_mm=float(root.nanmean()),
        rms_percent=float(100 * (result.rms_px / case.keypoints.box_size()).nanmedian()),
        inside_68=100 * float((z < 1).double().mean()),
        inside_95=100 * float((z < 1.96).double().mean()),
        worst_found_percent=100 * sum(i in ranked for i in worst) / len(worst),
        hands_per_s=len(error) / seconds,
    )


def cases_of(hands: int, only: str, teach: Sequence[int], subjects: Sequence[int]) -> list[Case]:
    """The cases whose names hold the text; real ones where the folder has them."""
    cases = [case for case in synthetic(hands) if only.lower() in case.name.lower()]
    named = os.environ.get("HANDLOOP_REAL_DATA", "")
    if named:
        cases += [case for case in real(Path(named), hands, teach, subjects) if only.lower() in case.name.lower()]
    return cases


def run(cases: Sequence[Case], recipes: Sequence[str] = ()) -> dict[str, Figures]:
    """Measure and print every case with every recipe it asks for; `recipes` leaves out others."""
    print(HEAD)
    out: dict[str, Figures] = {}
    for case in cases:
        for name in case.recipes:
            if recipes and name not in recipes:
                continue
            out[key(case.name, name)] = figures = measure(case, METHODS[name])
            print(f"| {case.name} | {name} {figures.row()}", flush=True)
    return out


def write(figures: dict[str, Figures], hands: int) -> None:
    """Renew the accuracy part of docs/results.md and the baseline; all else stays."""
    rows = "\n".join(f"| {name.replace(' / ', ' | ')} {f.row()}" for name, f in figures.items())
    renew("accuracy", f"{HEAD}\n{rows}")
    BASELINE.parent.mkdir(exist_ok=True)
    Baseline(hands, figures).save(BASELINE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where `--check` finds a figure worse than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=100, help="per case (default: 100)")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--recipes", nargs="*", default=[], choices=sorted(METHODS), help="these only")
    parser.add_argument("--teach", type=int, nargs="+", default=[1, 2], help="FPHA subjects that teach the layouts")
    parser.add_argument("--subjects", type=int, nargs="+", default=[3], help="FPHA subjects to measure")
    parser.add_argument("--check", action="store_true", help="compare with benchmarks/baselines/accuracy.json")
    parser.add_argument("--write", action="store_true", help="renew docs/results.md and the baseline")
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), os.cpu_count() or 1)))
    baseline = Baseline.load(BASELINE) if options.check else None
    hands = options.hands if baseline is None else baseline.hands
    figures = run(cases_of(hands, options.only, options.teach, options.subjects), options.recipes)
    if options.write:
        if options.only or options.recipes:
            parser.error("--write renews the whole table; leave out --only and --recipes.")
        write(figures, hands)
    if baseline is None:
        return 0
    table, failed = check(figures, baseline)
    print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
