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
    def K(self) -> list[list[float]]:
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


def increment_derivative(
    function: Callable[[HandState, Tensor], Tensor], state: HandState, step: float, together: int
) -> Tensor:
    """(B, R, 62) derivative of values by the increments of `retract`, by fourth-order differences.

    `function` maps moved states and the hands (integer index) they belong to, to (n, R) values; it is called for many
    increments at a time, because small tensors are slow; with `together` 0, for one moved state of all hands at a time.
    """
    n = len(state)
    factors = torch.tensor([8.0, -8.0, -1.0, 1.0], dtype=F64) / (12 * step)
    steps = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=F64) * step
    columns = []
    for first in range(0, N_PARAMS, together or 16):
        some = torch.arange(first, min(first + (together or 16), N_PARAMS))
        delta = torch.zeros(len(some), 4, n, N_PARAMS, dtype=F64)
        for i, column in enumerate(some.tolist()):
            delta[i, :, :, column] = steps[:, None]
        rows = torch.arange(n).repeat(4 * len(some))
        moved = state.select(rows).retract(delta.flatten(0, 2))
        if together:
            values = function(moved, rows)
        else:
            each = torch.arange(n)
            values = torch.cat([function(moved.select(each + k * n), each) for k in range(4 * len(some))])
        values = values.reshape(len(some), 4, n, -1) * factors[:, None, None]
        columns.append((values[:, 0] + values[:, 1]) + (values[:, 2] + values[:, 3]))
    return torch.cat(columns).permute(1, 2, 0)


@pytest.fixture(scope="session")
def derivative() -> Callable[..., Tensor]:
    """`derivative(function, state, step)` for functions of a state of as many hands; see `increment_derivative`."""
    return lambda function, state, step=1e-3: increment_derivative(lambda s, _: function(s), state, step, 0)


@pytest.fixture(scope="session")
def derivative_by_rows() -> Callable[..., Tensor]:
    """`derivative_by_rows(function, state, step)` for functions of many states and whose they are."""
    return lambda function, state, step=1e-3: increment_derivative(function, state, step, 16)


@pytest.fixture(scope="session")
def kinematics(model: FitModel) -> Kinematics:
    """The right side's kinematics."""
    return model.kinematics
