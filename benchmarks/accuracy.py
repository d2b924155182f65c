"""How accurate are the fits? Synthetic and real hands, every recipe side by side; writes docs/results.md with --write.

    python -m benchmarks.accuracy --hands 500

Real hands are used where HANDLOOP_REAL_DATA (default ../shared/data) holds keypoints_3d/fpha.npz and ge2019.npz: 3D
truth, seen as exact projections. On FPHA, layouts are learned from subjects 1 and 2, and subject 3 is
measured. `--only TEXT` takes the cases whose names hold the text.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.recovery import F64, K, draw
from handloop.api import fit
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.evaluation.alignment import similarity
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.learn_layout_2d import learn_from_keypoints
from handloop.fitting.problem import HandModels
from handloop.hand.load import embedded_hand

RECIPES = ("default", "fast", "careful", "spin", "smplify")
SEED = 20261120


@dataclass(frozen=True, eq=False)
class Case:
    """One set of hands to fit."""

    name: str
    points: Tensor
    """(N, 21, 3) m."""
    keypoints: Keypoints
    camera: Camera
    layout: KeypointLayout | None
    recipes: tuple[str, ...] = RECIPES


def synthetic(n: int) -> Iterator[Case]:
    """Noise, missing points and gross outliers on hands drawn from the model's own poses."""
    model = HandModels.of(embedded_hand()).right
    for noise, missing, outliers in (
        *((0, 0, 0.0), (1, 0, 0.0), (2, 0, 0.0), (4, 0, 0.0), (8, 0, 0.0)),
        *((2, 4, 0.0), (2, 8, 0.0), (2, 0, 0.05), (2, 0, 0.1), (2, 0, 0.2)),
    ):
        g = torch.Generator().manual_seed(SEED)
        truth = draw(model, embedded_hand().right.poses(), n, g)
        box = (truth.uv.amax(1) - truth.uv.amin(1)).amax(1)[:, None, None]
        uv = truth.uv + noise / 224 * box * torch.randn(truth.uv.shape, dtype=F64, generator=g)
        wild = torch.rand(n, 21, 1, generator=g) < outliers
        uv = torch.where(wild, uv + 0.5 * box * torch.randn(uv.shape, dtype=F64, generator=g), uv)
        conf = torch.ones(n, 21, 1, dtype=F64)
        conf.scatter_(1, torch.rand(n, 21, 1, generator=g).argsort(1)[:, :missing], 0.0)
        name = f"synthetic, {noise} px, {missing} missing, {100 * outliers:.0f} % outliers"
        recipes = RECIPES if missing == 0 and outliers == 0 and noise in (0, 2) else ("default", "spin")
        yield Case(
            name, truth.points, Keypoints.from_arrays(torch.cat([uv, conf], 2)), Camera.from_matrix(K, n), None, recipes
        )


def fpha(folder: Path, n: int) -> Iterator[Case]:
    """FPHA subject 3, with layouts learned from subjects 1 and 2."""
    data = np.load(folder / "fpha.npz")
    rng = np.random.default_rng(SEED)
    one = Camera.from_matrix(data["K"])

    def sample(people: tuple[int, ...], count: int) -> Tensor:
        rows = rng.choice(np.flatnonzero(np.isin(data["subject"], people)), count, replace=False)
        return torch.tensor(data["joints_cam_mm_x100"][rows] / 1e5)

    hand = embedded_hand().right
    taught, measured = sample((1, 2), 1000), sample((3,), n)
    many, camera = one.select(torch.zeros(1000, dtype=torch.int64)), one.select(torch.zeros(n, dtype=torch.int64))
    from_3d = learn_from_joints(hand, taught, torch.ones(1000, dtype=torch.bool), "fpha").layout
    from_2d = learn_from_keypoints(hand, Keypoints.from_arrays(many.project(taught)), many, "fpha").layout
    uv = camera.project(measured)
    box = (uv.amax(1) - uv.amin(1)).amax(1)[:, None, None]
    noisy = uv + 2 / 224 * box * torch.tensor(rng.normal(size=uv.shape))
    wild = torch.tensor(rng.random((n, 21, 1)) < 0.05)
    outliers = torch.where(wild, noisy + 0.5 * box * torch.tensor(rng.normal(size=uv.shape)), noisy)
    for name, points, layout in (
        ("layout unknown", uv, None),
        ("layout from 3D of subjects 1, 2", uv, from_3d),
        ("layout from their 2D alone", uv, from_2d),
        ("layout from 3D, 2 px", noisy, from_3d),
        ("layout from 3D, 2 px, 5 % outliers", outliers, from_3d),
    ):
        yield Case(f"FPHA subject 3, {name}", measured, Keypoints.from_arrays(points), camera, layout)


