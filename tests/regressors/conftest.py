"""A small untrained lifter of the embedded hand, and keypoints to lift."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.hand.load import embedded_hand
from handloop.regressors.base import KeypointBatch
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import LifterNetwork, NetworkSize


@pytest.fixture
def lifter() -> Lifter:
    """Random weights large enough that everything depends on everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LifterNetwork(NetworkSize(32, 2))
    return Lifter.of(network, embedded_hand().right)


def _batch_of(
    points: torch.Tensor, is_right: bool | torch.Tensor = True, layout: KeypointLayout | None = None
) -> KeypointBatch:
    """Keypoints (N, 21, 2|3) under f 512 and a principal point of binary fractions, so that mirroring is exact."""
    n = len(points)
    camera = Camera(
        torch.full((n, 2), 512.0, dtype=torch.float64), torch.tensor([[320.5, 240.0]]).double().repeat(n, 1)
    )
    return KeypointBatch(
        Keypoints.from_arrays(points, is_right), camera, KeypointLayout.identity() if layout is None else layout
    )


def _some_points(n: int, seed: int = 0) -> torch.Tensor:
    """(n, 21, 2) px in steps of a quarter."""
    g = torch.Generator().manual_seed(seed)
    return (1200 + 400 * torch.randn(n, 21, 2, generator=g)).round().double() / 4


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., KeypointBatch]:
    """`batch_of(points, is_right=True, layout=None)`."""
    return _batch_of


@pytest.fixture(scope="session")
def some_points() -> Callable[..., torch.Tensor]:
    """`some_points(n, seed=0)`."""
    return _some_points
