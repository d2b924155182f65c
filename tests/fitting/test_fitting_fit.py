"""The whole fit, by `handloop.fit`: what a hand's result may depend on, and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from handloop.api import fit
from handloop.core.camera import Camera
from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.core.keypoints import Keypoints
from handloop.core.results import FitResult, Status
from handloop.core.terms import AutoTerm, PosedHand
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import Recipe
from handloop.hand.load import mirror_hand
from handloop.hand.mesh import skin
from handloop.hand.model import HandPair

F64 = torch.float64
N = 24


def rows(result: FitResult) -> dict[str, Tensor]:
    """Everything a hand gets back, one row per hand."""
    out = dict(zip(("global_orient", "hand_pose", "betas", "transl"), result.params.tensors(), strict=True))
    out |= {
        "joints": result.joints,
        "fit_2d": result.keypoints_2d_fit,
        "energy": result.energy,
        "rms": result.rms_px,
        "status": result.status,
        "steps": result.steps,
        "gap": result.hypothesis_gap,
        "focal": result.camera.focal,
    }
    return out | {f"energy of {name}": value for name, value in result.energy_terms.items()}


def assert_same_bits(some: FitResult, whole: FitResult, at: Tensor) -> None:
    whole_rows = rows(whole)
    for name, value in rows(some).items():
        assert torch.equal(value.nan_to_num(-1.0), whole_rows[name][at].nan_to_num(-1.0)), (name, at.tolist())


@pytest.fixture(scope="module")
def noisy(synthetic: Callable[..., Any]) -> np.ndarray:
    """(24, 21, 3) keypoints with 3 px of noise, some missing, some gross outliers, on a grid of 1/64 px."""
    hands = synthetic(N, 31)
    rng = np.random.default_rng(0)
    uv = hands.uv.numpy() + rng.normal(0, 3, (N, 21, 2))
    conf = rng.uniform(0.3, 1.0, (N, 21))
    conf[rng.random((N, 21)) < 0.15] = 0
    uv[::6, 8] += 60
    return np.concatenate([np.round(uv * 64) / 64, conf[..., None]], 2)


K = [[600.0, 0.0, 320.0], [0.0, 600.0, 240.0], [0.0, 0.0, 1.0]]
SIDES = np.arange(N) % 3 != 1


@pytest.fixture(scope="module")
def whole(noisy: np.ndarray) -> FitResult:
    return fit(noisy, K, is_right=SIDES, device="cpu")


# Results mean what they say.


def test_the_fit_explains_the_keypoints(whole: FitResult, synthetic: Callable[..., Any]) -> None:
    assert bool(whole.fitted().all()) and float((whole.status == Status.CONVERGED).double().mean()) > 0.9
    exact = synthetic(60, 32)
    result = fit(exact.uv, K, device="cpu")
    assert float(result.rms_px.median()) < 2.0
    error = (result.joints - result.joints[:, :1]) - (exact.points - exact.points[:, :1])
    assert float(error.norm(dim=-1).mean(1).median()) < 0.012


def test_parts_of_a_result_agree(whole: FitResult, models: HandModels, noisy: np.ndarray) -> None:
    torch.testing.assert_close(sum(whole.energy_terms.values()), whole.energy, rtol=1e-9, atol=1e-9)
    assert {"reprojection", "pose_prior", "limits", "shape"} <= set(whole.energy_terms)
    # Joints are those of the mesh with these parameters, on each side; the picture is their projection.
    vertices = whole.vertices()
    for side in (True, False):
        at = torch.from_numpy(np.flatnonzero(side == SIDES))
        hand = models.pair.side(side)
        mesh, joints = skin(hand, *whole.params.select(at).tensors())
        torch.testing.assert_close(vertices[at], mesh)
        both = torch.cat([joints, mesh[:, torch.from_numpy(hand.tip_ids)]], 1)[:, list(CANONICAL_FROM_MANO)]
        torch.testing.assert_close(whole.joints[at], both, atol=1e-6, rtol=0.0)
    seen = 600 * whole.joints[..., :2] / whole.joints[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64)
    torch.testing.assert_close(whole.keypoints_2d_fit, seen)
    sq = np.square(seen.numpy() - noisy[..., :2]).sum(2)
    rms = np.sqrt((sq * noisy[..., 2]).sum(1) / noisy[..., 2].sum(1))
    np.testing.assert_allclose(whole.rms_px.numpy(), rms, rtol=1e-9)
    assert bool((whole.steps > 0).all()) and bool((whole.hypothesis_gap >= 0).all())
    assert bool((whole.params.hand_pose.reshape(N, 15, 3).norm(dim=-1) <= torch.pi + 1e-9).all())


# What a result depends on.


def test_the_same_bytes_twice(whole: FitResult, noisy: np.ndarray) -> None:
    assert_same_bits(fit(noisy, K, is_right=SIDES, device="cpu"), whole, torch.arange(N))


@pytest.mark.parametrize("at", [[0], [7], [23], [3, 11], [5, 5 + 6, 2, 20, 8], list(range(N - 1, -1, -1))], ids=str)
def test_a_hand_does_not_depend_on_its_batch(at: list[int], whole: FitResult, noisy: np.ndarray) -> None:
    assert_same_bits(fit(noisy[at], K, is_right=SIDES[at], device="cpu"), whole, torch.tensor(at))


def nothing(posed: PosedHand) -> Tensor:
    return posed.points[:, 0, :1] * 0


@pytest.mark.parametrize("seeds", [1, 4])
def test_nor_with_the_tensor_engine(seeds: int, noisy: np.ndarray) -> None:
    """A term of the caller's takes the fit to the torch engine."""
    recipe = Recipe(seeds=seeds, extra_terms=(AutoTerm("nothing", nothing),))
    few = list(range(5))
    whole = fit(noisy[few], K, is_right=SIDES[few], recipe=recipe, device="cpu")
    assert "nothing" in whole.energy_terms
    for at in ([0], few[::-1]):
        some = fit(noisy[at], K, is_right=SIDES[at], recipe=recipe, device="cpu")
        assert_same_bits(some, whole, torch.tensor(at))


