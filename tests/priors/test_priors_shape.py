"""The hand's length as a function of its shape."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.model import Hand
from handloop.priors.shape import HandLength

F64 = torch.float64


@pytest.fixture(scope="module", params=["embedded", "random directions"])
def hand(request: pytest.FixtureRequest) -> Hand:
    right = embedded_hand().right
    if request.param == "embedded":
        return right
    rng = np.random.default_rng(0)
    return replace(right, shapedirs=rng.normal(0, 0.003, (778, 3, 10)))


@pytest.fixture(scope="module")
def betas() -> Tensor:
    values = 1.5 * torch.randn(100, 10, dtype=F64, generator=torch.Generator().manual_seed(0))
    values[:3] = 0
    return values


def test_length_is_the_sum_of_the_middle_fingers_bones(hand: Hand, betas: Tensor) -> None:
    length, _ = HandLength.of(Kinematics.from_hand(hand)).length_and_gradient(betas)
    for i in range(0, 100, 7):
        vertices = hand.v_template + hand.shapedirs @ betas[i].numpy()
        joints = hand.j_regressor @ vertices
        chain = [joints[0], joints[4], joints[5], joints[6], vertices[hand.tip_ids[2]]]
        expected = sum(np.linalg.norm(b - a) for a, b in pairwise(chain))
        assert float(length[i]) == pytest.approx(expected, abs=1e-12)


def test_mean_hand_has_a_human_length() -> None:
    length, _ = HandLength.of(Kinematics.from_hand(embedded_hand().right)).length_and_gradient(
        torch.zeros(1, 10, dtype=F64)
    )
    assert 0.16 < float(length) < 0.21


def test_gradient(hand: Hand, betas: Tensor) -> None:
    model = HandLength.of(Kinematics.from_hand(hand))
    b = betas.clone().requires_grad_()
    length, gradient = model.length_and_gradient(b)
    (expected,) = torch.autograd.grad(length.sum(), b)
    scale = expected.abs().amax(1, keepdim=True)
    gradient = gradient.detach()
    assert float(((gradient - expected).abs() / scale).max()) < 1e-6
    step = 1e-4
    for column in range(10):
        e = step * torch.eye(10, dtype=F64)[column]
        numeric = (model.length_and_gradient(betas + e)[0] - model.length_and_gradient(betas - e)[0]) / (2 * step)
        assert float(((gradient[:, column] - numeric).abs() / scale[:, 0]).max()) < 1e-6


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hand_does_not_depend_on_its_batch(hand: Hand, betas: Tensor, dtype: torch.dtype) -> None:
    model = HandLength.of(Kinematics.from_hand(hand, dtype))
    length, gradient = model.length_and_gradient(betas.to(dtype))
    for at in (torch.tensor([13]), torch.tensor([98, 0, 7]), torch.arange(99, -1, -1)):
        some, some_gradient = model.length_and_gradient(betas[at].to(dtype))
        assert torch.equal(some, length[at]) and torch.equal(some_gradient, gradient[at])
