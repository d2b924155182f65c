"""Join shards, and hand their samples out to another number of ranks."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from heapq import merge as merge_sorted
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from handloop.core.errors import CacheError, InputError, ScoreError
from handloop.loop.agree import MUST_AGREE
from handloop.loop.database import COLUMNS, connect, explained, reading, transaction
from handloop.loop.records import checksum, decode_terms
from handloop.loop.rows import Row, origin_key, origins_of
from handloop.loop.shards import rank_of, shard_path

BATCH = 4096
"""Rows written in one transaction."""
_AT = {name: i for i, name in enumerate(COLUMNS)}
_INSERT = f"INSERT INTO fits ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    shards: tuple[Path, ...]
    """The files written."""
    rows: int
    """Samples in them."""
    twice: int
    """Samples that were in more than one source; the better fit was kept."""


@dataclass(frozen=True)
class _Source:
    """One shard to read."""

    path: Path
    db: sqlite3.Connection
    version: int
    """Score of all its rows."""
    name: str
    terms: tuple[str, ...] | None
    """Parts of the energy; None where it has no rows."""
    settings: str
    conventions: str
    last: int
    """The last step that wrote."""


def merge(sources: Sequence[Path], out: Path, n_ranks: int) -> Merged:
    """Write the fits of all sources to a new cache of n_ranks shards.

    Of two fits of one sample the plausible one is kept, then that of lower energy, then the older one: the same
    whatever the order of the sources. The new cache has no history: `rollback` reaches no further back than the last
    step in it, so take the sources back first where that is wanted.

    Args:
        sources: shards, also of different caches.
        out: a folder without a cache.
        n_ranks: how many shards to write.

    Raises:
        ScoreError: the energies of two sources cannot be compared.
        InputError: the sources are of different hand models.
        CacheError: there is a cache in `out`, or a file cannot be used.
    """
    if n_ranks < 1:
        raise InputError(f"{n_ranks} ranks were asked for, expected 1 or more.")
    if any(out.glob("fits-r*of*.sqlite")):
        raise CacheError(f"{out} holds a fit cache already; merge into an empty folder.")
    with ExitStack() as stack:
        opened = []
        for path in sources:
            opened.append(_read_source(path, stack.enter_context(closing(connect(path, write=False)))))
        _check_comparable(opened)
        # Renamed at the end, so that what an interruption leaves is no cache.
        partial = [p.with_name(p.name + ".partial") for p in (shard_path(out, r, n_ranks) for r in range(n_ranks))]
        for path in partial:
            for leftover in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                leftover.unlink(missing_ok=True)
        targets = [stack.enter_context(closing(connect(path, write=True))) for path in partial]
        for path, db in zip(partial, targets, strict=True):
            with transaction(db, path):
                _begin(db, opened)
        rows, twice = _copy(opened, list(zip(partial, targets, strict=True)))
    shards = []
    for path in partial:  # Closed by now: the log is in the file.
        shards.append(path.with_name(path.name.removesuffix(".partial")))
        os.replace(path, shards[-1])
    return Merged(tuple(shards), rows, twice)


def _read_source(path: Path, db: sqlite3.Connection) -> _Source:
    with reading(path):
        version, name, terms, settings = db.execute(
            "SELECT version, name, terms, settings FROM scores ORDER BY version DESC LIMIT 1"
        ).fetchone()
        if db.execute("SELECT 1 FROM fits WHERE score_version <> ? LIMIT 1", (version,)).fetchone():
            raise ScoreError(f"{path} holds energies of several score versions; finish its re-scoring first.")
        meta = dict(db.execute("SELECT key, value FROM meta"))
    parts = None if terms is None else tuple(json.loads(terms))
    last = max(int(meta["written"]), int(meta["sealed"]))
    return _Source(path, db, version, name, parts, settings or "{}", str(meta["conventions"]), last)


def _check_comparable(sources: Sequence[_Source]) -> None:
    filled = [source for source in sources if source.terms is not None]
    for source in sources:
        first = sources[0]
        if (source.version, source.name) != (first.version, first.name):
            raise ScoreError(
                f"{first.path} is at score version {first.version} ({first.name}), {source.path} at {source.version} "
                f"({source.name}); re-score them under the same prior and layout before merging."
            )
    for source in filled:
        first = filled[0]
        if sorted(source.terms or ()) != sorted(first.terms or ()) or source.settings != first.settings:
            raise ScoreError(
                f"the energies in {first.path} and {source.path} have other parts, or were computed with another noise "
                "level or layout; re-score one of them."
            )
        mine, others = json.loads(first.conventions), json.loads(source.conventions)
        for key in MUST_AGREE:
            if mine.get(key) != others.get(key):
                raise InputError(
                    f"{first.path} has {key} {mine.get(key)}, {source.path} {others.get(key)}; fits of different hand "
                    "models or conventions cannot be merged."
                )


def _begin(db: sqlite3.Connection, sources: Sequence[_Source]) -> None:
    filled = next((source for source in sources if source.terms is not None), sources[0])
    last = max(source.last for source in sources)
    terms = None if filled.terms is None else json.dumps(filled.terms)
    db.execute("DELETE FROM scores")
    db.execute("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", (filled.version, filled.name, last, terms, filled.settings))
    db.execute("UPDATE meta SET value=? WHERE key='conventions'", (filled.conventions,))
    db.execute("UPDATE meta SET value=? WHERE key='written'", (last,))
    if last > 0:  # Before a training there is nothing to be taken back to, and more fits may come.
        db.execute("UPDATE meta SET value=? WHERE key IN ('floor', 'checkpoint', 'sealed')", (last,))


def _copy(sources: Sequence[_Source], targets: Sequence[tuple[Path, sqlite3.Connection]]) -> tuple[int, int]:
    order = next((source.terms for source in sources if source.terms is not None), ())
    # Of each target: its keys of the origins written so far, by source and the source's key.
    keys: list[dict[tuple[int, int], int]] = [{} for _ in targets]
    rows = twice = 0
    origins = [origins_of(source.db) for source in sources]
    groups = groupby(merge_sorted(*(_rows(i, s, order) for i, s in enumerate(sources)), key=_id), key=_id)
    while chunk := [list(same) for _, same in islice(groups, BATCH)]:
        pending: list[list[Row]] = [[] for _ in targets]
        for same in chunk:
            twice += len(same) > 1
            which, row = min(same, key=_worth)
            rank = rank_of(row[0], len(targets))
            known = keys[rank]
            key = row[_AT["origin"]]
            at = (which, key)
            if at not in known:
                path, db = targets[rank]
                with transaction(db, path):
                    known[at] = origin_key(db, origins[which][key])
            pending[rank].append((*row[: _AT["origin"]], known[at], *row[_AT["origin"] + 1 :]))
        for (path, db), some in zip(targets, pending, strict=True):
            with transaction(db, path):
                db.executemany(_INSERT, some)
        rows += len(chunk)
    return rows, twice


def _rows(which: int, source: _Source, order: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    """Rows in the order of their ids (SQLite compares UTF-8, which sorts as Python's texts do)."""
    terms = source.terms or ()
    place = [terms.index(name) for name in order or ()] if terms else []
    as_stored = place == list(range(len(place)))
    try:
        for row in source.db.execute(f"SELECT {', '.join(COLUMNS)} FROM fits ORDER BY id"):
            if as_stored:
                yield which, row
                continue
            parts = np.ascontiguousarray(decode_terms([row[_AT["terms"]]], terms)[:, place]).tobytes()
            fit = row[_AT["fit"]]
            yield which, (*row[: _AT["terms"]], parts, fit, checksum(parts, fit))
    except sqlite3.Error as error:
        raise explained(source.path, error) from error


def _id(item: tuple[int, Row]) -> str:
    return str(item[1][0])


def _worth(item: tuple[int, Row]) -> tuple[bool, float, int, bytes]:
    row = item[1]
    return not row[_AT["plausible"]], row[_AT["energy"]], row[_AT["found_step"]], row[_AT["terms"]] + row[_AT["fit"]]