def test_float32_depends_on_the_batch_by_less_than_a_hundredth_of_a_millimetre(
    whole: FitResult, noisy: np.ndarray
) -> None:
    single = fit(noisy, K, is_right=SIDES, device="cpu", dtype=torch.float32)
    assert single.joints.dtype == torch.float32 and bool(single.fitted().all())
    gaps = []
    for at in ([0], [3, 11], list(range(N - 1, -1, -1))):
        some = fit(noisy[at], K, is_right=SIDES[at], device="cpu", dtype=torch.float32)
        gaps.append((some.joints - single.joints[at]).norm(dim=-1).flatten())
    assert float((torch.cat(gaps) < 1e-5).double().mean()) >= 0.999
    near = (single.joints - whole.joints).norm(dim=-1).mean(1) < 1e-3
    assert float(near.double().mean()) >= 0.8


def test_a_left_hand_is_a_right_hand_in_a_mirror(whole: FitResult, noisy: np.ndarray) -> None:
    mirrored = noisy.copy()
    mirrored[..., 0] = 2 * 320 - mirrored[..., 0]
    other = fit(mirrored, K, is_right=~SIDES, device="cpu")
    torch.testing.assert_close(other.energy, whole.energy, rtol=1e-9, atol=0.0)
    for now, then in zip(other.params.mirrored().tensors(), whole.params.tensors(), strict=True):
        torch.testing.assert_close(now, then, rtol=1e-9, atol=1e-9)
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    torch.testing.assert_close(other.joints * flip, whole.joints, rtol=0.0, atol=1e-9)
    assert torch.equal(other.status, whole.status) and torch.equal(other.steps, whole.steps)


def test_sides_with_models_of_their_own(models: HandModels, whole: FitResult, noisy: np.ndarray) -> None:
    """A left model that was not made by mirroring is prepared apart; here it holds the same hand."""
    left = replace(mirror_hand(models.pair.right), name="a left file")
    other = fit(noisy, K, is_right=SIDES, hand=HandPair(models.pair.right, left), device="cpu")
    torch.testing.assert_close(other.energy, whole.energy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.joints, whole.joints, rtol=0.0, atol=1e-5)


def test_where_a_missing_point_lies_does_not_matter(whole: FitResult, noisy: np.ndarray) -> None:
    gone = noisy[..., 2] == 0
    assert gone.sum() > 20
    for value in (0.0, -1e6, 1e300, np.nan, np.inf):
        moved = noisy.copy()
        moved[gone, :2] = value
        result = fit(moved, K, is_right=SIDES, device="cpu")
        kept = {k: v for k, v in rows(result).items() if k != "fit_2d"}
        for name, now in kept.items():
            assert torch.equal(now, rows(whole)[name]), (name, value)


