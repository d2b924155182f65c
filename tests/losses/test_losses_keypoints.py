"""Losses on points: formulas by hand, weights, saturation, gradients."""

from __future__ import annotations

import torch

from handloop.losses.keypoints import points_loss, reprojection_loss

F64 = torch.float64


def test_points_are_compared_wrist_on_wrist() -> None:
    true = torch.randn(3, 21, 3, dtype=F64)
    assert bool((points_loss(true + torch.tensor([5.0, -3.0, 2.0], dtype=F64), true) < 1e-12).all())
    moved = true.clone()
    moved[:, 4] += torch.tensor([0.3, 0.0, -0.6], dtype=F64)
    torch.testing.assert_close(points_loss(moved, true), torch.full((3,), 0.3 / 21, dtype=F64))


def test_points_without_a_label_do_not_count() -> None:
    true = torch.randn(2, 21, 3, dtype=F64)
    moved = true.clone()
    moved[:, 4] += 1.0
    moved[:, 7] = float("nan")
    weight = torch.ones(2, 21, dtype=F64)
    weight[:, 7] = 0
    torch.testing.assert_close(points_loss(moved, true, weight)[0], torch.tensor(1 / 20, dtype=F64))
    weight[1, 0] = 0
    assert float(points_loss(moved, true, weight)[1]) == 0


def test_reprojection_by_hand_and_its_cap() -> None:
    seen = torch.zeros(2, 4, 2, dtype=F64)
    predicted = seen.clone()
    predicted[0, 1] = torch.tensor([3.0, -1.0])
    predicted[1, 1] = torch.tensor([1000.0, 0.0])
    weight = torch.tensor([[1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=F64)
    loss = reprojection_loss(predicted, seen, weight, torch.tensor([10.0, 10.0], dtype=F64), cap=2.0)
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.2 / 2.5, 1.0 / 2], dtype=F64))


def test_missing_points_may_be_anything() -> None:
    seen = torch.full((1, 3, 2), float("nan"))
    predicted = torch.ones(1, 3, 2, requires_grad=True)
    loss = reprojection_loss(predicted, seen, torch.zeros(1, 3), torch.ones(1), cap=2.0)
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert predicted.grad is not None and bool((predicted.grad == 0).all())


def test_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, dtype=F64, generator=g), torch.randn(2, 5, 3, dtype=F64, generator=g)
    weight = torch.rand(2, 5, dtype=F64, generator=g)
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: points_loss(x, b, weight), (a,))
    scale = torch.ones(2, dtype=F64)
    assert torch.autograd.gradcheck(lambda x: reprojection_loss(x[..., :2], b[..., :2], weight, scale, 2.0), (a,))
