"""InterHand2.6M (Moon et al. 2020): annotations/PART/InterHand2.6M_PART_*.json with images/PART/CaptureN/...

mmpose's conversion puts the JSON files in annotations/all or beside the pictures; both are found too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from handloop.formats.datasets.gather import Finder, Gathered
from handloop.formats.interhand import SUFFIXES, interhand_samples
from handloop.formats.loading import read_json

EXPECTED = "X_data.json with X_camera.json and X_joint_3d.json (in annotations/train, val, test, or here)"
_PARTS = ("train", "val", "test")


def found(folder: Path) -> bool:
    return next(_files(folder), None) is not None


def _files(folder: Path) -> Iterator[Path]:
    """The lists of pictures that have at least one companion beside them."""
    places = [folder, folder / "annotations", *sorted((folder / "annotations").glob("*"))]
    for parent in places:
        for path in sorted(parent.glob("*" + SUFFIXES[0])):
            stem = path.name.removesuffix(SUFFIXES[0])
            if any(path.with_name(stem + end).is_file() for end in SUFFIXES[1:3]):
                yield path


def read(gathered: Gathered) -> None:
    for path in _files(gathered.folder):
        part = _part(path)
        images = gathered.folder / "images"
        finder = Finder((images / part, images, path.parent, gathered.folder))
        with gathered.naming(path):
            samples, notes = interhand_samples(read_json(path), path, finder, part)
            gathered.samples += samples
            gathered.notes += notes
    # smplx.create(..., use_pca=False) in the data set's own script adds the mean pose.
    gathered.mean_relative = True


def _part(path: Path) -> str:
    words = [*re.split("[^a-z]+", path.stem.lower()), path.parent.name.lower()]
    return next((word for word in words if word in _PARTS), "")