def test_confidence_counts(synthetic: Callable[..., Any]) -> None:
    """A point that is off pulls less the less it is believed."""
    hands = synthetic(30, 37)
    points = torch.cat([hands.uv, torch.ones(30, 21, 1, dtype=F64)], 2)
    box = (hands.uv.amax(1) - hands.uv.amin(1)).amax(1)
    points[:, 11, 1] += 8 * box / 224  # Two sigmas.
    errors = []
    for conf in (1.0, 0.4, 0.1):
        points[:, 11, 2] = conf
        result = fit(points, K, device="cpu")
        errors.append(float((result.keypoints_2d_fit[:, 11] - points[:, 11, :2]).norm(dim=-1).median()))
    assert errors[0] < errors[1] < errors[2]


def test_one_gross_outlier_hardly_matters(synthetic: Callable[..., Any]) -> None:
    hands = synthetic(20, 33)
    clean = fit(hands.uv, K, device="cpu")
    moved = hands.uv.clone()
    # Towards the hand's middle, so that the hand's box, and the noise level with it, stays.
    moved[:, 7] = hands.uv.mean(1) + 0.3 * (hands.uv[:, 7] - hands.uv.mean(1)).flip(-1)
    far = (moved[:, 7] - hands.uv[:, 7]).norm(dim=-1)
    result = fit(moved, K, device="cpu")
    others = torch.arange(21) != 7
    change = (result.keypoints_2d_fit - clean.keypoints_2d_fit)[:, others].norm(dim=-1).mean(1)
    use = far > 20
    assert int(use.sum()) >= 8 and float((change / far)[use].median()) < 0.1


# Inputs that cannot be fitted.


def test_hands_that_cannot_be_fitted(noisy: np.ndarray, whole: FitResult) -> None:
    """Each ends with a status, nothing is raised, and the hands beside them keep their bits."""
    points = noisy.copy()
    points[2, :, 2] = 0  # Nothing seen.
    points[4, 3:, 2] = 0
    points[4, :3, 2] = 1  # Three points.
    points[5, :, 2] = 0
    points[5, 8, 2] = 1  # One.
    points[9] = 0.0  # All zero.
    points[10, :, :2] = 100.0  # All in one place.
    points[14, :, :2] = np.nan
    points[16, :, :2] *= 1e9
    points[17, 6, :2] = 1e9
    points[19, :, :2] = np.linspace(0, 200, 21)[:, None]  # A line.
    points[20, :, 2] = np.nan
    points[21, :, :2] += 1e9
    result = fit(points, K, is_right=SIDES, device="cpu")
    touched = [2, 4, 5, 9, 10, 14, 16, 17, 19, 20, 21]
    others = [i for i in range(N) if i not in touched]
    ours, theirs = rows(result), rows(whole)
    for name, value in ours.items():
        assert torch.equal(value[others], theirs[name][others]), name
    few = [2, 4, 5, 9, 14, 20]
    assert bool((result.status[few] == Status.TOO_FEW_POINTS).all())
    for part in (*result.params.tensors(), result.joints, result.energy[:, None]):
        assert bool(torch.isnan(part[few]).all())
    fitted = result.fitted()
    for part in (*result.params.tensors(), result.joints.flatten(1), result.energy[:, None]):
        assert bool(torch.isfinite(part[fitted]).all()), "no NaN under a good status"
        assert bool(torch.isnan(part[~fitted]).all()), "and no half-finished fit under a bad one"
    assert bool(((result.status >= 0) & (result.status <= 3)).all())


def test_only_hands_that_cannot_be_fitted() -> None:
    result = fit(np.zeros((3, 21, 3)), K, device="cpu")
    assert result.status.tolist() == [int(Status.TOO_FEW_POINTS)] * 3
    assert not bool(result.fitted().any()) and bool(torch.isnan(result.joints).all())
    assert bool(torch.isfinite(result.camera.focal).all())


def test_no_hands() -> None:
    result = fit(np.zeros((0, 21, 2)), K, device="cpu")
    assert len(result) == 0 and result.joints.shape == (0, 21, 3) and result.vertices().shape == (0, 778, 3)


