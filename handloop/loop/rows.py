"""Rows of a shard to `CachedFits` and back: one query for a batch, one executemany for its changes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.params import HandParams
from handloop.core.results import Status
from handloop.loop.accept import Standing
from handloop.loop.cached_fits import CachedFits, Origin, trimmed
from handloop.loop.database import COLUMNS
from handloop.loop.records import RECORD, checksum, decode, decode_terms, encode, encode_terms, mirrored_left

Row = tuple[Any, ...]
"""Values in the order of `COLUMNS`."""

# json_each makes one parameter of a whole batch and gives back each id's place in it.
_BY_ID = "FROM json_each(?) AS asked CROSS JOIN fits ON fits.id = asked.value"
_READ = f"SELECT asked.key, {', '.join(f'fits.{name}' for name in COLUMNS)} {_BY_ID}"
_POINTS = RECORD.fields["keypoints_2d"][1] if RECORD.fields else 0
_HELD = (
    "SELECT asked.key, fits.plausible, fits.energy, fits.score_version, fits.is_right, "
    f"substr(fits.fit, {_POINTS + 1}, {RECORD['keypoints_2d'].itemsize}) {_BY_ID}"
)
_CHANGED = [name for name in COLUMNS if name not in ("id", "born", "improvements")]
_WRITE = (
    f"INSERT INTO fits ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (id) DO UPDATE SET "
    f"{', '.join(f'{name}=excluded.{name}' for name in _CHANGED)}, improvements=improvements+1"
)
_RESCORE = (
    "UPDATE fits SET plausible=?, doubts=?, energy=?, score_version=?, step=?, weakest=?, terms=?, fit=?, crc=? "
    "WHERE id=?"
)


@dataclass(frozen=True, eq=False)
class Held:
    """What the cache holds for N ids, as far as a decision needs it."""

    standing: Standing
    is_right: Tensor
    """(N,) bool; True where nothing is held."""
    keypoints_2d: Tensor
    """(N, 21, 3) px and confidence; NaN where nothing is held."""


def checked_ids(ids: Sequence[str]) -> tuple[str, ...]:
    """The ids, if they can be stored.

    Raises:
        InputError: one text instead of several; an id is no text, is empty, or holds what SQLite's texts cannot.
    """
    if isinstance(ids, str):
        raise InputError(f"the one text {ids!r} was given for ids, expected a list of them.")
    for name in ids:
        # SQLite ends a text at a NUL; a lone surrogate stands for bytes of a file name that are no text.
        if not isinstance(name, str) or not name or "\0" in name or not _is_text(name):
            raise InputError(f"the id {name!r} cannot be stored; expected a text that is not empty, of valid Unicode.")
    return tuple(ids)


def read_held(db: sqlite3.Connection, ids: Sequence[str]) -> Held:
    """What is held for each id, NaN where nothing is."""
    n = len(ids)
    found = db.execute(_HELD, (json.dumps(ids),)).fetchall()
    valid, plausible, right = np.zeros(n, bool), np.zeros(n, bool), np.ones(n, bool)
    energy, version = np.full(n, np.nan), np.full(n, -1)
    points = np.full((n, 21, 3), np.nan)
    if found:
        at, *columns, blobs = zip(*found, strict=True)
        rows = np.array(at)
        valid[rows] = True
        plausible[rows], energy[rows], version[rows], right[rows] = columns
        points[rows] = np.frombuffer(b"".join(blobs), "<f4").reshape(-1, 21, 3)
    standing = Standing(*(torch.from_numpy(a) for a in (valid, plausible, energy, version)))
    return Held(standing, torch.from_numpy(right), torch.from_numpy(points))


def read_ids(db: sqlite3.Connection, ids: Sequence[str]) -> CachedFits:
    """One row per id, in order."""
    found = db.execute(_READ, (json.dumps(ids),)).fetchall()
    return fits_of(db, ids, [row[0] for row in found], [row[1:] for row in found])


def read_after(db: sqlite3.Connection, after: str, below: int, n: int) -> CachedFits:
    """The next n rows by id, behind the id `after`, of score versions below `below`."""
    found = db.execute(
        f"SELECT {', '.join(COLUMNS)} FROM fits WHERE id > ? AND score_version < ? ORDER BY id LIMIT ?",
        (after, below, n),
    ).fetchall()
    return fits_of(db, [row[0] for row in found], range(len(found)), found)


def fits_of(db: sqlite3.Connection, ids: Sequence[str], at: Sequence[int], found: Sequence[Row]) -> CachedFits:
    """Stored rows as fits.

    Args:
        db: for what rows refer to.
        ids: N samples.
        at: place of each found row among them.
        found: rows in the order of `COLUMNS`.
    """
    n = len(ids)
    columns = zip(*found, strict=True) if found else ((),) * len(COLUMNS)
    column: dict[str, tuple[Any, ...]] = dict(zip(COLUMNS, columns, strict=True))
    rows = np.asarray(at, dtype=np.int64)

    def number(name: str, missing: float, dtype: type) -> Tensor:
        whole: np.ndarray = np.full(n, missing, dtype)
        whole[rows] = column[name]
        return torch.from_numpy(whole)

    def text(name: str) -> tuple[str, ...]:
        whole = [""] * n
        for row, value in zip(at, column[name], strict=True):
            whole[row] = str(value)
        return tuple(whole)

    values = decode(column["fit"], at, n)
    is_right = number("is_right", 1, bool)
    stored = HandParams(*(values[name] for name in ("global_orient", "hand_pose", "betas", "transl")))
    versions = number("score_version", -1, np.int64)
    origins = origins_of(db)
    origin: list[Origin | None] = [None] * n
    for row, key in zip(at, column["origin"], strict=True):
        origin[row] = origins[key]
    return CachedFits(
        ids=tuple(ids),
        found=versions >= 0,
        is_right=is_right,
        params=mirrored_left(stored, is_right),
        focal=values["focal_length"],
        princpt=values["princpt"],
        dist=trimmed(values["distortion"].nan_to_num(0.0)),
        camera_known=number("camera_known", 0, bool),
        image_size=values["image_size"],
        keypoints_2d=values["keypoints_2d"],
        joints=values["joints"],
        keypoints_3d=values["keypoints_3d"],
        keypoints_3d_sd=values["keypoints_3d_sd"],
        depth_sd=values["depth_sd"],
        expected_error_mm=values["expected_error_mm"],
        rms_px=values["rms_px"],
        hypothesis_gap=values["hypothesis_gap"],
        weakest=text("weakest"),
        status=number("status", int(Status.FAILED), np.int64),
        plausible=number("plausible", 0, bool),
        doubts=text("doubts"),
        energy=number("energy", np.nan, np.float64),
        energy_terms=_terms(db, versions, at, column["terms"]),
        score_version=versions,
        solver_steps=number("solver_steps", 0, np.int64),
        step=number("step", -1, np.int64),
        found_step=number("found_step", -1, np.int64),
        improvements=number("improvements", 0, np.int64),
        origin=tuple(origin),
        source=text("source"),
        image=text("image"),
        frame=number("frame", -1, np.int64),
        conventions=conventions_of(db),
    )


def write_rows(db: sqlite3.Connection, fits: CachedFits, terms: Sequence[str]) -> None:
    """Insert, or replace and count as an improvement; fits have their step and origin already."""
    origins = {origin: origin_key(db, origin) for origin in set(fits.origin) if origin is not None}
    keys = [origins[origin] for origin in fits.origin if origin is not None]
    blobs, parts = _blobs(fits, terms)
    numbers = (fits.is_right, fits.status, fits.plausible, fits.energy, fits.score_version, fits.step, fits.found_step)
    right, status, plausible, energy, version, step, found = (t.tolist() for t in numbers)
    counts = (fits.improvements, fits.solver_steps, fits.camera_known, fits.frame)
    improved, solver, known, frame = (t.tolist() for t in counts)
    db.executemany(
        _WRITE,
        zip(
            *(fits.ids, right, status, plausible, fits.doubts, energy, version, step, found, step),
            *(improved, keys, solver, known, fits.weakest, fits.source, fits.image, frame, parts, blobs),
            map(checksum, parts, blobs),
            strict=True,
        ),
    )


def rescore_rows(db: sqlite3.Connection, fits: CachedFits, terms: Sequence[str], version: int, step: int) -> None:
    """Write what a new score changes."""
    blobs, parts = _blobs(fits, terms)
    n = len(fits)
    flags, energy = fits.plausible.tolist(), fits.energy.tolist()
    crc = map(checksum, parts, blobs)
    columns = (flags, fits.doubts, energy, [version] * n, [step] * n, fits.weakest, parts, blobs, crc, fits.ids)
    db.executemany(_RESCORE, zip(*columns, strict=True))


def origin_key(db: sqlite3.Connection, origin: Origin) -> int:
    """The key of an origin, which is added where it is new."""
    db.execute(
        "INSERT OR IGNORE INTO origins (start, recipe, weights, prior, layout, epoch, handloop_version) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        astuple(origin),
    )
    key: int = db.execute(
        "SELECT key FROM origins WHERE start=? AND recipe=? AND weights=? AND prior=? AND layout=? AND epoch=? "
        "AND handloop_version=?",
        astuple(origin),
    ).fetchone()[0]
    return key


def conventions_of(db: sqlite3.Connection) -> dict[str, str]:
    """The texts that hold for all rows: the cache's own and those of the present score."""
    fixed = db.execute("SELECT value FROM meta WHERE key='conventions'").fetchone()[0]
    settings = db.execute("SELECT settings FROM scores ORDER BY version DESC LIMIT 1").fetchone()[0]
    return {**json.loads(fixed), **json.loads(settings or "{}")}


