"""The fused engine against the tensor engine: every term at once, at one state and after whole solves."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

import handloop
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.rotations import so3_exp
from handloop.core.terms import FOCAL, HandState
from handloop.fitting.anchor import Anchor
from handloop.fitting.engines import TensorEngine, free_parameters, standard_terms
from handloop.fitting.fused.engine import FusedEngine
from handloop.fitting.observe import Observations
from handloop.fitting.posterior import Posterior
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import Recipe
from handloop.fitting.starts import Views
from handloop.hand.load import embedded_hand
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior

F64 = torch.float64
PAIR = embedded_hand()
N = 40


RECIPES = {
    "standard": Recipe(focal_sigma=0.1),
    "extras": Recipe(
        focal_sigma=0.1, coupling_sigma_deg=8.0, spread=True, hyperextension=1.5, kernel="cauchy", robust=4
    ),
    "huber": Recipe(kernel="huber", robust=3.0, fixed=("betas",)),
}


def anchor(state: HandState, g: torch.Generator) -> Anchor:
    """To somewhere near, with no opinion (and no number) on some joints and hands."""
    near = state.retract(0.3 * torch.randn(N, 62, dtype=F64, generator=g))
    known = torch.rand(N, 16, generator=g) > 0.3
    rotations = torch.where(known[..., None, None], near.rotations, float("nan"))
    rest = (torch.rand(N, 13, generator=g) > 0.3) * torch.rand(N, 13, dtype=F64, generator=g) * 20
    return Anchor.of(rotations, near.betas, near.root, known.double() * 5, rest[:, :10], rest[:, 10:])


@pytest.fixture(scope="module", params=RECIPES)
def engines(request: pytest.FixtureRequest) -> tuple[FusedEngine, TensorEngine, HandState]:
    """Both engines: layout, 3D points, known lengths, free and known focal lengths, missing points, a mixture."""
    recipe = RECIPES[request.param]
    g = torch.Generator().manual_seed(0)
    layout = KeypointLayout(
        "test",
        0.01 * torch.randn(21, 3, dtype=F64, generator=g),
        0.3 * torch.randn(10, dtype=F64, generator=g),
    )
    own = GaussianPosePrior.from_hand(PAIR.right)
    covariance = torch.linalg.inv(own.precision_factor @ own.precision_factor.T).numpy()
    means = np.stack([own.mean.numpy() - 0.1, own.mean.numpy() + 0.1, np.zeros(45)])
    mixture = MixturePosePrior.of(np.array([0.5, 0.3, 0.2]), means, np.stack([covariance, 2 * covariance, covariance]))
    prior = own if request.param == "standard" else mixture
    model = HandModels.of(PAIR, layout=layout, pose_prior=prior).right
    poses = torch.tensor(PAIR.right.poses())[torch.randint(2000, (N,), generator=g)]
    turn = so3_exp(1.5 * torch.randn(N, 3, dtype=F64, generator=g))
    rotations = torch.cat([turn[:, None], so3_exp(poses.reshape(N, 15, 3))], 1)
    root = torch.cat([0.05 * torch.randn(N, 2, generator=g), 0.5 + 0.2 * torch.rand(N, 1, generator=g)], 1).double()
    truth = HandState(rotations, torch.randn(N, 10, dtype=F64, generator=g), root, torch.zeros(N, dtype=F64))
    points = model.kinematics.points(truth.rotations, truth.betas, truth.root)
    uv = 600 * points[..., :2] / points[..., 2:] + 2 * torch.randn(N, 21, 2, dtype=F64, generator=g)
    conf = (torch.rand(N, 21, 1, generator=g) > 0.2).double() * torch.rand(N, 21, 1, dtype=F64, generator=g)
    camera = Camera(torch.full((N, 2), 580.0, dtype=F64), torch.zeros(N, 2, dtype=F64), known=torch.arange(N) % 2 == 0)
    length = torch.where(torch.arange(N) % 3 == 0, 0.19, float("nan")).double()
    weight = (torch.rand(N, 21, 1, generator=g) > 0.5).double()
    given = torch.cat([points + 0.004 * torch.randn(N, 21, 3, dtype=F64, generator=g), weight], 2)
    keypoints = Keypoints.from_arrays(torch.cat([uv, conf], 2))
    seen = Observations.of(keypoints, camera, recipe, length, model.like, given)
    free = free_parameters(recipe, model.like.device)
    pull = anchor(truth, g) if request.param == "extras" else None
    terms = standard_terms(model, seen, recipe) + ([] if pull is None else [pull])
    moved = 0.2 * torch.randn(N, 62, dtype=F64, generator=g)
    if recipe.focal_sigma is None:
        moved[:, FOCAL] = 0
    return (
        FusedEngine.of(model, seen, recipe, free, pull),
        TensorEngine(model.kinematics, terms, free),
        truth.retract(moved),
    )


def test_energies_and_posterior_are_the_same(engines: tuple[FusedEngine, TensorEngine, HandState]) -> None:
    fused, tensor, state = engines
    a, b = fused.finish(state, True), tensor.finish(state, True)
    assert set(a.terms) - set(b.terms) <= {"focal"} and set(b.terms) <= set(a.terms)
    assert all(float(value.max()) > 0 for value in b.terms.values())
    for name, value in b.terms.items():
        assert float(((a.terms[name] - value).abs() / (1 + value)).max()) < 1e-10, name
    assert a.posterior is not None and b.posterior is not None
    for field in fields(Posterior):
        left, right = getattr(a.posterior, field.name), getattr(b.posterior, field.name)
        assert left.shape == right.shape
        off = (left - right).abs() / right.abs().clamp(min=1e-9)
        if field.name == "condition":
            # By iteration in the one, exactly in the other.
            assert float(off.max()) < 0.4 and float(off.median()) < 0.1
        else:
            assert float(off.max()) < 1e-5, field.name


def test_solves_end_in_the_same_place(engines: tuple[FusedEngine, TensorEngine, HandState]) -> None:
    fused, tensor, state = engines
    hand = torch.arange(N)
    a, b = fused.solve(state, hand, Recipe().solver), tensor.solve(state, hand, Recipe().solver)
    relative = (a.energy - b.energy).abs() / b.energy
    # A step that is accepted in one and refused in the other by the last digit may lead a hand elsewhere.
    assert float((relative < 1e-4).double().mean()) >= 0.95
    assert float(relative.median()) < 1e-8


def test_starts_are_the_same(engines: tuple[FusedEngine, TensorEngine, HandState]) -> None:
    """Both flips of each seed, in either order; one hand has two points only, one none of the palm's."""
    fused, tensor, _ = engines
    model = HandModels.of(PAIR).right
    weight = torch.from_numpy(fused.many.inverse_sigma > 0).double()
    focal, centre = (torch.from_numpy(a)[:, None] for a in (fused.many.focal, fused.many.princpt))
    rays = (torch.from_numpy(fused.many.uv) - centre) / focal
    # Far outliers on the palm of some, so that points are left out; no palm points, and two points only.
    rays[5:20, 9] += 0.4
    weight[0, 2:] = 0
    weight[1, [0, 5, 9, 13, 17]] = 0
    views = Views(rays, weight)
    a, b = (e.starts(model.kinematics, model.seeds[:4], views) for e in (fused, tensor))
    here, there = (torch.cat([s.rotations.flatten(1), s.root, s.betas], 1).reshape(N, 4, 2, -1) for s in (a, b))
    straight, crossed = ((here - x).abs().amax((2, 3)) for x in (there, there.flip(2)))
    # With two points most of the pose is free: which flip is better is decided by rounding.
    assert float(torch.minimum(straight, crossed)[1:].max()) < 1e-6
    assert bool(torch.isfinite(here).all())


