"""Killed, out of disk, read-only, damaged, from the future: what is committed stays, and the error says what to do."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from handloop.core.errors import CacheError
from handloop.core.results import FitResult
from handloop.loop.cache import FitCache
from handloop.loop.cached_fits import Origin
from handloop.loop.database import APPLICATION, SCHEMA
from handloop.loop.disk import network_file_system
from handloop.loop.shards import rank_of
from handloop.loop.verify import verify

Make = Callable[..., FitResult]
IDS = [f"{i:03d}" for i in range(200)]
ORIGIN = Origin("search")
FORK = multiprocessing.get_context("fork")


def batch(make: Make, step: int) -> FitResult:
    return make(IDS, energy=1000.0 - step, seed=step)


def write_steps(folder: Path, make: Make, said: Connection, rank: int, n_ranks: int) -> None:
    """Step after step improves every hand; each is reported once it is stored. Runs until killed, or 40 steps."""
    torch.set_num_threads(1)
    ids = [name for name in IDS if rank_of(name, n_ranks) == rank]
    with FitCache.open(folder, rank, n_ranks) as cache:
        for step in range(1, 41):
            cache.put(ids, make(ids, energy=1000.0 - step, seed=step), ORIGIN, step, 0)
            if step % 7 == 0:
                cache.checkpoint(step)
            said.send(step)


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_process_leaves_the_last_stored_batch(tmp_path: Path, make: Make, seed: int) -> None:
    draw = np.random.default_rng(seed)
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=write_steps, args=(tmp_path, make, there, 0, 1))
    child.start()
    there.close()
    stored = [here.recv() for _ in range(int(draw.integers(1, 10)))][-1]
    time.sleep(float(draw.uniform(0, 0.03)))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    while here.poll():
        try:
            stored = here.recv()
        except EOFError:
            break
    found = verify(tmp_path / "fits-r00of01.sqlite")
    assert found.problems == () and found.rows == len(IDS)
    with FitCache.open(tmp_path) as cache:
        fits = cache.get(IDS)
        step = int(fits.step[0])
        # The step after the last report may have been stored, too, before the report was sent.
        assert step in (stored, stored + 1) and set(fits.step.tolist()) == {step}
        expected = batch(make, step)
        assert torch.equal(fits.params.hand_pose, expected.params.hand_pose)
        assert torch.equal(fits.energy, expected.energy) and set(fits.improvements.tolist()) == {step - 1}
        # And it can be taken back to its last checkpoint, and go on.
        checkpoint = max(cache.progress.checkpoint, 0)
        cache.rollback(checkpoint)
        if checkpoint:
            assert torch.equal(cache.get(IDS).params.transl, batch(make, checkpoint).params.transl)
        cache.put(IDS, batch(make, 50), ORIGIN, 50, 0)


def test_two_processes_write_their_own_shards(tmp_path: Path, make: Make) -> None:
    here, there = FORK.Pipe(duplex=False)
    children = [FORK.Process(target=write_steps, args=(tmp_path, make, there, rank, 2)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    total = 0
    for rank in range(2):
        with FitCache.open(tmp_path, rank, 2, write=False) as cache:
            assert {step for part in cache.batches() for step in part.step.tolist()} == {40}
            total += len(cache)
    assert total == len(IDS)
    here.close()


def test_readers_see_whole_batches_while_one_writes(tmp_path: Path, make: Make) -> None:
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=write_steps, args=(tmp_path, make, there, 0, 1))
    child.start()
    here.recv()
    with FitCache.open(tmp_path, write=False) as cache:
        seen = [set(cache.get(IDS).step.tolist()) for _ in range(20)]
        with pytest.raises(CacheError, match="cannot be written"):
            cache.put(IDS, batch(make, 99), ORIGIN, 99, 0)
    child.join(60)
    assert all(len(steps) == 1 for steps in seen) and child.exitcode == 0


def test_a_full_disk_loses_nothing(tmp_path: Path, make: Make) -> None:
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, batch(make, 1), ORIGIN, 1, 0)
        pages = cache._db.execute("PRAGMA page_count").fetchone()[0]
        cache._db.execute(f"PRAGMA max_page_count={pages + 1}")
        more = [f"more {i}" for i in range(500)]
        with pytest.raises(CacheError, match=r"the disk is full; nothing of this batch was stored .* Free some space"):
            cache.put(more, make(more), ORIGIN, 2, 0)
        assert len(cache) == len(IDS) and not bool(cache.get(more).found.any())
        assert cache.progress.written == 1
        cache._db.execute("PRAGMA max_page_count=1000000")
        assert cache.put(more, make(more), ORIGIN, 2, 0).rate() == 1
    assert verify(cache.path).problems == ()


def test_a_failure_in_the_middle_of_a_batch_stores_nothing(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise KeyboardInterrupt

    with FitCache.open(tmp_path) as cache:
        monkeypatch.setattr("handloop.loop.cache.note_written", fails)
        with pytest.raises(KeyboardInterrupt):
            cache.put(IDS, batch(make, 1), ORIGIN, 1, 0)
        assert len(cache) == 0
        monkeypatch.undo()
        assert cache.put(IDS, batch(make, 1), ORIGIN, 1, 0).rate() == 1


def in_child_without_rights(work: Callable[[], None]) -> int:
    """Run in a process that is not root, to whom every folder is writable; the exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_read_only_folder_can_be_read_and_says_so_when_written(make: Make) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        with FitCache.open(folder) as cache:
            cache.put(IDS, batch(make, 1), ORIGIN, 1, 0)
        cache.path.chmod(0o444)
        folder.chmod(0o555)

        def work() -> None:
            with FitCache.open(folder, write=False) as cache:
                assert bool(cache.get(IDS).found.all())
            with pytest.raises(CacheError, match=r"cannot be (written|opened).*cop"):
                FitCache.open(folder)
            with pytest.raises(CacheError, match="cannot be made"):
                FitCache.open(folder / "new")

        assert in_child_without_rights(work) == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def shard(tmp_path: Path, make: Make) -> Path:
    with FitCache.open(tmp_path) as cache:
        cache.put(IDS, batch(make, 1), ORIGIN, 1, 0)
    return cache.path


