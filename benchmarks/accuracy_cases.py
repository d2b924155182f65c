"""The hands of benchmarks.accuracy: synthetic ones, and real 3D hands seen as projections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.recovery import F64, K, draw
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.learn_layout_2d import learn_from_keypoints
from handloop.fitting.problem import HandModels
from handloop.hand.load import embedded_hand

ALL = ("default", "fast", "careful", "spin", "spin 500+500", "smplify")
FEW = ("default", "spin")
SEED = 20261120
_TEACHING = 1000
"""Hands a layout is learned from."""


@dataclass(frozen=True, eq=False)
class Case:
    """One set of hands to fit."""

    name: str
    points: Tensor
    """(N, 21, 3) m."""
    keypoints: Keypoints
    camera: Camera
    layout: KeypointLayout | None
    recipes: tuple[str, ...] = ALL


def disturb(uv: Tensor, noise_px: float, outliers: float, g: torch.Generator) -> Tensor:
    """Keypoints (N, 21, 2) with noise, px at a box of 224 px, and a share of gross outliers half a box wide."""
    box = (uv.amax(1) - uv.amin(1)).amax(1)[:, None, None]
    noisy = uv + noise_px / 224 * box * torch.randn(uv.shape, dtype=F64, generator=g)
    wild = torch.rand(len(uv), 21, 1, generator=g) < outliers
    return torch.where(wild, noisy + 0.5 * box * torch.randn(uv.shape, dtype=F64, generator=g), noisy)


def synthetic(n: int) -> Iterator[Case]:
    """Noise, missing points and gross outliers on hands drawn from the model's own poses."""
    model = HandModels.of(embedded_hand()).right
    for noise, missing, outliers in (
        *((0, 0, 0.0), (1, 0, 0.0), (2, 0, 0.0), (4, 0, 0.0), (8, 0, 0.0)),
        *((2, 2, 0.0), (2, 4, 0.0), (2, 8, 0.0), (2, 0, 0.05), (2, 0, 0.1), (2, 0, 0.2)),
    ):
        g = torch.Generator().manual_seed(SEED)
        truth = draw(model, embedded_hand().right.poses(), n, g)
        uv = disturb(truth.uv, noise, outliers, g)
        conf = torch.ones(n, 21, 1, dtype=F64)
        conf.scatter_(1, torch.rand(n, 21, 1, generator=g).argsort(1)[:, :missing], 0.0)
        name = f"synthetic, {noise} px, {missing} missing, {100 * outliers:.0f} % outliers"
        recipes = ALL if missing == 0 and outliers == 0 and noise in (0, 2) else FEW
        keypoints = Keypoints.from_arrays(torch.cat([uv, conf], 2))
        yield Case(name, truth.points, keypoints, Camera.from_matrix(K, n), None, recipes)


def real(folder: Path, n: int, teach: Sequence[int], subjects: Sequence[int]) -> Iterator[Case]:
    """The real sets that the folder holds."""
    if (folder / "keypoints_3d" / "fpha.npz").is_file():
        yield from fpha(folder / "keypoints_3d" / "fpha.npz", n, teach, subjects)
    if (folder / "keypoints_3d" / "ge2019.npz").is_file():
        yield from ge2019(folder / "keypoints_3d" / "ge2019.npz")


def fpha(path: Path, n: int, teach: Sequence[int], subjects: Sequence[int]) -> Iterator[Case]:
    """FPHA: some subjects teach layouts, others are measured, seen as exact projections or disturbed ones."""
    data = np.load(path, allow_pickle=False)
    rng = np.random.default_rng(SEED)
    one = Camera.from_matrix(data["K"])

    def sample(people: Sequence[int], count: int) -> Tensor:
        rows = np.flatnonzero(np.isin(data["subject"], people))
        if len(rows) < count:
            raise InputError(f"{path.name} has {len(rows)} hands of subjects {list(people)}, {count} are needed.")
        return torch.tensor(data["joints_cam_mm_x100"][rng.choice(rows, count, replace=False)] / 1e5)

    hand = embedded_hand().right
    taught, measured = sample(teach, _TEACHING), sample(subjects, n)
    many = one.select(torch.zeros(_TEACHING, dtype=torch.int64))
    camera = one.select(torch.zeros(n, dtype=torch.int64))
    from_3d = learn_from_joints(hand, taught, torch.ones(_TEACHING, dtype=torch.bool), "fpha").layout
    from_2d = learn_from_keypoints(hand, Keypoints.from_arrays(many.project(taught)), many, "fpha").layout
    uv = camera.project(measured)
    g = torch.Generator().manual_seed(SEED)
    who = ", ".join(map(str, subjects))
    for name, points, layout, recipes in (
        ("layout unknown", uv, None, ALL),
        ("layout from others' 3D", uv, from_3d, ALL),
        ("layout from others' 2D alone", uv, from_2d, ALL),
        ("layout from others' 3D, 2 px", disturb(uv, 2, 0, g), from_3d, FEW),
        ("layout from others' 3D, 2 px, 5 % outliers", disturb(uv, 2, 0.05, g), from_3d, FEW),
        ("layout unknown, 2 px, 5 % outliers", disturb(uv, 2, 0.05, g), None, FEW),
    ):
        yield Case(f"FPHA subject {who}, {name}", measured, Keypoints.from_arrays(points), camera, layout, recipes)


def ge2019(path: Path) -> Iterator[Case]:
    """Ge 2019 (one person, left hands); the layout from every second block of 53 pictures, measured on the others."""
    data = np.load(path, allow_pickle=False)
    joints = torch.tensor(data["joints_cam_mm"].astype(np.float64) / 1000)
    # Blocks are dealt out in turn, whichever of them the file holds.
    taught = torch.tensor(np.unique(data["block"], return_inverse=True)[1] % 2 == 0)
    right = torch.tensor(data["is_right"])
    layout = learn_from_joints(embedded_hand().right, joints[taught], right[taught], "ge2019").layout
    keypoints = Keypoints.from_arrays(data["uv_crop256"], data["is_right"], (256, 256))
    camera = Camera.from_matrix(data["K_crop256"])
    yield Case("Ge 2019, layout unknown", joints, keypoints, camera, None)
    rest = ~taught
    part, seen = keypoints.select(rest), camera.select(rest)
    yield Case("Ge 2019, layout from half", joints[rest], part, seen, layout)
    uv = disturb(part.xy, 2, 0, torch.Generator().manual_seed(SEED))
    noisy = Keypoints.from_arrays(uv, part.is_right, (256, 256))
    yield Case("Ge 2019, layout from half, 2 px", joints[rest], noisy, seen, layout, FEW)
