"""Results in many files: the shards of a bulk run, their index, and reading them as one `results.npz`."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from handloop.core.errors import FileFormatError, InputError
from handloop.core.results import load_npz, merge_arrays, save_npz, write_text
from handloop.formats.naming import unique_ids
from handloop.formats.parquet import read_parquet, write_parquet

ShardKind = Literal["npz", "parquet"]
"""What a shard is written as."""

UNFINISHED = ".*.partial-*"
"""Pattern of the files that are being written, or were when their writer was killed."""

_INDEX = "run.json"


@dataclass(frozen=True)
class ShardIndex:
    """Which shards make up the results of a folder: `shards/run.json`."""

    run: str
    """Hash of the inputs and settings of the run."""
    kind: ShardKind
    """What the shards are written as."""
    keys: tuple[str, ...]
    """Names of the shards without suffix, in the order of the inputs."""

    def save(self, folder: Path) -> None:
        """Write it into the folder of the shards."""
        write_text(folder / _INDEX, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ShardIndex:
        """Read it from the folder of the shards.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = folder / _INDEX
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            kind: ShardKind = "parquet" if held["kind"] == "parquet" else "npz"
            return cls(str(held["run"]), kind, tuple(str(key) for key in held["keys"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be read; name the folder that handloop fit wrote its shards to."
            ) from error

    def file(self, folder: Path, key: str) -> Path:
        """The file of a shard."""
        return folder / f"{key}.{self.kind}"


def write_shard(path: Path, arrays: Mapping[str, np.ndarray], kind: ShardKind) -> None:
    """Write a shard that is either whole or absent, also when two processes write the same one."""
    write = save_npz if kind == "npz" else write_parquet
    put_whole(path, lambda temporary: write(temporary, arrays))


def put_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file under a hidden name of its own, and rename it."""
    temporary = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_results(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a `results.npz`, of a shard, or of the folder that `handloop fit` wrote either to.

    Raises:
        InputError: there is no such file, or shards are missing.
        FileFormatError: not a results file.
    """
    file = Path(path)
    if file.is_dir() and not (file / "results.npz").is_file() and (file / "shards" / _INDEX).is_file():
        return read_shards(file / "shards")
    if file.is_dir():
        file = file / "results.npz"
    if not file.is_file():
        raise InputError(f"{file} does not exist; name a results.npz, or the folder that handloop fit wrote it to.")
    return read_parquet(file) if file.suffix == ".parquet" else load_npz(file)


def read_shards(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of all shards in a folder, as of one `results.npz`.

    Raises:
        InputError: shards are missing.
    """
    index = ShardIndex.load(folder)
    files = [index.file(folder, key) for key in index.keys]
    missing = sum(not file.is_file() for file in files)
    if missing:
        raise InputError(
            f"{missing} of {len(files)} shards in {folder} are not there; the same handloop fit command makes them."
        )
    read = read_parquet if index.kind == "parquet" else load_npz
    return join_shards([read(file) for file in files])


def join_shards(shards: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of one `results.npz` from those of a run's shards, in their order.

    Ids that several files brought along get "#2", "#3" from the second on.

    Raises:
        FileFormatError: a shard has no ids, so that it is no result.
    """
    if not all("id" in shard for shard in shards):
        raise FileFormatError("a shard has no 'id'; it was not written by handloop fit.")
    # A shard without hands says nothing that others do not, and need not fit to them.
    full = [shard for shard in shards if len(shard["id"])] or list(shards[:1])
    width = max((shard["distortion"].shape[1] for shard in full if "distortion" in shard), default=0)
    # The keys stand as in a plain run's file, which some shard's may lack.
    keys = max((list(shard) for shard in full), key=len)
    if width:
        full = [{**shard, "distortion": _widened(shard, width)} for shard in full]
    merged = merge_arrays(full)
    merged["id"] = np.array(unique_ids(merged["id"].tolist()), dtype=np.str_)
    return {key: merged[key] for key in keys}


def _widened(shard: Mapping[str, np.ndarray], width: int) -> np.ndarray:
    """(N, width) distortion; zeros behind a shorter list of coefficients are the same lens."""
    given = shard.get("distortion", np.zeros((len(shard["id"]), 0)))
    return np.pad(given, ((0, 0), (0, width - given.shape[1])))
