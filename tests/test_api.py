"""`handloop.fit` as a caller sees it: what it takes, what it says when it cannot."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import handloop
from handloop.api import fit, fit_joints, pick_device, pick_recipe
from handloop.core.errors import InputError, ModelError
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.results import Status
from handloop.core.terms import AutoTerm
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.hand.load import embedded_hand, load_hand
from handloop.hand.model import HandPair

K = [[600.0, 0.0, 320.0], [0.0, 600.0, 240.0], [0.0, 0.0, 1.0]]


@pytest.fixture(autouse=True)
def no_mano_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must not see the MANO files of whoever runs them."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """(3, 21, 2) px: the mean hand flat before the camera, moved and scaled."""
    hand = load_hand("embedded").right
    xyz = np.concatenate([hand.joints_rest, hand.v_template[hand.tip_ids]])
    order = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    turned = (xyz - xyz[0])[order][:, [0, 2, 1]] * np.array([1.0, 1.0, -1.0]) + np.array([0.0, 0.0, 0.5])
    uv = 600 * turned[:, :2] / turned[:, 2:] + np.array([320.0, 240.0])
    return np.stack([uv, uv + 20, 0.8 * uv])


def test_arrays_tensors_and_lists_are_the_same(points: np.ndarray) -> None:
    base = fit(points, K, device="cpu")
    assert bool(base.fitted().all())
    for given, camera in (
        (torch.from_numpy(points), np.array(K)),
        (points.tolist(), torch.tensor(K, dtype=torch.float64)),
        (np.concatenate([points, np.ones((3, 21, 1))], 2), np.stack([K] * 3)),
        (torch.from_numpy(points).requires_grad_(), handloop.Camera.from_matrix(K, 3)),
    ):
        other = fit(given, camera, device="cpu")
        assert torch.equal(other.joints, base.joints)


def test_inputs_are_not_changed(points: np.ndarray) -> None:
    given = np.concatenate([points, np.ones((3, 21, 1))], 2)
    given[1, 4] = np.nan
    before = given.copy()
    fit(given, K, device="cpu")
    np.testing.assert_array_equal(given, before)
    tensor = torch.from_numpy(before.copy())
    fit(tensor, K, device="cpu")
    np.testing.assert_array_equal(tensor.numpy(), before)


def test_sides(points: np.ndarray) -> None:
    every = fit(points, K, is_right=False, device="cpu")
    mixed = fit(points, K, is_right=np.array([True, False, True]), device="cpu")
    right = fit(points, K, device="cpu")
    assert torch.equal(mixed.joints[1], every.joints[1]) and torch.equal(mixed.joints[2], right.joints[2])
    assert mixed.keypoints.is_right.tolist() == [True, False, True]


def test_recipes_by_name_and_value(points: np.ndarray) -> None:
    for name, recipe in RECIPES.items():
        assert pick_recipe(name) is recipe and pick_recipe(recipe) is recipe
    result = fit(points, K, recipe="fast", device="cpu")
    assert result.provenance["recipe"] == "fast"
    mine = fit(points, K, recipe=Recipe(name="mine", noise_px=2.5), device="cpu")
    assert mine.provenance["recipe"] == "mine" and mine.provenance["noise_px_at_224"] == "2.5"


def test_the_lifter_starts_where_it_knows_the_hand(points: np.ndarray) -> None:
    def starts(recipe: Recipe | str, hand: HandPair | str = "embedded") -> str:
        return fit(points, K, hand=hand, recipe=recipe, device="cpu").provenance["starts"]

    assert starts("default") == "lifter + 2 seeds"
    assert starts("fast") == "lifter + 1 seed"
    assert starts("careful") == "lifter + 3 seeds"
    assert starts(Recipe(seeds=0)) == "lifter"
    assert starts(Recipe(lifter=False)) == "4 seeds"
    assert starts("spin") == "1 seed"
    assert starts(Recipe(fixed=("betas",))) == "4 seeds"
    pair = load_hand("embedded")
    assert starts("default", replace(pair, right=replace(pair.right, digest="feedbeef"))) == "4 seeds"
    assert starts("default", embedded_hand("manopth")) == "4 seeds"
    with pytest.raises(InputError, match="has no seeds and no proposal"):
        starts(Recipe(seeds=0), embedded_hand("manopth"))
    given = Proposal.without_opinion(HandParams.zeros(3), torch.ones(3, dtype=torch.bool), None)
    assert fit(points, K, start=given, device="cpu").provenance["starts"] == "proposal + 2 seeds"
    in_3d = torch.rand(1, 21, 3, generator=torch.Generator().manual_seed(0))
    assert fit_joints(0.1 * in_3d, device="cpu").provenance["starts"] == "4 seeds"


def test_the_hand_may_come_as_pair_or_path(points: np.ndarray, tmp_path: Path) -> None:
    base = fit(points, K, device="cpu")
    assert torch.equal(fit(points, K, hand=load_hand("embedded"), device="cpu").joints, base.joints)
    assert torch.equal(fit(points, K, hand="embedded", device="cpu").joints, base.joints)
    assert base.provenance["hand_model"] == load_hand("embedded").right.name
    with pytest.raises(ModelError, match="does not exist"):
        fit(points, K, hand=tmp_path / "MANO_RIGHT.pkl", device="cpu")


def test_results_can_be_saved(points: np.ndarray, tmp_path: Path) -> None:
    result = fit(points, None, image_size=(640, 480), device="cpu")
    path = result.save(tmp_path)
    with np.load(path, allow_pickle=False) as data:
        np.testing.assert_array_equal(data["joints"], result.joints.numpy())
        assert not data["camera_known"].any()


def test_hands_without_extent_harm_no_others(points: np.ndarray) -> None:
    """Without a camera and a picture's size the focal length is assumed from the hand's box, which they lack."""
    bad = np.stack([np.full((21, 2), np.nan), np.full((21, 2), 5.0), np.full((21, 2), 1e7)])
    good = fit(points, device="cpu")
    mixed = fit(np.concatenate([bad, points]), device="cpu")
    assert torch.equal(mixed.joints[3:], good.joints) and torch.equal(mixed.status[3:], good.status)
    assert mixed.status[0] == Status.TOO_FEW_POINTS
    assert not mixed.plausible[:3].any()


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    message = "the device 'gpu' is unknown, expected auto, cpu or cuda."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        message = "the device 'cuda' was asked for, but torch finds no CUDA device; use auto or cpu."
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            pick_device("cuda")


def test_an_unknown_recipe_names_the_known_ones(points: np.ndarray) -> None:
    message = f"the recipe 'quick' is unknown, expected one of {', '.join(RECIPES)}."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fit(points, K, recipe="quick", device="cpu")


@pytest.mark.parametrize("length", [18.5, 0.185, 1850.0, -190.0, float("inf")])
def test_a_length_in_other_units_is_refused(points: np.ndarray, length: float) -> None:
    message = "a hand length outside 50 to 400 mm was given, expected mm from wrist to middle fingertip."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fit(points, K, hand_length_mm=length, device="cpu")


def test_wrong_shapes_are_refused(points: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"21"):
        fit(points[:, :20], K, device="cpu")
    with pytest.raises(InputError, match=r"^K has shape \(2, 3, 3\), expected \(3, 3, 3\)\.$"):
        fit(points, np.stack([K] * 2), device="cpu")
    with pytest.raises(InputError, match=r"^3 hands but 2 cameras were given\.$"):
        fit(points, handloop.Camera.from_matrix(K, 2), device="cpu")
    with pytest.raises(InputError, match=r"^is_right has shape \(2,\), expected \(3\)\.$"):
        fit(points, K, is_right=np.array([True, False]), device="cpu")
    with pytest.raises(InputError, match=r"^hand_length_mm has shape \(2,\), expected one number or \(3,\)\.$"):
        fit(points, K, hand_length_mm=[190.0, 180.0], device="cpu")


def test_extra_terms_need_names_of_their_own(points: np.ndarray) -> None:
    term = AutoTerm("mine", lambda posed: posed.points[:, 0])
    with pytest.raises(InputError, match=r"^two extra terms share a name: \['mine', 'mine'\]\.$"):
        fit(points, K, recipe=Recipe(extra_terms=(term, term)), device="cpu")
