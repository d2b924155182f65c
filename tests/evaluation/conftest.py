"""Hands with known errors, and small results files; nothing here is computed by the code under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.hand.load import embedded_hand
from handloop.hand.mesh import skin
from handloop.hand.model import HandPair

Arrays = dict[str, np.ndarray]
TO_CANONICAL = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
SMPLX_TIPS = [744, 320, 443, 554, 671]


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MANO file of whoever runs the tests; messages on one line each."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture(scope="session")
def pair() -> HandPair:
    """The embedded hand."""
    return embedded_hand()


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(3)


@pytest.fixture
def hands(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(12, 21, 3) true points half a metre away, and the same with 10 mm of noise."""
    truth = 0.05 * torch.randn(12, 21, 3, dtype=torch.float64, generator=generator)
    truth[..., 2] += 0.5
    return truth, truth + 0.01 * torch.randn(12, 21, 3, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="session")
def results(pair: HandPair) -> Arrays:
    """A results.npz of six hands as its documentation describes it: the third is a left hand, the fifth has no fit."""
    g = torch.Generator().manual_seed(5)
    n = 6
    right = torch.tensor([True, True, False, True, True, True])
    orient, pose = (scale * torch.randn(n, k, dtype=torch.float64, generator=g) for scale, k in ((0.5, 3), (0.2, 45)))
    betas = torch.randn(n, 10, dtype=torch.float64, generator=g)
    transl = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64).repeat(n, 1)
    points = torch.zeros(n, 21, 3, dtype=torch.float64)
    for i in range(n):
        hand = pair.side(bool(right[i]))
        row = slice(i, i + 1)
        vertices, joints = skin(hand, orient[row], pose[row], betas[row], transl[row])
        points[i] = torch.cat([joints, vertices[:, SMPLX_TIPS]], 1)[0, TO_CANONICAL]
    for array in (orient, pose, betas, transl, points):
        array[4] = torch.nan
    return {
        **{"global_orient": orient.numpy(), "hand_pose": pose.numpy(), "betas": betas.numpy()},
        **{"transl": transl.numpy(), "joints": points.numpy(), "keypoints_3d": points.numpy()},
        "is_right": right.numpy(),
        "status": np.array([0, 1, 0, 0, 2, 0]),
        "id": np.array([f"hand{i}" for i in range(n)]),
        "focal_length": np.full((n, 2), 600.0),
        "princpt": np.full((n, 2), 320.0),
        "camera_known": np.ones(n, dtype=bool),
        "tip_set": np.array("smplx"),
        "joint_definition": np.array("skinning"),
        "hand_model": np.array(pair.right.name),
        "hand_model_digest": np.array(f"{pair.right.digest} {pair.left.digest}"),
    }


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, Arrays], Path]:
    """Write arrays as an npz below the test's folder."""

    def write(name: str, arrays: Arrays) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return path

    return write