def _blobs(fits: CachedFits, terms: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    records, parts = encode(fits).tobytes(), encode_terms(fits, terms).tobytes()
    size, width = RECORD.itemsize, 8 * len(terms)
    rows = range(len(fits))
    return [records[i * size : (i + 1) * size] for i in rows], [parts[i * width : (i + 1) * width] for i in rows]


def origins_of(db: sqlite3.Connection) -> dict[int, Origin]:
    query = "SELECT key, start, recipe, weights, prior, layout, epoch, handloop_version FROM origins"
    return {key: Origin(*values) for key, *values in db.execute(query)}


def _terms(db: sqlite3.Connection, versions: Tensor, at: Sequence[int], blobs: Sequence[bytes]) -> dict[str, Tensor]:
    """(N,) each; rows of another score version, while a re-scoring is under way, have their own terms."""
    out: dict[str, Tensor] = {}
    rows = np.asarray(at, dtype=np.int64)
    version_of = versions.numpy()[rows]
    for version in np.unique(version_of).tolist():
        text = db.execute("SELECT terms FROM scores WHERE version=?", (version,)).fetchone()[0]
        names = json.loads(text)
        mine = (version_of == version).nonzero()[0]
        values = decode_terms(blobs if len(mine) == len(blobs) else [blobs[i] for i in mine.tolist()], names)
        for j, name in enumerate(names):
            whole = out.setdefault(name, torch.full((len(versions),), float("nan"), dtype=torch.float64))
            whole.numpy()[rows[mine]] = values[:, j]
    return out


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
