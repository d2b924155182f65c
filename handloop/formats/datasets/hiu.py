"""HIU-DMTL (Zhang et al. 2021): folders of NAME.jpg or .png, NAME.json and NAME_mask.jpg or .png.

A file holds hand_type (two flags), pts2d_2hand (42, 2) px and pts3d_2hand (42, 3) for both hands in canonical order.
The authors publish no description: which half is which side is decided by the thumbs of the 3D, left first without any,
and the 3D itself, whose frame and unit are not told, is not passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.datasets.gather import Gathered, Listing, starts_with_key, subfolders
from handloop.formats.discover import natural_key
from handloop.formats.handedness import thumb_side
from handloop.formats.loading import json_kind, numbers, read_json
from handloop.formats.picture_set import PictureSample
from handloop.formats.pictures import picture_size

EXPECTED = "NAME.json with 'pts2d_2hand' beside NAME.jpg (here, or in train, test)"
_NAMES = "ids"
"""Stem of a list of names that some users keep beside the files."""
_CLEAR = 0.1
"""Sine of the thumb's angle to the palm from which a side counts as decided; as for keypoint files."""


def found(folder: Path) -> bool:
    return next(_folders(folder), None) is not None


def _folders(folder: Path) -> Iterator[Path]:
    for parent in (folder, *subfolders(folder)):
        if starts_with_key(parent, b'"pts2d_2hand"', _NAMES):
            yield parent


def read(gathered: Gathered) -> None:
    listing = Listing()
    votes = 0
    for folder in _folders(gathered.folder):
        for path in sorted(folder.glob("*.json"), key=lambda p: natural_key(p.name)):
            if path.stem == _NAMES:
                continue
            with gathered.naming(path):
                samples, vote = _file(path, listing, "" if folder == gathered.folder else folder.name)
                gathered.samples += samples
                votes += vote
    if votes < 0:
        # The thumbs say that the first half is the right hand.
        gathered.samples = [replace(s, is_right=not s.is_right) for s in gathered.samples]
    decided = "from the thumbs of its 3D" if votes else "by assumption: nothing decides it"
    first = "right" if votes < 0 else "left"
    gathered.notes.append(f"HIU-DMTL's first 21 points were taken as the {first} hand, {decided}.")


def _file(path: Path, listing: Listing, split: str) -> tuple[list[PictureSample], int]:
    """The hands of a file, the first taken as left, and how many thumbs agree less those that do not."""
    content = read_json(path)
    if not isinstance(content, dict) or "pts2d_2hand" not in content:
        raise FileFormatError(f"the file holds {json_kind(content)}, expected an object with 'pts2d_2hand'.")
    points = numbers(content["pts2d_2hand"], "pts2d_2hand")
    there = numbers(content.get("hand_type"), "hand_type").ravel()
    if points.shape != (42, 2) or there.shape != (2,):
        raise FileFormatError(
            f"pts2d_2hand has shape {points.shape} and hand_type {there.shape}, expected (42, 2) and (2,)."
        )
    solid = numbers(content["pts3d_2hand"], "pts3d_2hand") if "pts3d_2hand" in content else np.zeros((42, 3))
    image, mask = listing.find(path.parent, path.stem), listing.find(path.parent, f"{path.stem}_mask")
    size = picture_size(image) if image else None
    samples, vote = [], 0
    for half, is_right in ((0, False), (1, True)):
        if there[half] <= 0:
            continue
        at = slice(21 * half, 21 * half + 21)
        if solid.shape == (42, 3):
            sine = float(thumb_side(solid[None, at])[0])
            vote += 0 if abs(sine) < _CLEAR else 1 if (sine > 0) == is_right else -1
        name = f"{split}/{path.stem}" if split else path.stem
        samples.append(
            PictureSample(
                f"{name}:{half}",
                np.concatenate([points[at], np.ones((21, 1))], 1),
                is_right,
                image,
                size,
                mask=mask,
                split=split,
                source=str(path),
            )
        )
    return samples, vote