def test_damaged_files_are_refused_with_what_to_do(shard: Path) -> None:
    whole = shard.read_bytes()
    advice = "restore it from a copy"
    shard.write_bytes(b"\0" * 100 + whole[100:])
    with pytest.raises(CacheError, match=f"first bytes are damaged; {advice}"):
        FitCache.open(shard.parent)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CacheError, match=f"is damaged .*{advice}"):
        FitCache.open(shard.parent)
    page = 16384
    shard.write_bytes(whole[: 4 * page] + b"\x55" * (len(whole) - 4 * page))
    with pytest.raises(CacheError, match=f"is damaged .*{advice}"):
        FitCache.open(shard.parent)
    shard.write_bytes(whole)
    FitCache.open(shard.parent).close()


def test_a_flipped_bit_inside_a_number_is_found(shard: Path) -> None:
    with closing(sqlite3.connect(shard)) as db:
        (blob,) = db.execute("SELECT fit FROM fits WHERE id='017'").fetchone()
    content = bytearray(shard.read_bytes())
    at = content.index(blob) + 100
    content[at] ^= 1
    shard.write_bytes(content)
    assert verify(shard).problems == ("fits: '017' does not have the checksum it was written with",)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE fits SET energy=1 WHERE id='003'", "has an energy that is not the sum of its parts"),
        ("UPDATE fits SET origin=77 WHERE id='003'", "names a score version or an origin that is not there"),
        ("UPDATE fits SET fit=x'00' WHERE id='003'", "has a record of another length"),
    ],
)
def test_rows_that_contradict_themselves_are_found(shard: Path, statement: str, problem: str) -> None:
    with closing(sqlite3.connect(shard)) as db:
        db.execute("DROP TRIGGER keep_history")
        db.execute(statement)
        db.commit()
    assert verify(shard).problems == (f"fits: '003' {problem}",)


def test_a_row_of_another_rank_is_found(shard: Path) -> None:
    moved = shard.with_name("fits-r00of02.sqlite")
    shard.rename(moved)
    wrong = [name for name in IDS if rank_of(name, 2) == 1]
    assert len(verify(moved).problems) == len(wrong) > 0
    assert f"{wrong[0]!r} belongs to rank 1 of 2" in verify(moved).problems[0]


def test_a_file_of_a_newer_handloop_is_left_alone(shard: Path) -> None:
    with closing(sqlite3.connect(shard)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
        db.commit()
    before = shard.read_bytes()
    with pytest.raises(CacheError, match=rf"newer handloop \(schema {SCHEMA + 1}, this one knows {SCHEMA}\)"):
        FitCache.open(shard.parent)
    assert shard.read_bytes() == before


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "fits-r00of01.sqlite"
    with pytest.raises(CacheError, match="does not exist"):
        FitCache.open(tmp_path, write=False)
    path.write_text("hello, I am a text file")
    with pytest.raises(CacheError, match="is no fit cache"):
        FitCache.open(tmp_path)
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (x)")
    with pytest.raises(CacheError, match="SQLite file of another program"):
        FitCache.open(tmp_path)
    assert APPLICATION.to_bytes(4, "big") == b"HFIT"


def test_a_file_left_empty_by_a_killed_process_is_filled(tmp_path: Path) -> None:
    (tmp_path / "fits-r00of01.sqlite").touch()
    with pytest.raises(CacheError, match="is empty: the process that made it stopped"):
        FitCache.open(tmp_path, write=False)
    with FitCache.open(tmp_path) as cache:
        assert len(cache) == 0


def test_network_disks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:40 / /mnt/net\\040share rw,relatime shared:2 - nfs4 server:/x rw\n"
        "41 40 8:2 / /mnt/net\\040share/local rw - xfs /dev/sdb1 rw\n"
    )
    assert network_file_system(Path("/mnt/net share/cache"), mounts) == "nfs4"
    assert network_file_system(Path("/mnt/net share/local/cache"), mounts) is None
    assert network_file_system(Path("/mnt/net"), mounts) is None
    assert network_file_system(Path("/anywhere"), tmp_path / "missing") is None
    monkeypatch.setattr("handloop.loop.database.network_file_system", lambda folder: "nfs4")
    with pytest.raises(CacheError, match=r"network file system \(nfs4\).* put the cache on a local disk"):
        FitCache.open(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_disk_without_write_ahead_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite answers with the mode that stays; a memory database cannot have such a log either."""
    monkeypatch.setattr(
        "handloop.loop.database._open", lambda path, write: sqlite3.connect(":memory:", isolation_level=None)
    )
    with pytest.raises(CacheError, match=r"write-ahead log cannot be used here.*'memory'.* local disk"):
        FitCache.open(tmp_path)
