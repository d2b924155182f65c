"""Pictures in tar files, a few hundred in each: what `handloop synth` writes by default, and its reader."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from handloop.core.camera import Camera
from handloop.core.errors import FileFormatError, InputError
from handloop.core.params import HandParams
from handloop.hand.model import HandPair
from handloop.synth.encode import DEPTH_UNIT, decode, depth_png, labels, mask_png, rgb_jpeg
from handloop.synth.picture import Picture, Visibility

_NAME = re.compile(r"pictures-(\d{8})-(\d{8})\.tar")


@dataclass(frozen=True)
class ShardedLayout:
    """Tar files with four files per picture, as WebDataset reads them."""

    folder: Path
    """Where they lie."""
    pair: HandPair
    """The models, whose digests the labels name."""

    def path(self, indices: Sequence[int]) -> Path:
        """The tar file of consecutive pictures, named by the first and the last."""
        return self.folder / f"pictures-{indices[0]:08d}-{indices[-1]:08d}.tar"

    def parts(self) -> list[tuple[Path, int]]:
        """Every finished part, in order, and the number of its last picture."""
        matches = [(path, _NAME.fullmatch(path.name)) for path in sorted(self.folder.iterdir())]
        return [(path, int(match[2])) for path, match in matches if match]

    def write(self, pictures: Iterable[Picture], indices: Sequence[int]) -> None:
        """Write one part, whole or not at all; the same pictures give the same bytes."""
        target = self.path(indices)
        temporary = target.with_name(target.name + ".partial")
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for picture in pictures:
                name = f"{picture.index:08d}"
                values = labels(picture, self.pair.side(picture.truth.is_right))
                _add(archive, f"{name}.jpg", rgb_jpeg(picture))
                _add(archive, f"{name}.mask.png", mask_png(picture))
                _add(archive, f"{name}.depth.png", depth_png(picture))
                _add(archive, f"{name}.json", json.dumps(values).encode("ascii"))
        os.replace(temporary, target)

    def finish(self) -> None:
        """Nothing is left to do when all parts are there."""


@dataclass(frozen=True, eq=False)
class StoredPicture:
    """One picture read back."""

    index: int
    """Its number."""
    rgb: np.ndarray
    """(H, W, 3) uint8, sRGB."""
    mask: np.ndarray
    """(H, W) bool."""
    depth: np.ndarray
    """(H, W) float32 m; 0 where the background is."""
    keypoints_2d: np.ndarray
    """(21, 2) px."""
    keypoints_3d: np.ndarray
    """(21, 3) m, camera frame."""
    visibility: np.ndarray
    """(21,) uint8 `Visibility`."""
    params: HandParams
    """One hand, in the convention of its own side."""
    camera: Camera
    """One camera."""
    is_right: bool
    """Side."""


def read_pictures(folder: str | os.PathLike[str]) -> Iterator[StoredPicture]:
    """All pictures of a folder of tar files that `handloop synth` wrote, in order.

    Raises:
        InputError: no such folder, or no tar files of that name there.
        FileFormatError: a damaged file.
    """
    for path in part_files(folder):
        yield from _read_part(path)


def part_numbers(path: Path) -> range:
    """The pictures that a tar file of this name holds."""
    numbers = _NAME.fullmatch(path.name)
    assert numbers is not None
    return range(int(numbers[1]), int(numbers[2]) + 1)


def part_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The tar files of a folder, in order.

    Raises:
        InputError: no such folder, or no tar files of that name there.
    """
    place = Path(folder)
    names = sorted(path for path in place.iterdir() if _NAME.fullmatch(path.name)) if place.is_dir() else []
    if not names:
        raise InputError(f"{folder} holds no pictures-*.tar; name a folder that handloop synth wrote.")
    return names


def _read_part(path: Path) -> Iterator[StoredPicture]:
    missing = list(part_numbers(path))
    try:
        with tarfile.open(path, "r:") as archive:
            files: dict[str, bytes] = {}
            for member in archive:
                content = archive.extractfile(member)
                files[member.name.partition(".")[2]] = b"" if content is None else content.read()
                if member.name.endswith(".json"):
                    picture = _stored(files)
                    missing.remove(picture.index)
                    yield picture
                    files = {}
        # A tar file cut off between two members looks whole.
        if missing:
            raise ValueError(f"picture {missing[0]} is missing")
    except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{path}: not a whole part of handloop synth; remove it and run again.") from error


def _stored(files: dict[str, bytes]) -> StoredPicture:
    values = json.loads(files["json"])
    tensors = [
        torch.tensor(values[key], dtype=torch.float64)[None]
        for key in ("global_orient", "hand_pose", "betas", "transl")
    ]
    return StoredPicture(
        int(values["index"]),
        decode(files["jpg"]),
        decode(files["mask.png"]) > 127,
        decode(files["depth.png"]).astype(np.float32) * np.float32(DEPTH_UNIT),
        np.array(values["keypoints_2d"]),
        np.array(values["keypoints_3d"]),
        np.array([Visibility[name.upper()] for name in values["visibility"]], np.uint8),
        HandParams(*tensors),
        Camera.from_matrix(values["K"]),
        bool(values["is_right"]),
    )


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    # A TarInfo of its own carries neither time nor owner.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, BytesIO(data))
