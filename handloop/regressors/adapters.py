"""Other networks' hands as proposals: arrays in MANO's names, as HaMeR, WiLoR and plain MANO tools save them.

Rotations are axis-angle (flat mean) or matrices. The place comes as `transl` under `focal_length` and `princpt` (or K),
or, from a network that works in crops, as `pred_cam_t_full` under its assumed `scaled_focal_length`, or as `pred_cam`
with `box_center` and `box_size`. The camera that a proposal names is the assumed one; a fit carries the place over.

Left hands come in two conventions. HaMeR and WiLoR (matrices) estimate the right hand of the mirrored picture and give
its parameters; WiLoR-mini (axis-angle) and plain MANO tools give the left hand's own. The entry `mirrored_left` says
which where this rule does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera, translation_from_weak_perspective
from handloop.core.errors import FileFormatError
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.rotations import so3_log

Arrays = Mapping[str, np.ndarray]

_SIZE_KEYS = ("image_size", "img_size")
_ID_KEYS = ("id", "ids")
_FARTHEST_M = 1000.0
"""A network's assumed focal length puts hands tens of metres away; millimetres put them thousands."""


def proposal_of(arrays: Arrays, image_size: Tensor | None = None) -> Proposal:
    """The hands of one file.

    Args:
        arrays: N hands: `hand_pose`, `betas`, `global_orient` and a place, as above; optional `is_right` (N,), `id`.
        image_size: (M, 2) px of the hands that will be fitted, for files of networks that assume the principal point in
            the middle and do not hold the size.

    Raises:
        FileFormatError: an array is missing or has another shape, or the place cannot be told.
    """
    for key in ("global_orient", "hand_pose", "betas"):
        if key not in arrays:
            found = ", ".join(sorted(arrays)[:12]) or "nothing"
            raise FileFormatError(
                f"there is no {key!r}; a start needs global_orient, hand_pose and betas as MANO means them, "
                f"it holds {found}."
            )
    betas = _numbers(arrays, "betas")
    if betas.size % 10:
        raise FileFormatError(f"betas has shape {betas.shape}, expected (N, 10).")
    n = betas.size // 10
    wrist, is_matrix = _rotations(arrays, "global_orient", n, 1)
    fingers, _ = _rotations(arrays, "hand_pose", n, 15)
    crops = "pred_cam_t_full" in arrays or "pred_cam" in arrays
    right = _sides(arrays, n)
    params = HandParams(wrist, fingers, torch.tensor(betas.reshape(n, 10)), torch.zeros(n, 3, dtype=torch.float64))
    mirrored = bool(arrays["mirrored_left"]) if "mirrored_left" in arrays else crops and is_matrix
    if mirrored:
        pairs = zip(params.tensors(), params.mirrored().tensors(), strict=True)
        params = HandParams(*(torch.where(right[:, None], own, other) for own, other in pairs))
    transl, camera = _crop_place(arrays, n, right, image_size) if crops else _own_place(arrays, n)
    params = HandParams(params.global_orient, params.hand_pose, params.betas, transl)
    return Proposal.without_opinion(params, right, camera, _ids(arrays, n))


def _crop_place(arrays: Arrays, n: int, right: Tensor, image_size: Tensor | None) -> tuple[Tensor, Camera]:
    """`transl` (N, 3) of smplx and the camera a crop network assumed."""
    size = _image_size(arrays, n, image_size)
    if "scaled_focal_length" not in arrays:
        raise FileFormatError("there is no 'scaled_focal_length' (px), under which pred_cam_t_full means a place.")
    focal = torch.tensor(_shaped(arrays, "scaled_focal_length", n, ()))
    camera = Camera(focal[:, None].repeat(1, 2), (size - 1) / 2, known=torch.zeros(n, dtype=torch.bool))
    if "pred_cam_t_full" in arrays:
        # The networks add it to vertices in the picture's own sense, so that it is smplx's translation of either side.
        return torch.tensor(_shaped(arrays, "pred_cam_t_full", n, (3,))), camera
    if not bool(right.all()):
        raise FileFormatError(
            "the place of left hands cannot be told from pred_cam, whose sign the networks' demos change on the way; "
            "save pred_cam_t_full."
        )
    if "box_center" not in arrays or "box_size" not in arrays:
        raise FileFormatError("pred_cam needs box_center (N, 2) and box_size (N,) of the crops in px.")
    weak = torch.tensor(_shaped(arrays, "pred_cam", n, (3,)))
    centre = torch.tensor(_shaped(arrays, "box_center", n, (2,)))
    box = torch.tensor(_shaped(arrays, "box_size", n, ()))
    return translation_from_weak_perspective(weak, focal, centre, box, camera.princpt), camera


