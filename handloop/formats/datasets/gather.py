"""`Gathered`: what a reader of a data set collects, with every file that fails named and none of them fatal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError, InputError
from handloop.formats.discover import natural_key
from handloop.formats.loading import numbers, read_json
from handloop.formats.options import Problem
from handloop.formats.picture_set import PictureSample
from handloop.formats.pictures import PICTURE_SUFFIXES


@dataclass
class Gathered:
    """Samples, problems and notes of one data set, filled by its reader."""

    folder: Path
    """The data set's own folder."""
    samples: list[PictureSample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mean_relative: bool = False
    """MANO poses are relative to the mean pose."""

    @contextmanager
    def naming(self, path: Path) -> Iterator[None]:
        """Whatever fails inside becomes a problem of the file `path`."""
        try:
            yield
        except InputError as error:
            self.problems.append(Problem(str(path), str(error).removeprefix(f"{path}: ")))
        except Exception as error:  # A stranger's file must not end the reading of 100,000 others.
            self.problems.append(Problem(str(path), f"the file cannot be read ({type(error).__name__}: {error})."))


def read_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """(N, *shape) float64 from a JSON list.

    Raises:
        FileFormatError: unreadable or another shape.
    """
    array = numbers(read_json(path), "the list")
    if array.shape[1:] != shape:
        raise FileFormatError(f"the list has shape {array.shape}, expected (N, {', '.join(map(str, shape))}).")
    return array


def entry(value: object, key: object, shape: tuple[int, ...]) -> np.ndarray:
    """A float64 array of a dictionary that was read from a pickle.

    Raises:
        FileFormatError: it is missing, no array of numbers, or of another shape.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if isinstance(found, list):
        found = numbers(found, str(key))
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iufb" or found.size != int(np.prod(shape)):
        given = getattr(found, "shape", type(found).__name__)
        raise FileFormatError(f"{key!r} is {given}, expected numbers of the shape {shape}.")
    return found.astype(np.float64).reshape(shape)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; quick among 100,000 files."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir())


def starts_with_key(folder: Path, key: bytes, without: str = "") -> bool:
    """Whether some JSON file of a folder, the first that is listed, names `key` in its first megabyte.

    Args:
        folder: to look in.
        key: the key with its quotation marks.
        without: stem of a file that does not count.
    """
    if not folder.is_dir():
        return False
    path = next((p for p in folder.glob("*.json") if p.stem != without), None)
    if path is None:
        return False
    with open(path, "rb") as file:
        return key in file.read(1_000_000)


class Listing:
    """The pictures of folders by stem, each folder listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, str]] = {}

    def stems(self, folder: Path) -> dict[str, str]:
        """File names by stem, in natural order; {} for a folder that cannot be listed."""
        if folder not in self._folders:
            try:
                names = sorted(os.listdir(folder), key=natural_key)
            except OSError:
                names = []
            pairs = (os.path.splitext(name) for name in names)
            self._folders[folder] = {stem: stem + end for stem, end in pairs if end.lower() in PICTURE_SUFFIXES}
        return self._folders[folder]

    def find(self, folder: Path, stem: str) -> str:
        """Path of the picture with this stem, "" for none."""
        name = self.stems(folder).get(stem)
        return str(folder / name) if name else ""


@dataclass(frozen=True)
class Finder:
    """From a picture's name in a file to its path in the first folder that has it, else as written."""

    folders: tuple[Path, ...]

    def __call__(self, name: str) -> str:
        if not name:
            return ""
        return next((str(f / name) for f in self.folders if (f / name).is_file()), name)
