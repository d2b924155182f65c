"""What is put is got back: numbers, sides, frames, texts; and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.errors import CacheError, InputError, ScoreError
from handloop.core.results import FitResult, Status
from handloop.loop.accept import Decision
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import CachedFits, Origin
from handloop.loop.records import RECORD

Make = Callable[..., FitResult]
IDS = [f"set/{i:03d}:left" for i in range(40)]
ORIGIN = Origin("search", "recipe-1", "weights-2", "prior-3", "layout-4", 7, "0.0.0")


@pytest.fixture
def cache(tmp_path: Path) -> FitCache:
    return FitCache.open(tmp_path / "cache")


def same(a: torch.Tensor, b: torch.Tensor, rtol: float = 0.0) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dist", [0, 4, 5, 8, 12])
def test_a_fit_comes_back_as_it_was(cache: FitCache, make: Make, dist: int) -> None:
    result: FitResult = make(IDS, dist=dist)
    assert bool(result.keypoints.is_right.any()) and not bool(result.keypoints.is_right.all())
    acceptance = cache.put(IDS, result, ORIGIN, step=3, score_version=0)
    assert acceptance.decision.tolist() == [Decision.NEW] * 40 and len(cache) == 40
    fits = cache.get(IDS)
    assert bool(fits.found.all()) and fits.ids == tuple(IDS)
    for got, given in zip(fits.params.tensors(), result.params.tensors(), strict=True):
        assert torch.equal(got, given)
    back = fits.to_result(result.hand)
    for name in ("energy", "status", "steps", "plausible", "depth_sd", "expected_error_mm", "rms_px", "hypothesis_gap"):
        assert same(getattr(back, name), getattr(result, name)), name
    for name in ("joints", "keypoints_3d", "keypoints_3d_sd"):
        assert same(getattr(back, name), getattr(result, name), 1e-7), name
    for name in ("focal", "princpt"):
        assert same(getattr(back.camera, name), getattr(result.camera, name)), name
    assert torch.equal(back.camera.is_known(), result.camera.is_known())
    assert (back.camera.dist is None) == (dist == 0)
    if result.camera.dist is not None and back.camera.dist is not None:
        assert torch.equal(back.camera.dist, result.camera.dist)
    assert {k: v.tolist() for k, v in back.energy_terms.items()} == {
        k: v.tolist() for k, v in result.energy_terms.items()
    }
    assert same(back.keypoints.xy, result.keypoints.xy, 1e-7) and same(back.keypoints.conf, result.keypoints.conf)
    for name in ("ids", "source", "image"):
        assert getattr(back.keypoints, name) == getattr(result.keypoints, name)
    assert torch.equal(back.keypoints.is_right, result.keypoints.is_right)
    assert (back.doubts, back.weakest) == (result.doubts, result.weakest)
    assert dict(back.provenance) == {**result.provenance, "recipe": "recipe-1"}
    assert fits.origin == (ORIGIN,) * 40
    assert fits.step.tolist() == fits.found_step.tolist() == [3] * 40 and fits.improvements.tolist() == [0] * 40


def test_order_duplicates_and_missing_rows(cache: FitCache, make: Make) -> None:
    cache.put(IDS[:3], make(IDS[:3], energy=[1.0, 2.0, 3.0]), ORIGIN, 1, 0)
    fits = cache.get([IDS[2], "no such", IDS[0], IDS[2]])
    assert fits.found.tolist() == [True, False, True, True]
    assert fits.energy.nan_to_num(-1).tolist() == [3.0, -1.0, 1.0, 3.0]
    for value in (*fits.params.tensors(), fits.focal, fits.joints, fits.keypoints_2d, fits.image_size, fits.depth_sd):
        assert bool(torch.isnan(value[1]).all()) and not bool(torch.isnan(value[0]).any())
    assert fits.origin[1] is None and fits.doubts[1] == "" and not bool(fits.plausible[1])
    assert fits.status[1] == Status.FAILED and fits.score_version[1] == fits.step[1] == -1
    assert fits.usable().tolist() == [True, False, True, True]
    with pytest.raises(InputError, match=r"1 of 4 samples have no fit \(the first is 'no such'\)"):
        fits.camera()
    assert len(fits.select(fits.found).camera()) == 3
    none = cache.get([])
    assert len(none) == 0 and none.params.hand_pose.shape == (0, 45)
    assert repr(fits) == "CachedFits(4 asked for, 3 found)"


def test_left_hands_are_stored_as_right_ones(cache: FitCache, make: Make) -> None:
    """Mirrored by hand: axis-angle y and z and the translation's x change sign (smplx's left model)."""
    result = make(IDS)
    cache.put(IDS, result, ORIGIN, 1, 0)
    stored = {row[0]: np.frombuffer(row[1], RECORD)[0] for row in cache._db.execute("SELECT id, fit FROM fits")}
    for i, name in enumerate(IDS):
        sign = 1.0 if bool(result.keypoints.is_right[i]) else -1.0
        pose = result.params.hand_pose[i].numpy().reshape(15, 3) * [1.0, sign, sign]
        assert np.array_equal(stored[name]["hand_pose"], pose.ravel())
        assert np.array_equal(stored[name]["transl"], result.params.transl[i].numpy() * [sign, 1.0, 1.0])
        assert np.array_equal(stored[name]["betas"], result.params.betas[i].numpy())


def test_float32_fits_are_kept_exactly(cache: FitCache, make: Make) -> None:
    result = make(IDS[:4])
    single = replace(result, params=result.params.to(torch.float32), joints=result.joints.float())
    cache.put(IDS[:4], single, ORIGIN, 1, 0)
    assert torch.equal(cache.get(IDS[:4]).params.hand_pose.float(), single.params.hand_pose)


def test_a_fit_without_posterior_can_be_stored(cache: FitCache, make: Make) -> None:
    result = make(IDS[:2])
    nan = torch.full_like(result.keypoints_3d_sd, float("nan"))
    cache.put(IDS[:2], replace(result, keypoints_3d_sd=nan, depth_sd=nan[:, 0, 0]), ORIGIN, 1, 0)
    fits = cache.get(IDS[:2])
    assert bool(fits.found.all()) and bool(torch.isnan(fits.depth_sd).all())


def test_improvements_are_counted_and_carry_their_step_and_origin(cache: FitCache, make: Make) -> None:
    ids = IDS[:3]
    cache.put(ids, make(ids, energy=10.0), ORIGIN, 1, 0)
    later = replace(ORIGIN, start="regressor", epoch=8)
    acceptance = cache.put(ids, make(ids, energy=[9.0, 10.0, 8.0], seed=5), later, 2, 0)
    assert acceptance.decision.tolist() == [Decision.IMPROVED, Decision.NO_BETTER, Decision.IMPROVED]
    fits = cache.get(ids)
    assert fits.improvements.tolist() == [1, 0, 1] and fits.step.tolist() == [2, 1, 2]
    assert fits.origin == (later, ORIGIN, later) and fits.energy.tolist() == [9.0, 10.0, 8.0]


def test_cached_fits_can_be_put_again_and_text_of_any_kind_is_kept(cache: FitCache, make: Make, tmp_path: Path) -> None:
    odd = ["ä/日本 \U0001f590", "1", "01", "1e3", "null", "'; DROP TABLE fits; --", '"quoted"\\', " ", "[1]"]
    cache.put(odd, make(odd, energy=np.arange(9.0)), ORIGIN, 1, 0)
    fits = cache.get(odd)
    assert fits.energy.tolist() == list(range(9))
    with FitCache.open(tmp_path / "other") as other:
        assert other.put(odd, fits, ORIGIN, 4, 0).rate() == 1
        assert other.put(odd, fits, Origin("cached"), 5, 0).rate() == 0
        assert other.get(odd).energy.tolist() == list(range(9)) and other.get(odd).step.tolist() == [4] * 9
        assert sorted(i for part in other.batches(2) for i in part.ids) == sorted(odd)


def test_what_an_origin_leaves_open_is_taken_from_the_fits(cache: FitCache, make: Make) -> None:
    cache.put(["a"], make(["a"]), Origin("search"), 1, 0)
    assert cache.get(["a"]).origin == (Origin("search", recipe="default", handloop_version="0.0.0"),)
    better = replace(cache.get(["a"]), energy=torch.zeros(1).double(), energy_terms=make(["a"], energy=0).energy_terms)
    cache.put(["a"], better, Origin("cached", epoch=2), 2, 0)
    assert cache.get(["a"]).origin == (Origin("cached", recipe="default", epoch=2, handloop_version="0.0.0"),)


def test_batches_go_through_everything_once(cache: FitCache, make: Make) -> None:
    cache.put(IDS, make(IDS), ORIGIN, 1, 0)
    parts = list(cache.batches(7))
    assert [len(part) for part in parts] == [7] * 5 + [5] and [i for p in parts for i in p.ids] == sorted(IDS)
    joined = CachedFits.concatenate(parts)
    assert torch.equal(joined.params.betas, cache.get(sorted(IDS)).params.betas)


def test_joining_pads_distortion_and_terms(make: Make) -> None:
    one = CachedFits.from_result(make(["a"], dist=5), ["a"], ORIGIN, 0, 0)
    two = CachedFits.from_result(make(["b"]), ["b"], ORIGIN, 0, 0)
    two = replace(two, energy_terms={**two.energy_terms, "extra": torch.ones(1, dtype=torch.float64)})
    joined = CachedFits.concatenate([one, two])
    assert joined.dist is not None and joined.dist.shape == (2, 5) and joined.dist[1].tolist() == [0.0] * 5
    assert joined.energy_terms["extra"].nan_to_num(-1).tolist() == [-1.0, 1.0] and joined.ids == ("a", "b")


def test_the_record_is_what_the_documentation_says() -> None:
    assert RECORD.itemsize == 1672
    assert [RECORD.fields[n][1] for n in ("hand_pose", "transl", "joints", "keypoints_2d")] == [24, 464, 664, 1420]  # type: ignore[index]


# What is refused.


def test_ids_that_cannot_be_stored(cache: FitCache, make: Make) -> None:
    for bad in ("", "a\0b", "\udcff", 7, None):
        with pytest.raises(InputError, match="cannot be stored; expected a text"):
            cache.get([bad])
    with pytest.raises(InputError, match="the one text 'abc' was given for ids"):
        cache.get("abc")
    with pytest.raises(InputError, match="2 ids were given for 1 fits"):
        cache.put(["a", "b"], make(["a"]), ORIGIN, 1, 0)


def test_a_part_of_the_energy_is_not_taken_for_the_whole(cache: FitCache, make: Make) -> None:
    result = make(["a"])
    with pytest.raises(InputError, match=r"energy of 'a' is 5, but its parts add up to 10"):
        cache.put(["a"], replace(result, energy=result.energy_terms["reprojection"]), ORIGIN, 1, 0)


def test_other_settings_models_and_terms_are_refused(cache: FitCache, make: Make) -> None:
    result = make(["a"])
    cache.put(["a"], result, ORIGIN, 1, 0)
    for key, value, kind in (
        ("noise_px_at_224", "3", ScoreError),
        ("energy_settings", "geman_mcclure 4", ScoreError),
        ("layout", "learned", ScoreError),
        ("hand_model_digest", "123 456", InputError),
        ("tip_set", "manopth", InputError),
    ):
        with pytest.raises(kind, match=f"fits have {key} {value}, those in .* "):
            cache.put(["b"], make(["b"], texts={**result.provenance, key: value}), ORIGIN, 1, 0)
    more = replace(result, energy_terms={**result.energy_terms, "mask": torch.zeros(1, dtype=torch.float64)})
    with pytest.raises(ScoreError, match=r"consist of limits, mask, .* those in .* of limits, pose_prior"):
        cache.put(["a"], more, ORIGIN, 1, 0)
    assert len(cache) == 1


def test_terms_in_another_order_are_the_same_terms(cache: FitCache, make: Make) -> None:
    cache.put(["a"], make(["a"]), ORIGIN, 1, 0)
    result = make(["b"], energy=8.0)
    cache.put(["b"], replace(result, energy_terms=dict(reversed(result.energy_terms.items()))), ORIGIN, 1, 0)
    fits = cache.get(["a", "b"])
    assert fits.energy_terms["reprojection"].tolist() == [5.0, 4.0]
    assert fits.energy_terms["limits"].tolist() == [1.25, 1.0]


def test_another_process_must_open_its_own(cache: FitCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(CacheError, match=r"was opened in another process \(before a fork\)"):
        cache.get(["a"])


def test_scores_must_be_the_caches_own(cache: FitCache, make: Make) -> None:
    with pytest.raises(ScoreError, match=r"score version 1 were put into .* at version 0 \(initial\)"):
        cache.put(["a"], make(["a"]), ORIGIN, 1, 1)
    cache.put(["a"], make(["a"]), ORIGIN, 1, 0)
    with pytest.raises(ScoreError, match="the fit of 'a' has score version 0, not 1"):
        cache.put(["a"], cache.get(["a"]), ORIGIN, 1, 1)
