"""The jobs behind `handloop cache`: what is in a cache, out of it, into it, joined, and whether it is whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from handloop.core.errors import CacheError, InputError
from handloop.core.params import HandParams
from handloop.core.results import FitResult
from handloop.formats.result_shards import read_results
from handloop.loop.accept import DECISION_HELP, Decision
from handloop.loop.cache import BATCH, FitCache
from handloop.loop.cached_fits import CachedFits, Origin
from handloop.loop.database import connect, reading
from handloop.loop.merge import merge
from handloop.loop.shards import find_shards, rank_of, shard_of
from handloop.loop.verify import verify

if TYPE_CHECKING:
    from handloop.train_commands import CacheExport, CacheImport, CacheInfo, CacheMerge, CacheVerify

_REASONS = 5
"""Doubts shown, the most frequent first."""


def run_info(command: CacheInfo) -> int:
    """Print tables of what is in a cache; returns the exit status."""
    console = Console(highlight=False)
    shards = Table(title=f"fit cache {command.cache}")
    for name in ("shard", "fits", "plausible", "improved", "step", "checkpoint", "score", "MB"):
        shards.add_column(name, justify="left" if name in ("shard", "score") else "right", no_wrap=name == "shard")
    doubts: dict[str, int] = {}
    origins: dict[tuple[str, int], int] = {}
    for path in find_shards(command.cache):
        with closing(connect(path, write=False)) as db, reading(path):
            shards.add_row(*_shard_row(path, db))
            for text, count in db.execute("SELECT doubts, count(*) FROM fits WHERE doubts <> '' GROUP BY doubts"):
                for reason in text.split("; "):
                    doubts[reason] = doubts.get(reason, 0) + count
            query = "SELECT start, epoch, count(*) FROM fits JOIN origins ON origin = key GROUP BY start, epoch"
            for start, epoch, count in db.execute(query):
                origins[start, epoch] = origins.get((start, epoch), 0) + count
    console.print(shards)
    came = Table(title="where the fits come from")
    for name in ("start", "epoch", "fits"):
        came.add_column(name, justify="left" if name == "start" else "right")
    for (start, epoch), count in sorted(origins.items()):
        came.add_row(start, "" if epoch < 0 else str(epoch), str(count))
    console.print(came)
    if doubts:
        against = Table(title="what speaks against fits")
        against.add_column("doubt")
        against.add_column("fits", justify="right")
        for reason, count in sorted(doubts.items(), key=lambda item: (-item[1], item[0]))[:_REASONS]:
            against.add_row(reason, str(count))
        console.print(against)
    return 0


def _shard_row(path: Path, db: sqlite3.Connection) -> tuple[str, ...]:
    fits, plausible, improved = db.execute(
        "SELECT count(*), coalesce(sum(plausible), 0), coalesce(sum(improvements > 0), 0) FROM fits"
    ).fetchone()
    version, name = db.execute("SELECT version, name FROM scores ORDER BY version DESC LIMIT 1").fetchone()
    old = db.execute("SELECT count(*) FROM fits WHERE score_version < ?", (version,)).fetchone()[0]
    meta = dict(db.execute("SELECT key, value FROM meta"))
    score = f"{version} ({name})" + (f", {old} fits not re-scored yet" if old else "")
    steps = ("none" if int(meta[key]) < 0 else str(meta[key]) for key in ("written", "checkpoint"))
    counts = (str(value) for value in (fits, plausible, improved))
    return path.name, *counts, *steps, score, f"{path.stat().st_size / 1e6:.1f}"


def run_export(command: CacheExport) -> int:
    """Write results.npz and summary.json; returns the exit status."""
    console = Console(highlight=False)
    parts: list[CachedFits] = []
    for path in find_shards(command.cache):
        with FitCache.open(path.parent, *shard_of(path), write=False) as cache:
            parts += list(cache.batches())
    if not parts:
        raise InputError(f"the cache {command.cache} is empty, there is nothing to export.")
    fits = CachedFits.concatenate(parts)
    order = sorted(range(len(fits)), key=fits.ids.__getitem__)
    fits = fits.select(torch.tensor(order))
    if command.plausible_only:
        fits = fits.select(fits.plausible)
    path = fits.to_result(_NoMesh()).save(command.out)
    console.print(f"{len(fits)} fits in {path}", markup=False, soft_wrap=True)
    return 0


def run_import(command: CacheImport) -> int:
    """Fill a new cache; returns the exit status, 1 where a hand has no usable fit."""
    console = Console(highlight=False)
    result = FitResult.from_arrays(read_results(command.results), _NoMesh())
    n_ranks = command.ranks
    if command.cache.is_dir() and any(command.cache.glob("fits-r*of*.sqlite")):
        n_ranks = shard_of(find_shards(command.cache)[0])[1]
        if command.ranks not in (1, n_ranks):
            raise InputError(
                f"{command.cache} is a cache of {n_ranks} ranks, --ranks says {command.ranks}; leave it out, or make "
                "another with handloop cache merge."
            )
    ids = result.keypoints.ids
    counts = dict.fromkeys(Decision, 0)
    origin = Origin(start=command.start)
    for rank in range(n_ranks):
        with FitCache.open(command.cache, rank, n_ranks) as cache:
            if cache.progress.written > 0 or cache.progress.sealed > 0:
                raise CacheError(
                    f"{cache.path} belongs to a training at step {cache.progress.written}; import fits before the "
                    "training starts, into a new cache."
                )
            mine = [i for i, name in enumerate(ids) if rank_of(name, n_ranks) == rank]
            every = CachedFits.from_result(result, ids, origin, 0, cache.score_version)
            for start in range(0, len(mine), BATCH):
                rows = mine[start : start + BATCH]
                fits = every.select(torch.tensor(rows))
                acceptance = cache.put(fits.ids, fits, fits.origin[0] or origin, 0, cache.score_version)
                for decision, count in acceptance.counts().items():
                    counts[decision] += count
    for decision, count in counts.items():
        if count:
            console.print(f"{count} hands {DECISION_HELP[decision]}", markup=False, soft_wrap=True)
    console.print(f"cache in {command.cache}", markup=False, soft_wrap=True)
    return 1 if counts[Decision.NOT_USABLE] else 0


def run_merge(command: CacheMerge) -> int:
    """Join shards into a new cache; returns the exit status."""
    console = Console(highlight=False)
    if not command.sources:
        raise InputError("no cache was given; name folders of caches or single shards.")
    sources = [shard for path in command.sources for shard in find_shards(path)]
    merged = merge(sources, command.out, command.ranks)
    twice = f"; {merged.twice} of them were in more than one, the better fit was kept" if merged.twice else ""
    console.print(
        f"{merged.rows} fits of {len(sources)} shards in {len(merged.shards)} shards in {command.out}{twice}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def run_verify(command: CacheVerify) -> int:
    """Check every row; returns the exit status, 1 where something is damaged."""
    console = Console(highlight=False)
    bad = 0
    for path in find_shards(command.cache):
        found = verify(path)
        bad += bool(found.problems)
        for problem in found.problems:
            console.print(f"{path.name}: {problem}", style="red", markup=False, soft_wrap=True)
        if found.unscored:
            console.print(
                f"{path.name}: {found.unscored} fits are not re-scored yet; the training finishes that when it goes on",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        if not found.problems:
            console.print(f"{path.name}: {found.rows} fits, all whole", markup=False, soft_wrap=True)
    return 1 if bad else 0


class _NoMesh:
    """Stands for the hand model where only parameters and points are moved."""

    def vertices(self, params: HandParams, is_right: Tensor) -> Tensor:
        """Refused."""
        raise InputError("meshes need the hand model; read the exported results.npz with it.")

    def provenance(self) -> Mapping[str, str]:
        """Nothing: the fits carry the texts themselves."""
        return {}
