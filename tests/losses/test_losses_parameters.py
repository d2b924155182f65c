"""Losses on parameters: their formulas by hand, gradients, labels that are missing."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import norm

from handloop.losses.parameters import betas_loss, gaussian_nll, log_depth_loss, rotation_error, rotation_loss

F64 = torch.float64


def turns(n: int, seed: int) -> torch.Tensor:
    return torch.tensor(Rotation.random(n, random_state=seed).as_matrix())


def test_rotation_loss_is_two_minus_two_cosines() -> None:
    a, b = turns(12, 0).reshape(4, 3, 3, 3), turns(12, 1).reshape(4, 3, 3, 3)
    angle = (Rotation.from_matrix(a.reshape(-1, 3, 3)).inv() * Rotation.from_matrix(b.reshape(-1, 3, 3))).magnitude()
    expected = torch.tensor(2 - 2 * torch.tensor(angle).cos().numpy()).reshape(4, 3).mean(1)
    torch.testing.assert_close(rotation_loss(a, b), expected)


def test_rotation_error_is_the_vector_between() -> None:
    a = turns(6, 2).reshape(2, 3, 3, 3)
    step = torch.tensor(Rotation.from_rotvec([[0.1, -0.2, 0.3]] * 6).as_matrix()).reshape(2, 3, 3, 3)
    expected = torch.tensor([0.1, -0.2, 0.3], dtype=F64).expand(2, 3, 3)
    torch.testing.assert_close(rotation_error(a, a @ step), expected)


def test_betas_and_depth_by_hand() -> None:
    assert betas_loss(torch.tensor([[1.0] * 10]), torch.tensor([[-1.0] * 10])).tolist() == [4.0]
    loss = log_depth_loss(torch.tensor([math.log(0.5)]), torch.tensor([math.log(1.0)]))
    assert float(loss) == pytest.approx(math.log(2))


def test_nll_is_the_normal_density() -> None:
    error, log_sd = torch.randn(5, 2, 3, dtype=F64), torch.randn(5, 2, dtype=F64)
    density = -norm.logpdf(error.numpy(), scale=log_sd.exp().numpy()[..., None]).mean((1, 2))
    expected = torch.tensor(density) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(error, log_sd), expected)


def test_nll_is_least_at_the_root_mean_square() -> None:
    error = torch.tensor([[[0.3, -0.5, 0.1]]], dtype=F64)
    log_sd = error.square().mean().sqrt().log().reshape(1, 1).requires_grad_()
    gaussian_nll(error, log_sd).sum().backward()
    assert log_sd.grad is not None and abs(float(log_sd.grad)) < 1e-12


def test_hands_without_a_label_do_not_count() -> None:
    valid = torch.tensor([True, False])
    predicted = torch.zeros(2, 10, requires_grad=True)
    loss = betas_loss(predicted, torch.ones(2, 10), valid)
    assert loss.tolist() == [1.0, 0.0]
    loss.sum().backward()
    assert predicted.grad is not None and bool((predicted.grad[1] == 0).all() and (predicted.grad[0] != 0).all())
    assert rotation_loss(turns(2, 0)[:, None], turns(2, 1)[:, None], valid)[1] == 0
    assert log_depth_loss(torch.ones(2), torch.zeros(2), valid).tolist() == [1.0, 0.0]


def test_gradients_are_right_and_finite_at_no_error() -> None:
    a = turns(4, 3).reshape(2, 2, 3, 3).requires_grad_()
    b = turns(4, 4).reshape(2, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda r: rotation_loss(r, b), (a,))
    same = turns(4, 3).reshape(2, 2, 3, 3).requires_grad_()
    rotation_error(same, same.detach()).sum().backward()
    assert same.grad is not None and bool(same.grad.isfinite().all())
