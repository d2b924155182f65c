"""Metrics against values worked out by hand, brute force, and the tool of FreiHAND written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.evaluation.alignment import ALIGNMENTS
from handloop.evaluation.metrics import (
    bootstrap,
    f_scores,
    hand_means,
    joint_errors,
    joint_means,
    pck,
    pixel_errors,
    plane_and_depth,
    share_above,
)

Hands = tuple[Tensor, Tensor]


def test_raw_and_root_errors_by_hand(hands: Hands) -> None:
    truth, _ = hands
    points = truth.clone()
    points[:, 5, 0] += 0.021
    points += torch.tensor([0.0, 0.003, 0.004], dtype=torch.float64)
    raw, root = joint_errors(points, truth, "raw"), joint_errors(points, truth, "root")
    assert torch.allclose(raw[:, 0], torch.full((12,), 0.005, dtype=torch.float64))
    assert torch.allclose(raw[:, 5], torch.full((12,), math.sqrt(0.021**2 + 0.005**2), dtype=torch.float64))
    assert torch.allclose(hand_means(root), torch.full((12,), 0.001, dtype=torch.float64))
    by_joint, number = joint_means(root)
    assert by_joint.argmax() == 5 and float(by_joint[5]) == pytest.approx(0.021) and number.tolist() == [12] * 21


def test_unknown_joints_and_hands_are_nan_and_nothing_else(hands: Hands) -> None:
    truth, noisy = (points.clone() for points in hands)
    noisy[1] = torch.nan
    truth[2, 7, 1] = torch.nan
    truth[3, 0] = torch.nan
    truth[4, 3:] = torch.nan
    for name in ALIGNMENTS:
        known = torch.isfinite(joint_errors(noisy, truth, name))
        assert not known[1].any() and known[0].all() and known[2].sum() == 20 and not known[2, 7]
        # Without the wrist there is nothing to be relative to; rotations want four joints.
        assert int(known[3].sum()) == (0 if name in ("root", "scale_translation") else 20)
        assert int(known[4].sum()) == (3 if name in ("raw", "root") else 0)
    means = hand_means(joint_errors(noisy, truth, "raw"))
    assert torch.isnan(means).tolist() == [i == 1 for i in range(12)]
    assert joint_means(joint_errors(noisy, truth, "raw"))[1].tolist() == [10, 11, 11, *[10] * 4, 9, *[10] * 13]


def test_plane_and_depth_by_hand() -> None:
    truth = torch.zeros(1, 21, 3, dtype=torch.float64)
    truth[..., 2] = 0.5
    truth[0, 9] = torch.tensor([0.3, 0.0, 0.4])
    points = truth.clone()
    # One joint 10 mm farther on its own ray, 7 mm across it; the whole hand 200 mm away.
    points[0, 9] += 0.010 * torch.tensor([0.6, 0.0, 0.8]) + 0.007 * torch.tensor([0.8, 0.0, -0.6])
    points += 0.2
    across, along = plane_and_depth(points, truth)
    assert float(across[0, 9]) == pytest.approx(0.007) and float(along[0, 9]) == pytest.approx(0.010)
    assert float(across[0, 0]) == 0 and float(along[0, 4]) == pytest.approx(0, abs=1e-12)


def test_plane_and_depth_add_up_to_the_root_relative_error(hands: Hands) -> None:
    truth, noisy = hands
    across, along = plane_and_depth(noisy, truth)
    assert torch.allclose((across.square() + along.square()).sqrt(), joint_errors(noisy, truth, "root"), atol=1e-14)


def test_pixel_errors_by_hand() -> None:
    truth = torch.tensor([[[0.1, 0.0, 0.5]]], dtype=torch.float64)
    points = torch.tensor([[[0.1, 0.1, 0.4]]], dtype=torch.float64)
    camera, other = (Camera.from_matrix([[f, 0.0, 0.0], [0.0, f, 0.0], [0.0, 0.0, 1.0]]) for f in (100.0, 80.0))
    assert float(pixel_errors(points, truth, camera, camera)) == pytest.approx(math.hypot(25 - 20, 25))
    assert float(pixel_errors(points, truth, other, camera)) == pytest.approx(math.hypot(20 - 20, 20))


def freihand_auc(errors: np.ndarray, low: float, high: float, steps: int) -> tuple[float, np.ndarray]:
    """EvalUtil.get_measures: joint by joint, mean over joints. `errors` (N, P) m with NaN for unseen ones."""
    limits = np.linspace(low, high, steps)
    curves = [[np.mean(e[~np.isnan(e)] <= limit) for limit in limits] for e in errors.T if (~np.isnan(e)).any()]
    areas = [np.trapezoid(curve, limits) / np.trapezoid(np.ones(steps), limits) for curve in curves]
    return float(np.mean(areas)), np.mean(curves, 0)


def test_pck_is_that_of_freihands_tool(hands: Hands) -> None:
    truth, noisy = hands
    errors = joint_errors(noisy, truth, "raw").clone()
    errors[2, 4], errors[:, 8], errors[3:, 11] = torch.nan, torch.nan, torch.nan
    curve = pck(errors)
    area, shares = freihand_auc(errors.numpy(), 0.0, 0.05, 100)
    assert len(curve.share) == 100 and curve.thresholds_mm[0] == 0 and curve.thresholds_mm[-1] == 50
    assert curve.auc == pytest.approx(area) and np.allclose(curve.share, shares)
    late = pck(errors, 20, 50)
    assert late.auc == pytest.approx(freihand_auc(errors.numpy(), 0.02, 0.05, 100)[0])


def test_pck_limits() -> None:
    errors = torch.tensor([[0.0], [0.025], [math.inf], [math.nan]], dtype=torch.float64)
    curve = pck(errors, 0, 50, 3)
    # A threshold is reached by an error equal to it; infinity counts, NaN does not.
    assert curve.share == pytest.approx((1 / 3, 2 / 3, 2 / 3)) and curve.auc == pytest.approx((0.5 + 2 / 3) / 2)
    assert pck(torch.zeros(4, 21)).auc == 1 and math.isnan(pck(torch.zeros(0, 21)).auc)
    with pytest.raises(InputError, match=r"from 50 to 20 mm in 100 steps"):
        pck(errors, 50, 20)


def test_shares_count_missing_hands_as_wrong() -> None:
    values = torch.tensor([5.0, 10.0, 15.0, math.nan])
    assert share_above(values, 10) == pytest.approx(1 / 3)
    assert share_above(values, 10, missing=1) == pytest.approx(2 / 4)
    assert math.isnan(share_above(values[3:], 10))


def test_f_scores_against_all_pairs(generator: torch.Generator) -> None:
    truth = 0.05 * torch.randn(4, 120, 3, dtype=torch.float64, generator=generator) + 0.5
    spread = torch.tensor([0.001, 0.005, 0.02, 1.0], dtype=torch.float64)[:, None, None]
    given = truth[:, :100] + spread * torch.randn(4, 100, 3, dtype=torch.float64, generator=generator)
    ours = f_scores(given, truth, (0.005, 0.015))
    for i in range(4):
        distance = np.linalg.norm(given[i].numpy()[:, None] - truth[i].numpy()[None], axis=-1)
        for k, limit in enumerate((0.005, 0.015)):
            precision, recall = (distance.min(1) < limit).mean(), (distance.min(0) < limit).mean()
            expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            assert float(ours[i, k]) == pytest.approx(expected)
    assert ours[0, 1] > 0.9 and ours[3, 0] == 0


def test_f_scores_of_a_shifted_plane() -> None:
    """A grid 5 mm from its copy: outside 5 mm (closer than, not as close as), inside 15 mm; and NaN stays NaN."""
    x, y = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    grid = torch.stack([0.25 * x, 0.25 * y, torch.zeros_like(x)], -1).reshape(1, 36, 3)
    moved = grid + torch.tensor([0.0, 0.0, 0.0078125])
    assert f_scores(grid, moved, (0.0078125, 0.0079)).tolist() == [[0.0, 1.0]]
    moved[0, 3, 1] = torch.nan
    assert bool(torch.isnan(f_scores(grid, moved)).all())
    with pytest.raises(InputError, match=r"true vertices has shape \(2, 36, 3\), expected \(1, N, 3\)"):
        f_scores(grid, moved.repeat(2, 1, 1))


def test_bootstrap_interval_is_that_of_the_mean(generator: torch.Generator) -> None:
    values = torch.randn(400, 2, dtype=torch.float64, generator=generator)
    values[:100, 1] = torch.nan
    first, second = bootstrap(values, torch.Generator().manual_seed(1), 4000)
    for mean, column in ((first, values[:, 0]), (second, values[100:, 1])):
        error = float(column.std()) / math.sqrt(len(column))
        assert mean.mean == pytest.approx(float(column.mean())) and mean.n == len(column)
        # The normal interval, to 5 % of its width.
        assert mean.low == pytest.approx(mean.mean - 1.96 * error, abs=0.2 * error)
        assert mean.high == pytest.approx(mean.mean + 1.96 * error, abs=0.2 * error)


def test_bootstrap_is_seeded_and_safe() -> None:
    values = torch.rand(50, 1, dtype=torch.float64)
    once, again, other = (bootstrap(values, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert once == again and once != other
    (one,) = bootstrap(torch.tensor([[3.0]]), torch.Generator().manual_seed(0))
    assert (one.mean, one.low, one.high, one.n) == (3.0, 3.0, 3.0, 1)
    for nothing in (torch.zeros(0, 1), torch.full((3, 1), math.nan)):
        (none,) = bootstrap(nothing, torch.Generator().manual_seed(0))
        assert none.n == 0 and all(math.isnan(v) for v in (none.mean, none.low, none.high))


def test_bootstrap_in_pieces_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many hands are drawn in several pieces: the interval stays that of the mean."""
    monkeypatch.setattr("handloop.evaluation.metrics._CHUNK_DRAWS", 700)
    values = torch.rand(100, 1, dtype=torch.float64)
    (mean,) = bootstrap(values, torch.Generator().manual_seed(0), 1000)
    error = float(values.std()) / 10
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_unknown_alignment_is_named(hands: Hands) -> None:
    with pytest.raises(InputError) as caught:
        joint_errors(*hands, "procrustes")
    assert str(caught.value) == (
        "the alignment 'procrustes' is unknown, expected one of raw, root, scale_translation, rigid, pa, pa_mirror."
    )
