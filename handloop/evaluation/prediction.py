"""What is evaluated: the 3D points of a `results.npz`, and the meshes behind them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.core.joints import CANONICAL_FROM_MANO, TIP_SETS
from handloop.core.params import HandParams
from handloop.core.results import FitResult, usable_status
from handloop.formats.result_shards import read_results
from handloop.hand.mesh import regressed_joints, skin
from handloop.hand.model import HandPair

JointDefinition = Literal["skinning", "regressed"]
"""Joints of the posed skinning chain (smplx, manopth, HaMeR, HO-3D), or regressed from the posed mesh (FreiHAND)."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """N hands to be evaluated. Only `points` is needed; what else the file lacks is None."""

    points: Tensor
    """(N, 21, 3) float64 m, camera frame, canonical order; NaN for hands without a fit."""
    ids: tuple[str, ...] | None
    """N different names."""
    is_right: Tensor
    """(N,) bool."""
    points_sd: Tensor | None
    """(N, 21, 3) float64 m, posterior standard deviations of `points` by axis."""
    expected_error_mm: Tensor | None
    """(N,) float64, how wrong the fit believes itself to be."""
    camera: Camera | None
    """The cameras fitted with; `known` is False where the focal length was assumed."""
    params: HandParams | None
    """What the meshes are made of, float64."""
    has_layout: bool
    """True where `points` are not the model's own joints, because a layout was applied."""
    texts: Mapping[str, str]
    """What the file says about conventions and model, by key."""

    def __len__(self) -> int:
        return len(self.points)

    def fitted(self) -> Tensor:
        """(N,) bool, hands with a fit."""
        return torch.isfinite(self.points).flatten(1).all(1)

    @classmethod
    def from_result(cls, result: FitResult) -> Prediction:
        """The hands of a fit."""
        return cls.from_arrays(result.arrays())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Prediction:
        """From the arrays of `results.npz`, or of another method's file with `keypoints_3d`.

        Raises:
            FileFormatError: the points are missing, or an array has another shape.
        """
        if "keypoints_3d" not in arrays:
            found = ", ".join(sorted(arrays)[:12]) or "nothing"
            raise FileFormatError(f"the results have no 'keypoints_3d' (N, 21, 3) in m; they hold {found}.")
        n = len(np.atleast_1d(arrays["keypoints_3d"]))
        points = _tensor(arrays, "keypoints_3d", (n, 21, 3))
        if "status" in arrays:
            status = _tensor(arrays, "status", (n,))
            fitted = usable_status(status)
            points = torch.where(fitted[:, None, None], points, torch.full_like(points, math.nan))
        ids = None if "id" not in arrays else tuple(map(str, arrays["id"].tolist()))
        if ids is not None and (len(ids) != n or len(set(ids)) != n):
            raise FileFormatError(f"the results' id holds {len(set(ids))} different names, expected {n}.")
        sides = _tensor(arrays, "is_right", (n,)).bool() if "is_right" in arrays else torch.ones(n, dtype=torch.bool)
        joints = _optional(arrays, "joints", (n, 21, 3))
        return cls(
            points,
            ids,
            sides,
            _optional(arrays, "keypoints_3d_sd", (n, 21, 3)),
            _optional(arrays, "expected_error_mm", (n,)),
            _camera(arrays, n),
            _params(arrays, n),
            # 1e-6 m is below what float32 keeps of a place in camera space.
            joints is not None and bool(((joints - points).abs().nan_to_num() > 1e-6).any()),
            {key: str(value) for key, value in arrays.items() if value.ndim == 0},
        )


def read_prediction(path: str | os.PathLike[str]) -> Prediction:
    """The hands of a `results.npz`, or of the folder that holds one or the shards of a bulk run.

    Raises:
        InputError: there is no such file.
        FileFormatError: it is not a results file.
    """
    arrays = read_results(path)
    try:
        return Prediction.from_arrays(arrays)
    except InputError as error:
        raise FileFormatError(f"{os.fspath(path)}: {error}") from error


