"""FreiHAND (Zimmermann et al. 2019): training_{K,xyz,mano}.json with training/rgb, and evaluation_*.json likewise.

Right hands in 224 x 224 px, K and joints per hand in OpenCV axes, m, canonical order; joints regressed from the posed
mesh. Training pictures beyond the annotations' number N show the same hands before other backgrounds: picture i shows
hand i mod N. 2D is the projection of the 3D.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.datasets.gather import Gathered, Listing, read_array
from handloop.formats.loading import numbers, read_json
from handloop.formats.picture_set import ManoSample, PictureSample, project
from handloop.formats.pictures import picture_size

SPLITS = ("training", "evaluation")
EXPECTED = "training_K.json or evaluation_K.json"
_SIZE = (224.0, 224.0)
"""Of the published pictures; folders of this layout by others have other sizes, which their first picture tells."""


def found(folder: Path) -> bool:
    return any((folder / f"{split}_K.json").is_file() for split in SPLITS)


def read(gathered: Gathered) -> None:
    for split in SPLITS:
        path = gathered.folder / f"{split}_K.json"
        if path.is_file():
            with gathered.naming(path):
                _split(gathered, split, read_array(path, (3, 3)))
    # Published poses are relative to MANO's mean pose.
    gathered.mean_relative = True


def _split(gathered: Gathered, split: str, matrices: np.ndarray) -> None:
    folder, n = gathered.folder, len(matrices)
    joints, mano = np.full((n, 21, 3), np.nan), np.full((n, 61), np.nan)
    for name, array in (("xyz", joints), ("mano", mano)):
        path = folder / f"{split}_{name}.json"
        if path.is_file():
            with gathered.naming(path):
                array[:] = _rows(path, n, array.shape[1:])
        elif name == "xyz":
            gathered.notes.append(f"{path.name} is not there; the {split} pictures come without keypoints.")
    points = project(joints, matrices)
    listing = Listing()
    pictures = listing.stems(folder / split / "rgb")
    numbered = sorted(int(stem) for stem in pictures if stem.isdecimal())
    if not numbered:
        gathered.notes.append(f"{split}/rgb holds no pictures.")
    first = listing.find(folder / split / "rgb", f"{numbered[0]:08d}") if numbered else ""
    size = (picture_size(first) if first else None) or _SIZE
    for number in numbered or range(n):
        hand = number % n
        gathered.samples.append(
            PictureSample(
                f"{split}/{number:08d}",
                points[hand],
                True,
                listing.find(folder / split / "rgb", f"{number:08d}"),
                size,
                matrices[hand],
                joints[hand],
                mask=listing.find(folder / split / "mask", f"{hand:08d}"),
                split=split,
                source=str(folder / f"{split}_xyz.json"),
                hand=f"{split}/{hand}",
                mano=_mano(mano[hand]),
            )
        )


def _rows(path: Path, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """(n, *shape); MANO's vectors come wrapped in one more list."""
    array = numbers(read_json(path), "the list")
    if array.shape[1:] not in (shape, (1, *shape)) or len(array) != n:
        raise FileFormatError(f"the list has shape {array.shape}, expected ({n}, {', '.join(map(str, shape))}).")
    return array.reshape(n, *shape)


def _mano(vector: np.ndarray) -> ManoSample | None:
    """Pose 48, shape 10; the place is that of a joint of the mesh in weak perspective, not `transl`."""
    if not np.isfinite(vector).all():
        return None
    return ManoSample(vector[:48], vector[48:58], np.full(3, np.nan), np.eye(3), np.zeros(3))
