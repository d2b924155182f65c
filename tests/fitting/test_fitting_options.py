"""Kernels, noise presets and optional terms of a recipe, through whole fits and which engine does them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from handloop.api import fit
from handloop.core.errors import InputError
from handloop.core.joint_noise import JOINT_NOISE
from handloop.core.keypoints import Keypoints
from handloop.core.results import FitResult
from handloop.core.terms import KERNELS, Cauchy, GemanMcClure, Huber
from handloop.fitting.engines import uses_fused_engine
from handloop.fitting.problem import FitModel
from handloop.fitting.recipes import RECIPES, Recipe

F64 = torch.float64


@pytest.fixture(scope="module")
def seen(synthetic: Callable[..., Any]) -> Any:
    return synthetic(12, 21)


@pytest.fixture(scope="module")
def wild(seen: Any) -> Keypoints:
    """3 px of noise, one point in ten far off, confidences of all sizes."""
    g = torch.Generator().manual_seed(2)
    uv = seen.uv + 3 * torch.randn(seen.uv.shape, dtype=F64, generator=g)
    off = torch.rand(12, 21, 1, generator=g) < 0.1
    uv = torch.where(off, uv + 60 * torch.randn(uv.shape, dtype=F64, generator=g), uv)
    conf = 0.3 + 0.7 * torch.rand(12, 21, 1, dtype=F64, generator=g)
    return Keypoints.from_arrays(torch.cat([uv, conf], 2))


def distances(result: FitResult, ratios: tuple[float, ...] = (1.0,) * 21) -> np.ndarray:
    """(B, 21) squared distances in sigmas, from what a result shows."""
    keypoints = result.keypoints
    sigma = Recipe().noise_px * keypoints.box_size().numpy()[:, None] / 224 * np.array(ratios)
    away = (result.keypoints_2d_fit - keypoints.xy).norm(dim=-1).numpy()
    distance: np.ndarray = np.square(away * keypoints.conf.numpy() / sigma)
    return distance


RHO: dict[str, tuple[type, Callable[[np.ndarray], np.ndarray]]] = {
    "geman_mcclure": (GemanMcClure, lambda s: 16 * s / (16 + s)),
    "huber": (Huber, lambda s: np.where(s < 16, s, 8 * np.sqrt(s) - 16)),
    "cauchy": (Cauchy, lambda s: 16 * np.log(1 + s / 16)),
}
"""Class and formula of each kernel, scale 4."""


@pytest.fixture(scope="module")
def by_kernel(wild: Keypoints, seen: Any) -> dict[str, FitResult]:
    names: tuple[Any, ...] = tuple(RHO)
    return {name: fit(wild, seen.camera, recipe=Recipe(kernel=name, robust=4.0, seeds=1)) for name in names}


@pytest.mark.parametrize("kernel", list(RHO))
def test_a_fit_minimises_the_kernel_it_was_given(kernel: str, by_kernel: dict[str, FitResult]) -> None:
    made, rho = RHO[kernel]
    assert KERNELS[kernel] is made and set(RHO) == set(KERNELS)
    total = {}
    for name, result in by_kernel.items():
        rest = sum(v.numpy() for k, v in result.energy_terms.items() if k not in ("reprojection", "points_3d"))
        total[name] = 0.5 * rho(distances(result)).sum(1) + rest
    ours = by_kernel[kernel]
    np.testing.assert_allclose(total[kernel], ours.energy.numpy(), rtol=1e-6)
    # Kernels that forgive far points have several minima, and a fit by another kernel may end in a better one.
    for name in set(RHO) - {kernel}:
        better = total[kernel] < total[name]
        assert better.sum() >= 9, (name, better)


def test_both_engines_do_the_standard_kernel(wild: Keypoints, seen: Any, model: FitModel) -> None:
    assert uses_fused_engine(model, Recipe()) and uses_fused_engine(model, Recipe(joint_noise="coco_wholebody"))
    for other in (
        Recipe(kernel="huber"),
        Recipe(kernel="cauchy"),
        Recipe(spread=True),
        Recipe(coupling_sigma_deg=10.0),
        Recipe(hyperextension=1.0),
    ):
        assert uses_fused_engine(model, other)
    assert not uses_fused_engine(model, Recipe(self_penetration=100.0))


def test_joint_noise_by_name(wild: Keypoints, seen: Any) -> None:
    ratios = JOINT_NOISE["coco_wholebody"]
    named = fit(wild, seen.camera, joint_noise="coco_wholebody")
    same = fit(wild, seen.camera, recipe=Recipe(joint_noise=ratios))
    listed = fit(wild, seen.camera, joint_noise=list(ratios))
    assert torch.equal(named.joints, same.joints) and torch.equal(named.joints, listed.joints)
    s = distances(named, ratios)
    c2 = Recipe().robust ** 2
    energy = 0.5 * (c2 * s / (c2 + s)).sum(1)
    np.testing.assert_allclose(named.energy_terms["reprojection"].numpy(), energy, rtol=1e-6)
    plain = fit(wild, seen.camera)
    assert not torch.equal(plain.joints, named.joints)
    assert torch.equal(fit(wild, seen.camera, joint_noise="uniform").joints, plain.joints)


def test_joint_noise_of_no_known_source(wild: Keypoints, seen: Any) -> None:
    message = "joint_noise names 'mediapipe', expected one of uniform, coco_wholebody."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fit(wild, seen.camera, joint_noise="mediapipe")
    with pytest.raises(InputError, match=r"^joint_noise must be 21 positive numbers in OpenPose order\.$"):
        fit(wild, seen.camera, joint_noise=[1.0, 2.0])


@pytest.mark.parametrize("name", ["spin", "smplify"])
def test_published_methods_refuse_the_optional_terms(name: str, wild: Keypoints, seen: Any) -> None:
    from dataclasses import replace

    message = f"the recipe '{name}' is a published method that knows nothing of spread, hyperextension;"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        fit(wild, seen.camera, recipe=replace(RECIPES[name], spread=True, hyperextension=1.0))


def test_all_optional_terms_at_once_on_both_sides(synthetic: Callable[..., Any]) -> None:
    """Left hands are fitted in a mirror: the terms mean the same there."""
    hands = synthetic(4, 30)
    recipe = Recipe(coupling_sigma_deg=10.0, spread=True, hyperextension=1.0, kernel="cauchy", seeds=1)
    right = fit(hands.uv, hands.K, recipe=recipe)
    mirrored = hands.uv * torch.tensor([-1.0, 1.0], dtype=F64) + torch.tensor([640.0, 0.0], dtype=F64)
    left = fit(mirrored, hands.K, is_right=False, recipe=recipe)
    for key in ("flexion_coupling", "spread", "hyperextension"):
        torch.testing.assert_close(left.energy_terms[key], right.energy_terms[key], rtol=1e-4, atol=1e-6)
    assert bool(right.fitted().all()) and bool(torch.isfinite(right.keypoints_3d_sd).all())
