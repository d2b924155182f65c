"""What one rendered picture consists of, and many of them as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.params import HandParams

SIDES = ("both", "right", "left")


class Segment(IntEnum):
    """What a pixel's centre sees."""

    BACKGROUND = 0
    HAND = 1
    FOREARM = 2
    OCCLUDER = 3


class Visibility(IntEnum):
    """Whether a keypoint can be seen."""

    OUTSIDE = 0
    """Its pixel lies outside the picture."""
    BEHIND_OCCLUDER = 1
    """An object that is not the hand lies before it."""
    BEHIND_HAND = 2
    """Another part of the hand or the forearm lies before it."""
    VISIBLE = 3
    """Nothing but the keypoint's own skin lies before it."""


@dataclass(frozen=True)
class PictureOptions:
    """What kind of pictures to render."""

    size: int = 224
    """Width and height, px."""
    seed: int = 0
    """With a picture's index it decides everything about the picture."""
    hand: Literal["both", "right", "left"] = "both"
    """Sides of the hands; "both" draws them evenly."""
    backgrounds: Path | None = None
    """Folder of pictures to cut backgrounds from, searched in depth; None for plain and noise backgrounds only."""
    occluders: float = 0.35
    """Share of the pictures in which one to three objects lie before the hand."""
    forearm_in_mask: bool = False
    """Whether the forearm counts as hand in the mask."""

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 2048:
            raise InputError(f"pictures of {self.size} px were asked for, expected 16 to 2048.")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}, expected 0 or more.")
        if self.hand not in SIDES:
            raise InputError(f"the hand is {self.hand!r}, expected one of {', '.join(SIDES)}.")
        if not 0 <= self.occluders <= 1:
            raise InputError(f"the share of pictures with occluders is {self.occluders}, expected 0 to 1.")


@dataclass(frozen=True, eq=False)
class Truth:
    """One hand and its camera: what a picture is rendered from. Parameters in the convention of the hand's own side."""

    is_right: bool
    """Side."""
    global_orient: np.ndarray
    """(3,) axis-angle of the wrist, rad, camera frame."""
    hand_pose: np.ndarray
    """(45,) axis-angle, rad, flat mean."""
    betas: np.ndarray
    """(10,)."""
    transl: np.ndarray
    """(3,) m, camera frame."""
    K: np.ndarray
    """(3, 3) camera matrix, px; (0, 0) is the centre of the top-left pixel."""
    vertices: np.ndarray
    """(778, 3) m, camera frame."""
    keypoints_3d: np.ndarray
    """(21, 3) m, camera frame, canonical order: skinning joints, and the fingertips of the hand's tip set."""

    @property
    def keypoints_2d(self) -> np.ndarray:
        """(21, 2) px."""
        return project(self.K, self.keypoints_3d)


@dataclass(frozen=True, eq=False)
class Picture:
    """One rendered picture and all that is known about it."""

    index: int
    """Its number; with the seed it names the picture."""
    rgb: np.ndarray
    """(H, W, 3) uint8, sRGB."""
    segments: np.ndarray
    """(H, W) uint8 `Segment`."""
    mask: np.ndarray
    """(H, W) bool, the hand that is seen; with the forearm where the options say so."""
    depth: np.ndarray
    """(H, W) float32 m along the optical axis to whatever is seen; 0 where the background is."""
    truth: Truth
    """Hand and camera."""
    visibility: np.ndarray
    """(21,) uint8 `Visibility`."""


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """B pictures as tensors, ready for training."""

    index: Tensor
    """(B,) int64."""
    rgb: Tensor
    """(B, H, W, 3) uint8, sRGB."""
    mask: Tensor
    """(B, H, W) bool."""
    segments: Tensor
    """(B, H, W) uint8 `Segment`."""
    depth: Tensor
    """(B, H, W) float32 m; 0 where the background is."""
    keypoints_2d: Tensor
    """(B, 21, 2) float64 px."""
    keypoints_3d: Tensor
    """(B, 21, 3) float64 m, camera frame."""
    visibility: Tensor
    """(B, 21) uint8 `Visibility`."""
    params: HandParams
    """B hands, each in the convention of its own side."""
    camera: Camera
    """B cameras."""
    is_right: Tensor
    """(B,) bool."""

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def stack(cls, pictures: Sequence[Picture]) -> PictureBatch:
        """Join pictures of one size.

        Raises:
            InputError: there are none.
        """
        if not pictures:
            raise InputError("there are no pictures to join; ask for at least one index.")
        truths = [picture.truth for picture in pictures]

        def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack(arrays))

        return cls(
            torch.tensor([picture.index for picture in pictures]),
            stacked([picture.rgb for picture in pictures]),
            stacked([picture.mask for picture in pictures]),
            stacked([picture.segments for picture in pictures]),
            stacked([picture.depth for picture in pictures]),
            stacked([truth.keypoints_2d for truth in truths]),
            stacked([truth.keypoints_3d for truth in truths]),
            stacked([picture.visibility for picture in pictures]),
            HandParams(
                stacked([truth.global_orient for truth in truths]),
                stacked([truth.hand_pose for truth in truths]),
                stacked([truth.betas for truth in truths]),
                stacked([truth.transl for truth in truths]),
            ),
            Camera.from_matrix(np.stack([truth.K for truth in truths])),
            torch.tensor([truth.is_right for truth in truths]),
        )


def project(K: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(P, 3) m, camera frame, to (P, 2) px."""
    xy = points[:, :2] / points[:, 2:]
    return np.asarray(xy * [K[0, 0], K[1, 1]] + K[:2, 2])
