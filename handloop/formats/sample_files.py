"""Annotation files of picture data sets, read one by one as keypoint files: COCO-style JSON and InterHand2.6M's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.coco_json import coco_samples
from handloop.formats.file_hands import FileHands, no_hands
from handloop.formats.interhand import SUFFIXES, interhand_samples, is_interhand_companion
from handloop.formats.loading import read_json
from handloop.formats.picture_set import PictureSample, with_usable_cameras


def read_coco(path: Path) -> FileHands:
    """The hands of one COCO-style file.

    Raises:
        FileFormatError: another layout, or damaged throughout.
    """
    return coco_hands(read_json(path), path)


def read_interhand(path: Path) -> FileHands:
    """The hands of one X_data.json; none in the files that belong to it.

    Raises:
        FileFormatError: another layout, or a file that belongs to it is missing.
    """
    value = read_json(path)
    return interhand_companion(path) if is_interhand_companion(value) else interhand_hands(value, path)


def coco_hands(value: object, path: Path) -> FileHands:
    """The hands of a parsed COCO-style file."""
    samples, notes = coco_samples(value, path)
    return _file_hands(samples, notes)


def interhand_hands(value: object, path: Path) -> FileHands:
    """The hands of a parsed X_data.json."""
    samples, notes = interhand_samples(value, path, lambda name: _interhand_picture(path, name))
    return _file_hands(samples, notes)


def interhand_companion(path: Path) -> FileHands:
    """Nothing: the file is read with X_data.json, which must be there."""
    stem = next((path.name.removesuffix(end) for end in SUFFIXES[1:] if path.name.endswith(end)), path.stem)
    if not path.with_name(stem + SUFFIXES[0]).is_file():
        raise FileFormatError(
            f"this is a camera, joint or MANO file of InterHand2.6M, which needs {stem}{SUFFIXES[0]} beside it."
        )
    return no_hands("table")


def _interhand_picture(path: Path, name: str) -> str:
    """The picture in annotations/../images/PART, as published, else as written."""
    part = path.parent.name
    published = path.parent.parent.parent / "images" / part / name
    return str(published) if published.is_file() else name


def _file_hands(samples: Sequence[PictureSample], notes: Sequence[str]) -> FileHands:
    if not samples:
        return replace(no_hands("table"), notes=tuple(notes))
    samples, odd = with_usable_cameras(samples)
    n = len(samples)
    size, matrix, joints = np.full((n, 2), np.nan), np.full((n, 3, 3), np.nan), np.full((n, 21, 3), np.nan)
    for i, sample in enumerate(samples):
        for array, value in ((size, sample.image_size), (matrix, sample.matrix), (joints, sample.joints)):
            if value is not None:
                array[i] = value
    return FileHands(
        "table",
        np.stack([s.points for s in samples]),
        tuple(f":{s.id}" for s in samples),
        tuple(s.is_right for s in samples),
        frames=np.array([s.frame for s in samples], dtype=np.int64),
        image_size=size,
        images=tuple(s.image for s in samples),
        matrix=matrix if np.isfinite(matrix).any() else None,
        truth=joints if np.isfinite(joints).any() else None,
        notes=(*notes, *odd),
    )
