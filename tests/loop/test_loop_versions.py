"""Checkpoints, rollback and re-scoring, against copies of the whole content kept by the test."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.errors import CacheError, InputError, ScoreError
from handloop.core.results import FitResult
from handloop.loop.accept import Decision
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import CachedFits, Origin
from handloop.loop.versions import Progress

Make = Callable[..., FitResult]
Content = Callable[[Path], list[tuple[object, ...]]]
ORIGIN = Origin("search")
IDS = [f"{i:02d}" for i in range(20)]


def one_step(cache: FitCache, make: Make, step: int) -> None:
    """Two batches of random hands with random energies, some implausible, drawn from the step's number alone."""
    draw = np.random.default_rng(step)
    for part in range(2):
        ids = [f"{i:02d}" for i in draw.integers(step, step + 12, 6)]  # Old ones return, new ones come.
        fits = make(ids, energy=draw.uniform(1, 100, 6), seed=10 * step + part, plausible=draw.random(6) < 0.7)
        cache.put(ids, fits, replace(ORIGIN, epoch=step // 5), step, cache.score_version)


@pytest.mark.parametrize("seed", range(4))
def test_rollback_restores_every_step_it_may_and_the_rerun_ends_the_same(
    tmp_path: Path, make: Make, content: Content, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    checkpoints = sorted(draw.choice(np.arange(1, 29), 4, replace=False).tolist())
    before: dict[int, list[tuple[object, ...]]] = {}
    with FitCache.open(tmp_path / "run") as cache:
        for step in range(1, 31):
            one_step(cache, make, step)
            if step == 12:
                cache.rescore(lambda fits: doubled(fits), "doubled", step)
            before[step] = content(cache.path)
            if step in checkpoints:
                cache.checkpoint(step)
        assert cache.progress == Progress(checkpoints[-2], checkpoints[-1], checkpoints[-1], 30)
    for step in range(checkpoints[-2], 31):
        shutil.copytree(tmp_path / "run", tmp_path / f"{step}")
        with FitCache.open(tmp_path / f"{step}") as cache:
            cache.rollback(step)
            assert content(cache.path) == before[step]
            for again in range(step + 1, 31):
                one_step(cache, make, again)
                if again == 12:
                    cache.rescore(lambda fits: doubled(fits), "doubled", again)
            assert content(cache.path) == before[30]
    assert before[checkpoints[-2]] != before[30]


def doubled(fits: CachedFits) -> CachedFits:
    terms = {name: 2 * value for name, value in fits.energy_terms.items()}
    return replace(fits, energy=2 * fits.energy, energy_terms=terms)


def test_a_rollback_twice_and_to_a_step_without_writes(tmp_path: Path, make: Make, content: Content) -> None:
    with FitCache.open(tmp_path) as cache:
        one_step(cache, make, 1)
        cache.checkpoint(1)
        first = content(cache.path)
        one_step(cache, make, 5)
        assert cache.rollback(3) > 0 and content(cache.path) == first
        assert cache.rollback(1) == 0 and content(cache.path) == first
        assert cache.rollback(-1) > 0 and len(cache) == 0
        # Nothing is left of the rows, nor of what the first ones settled.
        one = make(["a"], texts={**make(["a"]).provenance, "hand_model_digest": "another"})
        cache.put(["a"], one, ORIGIN, 0, 0)


def test_versions_are_kept_for_two_checkpoints_and_then_dropped(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        for step in range(1, 9):
            cache.put(["a"], make(["a"], energy=100.0 - step, seed=step), ORIGIN, step, 0)
            if step % 2 == 0:
                cache.checkpoint(step)
        with closing(sqlite3.connect(cache.path)) as db:
            assert [row[0] for row in db.execute("SELECT replaced FROM history ORDER BY seq")] == [7, 8]
        with pytest.raises(CacheError, match="taken back to step 6 at most, not to 5"):
            cache.rollback(5)
        cache.rollback(6)
        assert cache.get(["a"]).energy.tolist() == [94.0] and cache.get(["a"]).improvements.tolist() == [5]


def test_steps_only_go_forward(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        cache.put(["a"], make(["a"]), ORIGIN, 5, 0)
        with pytest.raises(CacheError, match=r"step 4 would write after step 5 .* rollback\(3\)"):
            cache.put(["b"], make(["b"]), ORIGIN, 4, 0)
        with pytest.raises(CacheError, match="checkpoint of step 4 was asked for, but step 5 is in the cache"):
            cache.checkpoint(4)
        cache.checkpoint(5)
        cache.checkpoint(5)
        assert cache.progress == Progress(-1, 5, 5, 5)
        with pytest.raises(CacheError, match="step 5 would write behind the checkpoint of step 5"):
            cache.put(["b"], make(["b"]), ORIGIN, 5, 0)
        with pytest.raises(CacheError, match="step 5 would write behind"):
            cache.rescore(lambda fits: fits, "new", 5)
        assert len(cache) == 1 and cache.score_version == 0


# Re-scoring.


def test_every_row_is_scored_anew_before_anything_is_compared(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handloop.loop.cache.BATCH", 7)
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, make(IDS, energy=10.0), ORIGIN, 1, 0)
        sizes = []

        def score(fits: CachedFits) -> CachedFits:
            sizes.append(len(fits))
            new = {"prior": 3 * fits.energy, "reprojection": fits.energy}
            text = {**fits.conventions, "layout": "learned"}
            return replace(fits, energy=4 * fits.energy, energy_terms=new, conventions=text)

        assert cache.rescore(score, "prior-2", 2) == 1 and sizes == [7, 7, 6]
        fits = cache.get(IDS)
        assert fits.energy.tolist() == [40.0] * 20 and set(fits.energy_terms) == {"prior", "reprojection"}
        assert fits.score_version.tolist() == [1] * 20 and fits.step.tolist() == [2] * 20
        assert fits.found_step.tolist() == [1] * 20 and fits.improvements.tolist() == [0] * 20
        assert fits.conventions["layout"] == "learned" and fits.conventions["noise_px_at_224"] == "2"
        # The same score again changes nothing.
        assert cache.rescore(score, "prior-2", 2) == 1 and len(sizes) == 3
        with pytest.raises(ScoreError, match=r"score version 0 were put into .* at version 1 \(prior-2\)"):
            cache.put(IDS, make(IDS, energy=1.0), ORIGIN, 3, 0)
        offered = make(IDS, energy=39.0, seed=3, texts={**make(IDS).provenance, "layout": "learned"})
        half = {"prior": offered.energy / 2, "reprojection": offered.energy / 2}
        found = cache.put(IDS, replace(offered, energy_terms=half), ORIGIN, 3, 1)
        assert found.decision.tolist() == [Decision.IMPROVED] * 20


def test_an_interrupted_rescoring_compares_nothing_and_goes_on(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, content: Content
) -> None:
    monkeypatch.setattr("handloop.loop.cache.BATCH", 8)
    calls = []

    def breaks(fits: CachedFits) -> CachedFits:
        calls.append(fits.ids)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return doubled(fits)

    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, make(IDS), ORIGIN, 1, 0)
        cache.checkpoint(1)
        sealed = content(cache.path)
        with pytest.raises(KeyboardInterrupt):
            cache.rescore(breaks, "doubled", 2)
        fits = cache.get(IDS)
        assert fits.score_version.tolist() == [1] * 8 + [0] * 12 and fits.energy.tolist() == [20.0] * 8 + [10.0] * 12
        with pytest.raises(ScoreError, match="'19' have score versions 0 and 1"):
            cache.put(["19"], make(["19"], energy=1.0), ORIGIN, 2, 1)
        with pytest.raises(CacheError, match="re-scoring under 'doubled' was interrupted"):
            cache.rescore(doubled, "tripled", 2)
        assert cache.rescore(breaks, "doubled", 2) == 1
        assert cache.get(IDS).energy.tolist() == [20.0] * 20
        cache.rollback(1)
        assert content(cache.path) == sealed and cache.score_version == 0


def test_a_fit_the_new_score_cannot_score_is_marked_and_any_plausible_one_replaces_it(
    tmp_path: Path, make: Make
) -> None:
    def score(fits: CachedFits) -> CachedFits:
        energy = fits.energy.clone()
        energy[0] = float("nan")
        return replace(fits, energy=energy)

    with FitCache.open(tmp_path) as cache:
        cache.put(["a", "b"], make(["a", "b"]), ORIGIN, 1, 0)
        cache.rescore(score, "new", 2)
        fits = cache.get(["a", "b"])
        assert fits.energy.tolist() == [float("inf"), 10.0] and fits.plausible.tolist() == [False, True]
        assert fits.doubts == ("the present score gives no finite energy", "") and fits.usable().tolist() == [
            False,
            True,
        ]
        found = cache.put(["a"], make(["a"], energy=500.0), ORIGIN, 3, 1)
        assert found.decision.tolist() == [Decision.REPAIRED]


def test_scoring_may_not_change_the_fits(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        cache.put(["a", "b"], make(["a", "b"]), ORIGIN, 1, 0)
        for wrong in (
            lambda fits: fits.select(torch.tensor([1, 0])),
            lambda fits: replace(fits, params=fits.params.mirrored()),
        ):
            with pytest.raises(InputError, match="gave back other fits"):
                cache.rescore(wrong, "new", 2)
            cache.rollback(1)
        with pytest.raises(InputError, match="parts add up to"):
            cache.rescore(lambda fits: replace(fits, energy=2 * fits.energy), "new", 2)
