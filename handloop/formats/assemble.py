"""From the hands of single files to one `ReadResult`: pictures, units, sides, ids, cameras, truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.formats.discover import FoundFile
from handloop.formats.file_hands import FileHands
from handloop.formats.naming import file_names, frame_number, unique_ids
from handloop.formats.notes import Notes
from handloop.formats.options import Problem, ReadOptions
from handloop.formats.pictures import Pictures
from handloop.formats.rows import Rows
from handloop.formats.sides import settle_sides
from handloop.formats.units import check_inside, to_pixels


@dataclass(frozen=True)
class Assembled:
    """The hands of a run and what became of the rest."""

    keypoints: Keypoints
    camera: Camera | None
    truth: torch.Tensor | None
    problems: tuple[Problem, ...]
    files_without_hands: int
    hands_empty: int


def assemble(files: list[tuple[FoundFile, FileHands]], options: ReadOptions, notes: Notes) -> Assembled:
    """Settle everything that one file alone does not; see `ReadResult`."""
    for found, hands in files:
        for note in hands.notes:
            notes.add(note, str(found.path))
    rows = _gather(files, options, notes)
    seen = np.count_nonzero(rows.visible(), axis=1) > 0
    empty = int((~seen).sum())
    with_hands = len(np.unique(rows.file[seen]))
    rows, problems = to_pixels(rows.select(seen), options, notes)
    check_inside(rows, notes)
    is_right = settle_sides(rows, options, notes)
    keypoints = Keypoints.from_arrays(
        rows.points,
        is_right,
        rows.size,
        ids=_ids(rows),
        source=_sources(rows),
        frame=_frames(rows),
        image=rows.image,
    )
    return Assembled(
        keypoints,
        _camera(rows, keypoints),
        _truth(rows),
        tuple(problems),
        len(files) - with_hands,
        empty,
    )


def _gather(files: list[tuple[FoundFile, FileHands]], options: ReadOptions, notes: Notes) -> Rows:
    """All hands as rows, with the points that cannot be used marked missing, and what is known of their pictures."""
    counts = [len(hands.points) for _, hands in files]
    points = np.concatenate([np.zeros((0, 21, 3)), *(hands.points for _, hands in files)])
    unknown = np.full((0, 21), np.nan)
    depth = [np.full((len(h.points), 21), np.nan) if h.depth is None else h.depth for _, h in files]
    file = np.repeat(np.arange(len(files)), counts)
    finite = np.isfinite(points[..., :2]).all(-1)
    conf = np.where(np.isfinite(points[..., 2]), points[..., 2], 0.0)
    lost = (~finite & (conf > 0)).sum(1)
    for i in np.unique(file[lost > 0]).tolist():
        notes.add("points whose coordinates are not finite (NaN, null) count as missing.", str(files[i][0].path))
    conf = np.where(finite & (conf > 0) & (conf >= options.min_conf), conf, 0.0)
    points = np.concatenate([np.where(finite[..., None], points[..., :2], 0.0), conf[..., None]], -1)
    size, image = _pictures(files, options, notes)
    return Rows(
        tuple(files),
        file,
        np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(n) for n in counts)]),
        points,
        np.concatenate([unknown, *depth]),
        size,
        tuple(image),
    )


def _pictures(
    files: list[tuple[FoundFile, FileHands]], options: ReadOptions, notes: Notes
) -> tuple[np.ndarray, list[str]]:
    """(N, 2) picture sizes: the file's own, else the user's, else the paired picture's; and N picture paths."""
    pictures = Pictures(options.images)
    sizes = [np.zeros((0, 2))]
    images: list[str] = []
    for found, hands in files:
        n = len(hands.points)
        if n == 0:
            continue
        if hands.images is not None:
            names = [pictures.resolve(name, found.path) for name in hands.images]
        else:
            names = [pictures.pair(found.path) if hands.frames is None else ""] * n
        images += names
        size = np.full((n, 2), np.nan) if hands.image_size is None else hands.image_size.copy()
        size[~(size > 0).all(1)] = np.nan
        if options.image_size is not None:
            size = np.where(np.isfinite(size), size, np.array(options.image_size))
        for i in np.nonzero(~np.isfinite(size).all(1))[0].tolist():
            measured = pictures.size(names[i]) if names[i] else None
            size[i] = np.nan if measured is None else measured
            if names[i] and measured is None and hands.images is None:
                notes.add("the picture beside the file cannot be read; its size is unknown.", names[i])
        sizes.append(size)
    return np.concatenate(sizes), images


