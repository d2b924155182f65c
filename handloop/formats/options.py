"""What a caller asks of `read_keypoints`, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints

Side = Literal["right", "left"]
Scale = Literal["pixels", "unit", "signed-unit"]


@dataclass(frozen=True)
class ReadOptions:
    """What the files do not say."""

    format: str | None = None
    """One of `FORMATS`; None recognises each file by its content."""
    image_size: tuple[float, float] | None = None
    """Width and height in px, for files that do not hold it; needed for coordinates given as a part of the picture."""
    side: Side | None = None
    """The side of every hand: fills in where a file is silent and overrides it where it is not."""
    mediapipe_handedness: Literal["subject", "mirrored"] | None = None
    """Whose side MediaPipe's labels name: the person's own, or the mirror image's. None assumes the person's."""
    scale: Scale | None = None
    """Unit of x and y: px, [0, 1] or [-1, 1] of the picture (OpenPose's --keypoint_scale 3, 4). None looks at them."""
    images: Path | None = None
    """Folder of pictures to pair with the files by name; None looks beside each file."""
    min_conf: float = 0.0
    """Points with a lower confidence count as missing."""

    def __post_init__(self) -> None:
        size = self.image_size
        if size is not None and not (len(size) == 2 and all(0 < v < 1e6 for v in size)):
            raise InputError(f"the image size {size} was given, expected a width and a height in px.")
        if not 0 <= self.min_conf <= 1:
            raise InputError(f"a least confidence of {self.min_conf} was given, expected 0 to 1.")


@dataclass(frozen=True)
class Problem:
    """A file, or a hand in it, that could not be used."""

    path: str
    """The file as it was found."""
    message: str
    """One sentence: what is wrong, what was expected, what to do."""


@dataclass(frozen=True)
class ReadResult:
    """All hands of a run, and everything about the files that a user should hear."""

    keypoints: Keypoints
    """N hands."""
    camera: Camera | None
    """N cameras with `known` False where a hand's file gave none; None where no file gave any."""
    truth_joints: Tensor | None
    """(N, 21, 3) m, camera frame, where every hand came with true joints; NaN where a joint is not known."""
    problems: tuple[Problem, ...]
    """Files and hands that could not be used."""
    skipped: tuple[str, ...]
    """Files of other kinds in the folders: pictures, videos, texts."""
    notes: tuple[str, ...]
    """What was assumed or looks odd, for the user to read."""
    files_read: int
    """Files understood, with or without hands."""
    files_without_hands: int
    """Files understood that held no visible hand."""
    hands_empty: int
    """Hands without one visible point; they are left out."""