@pytest.mark.parametrize("n_points", [4, 6, 10])
def test_few_points_give_finite_fits(n_points: int, noisy: np.ndarray) -> None:
    points = noisy.copy()
    rng = np.random.default_rng(n_points)
    for row in points:
        row[:, 2] = 0
        row[rng.permutation(21)[:n_points], 2] = 1
    result = fit(points, K, is_right=SIDES, device="cpu")
    assert bool(result.fitted().all()) and bool(torch.isfinite(result.joints).all())
    assert float(result.rms_px.median()) < 6


# Cameras and sizes.


def test_an_unknown_camera_says_so(noisy: np.ndarray) -> None:
    result = fit(noisy, None, is_right=SIDES, image_size=(640, 480), device="cpu")
    assert not bool(result.camera.is_known().any()) and bool(result.fitted().all())
    assert torch.equal(result.camera.focal, torch.full((N, 2), 800.0, dtype=F64))
    without = fit(noisy, None, is_right=SIDES, device="cpu")
    assert not bool(without.camera.is_known().any()) and bool(without.fitted().all())
    known = fit(noisy, K, is_right=SIDES, device="cpu")
    assert bool(known.camera.is_known().all())


def test_a_free_focal_length_moves_towards_the_truth(synthetic: Callable[..., Any]) -> None:
    """Near hands show their perspective. Assumed 40 % too long; size given, else only the product is seen."""
    hands = synthetic(40, 34)
    near = hands.points - torch.tensor([0.0, 0.0, 1.0], dtype=F64) * (hands.points[:, :1, 2:] - 0.22)
    visible = near[..., 2].amin(1) > 0.08
    uv = (600 * near[..., :2] / near[..., 2:] + torch.tensor([320.0, 240.0], dtype=F64))[visible]
    n = len(uv)
    wrong = Camera(
        torch.full((n, 2), 840.0, dtype=F64),
        torch.tensor([320.0, 240.0], dtype=F64).repeat(n, 1),
        known=torch.zeros(n, dtype=torch.bool),
    )
    length = 1000 * hand_lengths(hands)[visible]
    recipe = Recipe(focal_sigma=0.4, noise_px=1.0)
    result = fit(uv, wrong, recipe=recipe, hand_length_mm=length, device="cpu")
    focal = result.camera.focal[:, 0]
    assert not bool(result.camera.is_known().any()) and torch.equal(focal, result.camera.focal[:, 1])
    assert float(focal.median()) < 720 and float((focal < 840).double().mean()) > 0.8
    assert "focal" in result.energy_terms
    expected = 0.5 * (torch.log(focal / 840) / 0.4).square()
    torch.testing.assert_close(result.energy_terms["focal"], expected, rtol=1e-6, atol=1e-9)
    kept = fit(uv, wrong, recipe=replace(recipe, focal_sigma=None), hand_length_mm=length, device="cpu")
    assert bool((kept.camera.focal == 840).all())
    assert float(result.energy.median()) < float(kept.energy.median())


def hand_lengths(hands: Any) -> Tensor:
    """(n,) m, wrist to middle fingertip along the bones, from the rest shape."""
    from handloop.hand.load import embedded_hand

    hand = embedded_hand().right
    vertices = hand.v_template + np.einsum("vcs,bs->bvc", hand.shapedirs, hands.state.betas.numpy())
    joints = np.einsum("jv,bvc->bjc", hand.j_regressor, vertices)
    chain = np.concatenate([joints[:, [0, 4, 5, 6]], vertices[:, [hand.tip_ids[2]]]], 1)
    return torch.tensor(np.linalg.norm(np.diff(chain, axis=1), axis=2).sum(1))


def test_a_known_length_makes_size_and_depth_right(synthetic: Callable[..., Any]) -> None:
    hands = synthetic(40, 35)
    truth = hand_lengths(hands)
    # The last ten lengths are unknown.
    given = torch.where(torch.arange(40) < 30, truth * 1000, torch.tensor(float("nan"), dtype=F64))
    result = fit(hands.uv, K, hand_length_mm=given, device="cpu")
    plain = fit(hands.uv, K, device="cpu")
    bones = [(0, 9), (9, 10), (10, 11), (11, 12)]
    fitted = sum((result.joints[:, b] - result.joints[:, a]).norm(dim=-1) for a, b in bones)
    # The fingertip vertex moves a little with the pose; 1 mm is the length's own standard deviation.
    assert float((fitted - truth)[:30].abs().quantile(0.9)) < 0.003
    off = (result.joints[:, 0, 2] / hands.points[:, 0, 2] - 1).abs()[:30]
    before = (plain.joints[:, 0, 2] / hands.points[:, 0, 2] - 1).abs()[:30]
    assert float(off.median()) < 0.5 * float(before.median())
    torch.testing.assert_close(result.joints[30:], plain.joints[30:], atol=1e-9, rtol=0.0)
    one = fit(hands.uv[:3], K, hand_length_mm=190, device="cpu")
    length = sum((one.joints[:, b] - one.joints[:, a]).norm(dim=-1) for a, b in bones)
    assert float((length - 0.190).abs().max()) < 0.006


