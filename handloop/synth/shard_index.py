"""Pictures of tar files one at a time, in any order: the labels in memory, the pictures read when asked for."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.core.params import HandParams
from handloop.synth.encode import decode
from handloop.synth.shards import part_files, part_numbers


@dataclass(frozen=True)
class _Place:
    """Where a file lies."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, eq=False)
class IndexedPictures:
    """N pictures of a folder that `handloop synth` wrote as tar files. May be sent to other processes."""

    index: Tensor
    """(N,) int64, their numbers."""
    keypoints_2d: Tensor
    """(N, 21, 2) px."""
    keypoints_3d: Tensor
    """(N, 21, 3) m, camera frame."""
    params: HandParams
    """N hands, each in the convention of its own side."""
    camera: Camera
    """N cameras."""
    is_right: Tensor
    """(N,) bool."""
    models: tuple[str, ...]
    """N digests of the hand models that the parameters belong to."""
    rgb_places: tuple[_Place, ...]
    mask_places: tuple[_Place, ...]

    def __len__(self) -> int:
        return len(self.index)

    def rgb(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8, sRGB."""
        return decode(self.rgb_places[row].read())

    def mask(self, row: int) -> np.ndarray:
        """(H, W) bool."""
        return decode(self.mask_places[row].read()) > 127


def index_pictures(folder: str | os.PathLike[str]) -> IndexedPictures:
    """Read the labels of all pictures and where the pictures lie.

    Raises:
        InputError: no such folder, or no tar files of that name there.
        FileFormatError: a damaged file.
    """
    labels: list[dict[str, object]] = []
    rgb: list[_Place] = []
    masks: list[_Place] = []
    count = 0
    for path in part_files(folder):
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    place = _Place(str(path), member.offset_data, member.size)
                    if member.name.endswith(".jpg"):
                        rgb.append(place)
                    elif member.name.endswith(".mask.png"):
                        masks.append(place)
                    elif member.name.endswith(".json"):
                        labels.append(json.loads(place.read()))
            # A tar file cut off between two members looks whole.
            count += len(part_numbers(path))
            if not len(labels) == len(rgb) == len(masks) == count:
                raise ValueError("a picture or one of its files is missing")
        except (tarfile.TarError, ValueError) as error:
            raise FileFormatError(f"{path}: not a whole part of handloop synth; remove it and run again.") from error
    try:
        return _stacked(labels, tuple(rgb), tuple(masks))
    except (KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{folder}: the labels are not those of handloop synth ({error}).") from error


def _stacked(labels: list[dict[str, object]], rgb: tuple[_Place, ...], masks: tuple[_Place, ...]) -> IndexedPictures:
    def stacked(key: str) -> Tensor:
        return torch.from_numpy(np.array([values[key] for values in labels], dtype=np.float64))

    return IndexedPictures(
        torch.tensor([int(str(values["index"])) for values in labels]),
        stacked("keypoints_2d"),
        stacked("keypoints_3d"),
        HandParams(*(stacked(key) for key in ("global_orient", "hand_pose", "betas", "transl"))),
        Camera.from_matrix(stacked("K")),
        torch.tensor([values["is_right"] is True for values in labels]),
        tuple(str(values["hand_model"]) for values in labels),
        rgb,
        masks,
    )


def is_sharded(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds tar files of `handloop synth`."""
    try:
        return bool(part_files(folder))
    except InputError:
        return False
