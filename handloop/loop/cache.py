"""`FitCache`: the best fit of every sample, kept in one SQLite file per rank."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from handloop.core.errors import CacheError, InputError, ScoreError
from handloop.core.results import FitResult
from handloop.loop.accept import Acceptance, AcceptRules, Standing, accept
from handloop.loop.agree import agree, check_same_sample, check_sums, rescored, stamped
from handloop.loop.cached_fits import CachedFits, Origin
from handloop.loop.database import connect, reading, transaction
from handloop.loop.rows import checked_ids, read_after, read_held, read_ids, rescore_rows, write_rows
from handloop.loop.shards import rank_of, shard_path
from handloop.loop.versions import Progress, check_step, make_checkpoint, note_written, progress, roll_back

BATCH = 4096
"""Rows at a time, where all are gone through: about 8 MB."""
_ALL = 2**62
"""Above every score version."""


class FitCache:
    """One rank's shard. Open it in the process that uses it; other processes may read the file meanwhile.

    Every `put`, `checkpoint` and `rollback` is one transaction: it happens as a whole or not at all, also when the
    process is killed.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, rank: int, n_ranks: int, rules: AcceptRules) -> None:
        """Use `FitCache.open`."""
        self.path = path
        """The shard."""
        self.rank = rank
        """Of the process it belongs to."""
        self.n_ranks = n_ranks
        """Shards of the whole cache."""
        self.rules = rules
        """When a fit replaces another."""
        self._db = db
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        rank: int = 0,
        n_ranks: int = 1,
        rules: AcceptRules | None = None,
        write: bool = True,
    ) -> FitCache:
        """Open one rank's shard, check it, and make it if it is to be written and not there.

        Args:
            folder: on a local disk.
            rank, n_ranks: whose shard; `rank_of` says which samples are in it.
            rules: when a fit replaces another; None for the defaults.
            write: False to read only.

        Raises:
            CacheError: the file is damaged, of a newer version, or cannot be used where it is.
        """
        path = shard_path(folder, rank, n_ranks)
        return cls(path, connect(path, write), rank, n_ranks, rules or AcceptRules())

    def close(self) -> None:
        """Close the file. Nothing is pending: what was put is stored already."""
        self._db.close()

    def __enter__(self) -> FitCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Samples with a fit."""
        with self._reading():
            count: int = self._db.execute("SELECT count(*) FROM fits").fetchone()[0]
        return count

    def __repr__(self) -> str:
        return f"FitCache({str(self.path)!r})"

    @property
    def score_version(self) -> int:
        """What energies must have been computed under to be put; raised by `rescore`."""
        with self._reading():
            return self._score()[0]

    @property
    def progress(self) -> Progress:
        """Steps: the last written, the last checkpoint, the earliest `rollback` can reach."""
        with self._reading():
            return progress(self._db)

    def get(self, ids: Sequence[str]) -> CachedFits:
        """The fits of samples, in the order asked for; `found` is False and numbers NaN where there is none.

        Raises:
            InputError: an id cannot be stored, or belongs to another rank.
        """
        names = self._own(ids)
        with self._reading(snapshot=True):
            return read_ids(self._db, names)

    def batches(self, n: int = BATCH) -> Iterator[CachedFits]:
        """All fits in the order of their ids, n at a time."""
        after = ""
        while True:
            with self._reading(snapshot=True):
                fits = read_after(self._db, after, _ALL, n)
            if not len(fits):
                return
            yield fits
            after = fits.ids[-1]

    def put(
        self, ids: Sequence[str], fits: FitResult | CachedFits, origin: Origin, step: int, score_version: int
    ) -> Acceptance:
        """Offer fits; each is stored if `accept` prefers it to what is held.

        Args:
            ids: N samples; one may occur several times.
            fits: in the original picture's pixels and camera frame, with the energy on the original keypoints.
            origin: where they come from; written to the rows that are stored.
            step: of the training, not before that of an earlier call.
            score_version: what the energies were computed under.

        Returns:
            What became of each, with reasons. Failed and non-finite fits are rejected, they raise nothing.

        Raises:
            ScoreError: the energies were computed under another score than the cache's.
            InputError: an id belongs to another rank; the keypoints, side or hand model are not those of the held fits.
            CacheError: the step is in the past, or the disk is full: nothing of the batch was stored.
        """
        names = self._own(ids)
        if isinstance(fits, CachedFits):
            offered = stamped(fits, names, origin, step, score_version)
        else:
            offered = CachedFits.from_result(fits, names, origin, step, score_version)
        usable = offered.usable()
        check_sums(offered, usable)
        with self._writing():
            check_step(self._db, step)
            current, name = self._score()
            if score_version != current:
                raise ScoreError(
                    f"fits of score version {score_version} were put into {self.path}, which is at version {current} "
                    f"({name}); compute their energies under the present prior and layout, or re-score the cache."
                )
            if bool(usable.any()):
                terms = agree(self._db, self.path, offered, current)
            held = read_held(self._db, names)
            check_same_sample(offered, usable, held)
            standing = Standing(usable, offered.plausible, offered.energy, offered.score_version)
            acceptance = accept(names, held.standing, standing, self.rules)
            taken = acceptance.accepted()
            if bool(taken.any()):
                write_rows(self._db, offered.select(taken), terms)
                note_written(self._db, step)
        return acceptance

    def rescore(self, score: Callable[[CachedFits], CachedFits], name: str, step: int) -> int:
        """Compute every energy anew, because prior, layout or noise changed.

        It goes on where it was interrupted when called again with the same name; does nothing when the cache is scored
        under that name already.

        Args:
            score: gives back the same fits with new `energy` and `energy_terms`, and with whatever else follows from
                them (`plausible`, `doubts`, `keypoints_3d`, `rms_px`, `conventions`); ids and parameters stay.
            name: of what the energies are computed under, such as a hash of prior and layout.
            step: of the training.

        Returns:
            The new score version.

        Raises:
            CacheError: another re-scoring is unfinished.
            InputError: `score` gave back other fits.
        """
        with self._writing():
            version, present = self._score()
            pending = self._db.execute("SELECT 1 FROM fits WHERE score_version < ? LIMIT 1", (version,)).fetchone()
            if pending is not None and present != name:
                raise CacheError(
                    f"{self.path}: re-scoring under {present!r} was interrupted; finish it with the same name before "
                    f"re-scoring under {name!r}, or take the cache back to the checkpoint before it."
                )
            if present != name:
                check_step(self._db, step)
                version += 1
                # Noise and layout stay what they were unless the first new energies say otherwise.
                self._db.execute(
                    "INSERT INTO scores SELECT ?, ?, ?, NULL, settings FROM scores WHERE version=?",
                    (version, name, step, version - 1),
                )
                note_written(self._db, step)
        after = ""
        while True:
            with self._reading(snapshot=True):
                old = read_after(self._db, after, version, BATCH)
            if not len(old):
                return version
            new = rescored(old, score(old))
            with self._writing():
                check_step(self._db, step)
                rescore_rows(self._db, new, agree(self._db, self.path, new, version), version, step)
                note_written(self._db, step)
            after = old.ids[-1]

    def checkpoint(self, step: int) -> None:
        """Seal everything up to `step`, on disk; call it right after the training has saved its own checkpoint.

        Raises:
            CacheError: something of a later step is there already.
        """
        with self._writing():
            make_checkpoint(self._db, step)
        with self._reading():
            # Copies the log into the file and waits for the disk; readers that are in the way only delay it.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def rollback(self, step: int) -> int:
        """Restore the cache exactly as it was after `step`, to go on with the next one; returns the rows changed.

        Any step back to the checkpoint before the last one can be restored.

        Raises:
            CacheError: the versions of that time are no longer there.
        """
        with self._writing():
            return roll_back(self._db, step)

    @contextmanager
    def _reading(self, snapshot: bool = False) -> Iterator[None]:
        self._same_process()
        with reading(self.path):
            if not snapshot:
                yield
                return
            # Rows and what they refer to, as of one moment, whatever another process commits in between.
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._same_process()
        with transaction(self._db, self.path):
            yield

    def _same_process(self) -> None:
        if os.getpid() != self._process:
            raise CacheError(
                f"{self.path} was opened in another process (before a fork); SQLite's files must be opened in the "
                "process that uses them, for example in the worker's init function."
            )

    def _own(self, ids: Sequence[str]) -> tuple[str, ...]:
        names = checked_ids(ids)
        if self.n_ranks > 1:
            for name in names:
                rank = rank_of(name, self.n_ranks)
                if rank != self.rank:
                    raise InputError(
                        f"the sample {name!r} belongs to rank {rank} of {self.n_ranks}, not to rank {self.rank}; "
                        "hand samples out with handloop.loop.shards.rank_of."
                    )
        return names

    def _score(self) -> tuple[int, str]:
        version, name = self._db.execute("SELECT version, name FROM scores ORDER BY version DESC LIMIT 1").fetchone()
        return int(version), str(name)
