"""Stable, unique ids and frame numbers from file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from handloop.formats.discover import FoundFile
from handloop.formats.pictures import base_stem

# From the shortest name of a file to the one that is certainly unique; each file takes the first that no other has.
_LEVELS: tuple[Callable[[FoundFile], str], ...] = (
    lambda f: base_stem(f.path.name),
    lambda f: _join(f.relative.rpartition("/")[0], base_stem(f.path.name)),
    lambda f: f.relative,
    lambda f: f.path.as_posix(),
)


def file_names(files: list[FoundFile]) -> list[str]:
    """One name per file, all different where the paths are."""
    names = [""] * len(files)
    open_files = list(range(len(files)))
    for level in _LEVELS:
        for i in open_files:
            names[i] = level(files[i])
        counts = Counter(names)
        open_files = [i for i in open_files if counts[names[i]] > 1]
    return names


def unique_ids(ids: list[str]) -> tuple[str, ...]:
    """The ids with "#2", "#3" behind repeated ones."""
    taken: set[str] = set()
    out: list[str] = []
    for name in ids:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}#{count}"
        taken.add(free)
        out.append(free)
    return tuple(out)


def frame_number(file: FoundFile) -> int:
    """The number a file name ends in (NAME_000000000012_keypoints.json gives 12), -1 without."""
    digits = re.search(r"[0-9]+$", base_stem(file.path.name))
    # Longer ones are time stamps or hashes beyond int64.
    return int(digits.group()) if digits and len(digits.group()) <= 18 else -1


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
