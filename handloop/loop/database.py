"""The SQLite file of one shard: its tables, how it is opened and checked, and errors in words.

docs/cache.md describes the tables for readers with other tools; a change there or here raises `SCHEMA`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handloop.core.errors import CacheError
from handloop.loop.disk import network_file_system

SCHEMA = 1
"""Version of the tables, SQLite's `user_version`."""
APPLICATION = 0x48464954
"""Marks the file as a fit cache ("HFIT"), SQLite's `application_id`."""

COLUMNS = (
    *("id", "is_right", "status", "plausible", "doubts", "energy", "score_version", "step", "found_step", "born"),
    *("improvements", "origin", "solver_steps", "camera_known", "weakest", "source", "image", "frame", "terms", "fit"),
    "crc",
)
"""Of `fits`, in order; `history` has the same behind `seq` and `replaced`."""

_ROW = """
    is_right INTEGER NOT NULL, status INTEGER NOT NULL, plausible INTEGER NOT NULL, doubts TEXT NOT NULL,
    energy REAL NOT NULL, score_version INTEGER NOT NULL, step INTEGER NOT NULL, found_step INTEGER NOT NULL,
    born INTEGER NOT NULL, improvements INTEGER NOT NULL, origin INTEGER NOT NULL, solver_steps INTEGER NOT NULL,
    camera_known INTEGER NOT NULL, weakest TEXT NOT NULL, source TEXT NOT NULL, image TEXT NOT NULL,
    frame INTEGER NOT NULL, terms BLOB NOT NULL, fit BLOB NOT NULL, crc INTEGER NOT NULL
"""
# The trigger keeps every version that is written over, so that no statement can forget to.
_TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE scores (version INTEGER PRIMARY KEY, name TEXT NOT NULL, step INTEGER NOT NULL, terms TEXT, settings TEXT);
CREATE TABLE origins (
    key INTEGER PRIMARY KEY, start TEXT NOT NULL, recipe TEXT NOT NULL, weights TEXT NOT NULL, prior TEXT NOT NULL,
    layout TEXT NOT NULL, epoch INTEGER NOT NULL, handloop_version TEXT NOT NULL,
    UNIQUE (start, recipe, weights, prior, layout, epoch, handloop_version)
);
CREATE TABLE fits (id TEXT PRIMARY KEY, {_ROW});
CREATE TABLE history (seq INTEGER PRIMARY KEY, replaced INTEGER NOT NULL, id TEXT NOT NULL, {_ROW});
CREATE INDEX history_replaced ON history (replaced);
CREATE TRIGGER keep_history BEFORE UPDATE ON fits BEGIN
    INSERT INTO history (replaced, {", ".join(COLUMNS)})
    VALUES (NEW.step, {", ".join(f"OLD.{name}" for name in COLUMNS)});
END;
"""

_WAIT = 30.0
"""Seconds to wait for another process that is writing."""
_PAGE = 16384
"""Bytes: a row takes nearly 2 kB, so that SQLite's usual 4 kB would leave much of each page empty."""
_WAL_PAGES = 1024
"""Pages of the log (16 MiB) after which it is written back."""


def connect(path: Path, write: bool) -> sqlite3.Connection:
    """Open a shard, make it where it is missing (to write), and check it.

    Raises:
        CacheError: the file cannot be used; says why and what to do.
    """
    if not write and not path.is_file():
        raise CacheError(f"{path} does not exist; expected a shard of a fit cache.")
    if write:
        _refuse_network(path.parent)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"the folder {path.parent} cannot be made ({error.strerror}); name another.") from error
    _refuse_other_files(path)
    try:
        db = _open(path, write)
    except sqlite3.Error as error:
        raise explained(path, error) from error
    try:
        _prepare(db, path, write)
    except sqlite3.Error as error:
        db.close()
        raise explained(path, error) from error
    except CacheError:
        db.close()
        raise
    return db


def _refuse_network(folder: Path) -> None:
    system = network_file_system(folder)
    if system is not None:
        raise CacheError(
            f"{folder} is on a network file system ({system}), where SQLite's write-ahead log is not safe; "
            "put the cache on a local disk, and use handloop cache merge to carry it elsewhere."
        )


