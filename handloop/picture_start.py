"""Pictures as what `handloop predict` starts from: boxes, crops, and an image regressor's proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.crop import look_at_crop, square_box
from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.core.proposal import Proposal
from handloop.formats.boxes import read_boxes
from handloop.formats.crops import warp_pictures
from handloop.formats.options import Problem, ReadOptions, ReadResult
from handloop.formats.picture_set import load_picture
from handloop.formats.read import read_keypoints
from handloop.hand.model import HandPair
from handloop.regressors.base import CropBatch
from handloop.regressors.image import FORMAT, ImageRegressor, read_description
from handloop.synth.shard_index import is_sharded

_CHUNK = 256
"""Pictures cropped at a time."""


@dataclass(frozen=True)
class PictureStart:
    """An image regressor's weights, and perhaps a file of boxes."""

    weights: Path
    boxes: Path | None

    def read(self, inputs: Sequence[Path], options: ReadOptions) -> tuple[ReadResult, Tensor]:
        """The hands, and (N, 4) px boxes around them.

        Raises:
            InputError: hands come without pictures, or the file of boxes cannot be used.
        """
        for path in inputs:
            if is_sharded(path):
                raise InputError(
                    f"{path} holds the tar files of `handloop synth`, which networks are trained with; to predict on "
                    "rendered pictures, render them with --layout freihand."
                )
        if self.boxes is not None:
            read, box = read_boxes(self.boxes, inputs, options)
        else:
            read = read_keypoints(inputs, options)
            box = read.keypoints.box()
        check_pictures(read.keypoints)
        return read, box

    def propose(
        self, read: ReadResult, box: Tensor, camera: Camera, pair: HandPair, device: torch.device
    ) -> tuple[ReadResult, Camera, Proposal]:
        """The hands whose pictures can be read, their cameras, and what the network proposes for them.

        Raises:
            InputError: no picture can be read, or the weights belong to another hand model.
        """
        regressor = ImageRegressor.load(self.weights, pair)
        regressor.network.to(device)
        box = square_box(box, regressor.network.options.margin)
        proposals, kept, problems = [], [], []
        for start in range(0, len(box), _CHUNK):
            rows = list(range(start, min(start + _CHUNK, len(box))))
            pictures: list[np.ndarray] = []
            good: list[int] = []
            for row in rows:
                path = read.keypoints.image[row]
                try:
                    pictures.append(load_picture(path, read.keypoints.ids[row]))
                    good.append(row)
                except FileFormatError as error:
                    problems.append(Problem(path, str(error).removeprefix(f"{path}: ")))
            if good:
                at = torch.tensor(good)
                some = read.keypoints.select(at)
                proposals.append(regressor.propose(crop(pictures, some, box[at], camera.select(at), regressor)))
                kept += good
        if not kept:
            first = next((f"{p.path}: {p.message}" for p in (*problems, *read.problems)), "there are no hands")
            raise InputError(f"no picture can be looked at: {first}")
        at = torch.tensor(kept)
        read = replace(read, keypoints=read.keypoints.select(at), problems=(*read.problems, *problems))
        return read, camera.select(at), joined(proposals)


def check_pictures(keypoints: Keypoints) -> None:
    """Raise InputError where hands come without a picture."""
    lacking = [name for name, path in zip(keypoints.ids, keypoints.image, strict=True) if not path]
    if lacking:
        raise InputError(
            f"{len(lacking)} hands come without a picture, which an image regressor looks at; the first is "
            f"{lacking[0]!r}. Give the pictures' folder with --images."
        )


def crop(
    pictures: Sequence[np.ndarray], keypoints: Keypoints, box: Tensor, camera: Camera, regressor: ImageRegressor
) -> CropBatch:
    """N crops of (H, W, 3) uint8 pictures for a regressor.

    Args:
        pictures: N pictures.
        keypoints: N hands: sides and names, and points for networks that take heat-maps.
        box: (N, 4) px squares around the hands.
        camera: N cameras.
        regressor: says how large.
    """
    sizes = torch.tensor([picture.shape[1::-1] for picture in pictures], dtype=torch.float64)
    view = look_at_crop(camera, box, regressor.network.options.size, sizes, flip=~keypoints.is_right)
    crops = np.stack(warp_pictures(pictures, view))
    tensor = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
    return CropBatch(tensor, view, keypoints.is_right, keypoints, keypoints.ids)


def joined(parts: Sequence[Proposal]) -> Proposal:
    """Proposals with cameras and ids behind each other."""

    def together(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))

    params = [part.params for part in parts]
    cameras = [part.camera for part in parts if part.camera is not None]
    return Proposal(
        type(params[0])(*(together(group) for group in zip(*(p.tensors() for p in params), strict=True))),
        together([part.is_right for part in parts]),
        Camera(
            together([c.focal for c in cameras]), together([c.princpt for c in cameras]),
            None if cameras[0].dist is None else together([c.dist for c in cameras if c.dist is not None]),
            together([c.is_known() for c in cameras]),
        ),
        together([part.rotations_sd for part in parts]),
        together([part.betas_sd for part in parts]),
        together([part.bearing_sd for part in parts]),
        together([part.log_depth_sd for part in parts]),
        tuple(name for part in parts for name in part.ids or ()),
    )  # fmt: skip


def is_image_weights(weights: Path) -> bool:
    """Whether a file of weights belongs to an image regressor; a damaged description is left to the reader."""
    try:
        return read_description(weights).get("format") == FORMAT
    except FileFormatError:
        return False
