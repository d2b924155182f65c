"""CMU's hand sets (Simon et al. 2017): hand_labels/manual_{train,test} and hand_labels_synth/synthN with a JSON per
picture, and hand143_panopticdb with hands_v143_14817.json for all.

21 points x, y, valid in canonical order. Single files say is_left; hand143 gives no side, and the converters of others
take its hands as right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.coco_json import side_of_name
from handloop.formats.datasets.gather import Finder, Gathered, Listing, starts_with_key, subfolders
from handloop.formats.discover import natural_key
from handloop.formats.loading import json_kind, numbers, read_json
from handloop.formats.picture_set import PictureSample
from handloop.formats.pictures import picture_size

EXPECTED = "manual_train/NAME_l.json with 'hand_pts', synth1/NAME.json, or hands_v143_14817.json"
_ABOVE = ("hand_labels", "hand_labels_synth")
_PARTS = ("manual_", "synth", "hand143_panopticdb")


def found(folder: Path) -> bool:
    return next(_folders(folder), None) is not None


def _folders(folder: Path) -> Iterator[Path]:
    below = subfolders(folder)
    below += [part for parent in below if parent.name in _ABOVE for part in subfolders(parent)]
    for part in (*(p for p in below if p.name.startswith(_PARTS)), folder):
        if next(part.glob("hands_v143_*.json"), None) is not None or starts_with_key(part, b'"hand_pts"'):
            yield part


def read(gathered: Gathered) -> None:
    listing = Listing()
    for folder in _folders(gathered.folder):
        whole = sorted(folder.glob("hands_v143_*.json"))
        singles = [] if whole else sorted(folder.glob("*.json"), key=lambda p: natural_key(p.name))
        for path in whole:
            with gathered.naming(path):
                _whole(gathered, path)
        for path in singles:
            with gathered.naming(path):
                gathered.samples.append(_single(path, listing))


def _single(path: Path, listing: Listing) -> PictureSample:
    content = read_json(path)
    if not isinstance(content, dict) or "hand_pts" not in content:
        raise FileFormatError(f"the file holds {json_kind(content)}, expected an object with 'hand_pts'.")
    left = content.get("is_left")
    image = listing.find(path.parent, path.stem)
    return PictureSample(
        f"{path.parent.name}/{path.stem}",
        _points(content["hand_pts"], "hand_pts"),
        side_of_name(path.name) if left is None else not left,
        image,
        picture_size(image) if image else None,
        split=path.parent.name,
        source=str(path),
    )


def _whole(gathered: Gathered, path: Path) -> None:
    content = read_json(path)
    entries = content.get("root") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise FileFormatError(f"the file holds {json_kind(content)}, expected an object with the list 'root'.")
    finder = Finder((path.parent,))
    lost: list[str] = []
    for number, item in enumerate(entries):
        try:
            name = str(item["img_paths"])
            size = (float(item["img_width"]), float(item["img_height"])) if "img_width" in item else None
            points = _points(item["joint_self"], "joint_self")
        except (FileFormatError, KeyError, TypeError, ValueError) as error:
            lost.append(f"{number} ({type(error).__name__}: {str(error).rstrip('.')})")
            continue
        gathered.samples.append(
            PictureSample(
                f"hand143/{Path(name).stem}",
                points,
                None,
                finder(name),
                size,
                split="hand143",
                source=str(path),
            )
        )
    gathered.notes.append("hand143 does not say which side a hand is; right was assumed.")
    if lost:
        gathered.notes.append(f"{len(lost)} entries of {path} are damaged, the first: {lost[0]}.")


def _points(value: object, what: str) -> np.ndarray:
    """(21, 3) x, y and 1 where the point is marked valid."""
    points = numbers(value, what)
    if points.shape != (21, 3):
        raise FileFormatError(f"{what} has shape {points.shape}, expected (21, 3): x, y, valid.")
    return np.concatenate([points[:, :2], (points[:, 2:] == 1).astype(np.float64)], 1)
