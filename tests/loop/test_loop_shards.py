"""Which rank a sample belongs to, and joining shards."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handloop.core.errors import CacheError, InputError, ScoreError
from handloop.core.results import FitResult
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import CachedFits, Origin
from handloop.loop.merge import merge
from handloop.loop.shards import find_shards, rank_of, shard_of, shard_path
from handloop.loop.verify import verify

Make = Callable[..., FitResult]
ORIGIN = Origin("search")
IDS = [f"sample {i}" for i in range(60)]


def fill(folder: Path, make: Make, ids: list[str], n_ranks: int = 1, **options: object) -> list[Path]:
    for rank in range(n_ranks):
        mine = [name for name in ids if rank_of(name, n_ranks) == rank]
        with FitCache.open(folder, rank, n_ranks) as cache:
            cache.put(mine, make(mine, **options), replace(ORIGIN, epoch=rank), 1, 0)
    return list(find_shards(folder))


def everything(folder: Path) -> CachedFits:
    parts = []
    for path in find_shards(folder):
        with FitCache.open(folder, *shard_of(path), write=False) as cache:
            parts += list(cache.batches())
    return CachedFits.concatenate(parts)


def test_ranks_are_those_of_the_published_hash() -> None:
    """BLAKE2b-64 of "a" and "hand" by `b2sum -l 64` (GNU coreutils), read as little-endian numbers."""
    known = {"a": "40f89e395b66422f", "hand": "77accd9718bd69b4"}
    for name, digest in known.items():
        number = int("".join(reversed([digest[i : i + 2] for i in range(0, 16, 2)])), 16)
        assert [rank_of(name, n) for n in (1, 2, 7, 1000)] == [number % n for n in (1, 2, 7, 1000)]


def test_ranks_share_the_samples_evenly() -> None:
    counts = np.bincount([rank_of(f"{i:012d}", 8) for i in range(8000)], minlength=8)
    assert counts.min() > 850 and counts.max() < 1150


def test_names_of_shards(tmp_path: Path) -> None:
    assert shard_path(tmp_path, 0, 2).name == "fits-r00of02.sqlite"
    assert shard_of(shard_path("x", 104, 128)) == (104, 128)
    with pytest.raises(InputError, match="rank 2 of 2 was given, expected 0 to 1"):
        FitCache.open(tmp_path, 2, 2)
    for name in ("fits.sqlite", "fits-r02of02.sqlite"):
        (tmp_path / name).touch()
        with pytest.raises(CacheError, match="not named as a shard"):
            find_shards(tmp_path / name)


def test_folders_that_are_no_whole_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        find_shards(tmp_path / "none")
    with pytest.raises(CacheError, match="holds no fit cache"):
        find_shards(tmp_path)
    shard_path(tmp_path, 1, 3).touch()
    with pytest.raises(CacheError, match="lacks the shards of ranks 0, 2 of 3"):
        find_shards(tmp_path)
    shard_path(tmp_path, 0, 1).touch()
    with pytest.raises(CacheError, match="caches with 1 and 3 ranks"):
        find_shards(tmp_path)


def test_a_sample_of_another_rank_is_refused(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path, 0, 2) as cache:
        other = next(name for name in IDS if rank_of(name, 2) == 1)
        with pytest.raises(InputError, match=f"'{other}' belongs to rank 1 of 2"):
            cache.get([other])
        with pytest.raises(InputError, match=f"'{other}' belongs to rank 1 of 2"):
            cache.put([other], make([other]), ORIGIN, 1, 0)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5)])
def test_other_numbers_of_ranks_hold_the_same_fits(tmp_path: Path, make: Make, before: int, after: int) -> None:
    sources = fill(tmp_path / "a", make, IDS, before)
    merged = merge(sources, tmp_path / "b", after)
    assert (merged.rows, merged.twice, len(merged.shards)) == (60, 0, after)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [shard_path("", r, after).name for r in range(after)]
    for path in merged.shards:
        assert verify(path).problems == ()
    one, two = everything(tmp_path / "a"), everything(tmp_path / "b")
    at = {name: i for i, name in enumerate(two.ids)}
    two = two.select(one.found.new_tensor([at[name] for name in one.ids], dtype=int))  # type: ignore[call-overload]
    assert one.params.hand_pose.equal(two.params.hand_pose) and one.energy.equal(two.energy)
    assert one.origin == two.origin and one.improvements.equal(two.improvements)
    with FitCache.open(tmp_path / "b", 0, after) as cache:
        assert cache.progress.floor == cache.progress.sealed == 1
        mine = [name for name in IDS if rank_of(name, after) == 0]
        assert cache.put(mine, make(mine, energy=1.0), ORIGIN, 2, 0).rate() == 1


def test_of_two_fits_the_better_one_wins_in_any_order(tmp_path: Path, make: Make) -> None:
    ids = ["odd and low", "high", "same"]
    options = [
        ([1.0, 10.0, 5.0], [False, True, True]),
        ([9.0, 8.0, 5.0], [True, True, True]),
        ([8.0, 9.0, 5.0], [True, True, True]),
    ]
    for i, (energy, plausible) in enumerate(options):
        fill(tmp_path / f"{i}", make, ids, energy=energy, plausible=plausible, seed=i)
    contents = set()
    for order in itertools.permutations(range(3)):
        out = tmp_path / "".join(map(str, order))
        merged = merge([find_shards(tmp_path / f"{i}")[0] for i in order], out, 1)
        assert (merged.rows, merged.twice) == (3, 3)
        with FitCache.open(out) as cache:
            fits = cache.get(ids)
        assert fits.energy.tolist() == [8.0, 8.0, 5.0] and bool(fits.plausible.all())
        contents.add(fits.params.hand_pose.numpy().tobytes())
    assert len(contents) == 1


def test_terms_in_another_order_are_brought_into_one(tmp_path: Path, make: Make) -> None:
    (first,) = fill(tmp_path / "a", make, ["a"])
    with FitCache.open(tmp_path / "b") as cache:
        result = make(["b"], energy=8.0)
        cache.put(["b"], replace(result, energy_terms=dict(reversed(result.energy_terms.items()))), ORIGIN, 1, 0)
    merge([first, cache.path], tmp_path / "c", 1)
    fits = everything(tmp_path / "c")
    assert fits.energy_terms["reprojection"].tolist() == [5.0, 4.0]
    assert verify(find_shards(tmp_path / "c")[0]).problems == ()


def test_what_cannot_be_compared_is_not_merged(tmp_path: Path, make: Make) -> None:
    (one,) = fill(tmp_path / "one", make, ["a"])
    texts = dict(make(["a"]).provenance)
    (noisy,) = fill(tmp_path / "noisy", make, ["b"], texts={**texts, "noise_px_at_224": "3"})
    (model,) = fill(tmp_path / "model", make, ["b"], texts={**texts, "hand_model_digest": "other"})
    (scored,) = fill(tmp_path / "scored", make, ["b"])
    with FitCache.open(tmp_path / "scored") as cache:
        cache.rescore(lambda fits: fits, "new prior", 2)
    for other, kind, match in (
        (noisy, ScoreError, "another noise level"),
        (model, InputError, "has hand_model_digest abc def, .* other"),
        (scored, ScoreError, r"score version 0 \(initial\), .* at 1 \(new prior\)"),
    ):
        with pytest.raises(kind, match=match):
            merge([one, other], tmp_path / "out", 1)
    with pytest.raises(CacheError, match="holds a fit cache already"):
        merge([one], tmp_path / "one", 2)
    with pytest.raises(InputError, match="0 ranks"):
        merge([one], tmp_path / "out", 0)
    with closing(sqlite3.connect(scored)) as db:
        db.execute("UPDATE fits SET score_version=0")
        db.commit()
    with pytest.raises(ScoreError, match="finish its re-scoring"):
        merge([scored], tmp_path / "out", 1)


def test_what_an_interrupted_merge_leaves_is_no_cache(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = fill(tmp_path / "a", make, IDS)

    def fails(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("handloop.loop.merge._copy", fails)
    with pytest.raises(KeyboardInterrupt):
        merge(sources, tmp_path / "b", 2)
    with pytest.raises(CacheError, match="holds no fit cache"):
        find_shards(tmp_path / "b")
    monkeypatch.undo()
    assert merge(sources, tmp_path / "b", 2).rows == 60 and len(everything(tmp_path / "b")) == 60
