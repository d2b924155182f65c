"""The shards of a run's cache, brought to where its processes are now: another number of them, or other machines.

Each machine has the run's folder on a disk of its own, or shares it with rank 0. The shards are at home in `fits` in
it; `fits.new` and `fits.old` are there only while one is put in the place of the other.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from handloop.core.errors import CacheError
from handloop.loop.cache import FitCache
from handloop.loop.merge import merge
from handloop.loop.ranks import Ranks
from handloop.loop.shards import shard_name, shard_of, shards_in


def bring_home(folder: Path, ranks: Ranks, step: int | None) -> None:
    """Let every rank find its own shard in its folder.

    Args:
        folder: the cache's, on this rank's machine.
        ranks: the processes.
        step: to take shards back to where they are handed out anew; None before the run's first checkpoint.

    Raises:
        CacheError: shards are missing.
    """
    places = _Places.of(folder, ranks)
    if places.leader:
        _recover(folder)
    ranks.wait()
    whole = [set(json.loads(text)) for text in ranks.texts(json.dumps([p.name for p in shards_in(folder)]))]
    own = [shard_name(rank, ranks.n) for rank in range(ranks.n)]
    others = set().union(*whole) - set(own)
    at_home = all(name in names for name, names in zip(own, whole, strict=True))
    if not at_home and (step is not None or others):
        _collect(folder, ranks, places)
        if ranks.first:
            _rehash(folder, ranks.n, step)
        ranks.wait()
        _hand_out(folder, ranks, places)
        if places.leader:
            mine = {own[rank] for rank, place in enumerate(places.of_rank) if place == places.of_rank[ranks.rank]}
            _remove(folder, {p.name for p in shards_in(folder)} - mine)
    ranks.wait()


def join(folder: Path, ranks: Ranks, step: int) -> None:
    """Make one shard of all, on rank 0's machine; every rank has closed its own.

    Args:
        folder, ranks: see `bring_home`.
        step: the last.
    """
    places = _Places.of(folder, ranks)
    _collect(folder, ranks, places)
    if ranks.first:
        _rehash(folder, 1, step)
    ranks.wait()
    if places.leader and not ranks.first:
        _remove(folder, {p.name for p in shards_in(folder)})
    ranks.wait()


class _Places:
    """Which ranks see one and the same folder."""

    def __init__(self, ranks: Ranks, of_rank: list[str]) -> None:
        self.of_rank = of_rank
        """A name of each rank's folder."""
        self.leader = of_rank.index(of_rank[ranks.rank]) == ranks.rank
        """Whether this is the first of the ranks that see its folder."""
        self.leaders = [rank for rank, place in enumerate(of_rank) if of_rank.index(place) == rank]

    @classmethod
    def of(cls, folder: Path, ranks: Ranks) -> _Places:
        """Every rank leaves a mark, and looks whose marks it sees."""
        if ranks.n == 1:
            return cls(ranks, [""])
        mark = f"{ranks.rank}-{secrets.token_hex(8)}"
        path = folder.with_name(f"rank-{mark}.mark")
        path.touch()
        marks = ranks.texts(mark)
        seen = next(mark for mark in marks if folder.with_name(f"rank-{mark}.mark").exists())
        places = ranks.texts(seen)
        path.unlink()
        return cls(ranks, places)


def _recover(folder: Path) -> None:
    """After an interruption between two renamings, the former cache is still there."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.is_dir():
        os.replace(old, folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _collect(folder: Path, ranks: Ranks, places: _Places) -> None:
    """All shards to rank 0's folder."""
    for leader in places.leaders[1:]:
        names: list[str] = json.loads(ranks.texts(json.dumps([p.name for p in shards_in(folder)]))[leader])
        for name in names:
            if ranks.rank == leader:
                # Closing brings a killed process's log into the file.
                FitCache.open(folder, *shard_of(folder / name)).close()
                ranks.send(folder / name, 0)
            elif ranks.first:
                _remove(folder, {name})
                ranks.receive(folder / name, leader)
    ranks.wait()


def _hand_out(folder: Path, ranks: Ranks, places: _Places) -> None:
    """Each rank's shard from rank 0's folder to its own."""
    for rank, place in enumerate(places.of_rank):
        if place == places.of_rank[0]:
            continue
        name = shard_name(rank, ranks.n)
        if ranks.first:
            ranks.send(folder / name, rank)
        elif ranks.rank == rank:
            _remove(folder, {name})
            ranks.receive(folder / name, 0)
    ranks.wait()


def _rehash(folder: Path, n: int, step: int | None) -> None:
    """Put a cache of n shards in the place of the one there is.

    Raises:
        CacheError: shards are missing.
    """
    sets: dict[int, list[Path]] = {}
    for path in shards_in(folder):
        sets.setdefault(shard_of(path)[1], []).append(path)
    whole = [count for count, paths in sets.items() if len(paths) == count]
    if not whole:
        found = ", ".join(path.name for path in shards_in(folder)) or "none"
        raise CacheError(
            f"{folder} lacks shards of the run's cache (there are: {found}); start a process on every machine that has "
            "some, or copy them there."
        )
    count = n if n in whole else whole[0]
    if step is not None:
        for path in sets[count]:
            with FitCache.open(folder, *shard_of(path)) as cache:
                cache.rollback(step)
    if count == n:
        return
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    merge(sets[count], new, n)
    os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old)


def _remove(folder: Path, names: set[str]) -> None:
    for name in names:
        for ending in ("", "-wal", "-shm"):
            (folder / (name + ending)).unlink(missing_ok=True)
