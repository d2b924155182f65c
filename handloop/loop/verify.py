"""Whether a cache is whole: the file's structure, every row's checksum, and what the rows say against each other."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from handloop.core.errors import CacheError
from handloop.loop.agree import SAME_SUM
from handloop.loop.database import connect, reading
from handloop.loop.records import RECORD, TERM, checksum
from handloop.loop.shards import rank_of, shard_of

_FINITE = ("global_orient", "hand_pose", "betas", "transl", "focal_length", "princpt", "joints", "keypoints_3d")


@dataclass(frozen=True)
class Verified:
    """What was found in one shard."""

    path: Path
    """The shard."""
    rows: int
    """Fits in it."""
    unscored: int
    """Fits of an older score version than the present one: a re-scoring was not finished."""
    problems: tuple[str, ...]
    """What is wrong, in sentences; empty for a whole shard."""


def verify(path: Path) -> Verified:
    """Read all of a shard and check it."""
    try:
        rank, n_ranks = shard_of(path)
        with closing(connect(path, write=False)) as db, reading(path):
            rows: int = db.execute("SELECT count(*) FROM fits").fetchone()[0]
            present = db.execute("SELECT max(version) FROM scores").fetchone()[0]
            unscored: int = db.execute("SELECT count(*) FROM fits WHERE score_version < ?", (present,)).fetchone()[0]
            problems = _structure(db) + _rows(db, rank, n_ranks)
    except CacheError as error:
        return Verified(path, 0, 0, (str(error),))
    return Verified(path, rows, unscored, tuple(problems))


def _structure(db: sqlite3.Connection) -> list[str]:
    return [f"SQLite: {text}" for (text,) in db.execute("PRAGMA integrity_check(20)") if text != "ok"]


def _rows(db: sqlite3.Connection, rank: int, n_ranks: int) -> list[str]:
    names = {version: json.loads(terms or "[]") for version, terms in db.execute("SELECT version, terms FROM scores")}
    origins = {key for (key,) in db.execute("SELECT key FROM origins")}
    found = []
    query = "SELECT id, energy, score_version, origin, terms, fit, crc FROM {} ORDER BY id"
    for table in ("fits", "history"):
        for sample, energy, version, origin, terms, fit, crc in db.execute(query.format(table)):
            what = _row(energy, names.get(version), origin in origins, terms, fit, crc)
            if not what and rank_of(sample, n_ranks) != rank:
                what = f"belongs to rank {rank_of(sample, n_ranks)} of {n_ranks}"
            if what:
                found.append(f"{table}: {sample!r} {what}")
    return found


def _row(energy: float, names: list[str] | None, known: bool, terms: bytes, fit: bytes, crc: int) -> str:
    if names is None or not known:
        return "names a score version or an origin that is not there"
    if len(fit) != RECORD.itemsize or len(terms) != TERM.itemsize * len(names):
        return "has a record of another length"
    if checksum(terms, fit) != crc:
        return "does not have the checksum it was written with"
    record = np.frombuffer(fit, RECORD)[0]
    if not all(np.isfinite(record[name]).all() for name in _FINITE):
        return "holds a number that is not finite"
    total = float(np.frombuffer(terms, TERM).sum())
    if np.isfinite(energy) and not abs(total - energy) <= SAME_SUM * (1 + abs(energy)):
        return "has an energy that is not the sum of its parts"
    return ""
