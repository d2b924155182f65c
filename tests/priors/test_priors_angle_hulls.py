"""Convex polygons of joint angles: distances against brute force, derivatives, and polygons from data."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from torch import Tensor

from handloop.core.errors import InputError
from handloop.priors.angle_hulls import N_DIRECTIONS, AngleHulls, support_polygon

F64 = torch.float64
TRIANGLE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
SQUARE = np.array([[-0.5, -0.2], [1.5, -0.2], [1.5, 0.2], [-0.5, 0.2]])


def random_polygon(seed: int, n: int = 30) -> np.ndarray:
    points = np.random.default_rng(seed).normal(0.3, 0.4, (n, 2))
    return points[ConvexHull(points).vertices]


@pytest.fixture(scope="module")
def polygons() -> list[np.ndarray]:
    """15 of 3 to a dozen corners, every other one clockwise."""
    some = [TRIANGLE, SQUARE, *(random_polygon(i) for i in range(13))]
    return [p[::-1] if i % 2 else p for i, p in enumerate(some)]


@pytest.fixture(scope="module")
def hulls(polygons: list[np.ndarray]) -> AngleHulls:
    return AngleHulls.of(polygons)


@pytest.fixture(scope="module")
def angles() -> Tensor:
    """(100, 15, 2) rad, inside and out."""
    return 0.3 + 0.9 * torch.randn(100, 15, 2, dtype=F64, generator=torch.Generator().manual_seed(0)).clamp(-2.2, 2.2)


def boundary(polygon: np.ndarray) -> np.ndarray:
    """(n, 2) dense points."""
    share = np.linspace(0, 1, 2001)[:, None]
    return np.concatenate([a + share * (b - a) for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True)])


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    planes = ConvexHull(polygon).equations
    return np.asarray((points @ planes[:, :2].T + planes[:, 2] <= 1e-12).all(1))


def test_polygons_come_back_counter_clockwise(hulls: AngleHulls, polygons: list[np.ndarray]) -> None:
    for given, kept in zip(polygons, hulls.polygons(), strict=True):
        assert {tuple(p) for p in given} == {tuple(p) for p in kept} and len(given) == len(kept)
        step = np.roll(kept, -1, 0) - kept
        after = np.roll(step, -1, 0)
        assert (step[:, 0] * after[:, 1] - step[:, 1] * after[:, 0] > 0).all()


def test_known_distances() -> None:
    hulls = AngleHulls.of([TRIANGLE])
    points = torch.tensor([[0.2, 0.2], [0.5, -0.3], [2.0, 0.0], [1.0, 1.0], [-0.3, -0.4], [0.0, 0.0]], dtype=F64)
    distance = hulls.distance(points[:, None])[:, 0]
    np.testing.assert_allclose(distance.numpy(), [0, 0.3, 1, 0.5**0.5, 0.5, 0], atol=1e-15)
    assert hulls.excess(points[:, None])[1, 0].tolist() == [0.0, -0.3]


def test_distance_equals_brute_force(hulls: AngleHulls, polygons: list[np.ndarray], angles: Tensor) -> None:
    found = hulls.distance(angles).numpy()
    for joint, polygon in enumerate(polygons):
        points = angles[:, joint].numpy()
        brute = np.linalg.norm(points[:, None] - boundary(polygon), axis=2).min(1)
        brute[inside(polygon, points)] = 0
        np.testing.assert_allclose(found[:, joint], brute, atol=1e-3)
        assert ((found[:, joint] == 0) == inside(polygon, points)).all()


def test_paper_distance_equals_brute_force(hulls: AngleHulls, polygons: list[np.ndarray], angles: Tensor) -> None:
    """The nearest point of each edge is the Euclidean one; the least L1 distance of cosines and sines counts."""
    found = hulls.paper_distance(angles).numpy()
    for joint, polygon in enumerate(polygons):
        points = angles[:, joint].numpy()
        for p, value in zip(points, found[:, joint], strict=True):
            best = np.inf
            for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
                q = a + np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1) * (b - a)
                best = min(best, np.abs(np.cos(p) - np.cos(q)).sum() + np.abs(np.sin(p) - np.sin(q)).sum())
            assert value == pytest.approx(0 if inside(polygon, p[None])[0] else best, abs=1e-12)


def test_bent_past_half_a_turn_is_too_far_not_backwards() -> None:
    hulls = AngleHulls.of([np.deg2rad([[-20, -10], [110, -10], [110, 10], [-20, 10]])])
    flexion = torch.tensor([170.0, -170.0, -120.0]).double()
    excess = hulls.excess(torch.deg2rad(torch.stack([flexion, torch.zeros(3)], 1))[:, None])[:, 0, 0]
    np.testing.assert_allclose(excess.rad2deg().numpy(), [60, 80, -100], atol=1e-9)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_closed_form_equals_autograd(hulls: AngleHulls, angles: Tensor, dtype: torch.dtype) -> None:
    points = angles.to(dtype).requires_grad_()
    local = hulls.to(points)
    value = local.excess(points)
    rows = [torch.autograd.grad(value[..., i].sum(), points, retain_graph=True)[0] for i in range(2)]
    again, jac = local.excess_and_jacobian(points.detach())
    assert torch.equal(again, value.detach())
    tolerance = 1e-12 if dtype == F64 else 2e-5
    torch.testing.assert_close(jac, torch.stack(rows, -2), rtol=0.0, atol=tolerance)


def test_distance_has_unit_gradient_outside_and_none_inside(hulls: AngleHulls, angles: Tensor) -> None:
    corner = hulls.vertices[None, :, 0]
    points = torch.cat([angles, corner]).requires_grad_()
    distance = hulls.distance(points)
    (gradient,) = torch.autograd.grad(distance.sum(), points)
    assert bool(torch.isfinite(gradient).all())
    torch.testing.assert_close(gradient[:100].norm(dim=-1), (distance[:100] > 0).to(F64))
    step = 1e-6 * torch.randn(100, 15, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    numeric = (hulls.distance(angles + step) - hulls.distance(angles - step)) / 2
    settled = (distance[:100] > 1e-5) | (distance[:100] == 0)
    expected = (gradient[:100] * step).sum(-1)
    near = (numeric - expected).detach().abs()[settled]
    assert float(near.quantile(0.99)) < 1e-11
    paper = hulls.paper_distance(points)
    assert bool(torch.isfinite(torch.autograd.grad(paper.sum(), points)[0]).all())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(hulls: AngleHulls, angles: Tensor, dtype: torch.dtype) -> None:
    local, points = hulls.to(torch.zeros(0, dtype=dtype)), angles.to(dtype)
    for function in (local.excess, local.distance, local.paper_distance, lambda a: local.excess_and_jacobian(a)[1]):
        whole = function(points)
        for at in (torch.tensor([3]), torch.tensor([99, 0, 7]), torch.arange(99, -1, -1)):
            assert torch.equal(function(points[at]), whole[at])


# From data.


@pytest.mark.parametrize("shape", [(0.5, 0.05, 0.0), (0.5, 0.3, 0.8), (0.3, 0.3, 0.0)])
def test_support_polygon_without_trim_holds_everything_closely(shape: tuple[float, float, float]) -> None:
    a, b, slope = shape
    rng = np.random.default_rng(0)
    pairs = rng.uniform(-1, 1, (2000, 2)) * [a, b]
    pairs[:, 1] += slope * pairs[:, 0]
    polygon = support_polygon(pairs, 0.0)
    assert len(polygon) <= N_DIRECTIONS
    assert float(AngleHulls.of([polygon]).distance(torch.tensor(pairs)[:, None]).max()) < 1e-5
    assert ConvexHull(polygon).volume < 1.05 * ConvexHull(pairs).volume


def test_support_polygon_cuts_the_same_share_off_every_side() -> None:
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(20000, 2)) * [0.5, 0.1]
    polygon = support_polygon(pairs, 0.02)
    # The 2 % quantile of a normal distribution, on every side.
    np.testing.assert_allclose(polygon.max(0), [0.5 * 2.054, 0.1 * 2.054], rtol=0.05)
    outlier = np.concatenate([pairs, np.full((50, 2), 3.0)])
    assert np.abs(support_polygon(outlier, 0.02) - 0).max() < 1.2


def test_support_polygon_is_never_thinner_than_a_degree() -> None:
    rng = np.random.default_rng(2)
    line = rng.normal(size=(100, 1)) * [[0.3, 0.0]]
    for pairs in (line, np.zeros((100, 2)), line @ np.array([[1.0, 1.0], [0.0, 1.0]])):
        polygon = support_polygon(pairs, 0.0)
        hulls = AngleHulls.of([polygon])
        assert float(hulls.distance(torch.tensor(pairs)[:, None]).max()) < 1e-5
        assert np.rad2deg(np.ptp(polygon, axis=0)).min() > 0.999


def test_support_polygon_of_corners_that_count_in_any_case() -> None:
    polygon = support_polygon(np.zeros((0, 2)), 0.0, SQUARE)
    assert {tuple(p) for p in polygon.round(5)} == {tuple(p) for p in SQUARE}
    data = np.random.default_rng(3).normal(0, 0.1, (500, 2))
    both = AngleHulls.of([support_polygon(data, 0.01, SQUARE)])
    assert float(both.distance(torch.tensor(SQUARE)[:, None]).max()) < 1e-5


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        (TRIANGLE[:2], "hull 1 has shape (2, 2), expected at least 3 finite (flexion, abduction) corners."),
        (TRIANGLE * np.nan, "hull 1 has shape (3, 2), expected at least 3 finite (flexion, abduction) corners."),
        (TRIANGLE * [1, 0], "hull 1 is not a convex polygon with an area."),
        (SQUARE[[0, 2, 1, 3]], "hull 1 is not a convex polygon with an area."),
        (np.array([[0, 0], [1, 0], [0.2, 0.2], [0, 1.0]]), "hull 1 is not a convex polygon with an area."),
    ],
)
def test_hulls_that_are_none(polygon: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        AngleHulls.of([TRIANGLE, polygon])
