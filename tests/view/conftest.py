"""A smooth closed blob in a hand's stead: whatever can be said of its picture can be computed a second way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.results import FitResult, Status
from handloop.core.rotations import so3_exp


@dataclass(frozen=True)
class Blob:
    """A mesh model: right as it is, left in the mirror."""

    template: np.ndarray
    faces: np.ndarray
    points: np.ndarray

    def vertices(self, params: HandParams, is_right: Tensor) -> Tensor:
        return self._place(self.template, params, is_right)

    def joints(self, params: HandParams, is_right: Tensor) -> Tensor:
        return self._place(self.points, params, is_right)

    def provenance(self) -> Mapping[str, str]:
        return {"hand_model": "a blob"}

    @property
    def faces_left(self) -> np.ndarray:
        return self.faces[:, [0, 2, 1]]

    def _place(self, points: np.ndarray, params: HandParams, is_right: Tensor) -> Tensor:
        side = torch.where(is_right, 1.0, -1.0).double()[:, None, None] * torch.tensor([1.0, 0, 0]).double()
        local = torch.from_numpy(points) * (side + torch.tensor([0, 1.0, 1.0]).double())
        return local @ so3_exp(params.global_orient).mT + params.transl[:, None]


@pytest.fixture(scope="session")
def blob() -> Blob:
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=3)
    directions = np.array(sphere.vertices)
    x, y, z = directions.T
    radius = 0.05 * (1 + 0.35 * np.sin(3 * x + 1) * np.cos(2 * y) + 0.25 * z * x)
    template = directions * radius[:, None] * [1.0, 1.5, 0.6]
    spread = np.linspace(0, len(template) - 1, 21).astype(int)
    return Blob(template, np.array(sphere.faces), template[spread] * 0.8)


@pytest.fixture
def make_result(blob: Blob) -> Callable[..., FitResult]:
    """`make_result(n, image=..., ids=..., dist=..., known=...)`: n fits, every third one left, row 2 without one."""

    def make(
        n: int,
        image: str | list[str] = "",
        ids: list[str] | None = None,
        dist: list[float] | None = None,
        known: bool = True,
    ) -> FitResult:
        random = torch.Generator().manual_seed(5)
        orient = torch.randn(n, 3, generator=random).double()
        place = torch.randn(n, 3, generator=random).double() * 0.05 + torch.tensor([0, 0, 0.6]).double()
        params = HandParams(orient, torch.zeros(n, 45).double(), torch.zeros(n, 10).double(), place)
        is_right = torch.arange(n) % 3 != 1
        camera = Camera(
            torch.full((n, 2), 500.0).double(),
            torch.tensor([[319.5, 239.5]]).double().repeat(n, 1),
            None if dist is None else torch.tensor([dist]).double().repeat(n, 1),
            torch.full((n,), known),
        )
        joints = blob.joints(params, is_right)
        fitted = camera.project(joints)
        noise = 2 * torch.randn(n, 21, 2, generator=random).double()
        conf = torch.rand(n, 21, generator=random).double()
        points = torch.cat([fitted + noise, conf[..., None]], 2)
        lost = torch.zeros(n, dtype=torch.bool)
        if n > 2:
            lost[2] = True
        status = torch.where(lost, int(Status.TOO_FEW_POINTS), int(Status.CONVERGED))

        def nan(t: Tensor) -> Tensor:
            return torch.where(lost.reshape(-1, *[1] * (t.ndim - 1)), float("nan"), t)

        rms = nan((noise.square().sum(2) * conf).sum(1) / conf.sum(1)).sqrt()
        terms = {"keypoints": rms * 3, "pose_prior": rms * 2}
        return FitResult(
            params=HandParams(*(nan(t) for t in params.tensors())),
            joints=nan(joints),
            keypoints_3d=nan(joints),
            keypoints_3d_sd=nan(torch.full_like(joints, 0.004)),
            depth_sd=rms / 100,
            expected_error_mm=rms * 2,
            weakest=("distance along the viewing ray",) * n,
            plausible=~lost,
            doubts=("",) * n,
            keypoints=Keypoints.from_arrays(points, is_right, (640.0, 480.0), ids, image=image),
            camera=camera,
            keypoints_2d_fit=nan(fitted),
            energy=rms * 5,
            energy_terms=terms,
            rms_px=rms,
            status=status,
            steps=torch.full((n,), 9),
            hypothesis_gap=torch.where(torch.arange(n) % 2 == 0, float("inf"), 0.5).double(),
            hand=blob,
            provenance={"recipe": "none"},
        )

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A 640x480 PNG of a smooth gradient."""
    from PIL import Image

    rows, columns = np.mgrid[0:480, 0:640]
    pixels = np.stack([columns * 255 // 639, rows * 255 // 479, np.full_like(rows, 128)], 2).astype(np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path
