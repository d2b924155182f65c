"""OneHand10K (Wang et al. 2018): Train/ and Test/ with source/NAME.jpg, mask/NAME.png and label_joint.txt.

A line of label_joint.txt is name, width, height, number of hands, then x, y of 21 points in canonical order; -1 marks a
point that is not visible. The sides are not given.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.datasets.gather import Gathered, Listing
from handloop.formats.loading import read_text
from handloop.formats.picture_set import PictureSample

SPLITS = ("Train", "Test")
EXPECTED = "Train/label_joint.txt or Test/label_joint.txt"


def found(folder: Path) -> bool:
    return any((folder / split / "label_joint.txt").is_file() for split in SPLITS)


def read(gathered: Gathered) -> None:
    listing = Listing()
    for split in SPLITS:
        path = gathered.folder / split / "label_joint.txt"
        if not path.is_file():
            continue
        with gathered.naming(path):
            lost: list[str] = []
            for number, line in enumerate(read_text(path).splitlines(), 1):
                try:
                    gathered.samples += [_sample(path, line, listing)] if line.strip() else []
                except ValueError as error:
                    lost.append(f"line {number} ({str(error).rstrip('.')})")
            if lost:
                gathered.notes.append(f"{len(lost)} lines of {path} are damaged, the first: {lost[0]}.")
    gathered.notes.append("OneHand10K does not say which side a hand is; right was assumed.")


def _sample(path: Path, line: str, listing: Listing) -> PictureSample:
    name, *rest = line.strip().strip(",").split(",")
    if len(rest) != 45:
        raise FileFormatError(f"{len(rest)} numbers behind the name, expected width, height, hands and 21 x, y.")
    width, height, _, *xy = (float(v) for v in rest)
    points = np.array(xy).reshape(21, 2)
    seen = np.isfinite(points).all(1) & (points != -1).all(1)
    stem = Path(name).stem
    return PictureSample(
        f"{path.parent.name}/{stem}",
        np.concatenate([np.where(seen[:, None], points, 0.0), seen[:, None].astype(np.float64)], 1),
        None,
        listing.find(path.parent / "source", stem),
        (width, height) if width > 0 and height > 0 else None,
        mask=listing.find(path.parent / "mask", stem),
        split=path.parent.name,
        source=str(path),
    )
