"""The mask loss against hand calculations, its gradient, and the losses on meshes and squared distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from handloop.losses.keypoints import points_loss, vertices_loss
from handloop.losses.mask import distance_field, mask_loss, mask_pixels


def square_mask() -> np.ndarray:
    """20 x 20 px, pixels 5..9 in x and 8..11 in y."""
    mask = np.zeros((20, 20), bool)
    mask[8:12, 5:10] = True
    return mask


def tensors(mask: np.ndarray, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(distance_field(mask))[None].double(), torch.from_numpy(mask_pixels(mask, count))[
        None
    ].double()


def loss_of(points: list[list[float]], mask: np.ndarray, cap: float = 1.0, count: int = 64) -> float:
    field, pixels = tensors(mask, count)
    return float(mask_loss(torch.tensor([points]).double(), field, pixels, torch.tensor([True]), cap))


def test_the_field_is_the_distance_to_the_nearest_pixel() -> None:
    field = distance_field(square_mask())
    assert field[9, 7] == 0 and field[9, 12] == 3 and field[4, 1] == pytest.approx(np.hypot(4, 4))
    assert not distance_field(np.zeros((4, 4), bool)).any()
    pixels = mask_pixels(square_mask(), 20)
    assert {tuple(p) for p in pixels.astype(int).tolist()} == {(x, y) for x in range(5, 10) for y in range(8, 12)}
    assert np.isnan(mask_pixels(np.zeros((4, 4), bool), 3)).all()


def test_vertices_outside_pay_their_distance_and_bare_pixels_theirs() -> None:
    everywhere = [[x, y] for x in range(5, 10) for y in range(8, 12)]
    assert loss_of(everywhere, square_mask()) == pytest.approx(0.001 / 20, abs=1e-6)
    # One of 21 vertices 3 px to the right of the mask; all of the mask stays covered.
    assert loss_of([*everywhere, [12, 9]], square_mask()) == pytest.approx(3 / 21 / 20, abs=1e-4)
    # All vertices in one corner: nothing is outside, the mask is bare.
    ys, xs = np.mgrid[8:12, 5:10]
    bare = np.hypot(xs - 5, ys - 8).mean() / 20
    assert loss_of([[5, 8]] * 3, square_mask(), count=20) == pytest.approx(bare, abs=1e-3)
    assert loss_of([[5, 8], [500, 9]], square_mask(), cap=0.25, count=20) == pytest.approx(0.125 + bare, abs=1e-3)
    # A vertex behind the camera does not count.
    assert loss_of([*everywhere, [float("nan")] * 2], square_mask()) == pytest.approx(0.001 / 20, abs=1e-6)


def test_hands_without_a_mask_cost_nothing_and_gradients_are_finite() -> None:
    field, pixels = tensors(square_mask())
    nothing = torch.full_like(pixels, float("nan"))
    points = torch.tensor([[[7.0, 9.0], [25.0, 3.0], [-4.0, 30.0]]], dtype=torch.float64).repeat(3, 1, 1)
    points[2] = float("nan")
    points.requires_grad_()
    valid = torch.tensor([True, False, True])
    loss = mask_loss(points, field.repeat(3, 1, 1), torch.cat([pixels, nothing, pixels]), valid, cap=9.0)
    assert loss[1] == 0 and loss[2] == 0 and loss[0] > 0
    loss.sum().backward()
    assert points.grad is not None and bool(torch.isfinite(points.grad).all())
    assert not points.grad[1:].any()
    # A step against the gradient goes to the mask: right and up.
    assert float(points.grad[0, 2, 0]) < 0 < float(points.grad[0, 2, 1])


def test_the_gradient_is_the_derivative() -> None:
    field, pixels = tensors(square_mask(), 7)
    g = torch.Generator().manual_seed(0)
    points = (20 * torch.rand(100, 5, 2, generator=g, dtype=torch.float64)).requires_grad_()
    many = (field.expand(100, -1, -1), pixels.expand(100, -1, -1), torch.ones(100, dtype=torch.bool), 1e9)
    loss = mask_loss(points, *many)
    (gradient,) = torch.autograd.grad(loss.sum(), points)
    step = 1e-6 * torch.randn(points.shape, generator=g, dtype=torch.float64)
    change = mask_loss(points.detach() + step, *many) - mask_loss(points.detach() - step, *many)
    expected = 2 * (gradient * step).sum((1, 2))
    # Bilinear cells and nearest vertices have kinks, which a few of 100 random hands may straddle.
    close = (change - expected).abs() <= 1e-5 * expected.abs() + 1e-14
    assert int(close.sum()) >= 97


def test_vertices_do_not_depend_on_place_or_missing_labels() -> None:
    g = torch.Generator().manual_seed(1)
    true = torch.randn(3, 10, 3, generator=g)
    moved = true + torch.tensor([1.0, 2.0, 3.0])
    moved[1, 0] += 10.0
    true[2] = float("nan")
    valid = torch.tensor([True, True, False])
    loss = vertices_loss(moved, true, valid)
    # The mean moves by 1, so vertex 0 is 9 away and the nine others 1.
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.8, 0.0]), atol=1e-5, rtol=0)


def test_squared_points_and_points_without_labels() -> None:
    ours = torch.zeros(1, 3, 3)
    true = torch.tensor([[[0.0, 0, 0], [3.0, 0, 0], [float("nan")] * 3]])
    weight = torch.tensor([[1.0, 1.0, 0.0]])
    assert float(points_loss(ours, true, weight, squared=True)) == pytest.approx(1.5)
    assert float(points_loss(ours, true, weight)) == pytest.approx(0.5)
