"""The pictures that `handloop train loop` is given: rendered ones, data sets, keypoint files with theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from handloop.core.camera import Camera
from handloop.core.crop import square_box
from handloop.core.errors import InputError
from handloop.formats import Problem, ReadOptions, ReadResult, read_keypoints
from handloop.formats.datasets.open import open_pictures, recognise
from handloop.hand.model import HandPair
from handloop.loop.joined_pictures import JoinedPictures
from handloop.loop.picture_source import (
    MARGIN,
    DatasetSource,
    KnownPictures,
    LabelledHands,
    ShardSource,
    no_params,
)
from handloop.picture_start import check_pictures
from handloop.synth.shard_index import index_pictures, is_sharded

if TYPE_CHECKING:
    from handloop.train_commands import TrainLoop


def open_inputs(
    command: TrainLoop, pair: HandPair, camera_of: Callable[[ReadResult], Camera]
) -> tuple[KnownPictures, tuple[Problem, ...]]:
    """All pictures that a command names, and the files that cannot be used.

    Args:
        command: its inputs are folders of `handloop synth` or of data sets; the others are keypoint files.
        pair: the hand models in training.
        camera_of: the cameras of hands from keypoint files.

    Raises:
        InputError: nothing to look at, or an option for another kind of input.
    """
    parts: list[KnownPictures] = []
    problems: list[Problem] = []
    rest: list[Path] = []
    for given in command.inputs:
        if given.is_dir() and is_sharded(given):
            parts.append(ShardSource(index_pictures(given), (pair.right.digest, pair.left.digest)))
        elif given.is_dir() and recognise(given) is not None:
            pictures = open_pictures(given, command.split)
            problems += pictures.problems
            parts.append(DatasetSource.of(pictures, pair))
        else:
            rest.append(given)
    if command.split is not None and not any(isinstance(part, DatasetSource) for part in parts):
        raise InputError(f"the part {command.split!r} was asked for, but no input is a picture data set.")
    if rest:
        read = read_keypoints(rest, ReadOptions(side=command.hand, images=command.images))
        problems += read.problems
        parts.append(_of_files(read, camera_of(read)))
    elif command.camera is not None or command.hand is not None or command.images is not None:
        raise InputError("--camera, --hand and --images are for keypoint files; these pictures come with all that.")
    return (parts[0] if len(parts) == 1 else JoinedPictures.of(parts)), tuple(problems)


def _of_files(read: ReadResult, camera: Camera) -> KnownPictures:
    """Keypoint files with their pictures."""
    keypoints, n = read.keypoints, len(read.keypoints)
    check_pictures(keypoints)
    joints = torch.full((n, 21, 3), float("nan"), dtype=torch.float64)
    if read.truth_joints is not None:
        joints = read.truth_joints
    hands = LabelledHands(keypoints, camera, joints, no_params(n), square_box(keypoints.box(), MARGIN))
    return DatasetSource(hands, ("",) * n)
