"""Synthetic hands, and helpers that know nothing of the code under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.rotations import so3_exp
from handloop.core.terms import N_PARAMS, HandState
from handloop.fitting.problem import FitModel, HandModels
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand

F64 = torch.float64
FOCAL, CENTRE = 600.0, (320.0, 240.0)


@pytest.fixture(autouse=True)
def no_mano_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must not see the MANO files of whoever runs them."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)


@pytest.fixture(scope="session")
def models() -> HandModels:
    """The embedded hand, float64, CPU."""
    return HandModels.of(embedded_hand())


@pytest.fixture(scope="session")
def model(models: HandModels) -> FitModel:
    """Its right side."""
    return models.right


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Hands with known truth before one camera."""

    state: HandState
    points: Tensor
    """(n, 21, 3) m."""
    uv: Tensor
    """(n, 21, 2) exact projections, px, f = 600, centre (320, 240)."""

    def __len__(self) -> int:
        return len(self.state)

    @property
    def camera(self) -> Camera:
        n = len(self)
        return Camera(torch.full((n, 2), FOCAL, dtype=F64), torch.tensor(CENTRE, dtype=F64).repeat(n, 1))

    @property
    def K(self) -> list[list[float]]:  # noqa: N802
        return [[FOCAL, 0.0, CENTRE[0]], [0.0, FOCAL, CENTRE[1]], [0.0, 0.0, 1.0]]


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """(n, 3, 3) uniform, by QR."""
    q, r = np.linalg.qr(torch.randn(n, 3, 3, dtype=F64, generator=generator).numpy())
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    q[:, :, 0] *= np.linalg.det(q)[:, None]
    return torch.tensor(q)


def synthesise(model: FitModel, poses: np.ndarray, n: int, seed: int) -> Synthetic:
    """Hands of the model's own poses, N(0, 1) betas, seen from everywhere at 0.45 to 0.75 m."""
    g = torch.Generator().manual_seed(seed)
    pose = torch.tensor(poses)[torch.randint(len(poses), (n,), generator=g)]
    rotations = torch.cat([random_rotations(n, g)[:, None], so3_exp(pose.reshape(n, 15, 3))], 1)
    betas = torch.randn(n, 10, dtype=F64, generator=g)
    across = 0.1 * torch.randn(n, 2, dtype=F64, generator=g)
    depth = 0.45 + 0.3 * torch.rand(n, 1, dtype=F64, generator=g)
    root = torch.cat([across, depth], 1)
    points = model.kinematics.points(rotations, betas, root)
    uv = FOCAL * points[..., :2] / points[..., 2:] + torch.tensor(CENTRE, dtype=F64)
    return Synthetic(HandState(rotations, betas, root, torch.zeros(n, dtype=F64)), points, uv)


@pytest.fixture(scope="session")
def synthetic(models: HandModels) -> Callable[..., Synthetic]:
    """`synthetic(n, seed)`."""
    poses = models.pair.right.poses()
    return lambda n, seed=0: synthesise(models.right, poses, n, seed)


@pytest.fixture(scope="session")
def spread_model() -> FitModel:
    """The embedded hand with skinning weights on all joints and dense blend shapes, as licensed models have."""
    rng = np.random.default_rng(5)
    right = embedded_hand().right
    hand = replace(right, posedirs=rng.normal(0, 0.003, (778, 3, 135)), weights=rng.dirichlet(0.3 * np.ones(16), 778))
    return FitModel.of(hand, F64, "cpu")


@pytest.fixture(scope="session")
def hard_state(synthetic: Callable[..., Synthetic]) -> HandState:
    """100 states in front of the camera: ordinary, straight fingers, nearly zero rotations, angles near pi, betas 0."""
    g = torch.Generator().manual_seed(1)
    state = synthetic(100, 77).state
    pose = 0.7 * torch.randn(100, 15, 3, dtype=F64, generator=g)
    axis = torch.nn.functional.normalize(torch.randn(100, 15, 3, dtype=F64, generator=g), dim=-1)
    pose[:10] = 0
    pose[10:20] *= 1e-8
    pose[20:30] = (torch.pi - 1e-3) * axis[20:30]
    rotations = state.rotations.clone()
    rotations[:60, 1:] = so3_exp(pose[:60])
    rotations[:5, 0] = torch.eye(3, dtype=F64)
    betas = state.betas.clone()
    betas[:5] = 0
    # Far enough that no finger comes behind the camera or close to it, whatever the pose.
    root = state.root + torch.tensor([0.0, 0.0, 0.2], dtype=F64)
    return HandState(rotations, betas, root, 0.1 * torch.randn(100, dtype=F64, generator=g))


def increment_derivative(function: Callable[[HandState], Tensor], state: HandState, step: float) -> Tensor:
    """(B, R, 62) derivative of (B, R) values by the increments of `retract`, by fourth-order differences."""

    def at(column: int, by: float) -> Tensor:
        delta = state.betas.new_zeros(len(state), N_PARAMS)
        delta[:, column] = by
        return function(state.retract(delta))

    columns = [
        (8 * (at(c, step) - at(c, -step)) - (at(c, 2 * step) - at(c, -2 * step))) / (12 * step) for c in range(N_PARAMS)
    ]
    return torch.stack(columns, -1)


@pytest.fixture(scope="session")
def derivative() -> Callable[..., Tensor]:
    """`derivative(function, state, step)`, see `increment_derivative`."""
    return lambda function, state, step=1e-3: increment_derivative(function, state, step)


@pytest.fixture(scope="session")
def kinematics(model: FitModel) -> Kinematics:
    """The right side's kinematics."""
    return model.kinematics
