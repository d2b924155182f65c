"""Shards: which rank a sample belongs to, and what the files of a cache are called."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from handloop.core.errors import CacheError, InputError

_NAME = re.compile(r"fits-r(\d{2,})of(\d{2,})\.sqlite")


def rank_of(sample: str, n_ranks: int) -> int:
    """The rank a sample belongs to: the first 8 bytes of the BLAKE2b hash of its UTF-8, little-endian, modulo n_ranks.

    Python's own hash() differs from process to process.
    """
    digest = hashlib.blake2b(sample.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n_ranks


def shard_path(folder: str | os.PathLike[str], rank: int, n_ranks: int) -> Path:
    """The file of one rank.

    Raises:
        InputError: there is no such rank.
    """
    if not 0 <= rank < n_ranks:
        raise InputError(f"rank {rank} of {n_ranks} was given, expected 0 to {n_ranks - 1}.")
    return Path(folder) / shard_name(rank, n_ranks)


def shard_name(rank: int, n_ranks: int) -> str:
    """What the file of one rank is called."""
    return f"fits-r{rank:02d}of{n_ranks:02d}.sqlite"


def shards_in(folder: Path) -> tuple[Path, ...]:
    """All files named as shards, whole cache or not; none where there is no folder."""
    return tuple(sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name))) if folder.is_dir() else ()


def shard_of(path: Path) -> tuple[int, int]:
    """Rank and number of ranks, by the file's name.

    Raises:
        CacheError: the name is not a shard's.
    """
    match = _NAME.fullmatch(path.name)
    if match is None or not int(match[1]) < int(match[2]):
        raise CacheError(f"{path} is not named as a shard of a fit cache, expected fits-r00of02.sqlite or so.")
    return int(match[1]), int(match[2])


def find_shards(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The shards of a cache, given its folder or one shard.

    Raises:
        CacheError: there are none, some are missing, or shards of different numbers of ranks lie together.
    """
    given = Path(path)
    if given.is_file():
        shard_of(given)
        return (given,)
    if not given.is_dir():
        raise CacheError(f"{given} does not exist; expected the folder of a fit cache or one of its shards.")
    found = shards_in(given)
    if not found:
        raise CacheError(f"{given} holds no fit cache; expected files such as fits-r00of01.sqlite.")
    ranks = [shard_of(p) for p in found]
    counts = sorted({n for _, n in ranks})
    if len(counts) > 1:
        raise CacheError(
            f"{given} holds shards of caches with {' and '.join(map(str, counts))} ranks; keep one cache per folder."
        )
    missing = sorted(set(range(counts[0])) - {rank for rank, _ in ranks})
    if missing:
        raise CacheError(
            f"{given} lacks the shards of ranks {', '.join(map(str, missing))} of {counts[0]}; copy them there, "
            "or name single shards."
        )
    return found
