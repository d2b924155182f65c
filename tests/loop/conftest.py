"""Fits made of random numbers, and a look into a shard that knows nothing of the code under test."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult, Status

TERMS = ("reprojection", "pose_prior", "limits")
TEXTS = {
    **{"handloop_version": "0.0.0", "recipe": "default", "noise_px_at_224": "2", "layout": "identity"},
    "energy_settings": "geman_mcclure 8",
    **{"hand_model": "a hand", "hand_model_digest": "abc def", "tip_set": "smplx", "left_shapedirs": "none"},
    **{"flat_hand_mean": "True", "joint_order": "openpose21", "joint_definition": "skinning"},
}

Make = Callable[..., FitResult]


class NoMesh:
    """A hand model without meshes."""

    def vertices(self, params: HandParams, is_right: Tensor) -> Tensor:
        raise AssertionError("no mesh is asked for here")

    def provenance(self) -> Mapping[str, str]:
        return {}


def make_result(
    ids: Sequence[str],
    energy: float | Sequence[float] = 10.0,
    seed: int = 0,
    plausible: bool | Sequence[bool] = True,
    status: Status = Status.CONVERGED,
    dist: int = 0,
    texts: Mapping[str, str] = TEXTS,
) -> FitResult:
    """Random fits of hands whose keypoints and side depend on the id alone."""
    n = len(ids)
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=(n, *shape)))

    keys = [zlib.crc32(name.encode()) for name in ids]
    points = np.array([np.random.default_rng(key).uniform(0, 500, (21, 2)) for key in keys]).reshape(n, 21, 2)
    total = torch.tensor(np.broadcast_to(np.asarray(energy, dtype=np.float64), n).copy())
    shares = torch.tensor([0.5, 0.375, 0.125], dtype=torch.float64)
    fine = np.broadcast_to(plausible, n).copy()
    camera = Camera(
        500 + normal(2),
        250 + normal(2),
        0.01 * normal(dist) if dist else None,
        torch.from_numpy(draw.random(n) < 0.5),
    )
    return FitResult(
        params=HandParams(normal(3), normal(45), normal(10), normal(3)),
        joints=normal(21, 3),
        keypoints_3d=normal(21, 3) * 0.03 + torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64),
        keypoints_3d_sd=normal(21, 3).abs(),
        depth_sd=normal().abs(),
        expected_error_mm=normal().abs(),
        weakest=tuple(f"direction {i}" for i in range(n)),
        plausible=torch.from_numpy(fine),
        doubts=tuple("" if ok else "the shape is an outlier" for ok in fine),
        keypoints=Keypoints.from_arrays(
            points,
            np.array([key % 3 > 0 for key in keys], bool),
            (640, 480),
            ids if n == len(set(ids)) else None,
            "file.json",
            None,
            "picture.jpg",
        ),
        camera=camera,
        keypoints_2d_fit=normal(21, 2),
        energy=total,
        energy_terms={name: total * share for name, share in zip(TERMS, shares, strict=True)},
        rms_px=normal().abs(),
        status=torch.full((n,), int(status)),
        steps=torch.arange(n),
        hypothesis_gap=torch.where(normal() > 0, normal().abs(), torch.full((n,), float("inf"))),
        hand=NoMesh(),
        provenance=texts,
    )


@pytest.fixture
def make() -> Make:
    """Random fits by id: see `make_result`."""
    return make_result


def dump(path: Path) -> list[tuple[object, ...]]:
    """Everything that a rollback must restore: rows with their origins written out, scores, conventions."""
    with closing(sqlite3.connect(path)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(fits)") if row[1] != "origin"]
        rows = db.execute(
            f"SELECT {', '.join(columns)}, start, recipe, weights, prior, layout, epoch FROM fits "
            "JOIN origins ON fits.origin = origins.key ORDER BY id"
        ).fetchall()
        scores = db.execute("SELECT * FROM scores ORDER BY version").fetchall()
        return [*rows, *scores, *db.execute("SELECT value FROM meta WHERE key='conventions'")]


@pytest.fixture
def content() -> Callable[[Path], list[tuple[object, ...]]]:
    """What is in a shard, read with sqlite3 alone: see `dump`."""
    return dump
