"""Picture data sets as input of a fit: their 2D, cameras, sides and true joints, each annotated hand once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from handloop.formats.datasets import coco_set, interhand_set
from handloop.formats.datasets.open import LAYOUTS, Layout, read_layout, recognise
from handloop.formats.discover import FoundFile
from handloop.formats.file_hands import FileHands
from handloop.formats.notes import Notes
from handloop.formats.options import Problem
from handloop.formats.picture_set import PictureSet

# The files of the others are keypoint files in their own right and are found one by one, also beside other files.
_WHOLE = tuple(layout for layout in LAYOUTS if layout.found not in (coco_set.found, interhand_set.found))


def data_set_at(path: Path) -> Layout | None:
    """The data set that is read as a whole where `path` is its folder, None where it is anything else."""
    return recognise(path, _WHOLE) if path.is_dir() else None


def take_data_sets(
    inputs: Sequence[str | Path], problems: list[Problem], notes: Notes
) -> tuple[list[str | Path], list[tuple[FoundFile, FileHands]]]:
    """Read the folders among the inputs that are data sets.

    Args:
        inputs: files and folders.
        problems: gets the files that could not be used.
        notes: gets what was found and assumed.

    Returns:
        The inputs that are left, and the hands of each data set.
    """
    left: list[str | Path] = []
    taken: list[tuple[FoundFile, FileHands]] = []
    for given in inputs:
        path = Path(given)
        layout = data_set_at(path)
        if layout is None:
            left.append(given)
            continue
        pictures = read_layout(path, layout)
        problems += pictures.problems
        hands = picture_set_hands(pictures)
        notes.add(f"this is {layout.name}: {len(hands.points)} hands with keypoints.", str(path))
        for sentence in pictures.notes:
            notes.add(sentence, str(path))
        taken.append((FoundFile(path, path.name, True), hands))
    return left, taken


def picture_set_hands(pictures: PictureSet) -> FileHands:
    """The hands with keypoints; of pictures that show the very same hand the first."""
    _, first = np.unique(pictures.hand.numpy(), return_index=True)
    chosen = torch.zeros(len(pictures), dtype=torch.bool)
    chosen[torch.from_numpy(first)] = True
    some = pictures.select(chosen & (pictures.keypoints.conf > 0).any(1))
    keypoints = some.keypoints
    # Names as the data set's own lists and servers use them, where they stay different: without the part's.
    part = some.split[0] + "/" if len(set(some.split)) == 1 else ""
    ids = tuple(name.removeprefix(part) for name in keypoints.ids)
    sides = zip(keypoints.is_right.tolist(), some.side_known.tolist(), strict=True)
    return FileHands(
        "table",
        torch.cat([keypoints.xy, keypoints.conf[..., None]], 2).numpy(),
        ids if len(set(ids)) == len(ids) else keypoints.ids,
        tuple(right if known else None for right, known in sides),
        own_ids=True,
        frames=keypoints.frame.numpy(),
        image_size=keypoints.image_size.numpy(),
        images=keypoints.image,
        sources=keypoints.source,
        matrix=some.K.numpy() if bool(torch.isfinite(some.K).any()) else None,
        truth=some.joints.numpy() if bool(torch.isfinite(some.joints).any()) else None,
    )