def meshes(prediction: Prediction, pair: HandPair) -> tuple[Tensor, Tensor]:
    """The meshes the results describe.

    Args:
        prediction: with `params`.
        pair: the models that were fitted.

    Returns:
        Vertices (N, 778, 3) and posed skinning joints (N, 16, 3) in MANO's order, m, camera frame, left hands
        un-mirrored; NaN for hands without a fit.

    Raises:
        InputError: the results hold no parameters, or were fitted with other models.
    """
    if prediction.params is None:
        raise InputError("the results hold no hand parameters (global_orient, hand_pose, betas, transl) for a mesh.")
    wanted, given = prediction.texts.get("hand_model_digest", ""), f"{pair.right.digest} {pair.left.digest}"
    if wanted and wanted != given:
        name = prediction.texts.get("hand_model", "another model")
        raise InputError(
            f"the results were fitted with {name} (digest {wanted}), but {pair.right.name} (digest {given}) was "
            "loaded; name the file that was fitted with --mano."
        )
    n, fitted = len(prediction), prediction.fitted()
    vertices = torch.full((n, 778, 3), math.nan, dtype=torch.float64)
    joints = torch.full((n, 16, 3), math.nan, dtype=torch.float64)
    for side in (True, False):
        rows = (fitted & (prediction.is_right == side)).nonzero()[:, 0]
        if len(rows):
            vertices[rows], joints[rows] = skin(pair.side(side), *prediction.params.select(rows).tensors())
    return vertices, joints


def with_definition(
    prediction: Prediction, pair: HandPair, definition: JointDefinition, tip_set: str | None = None
) -> Prediction:
    """The same hands with points of another definition, taken from their meshes.

    Args:
        prediction: as read.
        pair: the models that were fitted.
        definition: "skinning" keeps the points but for the tips, "regressed" applies the joint regressor to the mesh.
        tip_set: which vertices are fingertips, a key of `TIP_SETS`; None keeps the results' own.

    Raises:
        InputError: no parameters, other models, an unknown tip set, or tips asked for where a layout was applied.
    """
    own_tips = prediction.texts.get("tip_set", "smplx")
    tips = own_tips if tip_set is None else tip_set
    if tips not in TIP_SETS:
        raise InputError(f"the tip set {tips!r} is unknown, expected one of {', '.join(TIP_SETS)}.")
    if definition == "skinning" and tips == own_tips:
        return prediction
    if definition == "skinning" and prediction.has_layout:
        raise InputError(
            "the results follow a keypoint layout, so that their fingertips are no vertices; leave out --tip-set."
        )
    vertices, joints = meshes(prediction, pair)
    if definition == "regressed":
        for side in (True, False):
            rows = (prediction.is_right == side).nonzero()[:, 0]
            joints[rows] = regressed_joints(pair.side(side), vertices[rows])
    points = torch.cat([joints, vertices[:, list(TIP_SETS[tips])]], 1)[:, list(CANONICAL_FROM_MANO)]
    return replace(
        prediction,
        points=points,
        has_layout=False,
        texts={**prediction.texts, "joint_definition": definition, "tip_set": tips},
    )


def _tensor(arrays: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...]) -> Tensor:
    array = arrays[key]
    if array.shape != shape or array.dtype.kind not in "iufb":
        raise FileFormatError(f"{key} has shape {array.shape} of {array.dtype}, expected {shape} numbers.")
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _optional(arrays: Mapping[str, np.ndarray], key: str, shape: tuple[int, ...]) -> Tensor | None:
    return _tensor(arrays, key, shape) if key in arrays else None


def _camera(arrays: Mapping[str, np.ndarray], n: int) -> Camera | None:
    focal, princpt = _optional(arrays, "focal_length", (n, 2)), _optional(arrays, "princpt", (n, 2))
    if focal is None or princpt is None:
        return None
    known = _optional(arrays, "camera_known", (n,))
    dist = arrays.get("distortion")
    return Camera(
        focal,
        princpt,
        None if dist is None else _tensor(arrays, "distortion", (n, dist.shape[-1])),
        None if known is None else known.bool(),
    )


def _params(arrays: Mapping[str, np.ndarray], n: int) -> HandParams | None:
    widths = {"global_orient": 3, "hand_pose": 45, "betas": 10, "transl": 3}
    if not all(key in arrays for key in widths):
        return None
    return HandParams(*(_tensor(arrays, key, (n, width)) for key, width in widths.items()))
