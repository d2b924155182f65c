"""Recipes: the named ones, and what a wrong setting says."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from handloop.core.errors import InputError
from handloop.core.joint_noise import JOINT_NOISE
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.fitting.solver import SolverOptions


def test_names() -> None:
    assert {"default", "fast", "careful"} <= set(RECIPES)
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert RECIPES["default"] == Recipe()


def test_recipes_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        RECIPES["default"].noise_px = 1.0  # type: ignore[misc]


def test_more_care_costs_more() -> None:
    fast, default, careful = (RECIPES[name] for name in ("fast", "default", "careful"))
    assert fast.seeds < default.seeds < careful.seeds
    assert fast.solver.max_steps < default.solver.max_steps < careful.solver.max_steps


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"noise_px": 0.0}, "noise_px is 0.0, expected a positive number."),
        ({"noise_px": float("nan")}, "noise_px is nan, expected a positive number."),
        ({"robust": -1.0}, "robust is -1.0, expected a positive number."),
        ({"limits_sigma_deg": 0}, "limits_sigma_deg is 0, expected a positive number."),
        ({"shape_sigma": 0.0}, "shape_sigma is 0.0, expected a positive number."),
        ({"length_sigma_mm": 0.0}, "length_sigma_mm is 0.0, expected a positive number."),
        ({"joint_noise": (1.0,) * 20}, "joint_noise must be 21 positive numbers in OpenPose order."),
        ({"joint_noise": (0.0,) + (1.0,) * 20}, "joint_noise must be 21 positive numbers in OpenPose order."),
        ({"joint_noise": "openpose"}, "joint_noise names 'openpose', expected one of uniform, coco_wholebody."),
        ({"kernel": "tukey"}, "the kernel 'tukey' is unknown, expected one of geman_mcclure, huber, cauchy."),
        ({"coupling_sigma_deg": 0.0}, "coupling_sigma_deg is 0.0, expected a positive number."),
        ({"hyperextension": -1.0}, "hyperextension is -1.0, expected a positive number."),
        ({"seeds": -1}, "seeds is -1, expected 0 (a proposal alone) to 6."),
        ({"seeds": 7}, "seeds is 7, expected 0 (a proposal alone) to 6."),
        ({"fixed": ("pose", "hand")}, "fixed names ['hand'], expected any of pose, orient, betas, root."),
    ],
)
def test_errors(setting: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        replace(Recipe(), **setting)  # type: ignore[arg-type]


def test_names_of_the_settings_that_add_terms() -> None:
    assert all(recipe.optional_terms() == () for recipe in RECIPES.values())
    everything = Recipe(coupling_sigma_deg=10.0, spread=True, hyperextension=4.48)
    assert everything.optional_terms() == ("coupling_sigma_deg", "spread", "hyperextension")


def test_noise_ratios() -> None:
    assert Recipe().noise_ratios() == (1.0,) * 21
    own = tuple(1.0 + i for i in range(21))
    assert Recipe(joint_noise=own).noise_ratios() == own
    assert Recipe(joint_noise="coco_wholebody").noise_ratios() == JOINT_NOISE["coco_wholebody"]


def test_half_the_seeds_beside_a_proposal() -> None:
    counts = {seeds: Recipe(seeds=seeds).seeds_beside(True) for seeds in range(7)}
    assert counts == {0: 0, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}
    assert all(Recipe(seeds=seeds).seeds_beside(False) == seeds for seeds in range(7))


def test_energy_settings_differ_where_energies_do() -> None:
    """Every setting that changes what a given hand costs has a place in it; how to search has none."""
    plain = Recipe()
    searching = replace(
        plain, name="x", seeds=2, explore_steps=1, finalists=1, solver=SolverOptions(3), posterior=False
    )
    assert searching.energy_settings() == plain.energy_settings()
    changes: list[dict[str, Any]] = [
        *({"robust": 4.0}, {"kernel": "huber"}, {"noise_mm": 1.0}, {"joint_noise": "coco_wholebody"}),
        *({"limits_sigma_deg": 2.0}, {"coupling_sigma_deg": 10.0}, {"spread": True}, {"hyperextension": 4.48}),
        *({"shape_sigma": 0.5}, {"length_sigma_mm": 2.0}, {"focal_sigma": 0.3}, {"self_penetration": 1.0}),
        {"joint_noise": (2.0,) + (1.0,) * 20},
    ]
    said = {replace(plain, **change).energy_settings() for change in changes}
    assert len(said | {plain.energy_settings()}) == len(changes) + 1
