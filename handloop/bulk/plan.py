"""The plan of a bulk run: which files, or rows of a file, make up each shard, and what the shard is called."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from handloop.core.errors import InputError
from handloop.formats.datasets.keypoints import data_set_at
from handloop.formats.discover import Discovery, FoundFile
from handloop.formats.naming import file_names
from handloop.formats.options import Problem, ReadOptions
from handloop.formats.read import find_files

_BYTES_PER_HAND = {".npz": 300, ".npy": 300, ".csv": 500, ".tsv": 500}
"""What a hand takes in a file, roughly: 21 points of 12 bytes, or of 24 characters."""
_BYTES_PER_HAND_ELSE = 2000
"""JSON of one or two hands, with or without the body's points."""
_LOOK_INSIDE = 100_000
"""Size in bytes from which the rows of an npz are looked up: below, a wrong guess costs nothing."""
_MANIFESTS = (".txt", ".lst")


@dataclass(frozen=True)
class ShardFile:
    """An input file as it was when the run was planned."""

    path: str
    """As the user gave it; results name it so."""
    relative: str
    """Path below the folder that was named, or the file's name."""
    named: bool
    """The user named this very file."""
    name: str
    """What ids begin with, different for every file of the run."""
    size: int
    """Bytes."""
    mtime_ns: int
    """When it was last changed."""

    def found(self) -> FoundFile:
        """The same for the readers."""
        return FoundFile(Path(self.path), self.relative, self.named, self.name)

    def is_there(self) -> bool:
        """Whether the file is still as it was; False where it is changed, gone or out of reach from this machine."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class Shard:
    """Files that are fitted together, or a share of the hands of one large file."""

    key: str
    """Name of the results without suffix: a hash of the files, their sizes and times, and of the settings."""
    files: tuple[ShardFile, ...]
    part: int
    """Which share of the file's hands, from 0."""
    parts: int
    """Into how many shares the file is cut; 1 for all hands of `files`."""
    hands: int
    """How many hands these may be, from sizes alone: for the progress."""

    def label(self) -> str:
        """What is in it, for messages."""
        first = self.files[0].path
        if self.parts > 1:
            return f"{first}, part {self.part + 1} of {self.parts}"
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more files"

    def to_json(self) -> str:
        """One line, to send to a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """What `to_json` wrote."""
        held = json.loads(text)
        return cls(**{**held, "files": tuple(ShardFile(**file) for file in held["files"])})


@dataclass(frozen=True)
class Plan:
    """All shards of a run, in the order of the inputs."""

    shards: tuple[Shard, ...]
    problems: tuple[Problem, ...]
    """Inputs that are not there."""
    notes: tuple[str, ...]
    skipped: int
    """Files of other kinds in the folders."""
    files: int
    """Input files."""

    def run(self) -> str:
        """Hash of all inputs and settings."""
        return hashlib.sha256("".join(shard.key for shard in self.shards).encode()).hexdigest()[:20]


def make_plan(inputs: Sequence[Path], options: ReadOptions, settings: str, shard_hands: int) -> Plan:
    """Cut the inputs into shards.

    Where the cuts lie depends on the names and sizes of files alone: neither on workers nor on what was done before;
    and a file that is added or removed moves the cuts near it, seldom those further on.

    Args:
        inputs: keypoint files, folders, and manifests: text files (.txt, .lst) with one path per line.
        options: which files are looked for.
        settings: hash of everything else that the results depend on.
        shard_hands: hands in a shard at most, as estimated from file sizes; one file may have twice as many.

    Raises:
        InputError: no inputs, a manifest that cannot be read, or a folder that is a data set of pictures.
    """
    listed = [path for given in inputs for path in _listed(given)]
    for path in listed:
        layout = data_set_at(path) if options.format is None else None
        if layout is not None:
            raise InputError(f"{path} is {layout.name}, a data set of pictures; fit it without --engine ray.")
    found = find_files(listed, options)
    files, problems = _with_status(found)
    shards: list[Shard] = []
    gathered: list[ShardFile] = []
    total = 0
    for file in files:
        hands = _hands_in(file)
        if total and total + hands > shard_hands:
            shards.append(_shard(gathered, 0, 1, total, settings))
            gathered, total = [], 0
        if hands > 2 * shard_hands:
            parts = -(-hands // shard_hands)
            shards += [_shard([file], part, parts, hands // parts, settings) for part in range(parts)]
            continue
        gathered.append(file)
        total += hands
        # By chance of its name, a shard may end here once it is half full: then later cuts do not move with a file
        # more or less before them.
        if total >= shard_hands or (total > shard_hands / 2 and _chance(file.relative) < 8 * hands / shard_hands):
            shards.append(_shard(gathered, 0, 1, total, settings))
            gathered, total = [], 0
    if gathered:
        shards.append(_shard(gathered, 0, 1, total, settings))
    return Plan(tuple(shards), (*found.problems, *problems), found.notes, len(found.skipped), len(files))


def _listed(given: Path) -> list[Path]:
    """The paths of a manifest, or the path itself."""
    if given.suffix.lower() not in _MANIFESTS or not given.is_file():
        return [given]
    try:
        lines = given.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the manifest {given} cannot be read; expected a text file with one path per line."
        ) from error
    return [Path(line.strip()) for line in lines if line.strip()]


def _with_status(found: Discovery) -> tuple[list[ShardFile], list[Problem]]:
    files: list[ShardFile] = []
    problems: list[Problem] = []
    for file, name in zip(found.files, file_names(list(found.files)), strict=True):
        try:
            status = os.stat(file.path)
        except OSError as error:
            problems.append(Problem(str(file.path), f"the file cannot be read ({error.strerror})."))
            continue
        size, changed = status.st_size, status.st_mtime_ns
        files.append(ShardFile(str(file.path), file.relative, file.named, name, size, changed))
    return files, problems


def _hands_in(file: ShardFile) -> int:
    """How many hands a file holds: the rows of a larger npz, else a guess from its size; 1 at least."""
    suffix = os.path.splitext(file.path)[1].lower()
    if suffix == ".npz" and file.size > _LOOK_INSIDE:
        try:
            with zipfile.ZipFile(file.path) as archive, archive.open("keypoints_2d.npy") as member:
                np.lib.format.read_magic(member)
                shape = np.lib.format.read_array_header_1_0(member)[0]
            return max(1, shape[0] if len(shape) == 3 else 1)
        except Exception:  # A damaged file is named when it is read; zipfile and numpy raise many kinds.
            pass
    return max(1, file.size // _BYTES_PER_HAND.get(suffix, _BYTES_PER_HAND_ELSE))


def _chance(text: str) -> float:
    """A number in [0, 1) that a text decides."""
    return zlib.crc32(text.encode("utf-8", "surrogateescape")) / 2**32


def _shard(files: list[ShardFile], part: int, parts: int, hands: int, settings: str) -> Shard:
    digest = hashlib.sha256(f"{settings} {part} {parts}".encode())
    for file in files:
        line = json.dumps([file.path, file.name, file.size, file.mtime_ns])
        digest.update(line.encode())
    return Shard(digest.hexdigest()[:20], tuple(files), part, parts, hands)