def test_lens_distortion_is_handled(synthetic: Callable[..., Any]) -> None:
    cv2 = pytest.importorskip("cv2")
    hands = synthetic(12, 36)
    dist = np.array([-0.25, 0.08, 0.001, -0.002, 0.01])
    bent = np.stack(
        [cv2.projectPoints(p, np.zeros(3), np.zeros(3), np.array(K), dist)[0][:, 0] for p in hands.points.numpy()]
    )
    assert np.abs(bent - hands.uv.numpy()).max() > 3
    camera = replace(hands.camera, dist=torch.tensor(dist).repeat(12, 1))
    with_lens, straight = fit(bent, camera, device="cpu"), fit(hands.uv, K, device="cpu")
    # The noise level follows the hand's box in the picture, which the lens changes a little.
    gap = (with_lens.joints - straight.joints).norm(dim=-1).mean(1)
    assert float(gap.median()) < 0.002
    seen = np.stack(
        [cv2.projectPoints(p, np.zeros(3), np.zeros(3), np.array(K), dist)[0][:, 0] for p in with_lens.joints.numpy()]
    )
    np.testing.assert_allclose(with_lens.keypoints_2d_fit.numpy(), seen, atol=1e-6)
    assert float(with_lens.rms_px.median()) < 2


# Recipes and terms of the caller's.


def test_fixed_groups_stay_at_their_start(noisy: np.ndarray) -> None:
    shape = fit(noisy, K, recipe=Recipe(fixed=("betas",)), device="cpu")
    assert bool((shape.params.betas == 0).all()) and bool(shape.fitted().all())


def pinch(posed: PosedHand, wanted: Tensor) -> Tensor:
    """Thumb tip and index tip `wanted` m apart, to 1 mm."""
    gap = (posed.points[:, 4] - posed.points[:, 8]).norm(dim=1, keepdim=True)
    return (gap - wanted[:, None]) / 0.001


def test_a_term_of_the_callers_changes_the_fit(whole: FitResult, noisy: np.ndarray) -> None:
    few = list(range(5))
    wanted = torch.linspace(0.03, 0.06, 5, dtype=F64)
    term = AutoTerm("pinch", pinch, (wanted,))
    result = fit(noisy[few], K, is_right=SIDES[few], recipe=Recipe(extra_terms=(term,)), device="cpu")
    gap = (result.joints[:, 4] - result.joints[:, 8]).norm(dim=1)
    before = (whole.joints[few, 4] - whole.joints[few, 8]).norm(dim=1)
    assert float((gap - wanted).abs().median()) < 0.005 < float((before - wanted).abs().median())
    expected = 0.5 * ((gap - wanted) / 0.001).square()
    torch.testing.assert_close(result.energy_terms["pinch"], expected, rtol=1e-6, atol=1e-9)


def test_the_two_engines_agree(whole: FitResult, noisy: np.ndarray) -> None:
    """A term that is always zero brings the torch engine to the same problem."""
    recipe = Recipe(extra_terms=(AutoTerm("nothing", nothing),))
    few = list(range(12))
    other = fit(noisy[few], K, is_right=SIDES[few], recipe=recipe, device="cpu")
    close = (other.energy - whole.energy[few]).abs() <= 1e-4 * whole.energy[few].clamp(min=1.0)
    assert float(close.double().mean()) >= 0.9
    assert float(((other.joints - whole.joints[few]).norm(dim=-1).mean(1) < 1e-3).double().mean()) >= 0.9


def test_keypoints_objects_say_side_and_size_themselves(whole: FitResult, noisy: np.ndarray) -> None:
    keypoints = Keypoints.from_arrays(noisy, SIDES, (640, 480), ids=[f"hand {i}" for i in range(N)])
    result = fit(keypoints, K, device="cpu")
    assert_same_bits(result, whole, torch.arange(N))
    assert result.keypoints.ids[3] == "hand 3"
