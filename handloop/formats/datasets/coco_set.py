"""COCO-style sets: COCO-WholeBody (annotations/coco_wholebody_*.json with train2017, val2017), Halpe, and mmpose's
conversions of FreiHAND, OneHand10K, CMU's hands and RHD (annotations/*.json, or a JSON beside its pictures)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from handloop.formats.coco_json import coco_samples, is_coco
from handloop.formats.datasets.gather import Finder, Gathered
from handloop.formats.loading import read_json

EXPECTED = "a JSON with images and annotations with hand keypoints (here or in annotations)"
_START = 4_000_000
"""Bytes of a file looked at to recognise it: COCO's long lists of pictures may come before the first annotation."""


_FEW = 20
"""Files looked at to recognise a folder: annotations are few, and 100,000 files of one picture each are none."""


def found(folder: Path) -> bool:
    return next(_files(folder, _FEW), None) is not None


def _files(folder: Path, most: int | None = None) -> Iterator[Path]:
    for parent in (folder, folder / "annotations"):
        for path in sorted(parent.glob("*.json"))[:most]:
            with open(path, "rb") as file:
                start = file.read(_START)
            listed = b'"images"' in start or b'"annotations"' in start
            if listed and (b'hand_kpts"' in start or b'"keypoints"' in start or len(start) == _START):
                yield path


def read(gathered: Gathered) -> None:
    folder = gathered.folder
    for path in _files(folder):
        with gathered.naming(path):
            value = read_json(path)
            if not is_coco(value):
                continue
            split = next((part for part in ("train", "val", "test") if part in path.stem.lower()), "")
            finder = Finder(
                (folder, path.parent, *(folder / p for p in (f"{split}2017", f"images/{split}2017", "images")))
            )
            samples, notes = coco_samples(value, path, split)
            gathered.samples += [replace(s, image=finder(s.image)) for s in samples]
            gathered.notes += [f"{note} [{path}]" for note in notes]
