"""The bytes of a cached fit: one little-endian record per row, and the numbers of many rows at once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from handloop.core.params import HandParams
from handloop.loop.cached_fits import CachedFits

RECORD = np.dtype(
    [
        ("global_orient", "<f8", (3,)),
        ("hand_pose", "<f8", (45,)),
        ("betas", "<f8", (10,)),
        ("transl", "<f8", (3,)),
        ("focal_length", "<f8", (2,)),
        ("princpt", "<f8", (2,)),
        ("distortion", "<f8", (12,)),
        ("image_size", "<f8", (2,)),
        ("depth_sd", "<f8"),
        ("expected_error_mm", "<f8"),
        ("rms_px", "<f8"),
        ("hypothesis_gap", "<f8"),
        ("joints", "<f4", (21, 3)),
        ("keypoints_3d", "<f4", (21, 3)),
        ("keypoints_3d_sd", "<f4", (21, 3)),
        ("keypoints_2d", "<f4", (21, 3)),
    ]
)
"""Column `fit`: parameters as of a right hand (a left hand's are mirrored), everything else as it was seen. What the
energy depends on is float64, so that it can be computed again to the last digits; points are float32."""
TERM = np.dtype("<f8")
"""Column `terms`: one number per name in `scores.terms` of the row's score version."""

_NAMES = (
    *("depth_sd", "expected_error_mm", "rms_px", "hypothesis_gap"),
    *("joints", "keypoints_3d", "keypoints_3d_sd", "keypoints_2d", "image_size"),
)


def encode(fits: CachedFits) -> np.ndarray:
    """(N,) records."""
    out = np.zeros(len(fits), RECORD)
    canonical = mirrored_left(fits.params, fits.is_right)
    for name, value in zip(("global_orient", "hand_pose", "betas", "transl"), canonical.tensors(), strict=True):
        out[name] = value.numpy()
    out["focal_length"], out["princpt"] = fits.focal.numpy(), fits.princpt.numpy()
    if fits.dist is not None:
        out["distortion"][:, : fits.dist.shape[1]] = fits.dist.numpy()
    for name in _NAMES:
        out[name] = getattr(fits, name).numpy()
    return out


def encode_terms(fits: CachedFits, names: Sequence[str]) -> np.ndarray:
    """(N, len(names)) energies by term."""
    columns = [fits.energy_terms[name].numpy() for name in names]
    return np.stack(columns, 1).astype(TERM) if columns else np.zeros((len(fits), 0), TERM)


def decode(blobs: Sequence[bytes], at: Sequence[int], n: int) -> dict[str, Tensor]:
    """Records in rows `at` of n, by field name; float64, NaN elsewhere. Each blob must have the record's length."""
    records = np.frombuffer(b"".join(blobs), RECORD)
    rows = np.asarray(at, dtype=np.int64)
    out = {}
    for name in RECORD.names or ():
        field = records[name]
        whole = np.full((n, *field.shape[1:]), np.nan)
        whole[rows] = field
        out[name] = torch.from_numpy(whole)
    return out


def decode_terms(blobs: Sequence[bytes], names: Sequence[str]) -> np.ndarray:
    """(N, len(names)) energies by term."""
    return np.frombuffer(b"".join(blobs), TERM).reshape(len(blobs), len(names))


def checksum(terms: bytes, fit: bytes) -> int:
    """Column `crc`: CRC-32 of `terms` followed by `fit`."""
    return zlib.crc32(fit, zlib.crc32(terms))


def mirrored_left(params: HandParams, is_right: Tensor) -> HandParams:
    """Left hands' parameters as of the right hand in the mirror, or back; right hands' as they are."""
    pairs = zip(params.tensors(), params.mirrored().tensors(), strict=True)
    return HandParams(*(torch.where(is_right[:, None], own, mirrored) for own, mirrored in pairs))