def _own_place(arrays: Arrays, n: int) -> tuple[Tensor, Camera | None]:
    """`transl` and its camera; NaN where there is none, None for "the camera of the keypoints"."""
    if "transl" not in arrays:
        return torch.full((n, 3), float("nan"), dtype=torch.float64), None
    transl = torch.tensor(_shaped(arrays, "transl", n, (3,)))
    if bool((transl.nan_to_num().abs() > _FARTHEST_M).any()):
        raise FileFormatError(
            f"transl reaches {float(transl.nan_to_num().abs().max()):.4g}, expected metres in the camera frame."
        )
    if "K" in arrays:
        return transl, Camera.from_matrix(_shaped(arrays, "K", n, (3, 3)), n)
    if "focal_length" in arrays and "princpt" in arrays:
        focal = torch.tensor(_shaped(arrays, "focal_length", n, (2,)))
        return transl, Camera(focal, torch.tensor(_shaped(arrays, "princpt", n, (2,))))
    return transl, None


def _image_size(arrays: Arrays, n: int, given: Tensor | None) -> Tensor:
    for key in _SIZE_KEYS:
        if key in arrays:
            return torch.tensor(_shaped(arrays, key, n, (2,)))
    if given is not None and len(given) and bool(torch.isfinite(given).all()):
        if len(given) == n:
            return given
        if bool((given == given[0]).all()):
            return given[:1].expand(n, 2)
    raise FileFormatError(
        "the principal point that the network assumed is unknown; add image_size (N, 2) in px to the file, "
        "or give --image-size W H."
    )


def _rotations(arrays: Arrays, key: str, n: int, joints: int) -> tuple[Tensor, bool]:
    """(N, 3 joints) axis-angle, and whether it came as matrices."""
    array = _numbers(arrays, key)
    if array.size == n * joints * 3 and array.shape[-2:] != (3, 3):
        return torch.tensor(array.reshape(n, 3 * joints)), False
    if array.size == n * joints * 9 and array.shape[-2:] == (3, 3):
        matrices = torch.tensor(array.reshape(n, joints, 3, 3))
        off = (matrices @ matrices.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2, 3))
        if bool((off > 0.01).any()):
            raise FileFormatError(f"{key} holds matrices that are not rotations.")
        return so3_log(matrices).flatten(1), True
    raise FileFormatError(
        f"{key} has shape {array.shape}, expected ({n}, {3 * joints}) axis-angle or ({n}, {joints}, 3, 3) matrices "
        f"for the {n} hands that betas names."
    )


def _sides(arrays: Arrays, n: int) -> Tensor:
    if "is_right" not in arrays:
        return torch.ones(n, dtype=torch.bool)
    given = _shaped(arrays, "is_right", n, ())
    if not np.isin(given, (0.0, 1.0)).all():
        raise FileFormatError("is_right holds values other than true and false (1 and 0).")
    return torch.tensor(given == 1)


def _ids(arrays: Arrays, n: int) -> tuple[str, ...] | None:
    for key in _ID_KEYS:
        if key in arrays:
            names = tuple(str(v) for v in np.ravel(arrays[key]).tolist())
            if len(names) != n or len(set(names)) != n:
                raise FileFormatError(f"{key} holds {len(set(names))} different names for {n} hands.")
            return names
    return None


def _shaped(arrays: Arrays, key: str, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """(n, *shape) of an array with axes of length 1 thrown in, or of one that holds for all hands."""
    array = _numbers(arrays, key)
    size = int(np.prod(shape))
    if array.size not in (size, n * size):
        raise FileFormatError(f"{key} has shape {array.shape}, expected {(n, *shape)}.")
    return np.broadcast_to(array.reshape(-1, *shape), (n, *shape)).copy()


def _numbers(arrays: Arrays, key: str) -> np.ndarray:
    array = arrays[key]
    if array.dtype.kind not in "fiub":
        raise FileFormatError(f"{key} holds {array.dtype} values, expected numbers.")
    return array.astype(np.float64)