def _refuse_other_files(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror}).") from error
    if start and start != b"SQLite format 3\0":
        raise CacheError(
            f"{path} is no fit cache, or its first bytes are damaged; restore it from a copy, or move it away and "
            "let the hands be fitted anew."
        )


def _open(path: Path, write: bool) -> sqlite3.Connection:
    if write:
        return sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", timeout=_WAIT, isolation_level=None, uri=True)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise
        # In a folder that cannot be written SQLite cannot make its lock files; without a log there is none to lose.
        db = sqlite3.connect(f"{uri}?immutable=1", timeout=_WAIT, isolation_level=None, uri=True)
    return db


def _prepare(db: sqlite3.Connection, path: Path, write: bool) -> None:
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    application, schema = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if not empty and application != APPLICATION:
        raise CacheError(f"{path} is an SQLite file of another program, expected a shard of a fit cache.")
    if schema > SCHEMA:
        raise CacheError(
            f"{path} was written by a newer handloop (schema {schema}, this one knows {SCHEMA}); "
            "install that version, nothing was changed."
        )
    if empty and not write:
        raise CacheError(f"{path} is empty: the process that made it stopped before it wrote anything; delete it.")
    if write:
        db.execute(f"PRAGMA page_size={_PAGE}")
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise CacheError(
                f"{path}: SQLite's write-ahead log cannot be used here (the mode stays {mode!r}), as on network disks; "
                "put the cache on a local disk."
            )
        # A killed process loses nothing that was committed; a power cut may cost what followed the last checkpoint().
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        if empty:
            with transaction(db, path):
                # Another process may have been faster.
                if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    _create(db)
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise damaged(path, found)


def _create(db: sqlite3.Connection) -> None:
    statement = ""
    for line in _TABLES.splitlines():
        statement += line + "\n"
        # executescript() would commit what it does, one statement after the other.
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    db.execute("INSERT INTO scores VALUES (0, 'initial', -1, NULL, NULL)")
    start = (("floor", -1), ("checkpoint", -1), ("sealed", -1), ("written", -1), ("conventions", "{}"))
    db.executemany("INSERT INTO meta VALUES (?, ?)", start)
    db.execute(f"PRAGMA application_id={APPLICATION}")
    db.execute(f"PRAGMA user_version={SCHEMA}")


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All of the block or nothing of it.

    Raises:
        CacheError: SQLite failed; nothing of the block was stored.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException as error:
        # SQLite may have taken everything back already, as it does when the disk is full.
        if db.in_transaction:
            db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise explained(path, error) from error
        raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """SQLite's errors in words.

    Raises:
        CacheError: SQLite failed.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise explained(path, error) from error


def damaged(path: Path, what: str) -> CacheError:
    """The error for a file whose content cannot be trusted."""
    first = what.strip().splitlines()[-1] if what.strip() else "unreadable"
    return CacheError(
        f"{path} is damaged ({first}); restore it from a copy, or save what can be read with "
        "`sqlite3 FILE .recover | sqlite3 NEW`, or move it away and let the hands be fitted anew."
    )


def explained(path: Path, error: sqlite3.Error) -> CacheError:
    """An error of SQLite's in our words: what happened, and what to do."""
    # The low byte is the kind, the rest its detail.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    texts = {
        sqlite3.SQLITE_FULL: "the disk is full; nothing of this batch was stored and everything before it is intact. "
        "Free some space and go on",
        sqlite3.SQLITE_READONLY: "the file or its folder cannot be written; open it for reading, or copy it elsewhere",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened; if the folder cannot be written, copy the file (with its -wal) "
        "elsewhere",
        sqlite3.SQLITE_BUSY: f"another process has been writing to it for {_WAIT:.0f} s; each rank needs its own shard",
        sqlite3.SQLITE_IOERR: "the disk reported an error; look at the system's log before going on",
    }
    return CacheError(f"{path}: {texts.get(code, 'SQLite refused')} ({error}).")
