"""Which files a run reads: named ones, and those of readable kinds inside named folders, in natural order."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handloop.formats.options import Problem
from handloop.formats.other_kinds import common_hint


@dataclass(frozen=True)
class FoundFile:
    """A file to read."""

    path: Path
    """Where it is."""
    relative: str
    """Path below the folder that was named ("/" between parts), or the file's name."""
    named: bool
    """The user named this very file, so that an unknown kind is a problem."""
    name: str = ""
    """What ids begin with; "" for the shortest name that no other file of the run has."""


@dataclass(frozen=True)
class Discovery:
    """What the named inputs hold."""

    files: tuple[FoundFile, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which 2 comes before 10."""
    parts = re.split(r"([0-9]+)", text)
    # A number longer than any counter is compared as text: int() refuses thousands of digits.
    return tuple((0, int(p), "") if p.isdecimal() and len(p) < 40 else (1, 0, p) for p in parts if p)


def discover(inputs: Sequence[str | Path], suffixes: frozenset[str]) -> Discovery:
    """List the files of the inputs; inside folders only those whose suffix (lower case) is in `suffixes`."""
    files: list[FoundFile] = []
    skipped: list[str] = []
    problems: list[Problem] = []
    notes: list[str] = []
    seen: set[str] = set()
    repeated = 0
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found, others, failed = _walk(path, suffixes)
            skipped += others
            problems += failed
            if not found and not failed:
                problems.append(Problem(str(path), _nothing_message(others, suffixes)))
        elif path.exists() or path.is_symlink():
            found = [FoundFile(path, path.name, True)]
        else:
            problems.append(Problem(str(path), "there is no such file or folder."))
            continue
        for item in found:
            real = os.path.realpath(item.path)
            repeated += real in seen
            if real not in seen:
                files.append(item)
            seen.add(real)
    if repeated:
        notes.append(f"{repeated} files were named more than once and read once.")
    return Discovery(tuple(files), tuple(skipped), tuple(problems), tuple(notes))


def _walk(folder: Path, suffixes: frozenset[str]) -> tuple[list[FoundFile], list[str], list[Problem]]:
    found: list[tuple[str, Path]] = []
    skipped: list[str] = []
    problems: list[Problem] = []

    def unreadable(error: OSError) -> None:
        problems.append(Problem(str(error.filename), f"the folder cannot be listed ({error.strerror})."))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        # Hidden folders (.git, .ipynb_checkpoints) and archive leftovers hold no keypoints.
        folders[:] = [f for f in folders if not f.startswith((".", "__MACOSX"))]
        ours = _is_output(parent, folders, names)
        if ours:
            folders.clear()
        for name in names:
            path = Path(parent, name)
            if ours and not (name == "results.npz" and Path(parent) == folder):
                skipped.append(str(path))
            elif os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                found.append((path.relative_to(folder).as_posix(), path))
            else:
                skipped.append(str(path))
    found.sort(key=lambda item: natural_key(item[0]))
    skipped.sort(key=natural_key)
    return [FoundFile(path, relative, False) for relative, path in found], skipped, problems


def _is_output(parent: str, folders: list[str], names: list[str]) -> bool:
    """Whether a folder is what an earlier `handloop fit --out` wrote: its fits are no new hands.

    Named itself, such a folder still gives its `results.npz`.
    """
    finished = "results.npz" in names and "summary.json" in names
    begun = (("parts", "fingerprint.txt"), ("shards", "run.json"))
    return finished or any(part in folders and Path(parent, part, mark).is_file() for part, mark in begun)


def _nothing_message(others: list[str], suffixes: frozenset[str]) -> str:
    wanted = ", ".join(sorted(suffixes))
    if others:
        advice = common_hint(others)
        return f"the folder holds no keypoint file ({len(others)} files of other kinds); expected one of {wanted}." + (
            f" {advice}." if advice else ""
        )
    return f"the folder is empty; expected files of the kinds {wanted}."