def ge2019(folder: Path) -> Iterator[Case]:
    """Ge 2019 (one person, left hands); the layout from every second block of 53 pictures, measured on the others."""
    data = np.load(folder / "ge2019.npz")
    joints = torch.tensor(data["joints_cam_mm"].astype(np.float64) / 1000)
    taught = torch.tensor(data["block"] % 4 == 0)
    right = torch.tensor(data["is_right"])
    layout = learn_from_joints(embedded_hand().right, joints[taught], right[taught], "ge2019").layout
    keypoints = Keypoints.from_arrays(data["uv_crop256"], data["is_right"], (256, 256))
    camera = Camera.from_matrix(data["K_crop256"])
    yield Case("Ge 2019, layout unknown", joints, keypoints, camera, None)
    rest = ~taught
    yield Case("Ge 2019, layout from half", joints[rest], keypoints.select(rest), camera.select(rest), layout)


def measure(case: Case, recipe: str) -> str:
    """One row of the table."""
    started = time.perf_counter()
    result = fit(case.keypoints, case.camera, recipe=recipe, layout=case.layout)
    seconds = time.perf_counter() - started
    fitted, truth = result.keypoints_3d, case.points
    error = 1000 * (similarity(fitted, truth).apply(fitted) - truth).norm(dim=-1).mean(1)
    root = 1000 * ((fitted - fitted[:, :1]) - (truth - truth[:, :1])).norm(dim=-1).mean(1)
    z = ((fitted - truth) / result.keypoints_3d_sd).abs()
    ranked = set(result.expected_error_mm.argsort(descending=True)[: len(error) // 5].tolist())
    worst = error.argsort(descending=True)[: max(1, len(error) // 10)].tolist()
    relative = 100 * (result.rms_px / case.keypoints.box_size()).median()
    return (
        f"| {case.name} | {recipe} | {float(error.mean()):.2f} | {100 * float((error > 20).double().mean()):.1f} "
        f"| {float(root.mean()):.1f} | {float(relative):.2f} | {100 * float((z < 1).double().mean()):.0f} "
        f"| {100 * sum(i in ranked for i in worst) / len(worst):.0f} | {len(error) / seconds:.0f} |"
    )


def main() -> None:
    """Print the table, and write it into docs/results.md when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hands", type=int, default=500)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    folder = Path(os.environ.get("HANDLOOP_REAL_DATA", "../shared/data")) / "keypoints_3d"
    cases = [*synthetic(options.hands)]
    if (folder / "fpha.npz").is_file():
        cases += [*fpha(folder, options.hands), *ge2019(folder)]
    cases = [case for case in cases if options.only.lower() in case.name.lower()]
    columns = ("hands", "recipe", "PA mm", "> 20 mm %", "root-relative mm", "rms % of box", "inside 68 %")
    head = f"| {' | '.join([*columns, 'worst tenth found %', 'hands/s'])} |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines))
    for case in cases:
        for recipe in case.recipes:
            lines.append(measure(case, recipe))
            print(lines[-1], flush=True)
    if options.write:
        text = Path("docs/results.md").read_text(encoding="utf-8")
        start = text.index("<!-- accuracy -->")
        end = text.index("<!-- end of accuracy -->")
        table = "\n".join(["<!-- accuracy -->", "", *lines, ""])
        Path("docs/results.md").write_text(f"{text[:start]}{table}\n{text[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
