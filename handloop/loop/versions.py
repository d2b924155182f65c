"""Which steps a shard can be taken back to, and taking it back. Steps of the training, never times.

Every version of a row that was written over is in `history`, until two checkpoints later: the training's own
checkpoint may have been written just before this one's or just after, whichever was interrupted.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from handloop.core.errors import CacheError
from handloop.loop.database import COLUMNS


@dataclass(frozen=True)
class Progress:
    """Where a shard stands, in steps of the training; -1 is the empty beginning."""

    floor: int
    """The earliest step it can be taken back to."""
    checkpoint: int
    """The last checkpoint."""
    sealed: int
    """Steps up to this one are past: what is written now belongs to later ones."""
    written: int
    """The last step that changed something."""


def progress(db: sqlite3.Connection) -> Progress:
    """Where the shard stands."""
    values = dict(db.execute("SELECT key, value FROM meta WHERE key <> 'conventions'"))
    return Progress(*(int(values[key]) for key in ("floor", "checkpoint", "sealed", "written")))


def check_step(db: sqlite3.Connection, step: int) -> None:
    """Whether step `step` may write.

    Raises:
        CacheError: it is before what was written or sealed already.
    """
    now = progress(db)
    if step <= now.sealed:
        raise CacheError(
            f"step {step} would write behind the checkpoint of step {now.sealed}; expected a later step. "
            "After a checkpoint or rollback the training goes on with the next step."
        )
    if step < now.written:
        raise CacheError(
            f"step {step} would write after step {now.written} was written; a training resumed at step {step} must "
            f"first take the cache back: rollback({step - 1})."
        )


def note_written(db: sqlite3.Connection, step: int) -> None:
    """Remember that step `step` changed something."""
    _set(db, "written", step)


def make_checkpoint(db: sqlite3.Connection, step: int) -> None:
    """Seal everything up to `step`; versions that were written over before the previous checkpoint are dropped.

    Raises:
        CacheError: something of a later step is there already.
    """
    now = progress(db)
    if step < max(now.written, now.sealed):
        raise CacheError(
            f"a checkpoint of step {step} was asked for, but step {max(now.written, now.sealed)} is in the cache "
            "already; make it before the next step writes."
        )
    if step == now.checkpoint:
        return
    _set(db, "floor", now.checkpoint)
    _set(db, "checkpoint", step)
    _set(db, "sealed", step)
    db.execute("DELETE FROM history WHERE replaced <= ?", (now.checkpoint,))


def roll_back(db: sqlite3.Connection, step: int) -> int:
    """Restore the shard as it was after step `step`; returns how many rows that changed.

    Raises:
        CacheError: the versions of that time are no longer there.
    """
    now = progress(db)
    if step < now.floor:
        raise CacheError(
            f"the cache can be taken back to step {now.floor} at most, not to {step}; use a later checkpoint of the "
            "training, or start it with an empty cache."
        )
    names = ", ".join(COLUMNS)
    # The version that was valid at a step is the first one that was written over later.
    first = "SELECT min(seq) FROM history WHERE replaced > ? GROUP BY id"
    # A row that changed more than once, or was born since, still counts once.
    changed: int = db.execute("SELECT count(*) FROM fits WHERE step > ?", (step,)).fetchone()[0]
    db.execute("DELETE FROM fits WHERE step > ?", (step,))
    db.execute(
        f"INSERT INTO fits ({names}) SELECT {names} FROM history WHERE seq IN ({first}) AND born <= ?", (step, step)
    )
    db.execute("DELETE FROM history WHERE replaced > ?", (step,))
    db.execute("DELETE FROM scores WHERE step > ?", (step,))
    # What the first rows of the present score or of the cache settled is open again when there are none.
    db.execute(
        "UPDATE scores SET terms=NULL, settings=(SELECT settings FROM scores AS s WHERE s.version=scores.version-1) "
        "WHERE version=(SELECT max(version) FROM scores) AND version NOT IN (SELECT score_version FROM fits)"
    )
    db.execute("UPDATE meta SET value='{}' WHERE key='conventions' AND NOT EXISTS (SELECT 1 FROM fits)")
    db.execute("DELETE FROM origins WHERE key NOT IN (SELECT origin FROM fits UNION SELECT origin FROM history)")
    _set(db, "checkpoint", min(now.checkpoint, step))
    _set(db, "sealed", step)
    _set(db, "written", min(now.written, step))
    return changed


def _set(db: sqlite3.Connection, key: str, value: int) -> None:
    db.execute("UPDATE meta SET value=? WHERE key=?", (value, key))
