"""RHD, the Rendered Hand pose data set (Zimmermann and Brox 2017): training/ and evaluation/ with color, mask, anno_*.

anno_PART.pickle maps a picture's number to uv_vis (42, 3) px, xyz (42, 3) m and K; the left hand first, each with the
wrist first and fingers from the tip inwards. It is a pickle and is read as data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.coco_json import RHD_ORDER
from handloop.formats.datasets.gather import Gathered, Listing, entry
from handloop.formats.picture_set import PictureSample
from handloop.hand.pickle_reader import read_pickle_tree

SPLITS = ("training", "evaluation")
EXPECTED = "training/anno_training.pickle or evaluation/anno_evaluation.pickle"
_SIZE = (320.0, 320.0)


def found(folder: Path) -> bool:
    return any((folder / split / f"anno_{split}.pickle").is_file() for split in SPLITS)


def read(gathered: Gathered) -> None:
    listing = Listing()
    for split in SPLITS:
        path = gathered.folder / split / f"anno_{split}.pickle"
        if not path.is_file():
            continue
        with gathered.naming(path):
            content = read_pickle_tree(path)
            if not isinstance(content, dict):
                raise FileFormatError("the pickle holds no dictionary of annotations by picture number.")
            lost: list[str] = []
            for number, annotation in content.items():
                try:
                    gathered.samples += _picture(path, int(number), annotation, listing)
                except (FileFormatError, ValueError) as error:
                    lost.append(f"{number} ({error})")
            if lost:
                gathered.notes.append(f"{len(lost)} annotations of {path.name} are damaged, the first: {lost[0]}")


def _picture(path: Path, number: int, annotation: object, listing: Listing) -> list[PictureSample]:
    """The hands of one picture of which at least one point is visible."""
    uv, xyz = entry(annotation, "uv_vis", (42, 3)), entry(annotation, "xyz", (42, 3))
    matrix = entry(annotation, "K", (3, 3))
    split, stem = path.parent.name, f"{number:05d}"
    order = np.array(RHD_ORDER)
    hands = (("left", order), ("right", order + 21))
    return [
        PictureSample(
            f"{split}/{stem}:{side}",
            np.concatenate([uv[at, :2], (uv[at, 2:] == 1).astype(np.float64)], 1),
            side == "right",
            listing.find(path.parent / "color", stem),
            _SIZE,
            matrix,
            xyz[at],
            mask=listing.find(path.parent / "mask", stem),
            split=split,
            source=str(path),
        )
        for side, at in hands
        if (uv[at, 2] == 1).any()
    ]
