"""The three losses: by hand, by an own numpy version, masks, gradients, batch independence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.rotations import so3_exp
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.losses.biomechanical import (
    BiomechanicalWeights,
    biomechanical_loss,
    bone_length_loss,
    joint_angle_loss,
    palm_loss,
)
from handloop.priors.angle_hulls import AngleHulls
from handloop.priors.biomechanical_limits import BiomechanicalLimits, Interval
from handloop.priors.biomechanics import Skeleton, bone_lengths, joint_angles, palm_structure

F64 = torch.float64
Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {
    "bone": lambda p, lim, right=True, vis=None: bone_length_loss(p, lim, vis),
    "palm": palm_loss,
    "paper": joint_angle_loss,
    "euclidean": lambda p, lim, right=True, vis=None: joint_angle_loss(p, lim, right, vis, "euclidean"),
    "all": biomechanical_loss,
}


@pytest.fixture(scope="module")
def hands() -> Tensor:
    """(40, 21, 3) m, right: the model's, and with up to 1 cm of noise; four straight ones."""
    hand = embedded_hand().right
    g = torch.Generator().manual_seed(0)
    pose = torch.tensor(hand.poses()[::50][:40]).reshape(40, 15, 3)
    pose[:4] = 0
    turned = torch.cat([so3_exp(torch.randn(40, 1, 3, dtype=F64, generator=g)), so3_exp(pose)], 1)
    betas, root = torch.randn(40, 10, dtype=F64, generator=g), torch.randn(40, 3, dtype=F64, generator=g)
    noise = 0.01 * torch.randn(40, 21, 3, dtype=F64, generator=g)
    noise[:10] = 0
    return Kinematics.from_hand(hand).points(turned, betas, root) + noise


@pytest.fixture(scope="module")
def limits() -> BiomechanicalLimits:
    hand = embedded_hand().right
    return BiomechanicalLimits.from_hand(replace(hand, hands_coeffs=hand.hands_coeffs[:300]))


def box(low_deg: float, high_deg: float) -> np.ndarray:
    low, high = np.deg2rad([low_deg, high_deg])
    return np.array([[low, low], [high, low], [high, high], [low, high]])


@pytest.fixture(scope="module")
def narrow() -> BiomechanicalLimits:
    """Ranges that every hand leaves by an amount known from its quantities."""

    def interval(n: int) -> Interval:
        return Interval(torch.full((n,), 0.4, dtype=F64), torch.full((n,), 0.5, dtype=F64))

    return BiomechanicalLimits(interval(20), interval(4), interval(4), AngleHulls.of([box(-2, 2)] * 15))


def test_formulas(hands: Tensor, narrow: BiomechanicalLimits) -> None:
    skeleton = Skeleton.of(hands)
    lengths, (curvature, spread) = bone_lengths(skeleton).value.numpy(), palm_structure(skeleton)
    angles = joint_angles(skeleton).value.numpy()

    def out(x: np.ndarray) -> np.ndarray:
        return np.maximum(0.4 - x, 0) + np.maximum(x - 0.5, 0)

    np.testing.assert_allclose(bone_length_loss(hands, narrow).numpy(), out(lengths).mean(1))
    expected = out(curvature.value.numpy()).mean(1) + out(spread.value.numpy()).mean(1)
    np.testing.assert_allclose(palm_loss(hands, narrow).numpy(), expected)
    nearest = np.clip(angles, *np.deg2rad([-2, 2]))
    euclidean = np.linalg.norm(angles - nearest, axis=-1).mean(1)
    np.testing.assert_allclose(joint_angle_loss(hands, narrow, metric="euclidean").numpy(), euclidean)
    # The paper's distance: the least over the box's four sides.
    low, high = np.deg2rad([-2, 2])
    clipped = np.clip(angles, low, high)
    sides = []
    for axis in (0, 1):
        for value in (low, high):
            q = clipped.copy()
            q[..., axis] = value
            apart = np.abs(np.cos(angles) - np.cos(q)) + np.abs(np.sin(angles) - np.sin(q))
            sides.append(apart.sum(-1))
    paper = np.where((angles == clipped).all(-1), 0, np.min(sides, axis=0)).mean(1)
    np.testing.assert_allclose(joint_angle_loss(hands, narrow).numpy(), paper)


def test_total_has_the_papers_weights(hands: Tensor, narrow: BiomechanicalLimits) -> None:
    expected = 0.1 * bone_length_loss(hands, narrow) + 0.1 * palm_loss(hands, narrow)
    torch.testing.assert_close(biomechanical_loss(hands, narrow), expected + 0.01 * joint_angle_loss(hands, narrow))
    only = biomechanical_loss(hands, narrow, weights=BiomechanicalWeights(0, 0, 2), metric="euclidean")
    torch.testing.assert_close(only, 2 * joint_angle_loss(hands, narrow, metric="euclidean"))