def _ids(rows: Rows) -> tuple[str, ...]:
    found = [found for found, _ in rows.files]
    names = [file.name or short for file, short in zip(found, file_names(found), strict=True)]
    # A file's own ids stand as they are unless another file uses one of them too.
    owners: dict[str, int] = {}
    shared: set[str] = set()
    pairs = [(int(f), rows.files[f][1].labels[r]) for f, r in zip(rows.file.tolist(), rows.row.tolist(), strict=True)]
    for file, label in pairs:
        if rows.files[file][1].own_ids and owners.setdefault(label, file) != file:
            shared.add(label)
    ids: list[str] = []
    for file, label in pairs:
        own = rows.files[file][1].own_ids
        ids.append(names[file] + label if not own else f"{names[file]}:{label}" if label in shared else label)
    return unique_ids(ids)


def _sources(rows: Rows) -> list[str]:
    paths = [str(found.path) for found, _ in rows.files]
    given = [hands.sources for _, hands in rows.files]
    out = []
    for file, row in zip(rows.file.tolist(), rows.row.tolist(), strict=True):
        own = given[file]
        out.append((own[row] if own is not None else "") or paths[file])
    return out


def _frames(rows: Rows) -> np.ndarray:
    out = np.full(len(rows), -1, dtype=np.int64)
    for at, found, hands in _by_file(rows):
        out[at] = frame_number(found) if hands.frames is None else hands.frames[rows.row[at]]
    return out


def _by_file(rows: Rows) -> Iterator[tuple[slice, FoundFile, FileHands]]:
    """Each file that has hands, and where: rows stand in the order of the files."""
    ends = np.searchsorted(rows.file, np.arange(len(rows.files) + 1)).tolist()
    for (found, hands), first, end in zip(rows.files, ends[:-1], ends[1:], strict=True):
        if end > first:
            yield slice(first, end), found, hands


def _camera(rows: Rows, keypoints: Keypoints) -> Camera | None:
    """Cameras of the hands whose file gave K, assumed ones for the others; None where no file gave any."""
    width = max((0 if h.dist is None else h.dist.shape[1] for _, h in rows.files), default=0)
    matrix = np.full((len(rows), 3, 3), np.nan)
    # Zeros behind a shorter list of coefficients are the same lens.
    dist = np.zeros((len(rows), width))
    for at, _, hands in _by_file(rows):
        if hands.matrix is not None:
            matrix[at] = hands.matrix[rows.row[at]]
            if hands.dist is not None:
                dist[at, : hands.dist.shape[1]] = hands.dist[rows.row[at]]
    known = torch.from_numpy(np.isfinite(matrix).all((1, 2)))
    if not bool(known.any()):
        return None
    camera = Camera.assumed(keypoints.image_size, keypoints.box())
    given = Camera.from_matrix(matrix[known.numpy()], int(known.sum()))
    focal, princpt = camera.focal.clone(), camera.princpt.clone()
    focal[known], princpt[known] = given.focal, given.princpt
    return Camera(focal, princpt, torch.from_numpy(dist) if dist.any() else None, known)


def _truth(rows: Rows) -> torch.Tensor | None:
    """(N, 21, 3) m where every hand's file gave it."""
    have = rows.per_file([hands.truth is not None for _, hands in rows.files])
    if not have.any():
        return None
    if not have.all():
        return None
    picked = [hands.truth[rows.row[at]] for at, _, hands in _by_file(rows) if hands.truth is not None]
    return torch.from_numpy(np.concatenate(picked))
