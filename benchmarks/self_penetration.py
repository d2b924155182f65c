"""How often do fitted meshes cut into themselves, and what does the term against it cost and change?

    python -m benchmarks.self_penetration --hands 400

Real hands from HANDLOOP_REAL_DATA (default ../shared/data), as in benchmarks/accuracy.py: FPHA subject 3 and Ge 2019,
layouts known. Depths are those of the meshes (`handloop.evaluation.penetration`), not of the term's spheres.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.accuracy_cases import Case, real
from handloop.api import fit
from handloop.core.results import FitResult
from handloop.core.terms import AutoTerm
from handloop.evaluation.alignment import similarity
from handloop.evaluation.penetration import self_penetration
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.hand.load import embedded_hand

CASES = ("FPHA subject 3, layout from others' 3D", "Ge 2019, layout from half")


def depths_mm(result: FitResult) -> torch.Tensor:
    """(N,) deepest self-intersection of each fitted mesh."""
    pair, vertices = embedded_hand(), result.vertices()
    out = torch.zeros(len(vertices), dtype=torch.float64)
    for side in (True, False):
        rows = (result.keypoints.is_right == side).nonzero()[:, 0]
        out[rows] = 1000 * self_penetration(pair.side(side), vertices[rows])
    return out


def measure(case: Case, name: str, recipe: Recipe) -> str:
    """One row of the table."""
    started = time.process_time()
    result = fit(case.keypoints, case.camera, recipe=recipe, layout=case.layout)
    spent = 1000 * (time.process_time() - started) / len(case.points)
    fitted, truth = result.keypoints_3d, case.points
    error = 1000 * (similarity(fitted, truth).apply(fitted) - truth).norm(dim=-1).mean(1)
    root = 1000 * ((fitted - fitted[:, :1]) - (truth - truth[:, :1])).norm(dim=-1).mean(1)
    relative = 100 * (result.rms_px / case.keypoints.box_size()).median()
    steps = float(result.steps.double().mean())
    depth = depths_mm(result)
    shares = " | ".join(f"{100 * float((depth > least).double().mean()):.1f}" for least in (0.0, 2.0, 4.0))
    return (
        f"| {case.name} | {name} | {shares} | {float(depth.mean()):.2f} | {float(error.mean()):.2f} "
        f"| {float(root.mean()):.1f} | {float(relative):.2f} | {steps:.1f} | {spent:.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=400)
    parser.add_argument("--weights", type=float, nargs="+", default=[100.0])
    options = parser.parse_args()
    folder = Path(os.environ.get("HANDLOOP_REAL_DATA", "../shared/data"))
    base = RECIPES["default"]
    # A term that is always zero shows what leaving the fused engine costs by itself.
    nothing = AutoTerm("nothing", lambda posed: posed.points[:, :1, 0] * 0)
    recipes = {"off": base, "off, tensor engine": replace(base, extra_terms=(nothing,))}
    recipes |= {f"weight {weight:g}": replace(base, self_penetration=weight) for weight in options.weights}
    columns = ("hands", "self-penetration", "cut %", "> 2 mm %", "> 4 mm %", "mean mm", "PA mm", "root-relative mm")
    print(f"| {' | '.join([*columns, 'rms % of box', 'steps', 'CPU ms per hand'])} |")
    print("|---" * (len(columns) + 3) + "|")
    for case in real(folder, options.hands, (1, 2), (3,)):
        if case.name in CASES:
            rows = torch.arange(min(options.hands, len(case.points)))
            some = replace(
                case,
                points=case.points[rows],
                keypoints=case.keypoints.select(rows),
                camera=case.camera.select(rows),
            )
            for name, recipe in recipes.items():
                print(measure(some, name, recipe), flush=True)


if __name__ == "__main__":
    main()