@pytest.mark.parametrize("name", LOSSES)
def test_zero_inside_and_not_outside(name: str, hands: Tensor, limits: BiomechanicalLimits) -> None:
    own = BiomechanicalLimits.from_joints(hands.repeat(2, 1, 1), True, trim=0.0)
    assert float(LOSSES[name](hands, own).max()) < 1e-6
    clean, noisy = LOSSES[name](hands[:10], limits), LOSSES[name](hands[10:], limits)
    assert float(clean.mean()) < 0.25 * float(noisy.mean())


@pytest.mark.parametrize("name", LOSSES)
def test_left_hands(name: str, hands: Tensor, limits: BiomechanicalLimits) -> None:
    right = torch.arange(40) % 2 == 0
    mirrored = hands * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    mixed = torch.where(right[:, None, None], hands, mirrored)
    assert torch.equal(LOSSES[name](mixed, limits, right), LOSSES[name](hands, limits))
    if name != "bone":
        assert not torch.allclose(LOSSES[name](mixed, limits), LOSSES[name](hands, limits))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_a_hand_does_not_depend_on_its_batch(
    name: str, dtype: torch.dtype, hands: Tensor, limits: BiomechanicalLimits
) -> None:
    points = hands.to(dtype)
    whole = LOSSES[name](points, limits)
    assert whole.shape == (40,) and whole.dtype == dtype
    for at in (torch.tensor([11]), torch.tensor([39, 0, 7]), torch.arange(39, -1, -1)):
        assert torch.equal(LOSSES[name](points[at], limits), whole[at])


@pytest.mark.parametrize("name", LOSSES)
def test_invisible_points_do_not_count(name: str, hands: Tensor, narrow: BiomechanicalLimits) -> None:
    visible = torch.rand(40, 21, generator=torch.Generator().manual_seed(3)) < 0.85
    visible[0], visible[1] = True, False
    points = torch.where(visible[..., None], hands, torch.full_like(hands, float("nan"))).requires_grad_()
    loss = LOSSES[name](points, narrow, True, visible)
    (gradient,) = torch.autograd.grad(loss.sum(), points)
    assert bool(torch.isfinite(loss).all()) and bool(torch.isfinite(gradient).all())
    assert not gradient[~visible].any()
    assert float(loss[0].detach()) == float(LOSSES[name](hands[:1], narrow)) and float(loss[1].detach()) == 0


def test_mean_is_over_what_is_visible(hands: Tensor, narrow: BiomechanicalLimits) -> None:
    visible = torch.ones(40, 21, dtype=torch.bool)
    visible[:, 5:9] = False
    excess = narrow.bones.excess(bone_lengths(Skeleton.of(hands)).value).abs()
    kept = [i for i in range(20) if not 4 <= i < 8]
    torch.testing.assert_close(bone_length_loss(hands, narrow, visible), excess[:, kept].mean(1))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_differences(name: str, hands: Tensor, narrow: BiomechanicalLimits) -> None:
    points = hands.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](points, narrow).sum(), points)
    for seed in range(5):
        step = 1e-7 * torch.randn(40, 21, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
        numeric = LOSSES[name](hands + step, narrow) - LOSSES[name](hands - step, narrow)
        expected = 2 * (gradient * step).sum((1, 2))
        # Straight hands lie on a kink: the corner of an edge's nearest point in the paper's distance.
        off = (numeric - expected).abs() / expected.abs().max()
        assert float(off[4:].median()) < 1e-6 and float((off[4:] < 1e-5).double().mean()) > 0.95


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_where_careless_formulas_are_not(
    name: str, dtype: torch.dtype, hands: Tensor, narrow: BiomechanicalLimits
) -> None:
    points = hands[:6].to(dtype).clone()
    points[1, 6] = points[1, 5]
    points[2] = 0
    points[3] = points[3, :1]
    points[4, 9] = points[4, 0]
    points[5, :, 1:] = 0
    points.requires_grad_()
    loss = LOSSES[name](points, narrow)
    (gradient,) = torch.autograd.grad(loss.sum(), points)
    assert bool(torch.isfinite(loss).all()) and bool(torch.isfinite(gradient).all())


def test_descending_the_loss_mends_a_hand(hands: Tensor, limits: BiomechanicalLimits) -> None:
    points = hands[10:20].clone().requires_grad_()
    weights = BiomechanicalWeights(1, 0.1, 1)
    before = biomechanical_loss(points.detach(), limits, weights=weights)
    optimiser = torch.optim.Adam([points], lr=1e-3)
    for _ in range(40):
        optimiser.zero_grad()
        biomechanical_loss(points, limits, weights=weights).sum().backward()
        optimiser.step()
    after = biomechanical_loss(points.detach(), limits, weights=weights)
    assert bool((after < 0.3 * before).all())


def test_errors(hands: Tensor, limits: BiomechanicalLimits) -> None:
    with pytest.raises(InputError, match=r"^points has shape \(3, 16, 3\), expected \(3, 21, 3\)\.$"):
        biomechanical_loss(torch.zeros(3, 16, 3), limits)
    with pytest.raises(InputError, match=r'^the metric \'l2\' is unknown, expected "paper" or "euclidean"\.$'):
        joint_angle_loss(hands, limits, metric="l2")  # type: ignore[arg-type]
