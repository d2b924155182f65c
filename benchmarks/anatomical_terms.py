"""What do the optional terms and kernels do for real hands? Each beside the standard recipe, hand by hand.

    python -m benchmarks.anatomical_terms --hands 400

Needs real hands, as `benchmarks.accuracy` does. The change against the standard recipe comes with a bootstrap interval
of 95 % over hands; hands of one person and sequence are alike, so that true intervals are wider.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from benchmarks.accuracy_cases import SEED, Case, real
from handloop.api import fit
from handloop.evaluation.alignment import similarity
from handloop.fitting.recipes import Recipe

TERMS = {
    "standard": Recipe(),
    "coupling 10 deg": Recipe(coupling_sigma_deg=10.0),
    "coupling 6 deg": Recipe(coupling_sigma_deg=6.0),
    "spread": Recipe(spread=True),
    "E_a, published 4.48": Recipe(hyperextension=4.48),
    "E_a, 1": Recipe(hyperextension=1.0),
    "all, E_a 1": Recipe(coupling_sigma_deg=10.0, spread=True, hyperextension=1.0),
}
KERNELS = {
    "standard": Recipe(),
    "huber 3": Recipe(kernel="huber", robust=3.0),
    "cauchy 3": Recipe(kernel="cauchy", robust=3.0),
}
CASES = {
    "FPHA subject 3, layout from others' 3D": TERMS,
    "FPHA subject 3, layout from others' 3D, 2 px": TERMS,
    "Ge 2019, layout from half": TERMS,
    "FPHA subject 3, layout from others' 3D, 2 px, 5 % outliers": KERNELS,
}


def measure(case: Case, name: str, before: np.ndarray | None) -> np.ndarray:
    """Print one row of the table; (N,) mm, Procrustes-aligned errors."""
    result = fit(case.keypoints, case.camera, recipe=CASES[case.name][name], layout=case.layout)
    fitted, truth = result.keypoints_3d, case.points
    error: np.ndarray = 1000 * (similarity(fitted, truth).apply(fitted) - truth).norm(dim=-1).mean(1).numpy()
    root = 1000 * ((fitted - fitted[:, :1]) - (truth - truth[:, :1])).norm(dim=-1).mean()
    change = ""
    if before is not None:
        rng, n = np.random.default_rng(SEED), len(error)
        means = (error - before)[rng.integers(0, n, (2000, n))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        change = f"{(error - before).mean():+.2f} ({low:+.2f} to {high:+.2f})"
    print(
        f"| {case.name} | {name} | {error.mean():.2f} | {change} | {100 * (error > 20).mean():.1f} | {root:.1f} |",
        flush=True,
    )
    return error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hands", type=int, default=400)
    options = parser.parse_args()
    folder = Path(os.environ.get("HANDLOOP_REAL_DATA", "../shared/data"))
    print("| hands | recipe | PA mm | change, 95 % | > 20 mm % | root-relative mm |\n|---|---|---|---|---|---|")
    for case in real(folder, options.hands, (1, 2), (3,)):
        standard = None
        for name in CASES.get(case.name, {}):
            error = measure(case, name, standard)
            standard = error if standard is None else standard


if __name__ == "__main__":
    main()