def test_a_published_method_refuses_what_it_does_not_know() -> None:
    points = np.random.default_rng(0).uniform(100, 300, (2, 21, 2))
    with pytest.raises(InputError, match="'spin' is a published method that knows nothing of a hand length"):
        handloop.fit(points, recipe="spin", hand_length_mm=180.0)
    with pytest.raises(InputError, match="knows nothing of 3D points"):
        handloop.fit_joints(np.random.default_rng(1).normal(0, 0.05, (2, 21, 3)), recipe="smplify")


def test_a_normalised_camera_is_refused() -> None:
    with pytest.raises(InputError, match="focal length of 1 px, expected hundreds; is K normalised"):
        handloop.fit(np.zeros((1, 21, 2)) + np.arange(21)[:, None], K=np.eye(3))


def test_a_known_focal_length_stays_to_the_bit() -> None:
    uv = np.random.default_rng(2).uniform(100, 300, (3, 21, 2))
    result = handloop.fit(uv, K=[[600, 0, 200], [0, 600, 200], [0, 0, 1]], recipe=Recipe(focal_sigma=0.3))
    assert bool((result.camera.focal == 600).all())


def test_points_that_are_no_hand_are_doubted() -> None:
    joints = np.random.default_rng(3).normal(0, 0.06, (20, 21, 3))
    result = handloop.fit_joints(joints, hand=PAIR)
    assert not bool(result.plausible.any()) and all("the joints miss the 3D points" in text for text in result.doubts)
    assert float(result.expected_error_mm.median()) > 15
