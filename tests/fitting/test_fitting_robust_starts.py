"""One wrong palm point does not decide where a fit starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.joints import PALM_POINTS
from handloop.core.keypoints import Keypoints
from handloop.core.terms import HandState
from handloop.fitting.engines import Engine, TensorEngine, choose_engine, free_parameters, standard_terms
from handloop.fitting.observe import Observations
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import Recipe
from handloop.fitting.robust_starts import robust_starts
from handloop.fitting.starts import closed_form_starts


def seen_of(model: FitModel, uv: Tensor, matrix: Any) -> Observations:
    camera = Camera.from_matrix(matrix, len(uv))
    return Observations.of(Keypoints.from_arrays(uv), camera, Recipe(), None, model.like)


def engine_of(model: FitModel, seen: Observations) -> Engine:
    return choose_engine(model, seen, Recipe(), [])


def turned_by(starts: HandState, truth: Tensor, per_hand: int) -> Tensor:
    """(B,) degrees between the true palm orientation and the nearest start's."""
    rotation = starts.rotations[:, 0].unflatten(0, (len(truth), per_hand))
    trace = torch.einsum("bkij,bij->bk", rotation, truth)
    return torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos()).amin(1)


@pytest.mark.parametrize("point", PALM_POINTS)
def test_an_outlier_in_the_palm_is_left_out(point: int, model: FitModel, synthetic: Callable[..., Any]) -> None:
    """Thrown half a hand aside, it turns the plain closed form's palms; the robust starts stay near the truth."""
    hands = synthetic(60, 5)
    uv = hands.uv.clone()
    box = (uv.amax(1) - uv.amin(1)).amax(1)
    uv[:, point, 0] += 0.6 * box
    seen = seen_of(model, uv, hands.K)
    truth = hands.state.rotations[:, 0]
    plain = turned_by(closed_form_starts(model.kinematics, model.seeds[:1], seen.views()), truth, 2)
    robust = turned_by(robust_starts(engine_of(model, seen), model.kinematics, model.seeds[:1], seen.views()), truth, 2)
    assert float(robust.median()) < 0.6 * float(plain.median())


def test_with_clean_points_the_shape_and_order_are_the_closed_form_s(
    model: FitModel, synthetic: Callable[..., Any]
) -> None:
    hands = synthetic(20, 6)
    seen = seen_of(model, hands.uv, hands.K)
    seeds = model.seeds[:3]
    plain = closed_form_starts(model.kinematics, seeds, seen.views())
    robust = robust_starts(engine_of(model, seen), model.kinematics, seeds, seen.views())
    assert robust.rotations.shape == plain.rotations.shape
    # The fingers are the seeds', in the same columns; only the palm may have moved.
    assert torch.equal(robust.rotations[:, 1:], plain.rotations[:, 1:])
    assert bool(torch.isfinite(robust.root).all())


def test_both_engines_choose_the_same_points(model: FitModel, synthetic: Callable[..., Any]) -> None:
    hands = synthetic(12, 7)
    seen = seen_of(model, hands.uv, hands.K)
    tensor = TensorEngine(
        model.kinematics, standard_terms(model, seen, Recipe()), free_parameters(Recipe(), torch.device("cpu"))
    )
    a, b = (
        robust_starts(engine, model.kinematics, model.seeds[:1], seen.views())
        for engine in (tensor, engine_of(model, seen))
    )
    assert torch.equal(a.rotations, b.rotations)


@pytest.mark.parametrize("visible", [1, 2, 3, 4])
def test_few_palm_points_still_give_finite_starts(visible: int, model: FitModel, synthetic: Callable[..., Any]) -> None:
    hands = synthetic(4, 8)
    conf = torch.ones(4, 21, 1, dtype=torch.float64)
    conf[:, list(PALM_POINTS)[visible:]] = 0
    seen = seen_of(model, torch.cat([hands.uv, conf], 2), hands.K)
    starts = robust_starts(engine_of(model, seen), model.kinematics, model.seeds[:2], seen.views())
    assert bool(torch.isfinite(starts.rotations).all() and torch.isfinite(starts.root).all())
