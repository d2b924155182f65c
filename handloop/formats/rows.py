"""`Rows`: the hands of all files of a run, one row each, while scales, sides and names are settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from handloop.formats.discover import FoundFile
from handloop.formats.file_hands import FileHands


@dataclass(frozen=True)
class Rows:
    """N hands of F files."""

    files: tuple[tuple[FoundFile, FileHands], ...]
    """F files and what their readers found."""
    file: np.ndarray
    """(N,) index into `files`."""
    row: np.ndarray
    """(N,) row within the file."""
    points: np.ndarray
    """(N, 21, 3) x, y, confidence; finite."""
    depth: np.ndarray
    """(N, 21) z in the unit of x, NaN where unknown."""
    size: np.ndarray
    """(N, 2) picture size in px, NaN where unknown."""
    image: tuple[str, ...]
    """N picture paths, "" for none."""

    def __len__(self) -> int:
        return len(self.file)

    def select(self, keep: np.ndarray) -> Rows:
        """The rows named by an (N,) bool array."""
        image = self.image if keep.all() else tuple(compress(self.image, keep.tolist()))
        return Rows(
            self.files,
            self.file[keep],
            self.row[keep],
            self.points[keep],
            self.depth[keep],
            self.size[keep],
            image,
        )

    def visible(self) -> np.ndarray:
        """(N, 21) bool, points with a confidence."""
        seen: np.ndarray = self.points[..., 2] > 0
        return seen

    def path(self, file: int) -> str:
        """The path of a file."""
        return str(self.files[file][0].path)

    def per_file(self, values: Sequence[bool]) -> np.ndarray:
        """(N,) the value of each row's file."""
        return np.asarray(values, dtype=bool)[self.file] if len(values) else np.zeros(0, dtype=bool)
