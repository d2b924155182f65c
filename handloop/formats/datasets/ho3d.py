"""HO-3D versions 2 and 3 (Hampali et al. 2020): train/SEQ/{rgb,meta,seg}/NNNN with lists train.txt, evaluation.txt.

Right hands. Joints in MANO's order with its tips last and the parameters are in OpenGL's axes (y up, z backward); the
pose is absolute. Evaluation frames give the wrist and a box only. The meta files are pickles and are read as data.
2D is the projection of the 3D.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.formats.datasets.gather import Gathered, Listing, entry
from handloop.formats.discover import natural_key
from handloop.formats.picture_set import ManoSample, PictureSample, project
from handloop.hand.pickle_reader import read_pickle_tree

SPLITS = ("train", "evaluation")
EXPECTED = "train/SEQUENCE/meta/0000.pkl or evaluation/SEQUENCE/meta/0000.pkl"
_SIZE = (640.0, 480.0)
_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])


def found(folder: Path) -> bool:
    return any(next((folder / split).glob("*/meta/*.pkl"), None) is not None for split in SPLITS)


def read(gathered: Gathered) -> None:
    listing = Listing()
    bare = 0
    for split in SPLITS:
        for sequence, frame in _frames(gathered, split):
            meta = gathered.folder / split / sequence / "meta" / f"{frame}.pkl"
            with gathered.naming(meta):
                sample = _sample(gathered.folder, split, sequence, frame, listing)
                bare += sample is None
                gathered.samples += [sample] if sample is not None else []
    if bare:
        gathered.notes.append(f"{bare} frames come without annotation of the hand and were left out.")


def _frames(gathered: Gathered, split: str) -> Iterator[tuple[str, str]]:
    """(sequence, frame) as listed in train.txt or evaluation.txt, else as found."""
    listed = gathered.folder / f"{split}.txt"
    if listed.is_file():
        with gathered.naming(listed):
            for line in listed.read_text(encoding="utf-8").split():
                # Names from a list must not lead out of the data set.
                if line.count("/") == 1 and ".." not in line and "\0" not in line:
                    sequence, frame = line.split("/")
                    yield sequence, frame
        return
    paths = (gathered.folder / split).glob("*/meta/*.pkl")
    for path in sorted(paths, key=lambda p: natural_key(p.as_posix())):
        yield path.parts[-3], path.stem


def _sample(folder: Path, split: str, sequence: str, frame: str, listing: Listing) -> PictureSample | None:
    """One frame; None where it has no annotation (version 3 keeps such frames)."""
    home = folder / split / sequence
    meta = home / "meta" / f"{frame}.pkl"
    content = read_pickle_tree(meta)
    if not isinstance(content, dict) or content.get("handJoints3D") is None:
        return None
    matrix = entry(content, "camMat", (3, 3))
    joints = _joints(content)
    full = np.isfinite(joints).all()
    box = entry(content, "handBoundingBox", (4,)) if content.get("handBoundingBox") is not None else None
    return PictureSample(
        f"{split}/{sequence}/{frame}",
        project(joints, matrix),
        True,
        listing.find(home / "rgb", frame),
        _SIZE,
        matrix,
        joints,
        box,
        mask=listing.find(home / "seg", frame),
        split=split,
        source=str(meta),
        frame=int(frame) if frame.isdecimal() else -1,
        mano=_mano(content) if full and content.get("handPose") is not None else None,
    )


def _joints(content: dict[object, object]) -> np.ndarray:
    """(21, 3) m in OpenCV's axes and canonical order; all but the wrist NaN in evaluation frames."""
    given = content["handJoints3D"]
    if isinstance(given, np.ndarray) and given.size == 3:
        joints = np.full((21, 3), np.nan)
        joints[0] = _FROM_OPENGL @ entry(content, "handJoints3D", (3,))
        return joints
    turned: np.ndarray = entry(content, "handJoints3D", (21, 3))[list(CANONICAL_FROM_MANO)] @ _FROM_OPENGL
    return turned


def _mano(content: dict[object, object]) -> ManoSample:
    pose, betas, transl = (
        entry(content, key, (size,)) for key, size in (("handPose", 48), ("handBeta", 10), ("handTrans", 3))
    )
    return ManoSample(pose, betas, transl, _FROM_OPENGL, np.zeros(3))
