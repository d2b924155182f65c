"""The expected error: against drawn hands, against hand calculations, and what widens it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from handloop.evaluation.alignment import similarity
from handloop.fitting.posterior import summarise
from handloop.fitting.recipes import Recipe
from handloop.fitting.trust import INFLATION, Trust, judge, reasons_against

F64 = torch.float64
FREEDOM = 36.0
"""Of 42 coordinates."""


def hand() -> Tensor:
    """(1, 21, 3) m, no two points alike."""
    return 0.05 * torch.randn(1, 21, 3, dtype=F64, generator=torch.Generator().manual_seed(1))


def trust(spread: Tensor, others: Tensor, above: list[float], energy: float = FREEDOM / 2) -> Trust:
    parts = {
        "reprojection": torch.tensor([energy / 4], dtype=F64),
        "pose_prior": torch.tensor([0.75 * energy], dtype=F64),
    }
    return judge(
        summarise(spread, hand(), torch.eye(62, dtype=F64)[None]),
        hand(),
        parts,
        torch.tensor([42]),
        others,
        torch.tensor([above], dtype=F64),
    )


def nothing_else() -> Tensor:
    return torch.zeros(1, 0, 21, 3, dtype=F64)


def narrow() -> Tensor:
    """(1, 21, 3, 62) m, about 2 mm wide."""
    return 0.00025 * torch.randn(1, 21, 3, 62, dtype=F64, generator=torch.Generator().manual_seed(2))


def test_it_is_the_mean_aligned_error_of_drawn_hands() -> None:
    g = torch.Generator().manual_seed(3)
    spread, n = narrow(), 2000
    drawn = hand() + INFLATION * torch.einsum("ijk,nk->nij", spread[0], torch.randn(n, 62, dtype=F64, generator=g))
    truth = hand().expand(n, 21, 3)
    error = (similarity(drawn, truth).apply(drawn) - truth).norm(dim=-1).mean()
    assert float(trust(spread, nothing_else(), []).expected_error) == pytest.approx(float(error), rel=0.03)


def test_another_solution_as_good_counts_half() -> None:
    """A mixture of two points has half of their squared distance as its spread about the first."""
    bend = torch.zeros(1, 1, 21, 3, dtype=F64)
    bend[0, 0, 8] = torch.tensor([0.0, 0.0, 0.03], dtype=F64)
    sure = 1e-6 * narrow()
    even, likely, unlikely = (float(trust(sure, bend, [gap]).expected_error) for gap in (0.0, 1.0, 30.0))
    only = float(trust(sure, bend.expand(1, 2, 21, 3), [0.0, 0.0]).expected_error)
    assert only / even == pytest.approx((4 / 3) ** 0.5, rel=1e-4)
    odds = torch.exp(torch.tensor(-1.0)).item()
    assert likely / even == pytest.approx((2 * odds / (1 + odds)) ** 0.5, rel=1e-4)
    assert unlikely < 1e-4 * even
    # Of one point's 30 mm an alignment can take up a little, and the mean over 21 is small.
    assert 0.6 * 0.92 * 0.03 * (0.5 / 21) ** 0.5 < even < 0.92 * 0.03 * (0.5 / 21) ** 0.5


def test_a_solution_that_never_was_counts_nothing() -> None:
    others = torch.full((1, 2, 21, 3), float("nan"), dtype=F64)
    with_them = trust(narrow(), others, [float("inf"), float("nan")]).expected_error
    assert torch.equal(with_them, trust(narrow(), nothing_else(), []).expected_error)


def test_energy_beyond_expectation_widens_it_wherever_it_comes_from() -> None:
    """Four times the expected energy is twice the deviation; less than expected makes nothing surer."""
    usual, large, small = (
        float(trust(narrow(), nothing_else(), [], e * FREEDOM / 2).expected_error) for e in (1.0, 4.0, 0.1)
    )
    assert large == pytest.approx(2 * usual, rel=1e-9)
    assert small == pytest.approx(usual, rel=1e-9)


def test_and_makes_a_gap_count_for_less() -> None:
    bend = torch.zeros(1, 1, 21, 3, dtype=F64)
    bend[0, 0, 8, 2] = 0.03
    sure = 1e-6 * narrow()
    sharp = float(trust(sure, bend, [1.0]).expected_error)
    soft = float(trust(sure, bend, [4.0], 4 * FREEDOM / 2).expected_error)
    assert soft == pytest.approx(sharp, rel=1e-4)


def test_reasons_are_joined_in_order_and_belong_to_their_hands() -> None:
    zero = torch.zeros(4, dtype=F64)
    terms = {"limits": zero.clone(), "pose_prior": zero.clone(), "points_3d": zero.clone()}
    betas, relative, gap, apart = torch.zeros(4, 10, dtype=F64), zero.clone(), zero + 9.0, zero + 0.1
    terms["pose_prior"][1] = terms["pose_prior"][3] = 50.0
    betas[1, 4], relative[3], gap[2] = -3.5, 0.06, 0.5
    said = reasons_against(terms, zero + 40.0, betas, Recipe(), relative, gap, apart)
    assert said == (
        "",
        "the pose is unlike any the model knows; the shape is an outlier",
        "another pose explains the keypoints as well",
        "the pose is unlike any the model knows; the joints miss the keypoints",
    )
    assert reasons_against({k: v[:0] for k, v in terms.items()}, zero[:0], betas[:0], Recipe(), *[zero[:0]] * 3) == ()
