"""Files that often lie where keypoints are looked for and are none that can be read: what they are, what to do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

_VIDEO = "videos hold no keypoints yet: run a keypoint detector over them and give its output"
_PICTURE = "pictures hold no keypoints yet: run a keypoint detector over them and give its output"
_PICKLE = "pickles can run code and are never loaded: save the arrays as npz with keypoints_2d"
_WEIGHTS = "this is a file of tensors or weights: save the points as npz with keypoints_2d"
_TABLES = "this container is not read: save the points as npz with keypoints_2d"
_MOTION = "motion capture holds no pixels of a picture: give 2D keypoints, or 3D joints to handloop.fit_joints"

HINTS: dict[str, str] = {
    ".pose": "pose-format files are not read: save body.data and body.confidence of the hands as npz with keypoints_2d",
    **dict.fromkeys((".pkl", ".pickle", ".p"), _PICKLE),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm", ".flv"), _VIDEO),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic"), _PICTURE),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".task", ".tflite"), _WEIGHTS),
    **dict.fromkeys((".mat", ".h5", ".hdf5", ".parquet", ".feather", ".tfrecord", ".lmdb", ".mdb"), _TABLES),
    **dict.fromkeys((".bvh", ".c3d", ".trc", ".fbx"), _MOTION),
    **dict.fromkeys((".obj", ".ply", ".glb", ".stl"), "meshes hold no keypoints"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"), "unpack archives first"),
    **dict.fromkeys((".xml", ".yaml", ".yml"), "a camera file is given with --camera; keypoints come as JSON or npz"),
}
"""Advice by suffix (lower case)."""


def hint(path: str | os.PathLike[str]) -> str:
    """Advice on a file by its suffix, "" for kinds nothing is known of."""
    return HINTS.get(os.path.splitext(path)[1].lower(), "")


def common_hint(paths: Sequence[str]) -> str:
    """Advice on the most common kind among files, "" where nothing is known of any."""
    kinds = Counter(os.path.splitext(path)[1].lower() for path in paths)
    return next((f"{kind}: {HINTS[kind]}" for kind, _ in kinds.most_common() if kind in HINTS), "")
