"""Coverage of drawn errors whose law is known, and the ranking counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from handloop.core.errors import InputError
from handloop.evaluation.coverage import SIGMAS_68, SIGMAS_95, posterior_coverage, ranking


def test_widths_are_those_of_the_normal_distribution() -> None:
    assert pytest.approx(norm.ppf(0.84), abs=1e-6) == SIGMAS_68
    assert pytest.approx(norm.ppf(0.975), abs=1e-6) == SIGMAS_95


def test_calibrated_errors_are_covered_and_small_sds_are_not(generator: torch.Generator) -> None:
    sd = 0.001 + 0.01 * torch.rand(2000, 21, 3, dtype=torch.float64, generator=generator)
    truth = torch.randn(2000, 21, 3, dtype=torch.float64, generator=generator)
    points = truth + sd * torch.randn(2000, 21, 3, dtype=torch.float64, generator=generator)
    claimed = sd.clone()
    claimed[..., 2] /= 2
    found = posterior_coverage(points, truth, claimed)
    for held in found.by_axis[:2]:
        assert held.within_68 == pytest.approx(0.68, abs=0.01) and held.within_95 == pytest.approx(0.95, abs=0.01)
        assert held.rms == pytest.approx(1, abs=0.01) and held.n == 42000
    depth = found.by_axis[2]
    assert depth.within_68 == pytest.approx(2 * norm.cdf(SIGMAS_68 / 2) - 1, abs=0.01)
    assert depth.rms == pytest.approx(2, abs=0.02)
    assert found.overall.within_95 == pytest.approx(sum(h.within_95 for h in found.by_axis) / 3)


def test_unusable_sds_are_counted_and_left_out() -> None:
    truth = torch.zeros(3, 21, 3)
    points = truth + 0.01
    points[1] = math.nan
    truth[2, 4] = math.nan
    sd = torch.full((3, 21, 3), 0.02)
    sd[0, 0, 0], sd[0, 1, 2] = 0.0, math.nan
    found = posterior_coverage(points, truth, sd)
    assert found.without_sd == 2 and found.overall.n == 63 - 2 + 60 and found.overall.within_68 == 1.0
    assert [held.n for held in found.by_axis] == [40, 41, 40]
    nothing = posterior_coverage(points[1:2], truth[1:2], sd[1:2]).overall
    assert nothing.n == 0 and math.isnan(nothing.within_68)
    with pytest.raises(InputError, match=r"keypoints_3d_sd has shape \(3, 21\), expected \(3, 21, 3\)"):
        posterior_coverage(points, truth, sd[..., 0])


def test_ranking_counts_the_worst_tenth_among_the_fifth() -> None:
    error = torch.arange(40.0)
    # Expected worst eight: hands 39, 38, 10 to 15; the truly worst four are 36 to 39.
    expected = torch.zeros(40)
    expected[[39, 38, 10, 11, 12, 13, 14, 15]] = 5.0
    found = ranking(expected, error)
    assert found is not None and found.found == 0.5 and found.n == 40 and found.without_expected == 0
    perfect, reverse = ranking(error, error), ranking(-error, error)
    assert perfect is not None and perfect.found == 1.0 and reverse is not None and reverse.found == 0.0


def test_ranking_leaves_unknown_hands_out() -> None:
    error = torch.arange(14.0)
    expected = error.clone()
    error[:2], expected[13] = math.nan, math.nan
    found = ranking(expected, error)
    assert found is not None and found.n == 11 and found.without_expected == 1 and found.found == 1.0
    assert ranking(expected[:11], error[:11]) is None
