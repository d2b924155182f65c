"""STB, the stereo hand tracking benchmark (Zhang et al. 2017): labels/SEQ_{BB,SK}.mat and images/SEQ/BB_left_0.png ...

Left hands. handPara (3, 21, frames) in mm: the palm's middle, then little finger to thumb from base to tip. The first
point is no wrist and is left out. BB labels are in the left stereo camera's frame, SK labels in the depth camera's. The
cameras are those of the data set's readme; 2D is the projection of the 3D.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from handloop.core.errors import FileFormatError
from handloop.core.rotations import so3_exp
from handloop.formats.datasets.gather import Gathered, Listing
from handloop.formats.loading import check_file
from handloop.formats.picture_set import PictureSample, project

EXPECTED = "labels/B1Counting_BB.mat or labels/B1Counting_SK.mat and the like"
_SIZE = (640.0, 480.0)

_ORDER = (0, *(base + part for base in (17, 13, 9, 5, 1) for part in range(4)))
"""Index of each canonical point in the file; the first one is the palm's middle instead of the wrist."""

_K_STEREO = np.array([[822.79041, 0, 318.47345], [0, 822.79041, 250.31296], [0, 0, 1]])
_BASELINE = np.array([0.120054, 0.0, 0.0])
_K_COLOUR = np.array([[607.92271, 0, 314.78337], [0, 607.88192, 236.42484], [0, 0, 1]])
# x_depth = R x_colour + t, by the readme.
_COLOUR_TURN = so3_exp(torch.tensor([0.00531, -0.01196, 0.00301], dtype=torch.float64)).numpy()
_COLOUR_SHIFT = np.array([-0.0240381, -0.0004563, -0.0012326])

_TEST = "B1"
"""The usual split: the sequences of the first background are for testing."""


def found(folder: Path) -> bool:
    return any(next((folder / "labels").glob(f"*_{kind}.mat"), None) is not None for kind in ("BB", "SK"))


def read(gathered: Gathered) -> None:
    listing = Listing()
    for path in sorted((gathered.folder / "labels").glob("*_[BS][BK].mat")):
        with gathered.naming(path):
            _sequence(gathered, path, listing)
    gathered.notes.append("STB marks the palm's middle instead of the wrist, which is left out.")


def _sequence(gathered: Gathered, path: Path, listing: Listing) -> None:
    sequence, kind = path.stem[:-3], path.stem[-2:]
    labels = _labels(path)
    views: list[tuple[str, np.ndarray, np.ndarray]]
    if kind == "BB":
        views = [("BB_left", _K_STEREO, labels), ("BB_right", _K_STEREO, labels - _BASELINE)]
    else:
        views = [("SK_color", _K_COLOUR, (labels - _COLOUR_SHIFT) @ _COLOUR_TURN)]
    split = "test" if sequence.startswith(_TEST) else "train"
    for view, matrix, joints in views:
        points = project(joints, matrix)
        joints[:, 0], points[:, 0] = np.nan, 0.0
        for i in range(len(joints)):
            image = listing.find(gathered.folder / "images" / sequence, f"{view}_{i}")
            # One folder may hold the pictures of one camera only.
            if image:
                gathered.samples.append(
                    PictureSample(
                        f"{sequence}/{view}_{i}",
                        points[i],
                        False,
                        image,
                        _SIZE,
                        matrix,
                        joints[i],
                        split=split,
                        source=str(path),
                        frame=i,
                    )
                )


def _labels(path: Path) -> np.ndarray:
    """(frames, 21, 3) m in canonical order."""
    from scipy.io import loadmat

    check_file(path)
    try:
        # Numbers and texts only: loadmat rebuilds no objects.
        content = loadmat(str(path), variable_names=["handPara"])
    except Exception as error:  # scipy raises many kinds for damaged files.
        raise FileFormatError(f"this is not a MATLAB file, or it is damaged ({type(error).__name__}).") from error
    array = content.get("handPara")
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 3
        or array.shape[:2] != (3, 21)
        or array.dtype.kind not in "iuf"
    ):
        shape = getattr(array, "shape", "not there")
        raise FileFormatError(f"handPara is {shape}, expected (3, 21, frames) in mm.")
    return array.astype(np.float64).transpose(2, 1, 0)[:, list(_ORDER)] / 1000
