"""Pictures as bytes: JPEG, 8-bit and 16-bit PNG; and their labels as plain values."""

from __future__ import annotations

import io

import numpy as np

from handloop.hand.model import Hand
from handloop.synth.picture import Picture, Visibility

DEPTH_UNIT = 1e-4
"""m per step of a depth picture: 16 bits reach 6.5 m."""

_QUALITY = 92
"""JPEG's own scale; above 90 with full colour resolution, artefacts stay below a camera's noise."""

_DIGITS = {"px": 4, "m": 7, "rad": 9}
"""Decimals written: a ten-thousandth of a pixel, a tenth of a micrometre."""


def rgb_jpeg(picture: Picture) -> bytes:
    """The colours, sRGB."""
    return _encode(picture.rgb, "JPEG", {"quality": _QUALITY, "subsampling": 0})


def mask_png(picture: Picture) -> bytes:
    """The mask, 0 or 255."""
    return _encode(picture.mask.astype(np.uint8) * np.uint8(255), "PNG", {"compress_level": 1})


def mask_jpeg(picture: Picture) -> bytes:
    """The mask as FreiHAND has it: 0 or 255, JPEG, so that a reader compares with 128."""
    return _encode(picture.mask.astype(np.uint8) * np.uint8(255), "JPEG", {"quality": 95})


def depth_png(picture: Picture) -> bytes:
    """Depth in steps of `DEPTH_UNIT`, 16 bits; 0 is the background."""
    steps = np.minimum(np.rint(picture.depth / np.float32(DEPTH_UNIT)), 65535).astype(np.uint16)
    return _encode(steps, "PNG", {"compress_level": 1})


def labels(picture: Picture, hand: Hand) -> dict[str, object]:
    """All that is known of a picture, ready for JSON; docs/synth.md explains the keys."""
    truth = picture.truth
    return {
        "index": picture.index,
        "is_right": truth.is_right,
        "K": _rounded(truth.K, "px"),
        "keypoints_2d": _rounded(truth.keypoints_2d, "px"),
        "keypoints_3d": _rounded(truth.keypoints_3d, "m"),
        "visibility": [Visibility(int(code)).name.lower() for code in picture.visibility],
        "global_orient": _rounded(truth.global_orient, "rad"),
        "hand_pose": _rounded(truth.hand_pose, "rad"),
        "betas": _rounded(truth.betas, "rad"),
        "transl": _rounded(truth.transl, "m"),
        "hand_model": hand.digest,
        "tip_set": hand.tip_set,
    }


def decode(data: bytes) -> np.ndarray:
    """A picture file's pixels.

    Raises:
        ValueError: no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as file:
            return np.asarray(file)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError("not a readable picture") from error


def _rounded(array: np.ndarray, unit: str) -> object:
    return (np.round(array, _DIGITS[unit]) + 0.0).tolist()


def _encode(pixels: np.ndarray, kind: str, settings: dict[str, int]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()
