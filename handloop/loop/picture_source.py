"""Where a training's pictures come from: a folder of `handloop synth`, a data set, or a renderer without end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.crop import square_box
from handloop.core.errors import InputError, ModelError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.formats.datasets.open import open_pictures
from handloop.formats.picture_set import PictureSet, load_picture
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.synth.batch import render_batch
from handloop.synth.picture import PictureOptions
from handloop.synth.render import Renderer
from handloop.synth.shard_index import IndexedPictures, index_pictures, is_sharded

MARGIN = 1.3
"""Side of a training crop's box over the longer side of the keypoints' box, which ends at the joints inside the
fingertips. For crops to look at, see `ImageNetworkOptions.margin`."""


@dataclass(frozen=True, eq=False)
class LabelledHands:
    """N hands in pictures, each with what is known about it."""

    keypoints: Keypoints
    """In px of the pictures."""
    camera: Camera
    """N cameras; `known` is False where they are assumed."""
    joints: Tensor
    """(N, 21, 3) m, camera frame, NaN where unknown."""
    params: HandParams
    """N hands in the convention of their own sides, NaN where unknown."""
    box: Tensor
    """(N, 4) px, squares around the hands."""

    def __len__(self) -> int:
        return len(self.keypoints)

    def select(self, index: Tensor) -> LabelledHands:
        """The hands named by an integer or boolean index."""
        at = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        return LabelledHands(
            self.keypoints.select(at), self.camera.select(at), self.joints[at], self.params.select(at), self.box[at]
        )


@dataclass(frozen=True, eq=False)
class DrawnPictures:
    """Hands with their pictures loaded."""

    hands: LabelledHands
    pictures: Sequence[np.ndarray]
    """N times (H, W, 3) uint8, the whole pictures."""
    masks: Sequence[np.ndarray | None]
    """N times (H, W) bool, None where there is none; perhaps read only when asked for."""


class _LazyMasks(Sequence[np.ndarray | None]):
    """Masks that are read one at a time: most trainings want none."""

    def __init__(self, n: int, read: Callable[[int], np.ndarray | None]) -> None:
        self._n, self._read = n, read

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> np.ndarray | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray | None]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray | None] | None:
        places = range(self._n)[index]
        return self._read(places) if isinstance(places, int) else [self._read(place) for place in places]


class PictureSource(Protocol):
    """Gives hands by number. May be sent to other processes."""

    @property
    def count(self) -> int | None:
        """How many hands there are; None for a source without end."""
        ...

    def draw(self, numbers: Sequence[int]) -> DrawnPictures:
        """The hands of these numbers, below `count`."""
        ...


class KnownPictures(PictureSource, Protocol):
    """A source with an end, whose labels are known before a picture is looked at."""

    @property
    def hands(self) -> LabelledHands:
        """All of them; sizes of pictures may be missing (NaN)."""
        ...


@dataclass(frozen=True, eq=False)
class ShardSource:
    """Tar files of `handloop synth`. Parameters count where they belong to the model in training."""

    pictures: IndexedPictures
    digests: tuple[str, str]
    """Of the right and the left model in training."""

    @property
    def count(self) -> int:
        """See `PictureSource`."""
        return len(self.pictures)

    @cached_property
    def hands(self) -> LabelledHands:
        """See `KnownPictures`."""
        some = self.pictures
        usable = torch.tensor([model in self.digests for model in some.models])
        return _hands(
            some.keypoints_2d, some.is_right, np.full((len(some), 2), np.nan), some.camera, some.keypoints_3d,
            _where(usable, some.params), [f"{number:08d}" for number in some.index.tolist()],
        )  # fmt: skip

    def draw(self, numbers: Sequence[int]) -> DrawnPictures:
        """See `PictureSource`."""
        rgb = [self.pictures.rgb(row) for row in numbers]
        masks = _LazyMasks(len(rgb), lambda place: self.pictures.mask(numbers[place]))
        return DrawnPictures(sized(self.hands, numbers, rgb), rgb, masks)


@dataclass(frozen=True)
class RenderedSource:
    """Pictures rendered when asked for, without end."""

    options: PictureOptions
    mano: str | None
    """What `load_hand` takes."""

    @property
    def count(self) -> None:
        """See `PictureSource`."""
        return None

    def draw(self, numbers: Sequence[int]) -> DrawnPictures:
        """See `PictureSource`."""
        batch = render_batch(_renderer(self), list(numbers))
        size = np.full((len(numbers), 2), float(self.options.size))
        names = [f"{number:08d}" for number in numbers]
        return DrawnPictures(
            _hands(batch.keypoints_2d, batch.is_right, size, batch.camera, batch.keypoints_3d, batch.params, names),
            list(batch.rgb.numpy()),
            list(batch.mask.numpy()),
        )


@lru_cache(maxsize=1)
def _renderer(source: RenderedSource) -> Renderer:
    """Made by each process once."""
    return Renderer(load_hand(source.mano), source.options)


@dataclass(frozen=True, eq=False)
class DatasetSource:
    """A data set of pictures in its published layout."""

    hands: LabelledHands
    masks: tuple[str, ...]
    """Paths, "" for none."""

    @property
    def count(self) -> int:
        """See `PictureSource`."""
        return len(self.hands)

    @classmethod
    def of(cls, pictures: PictureSet, pair: HandPair) -> DatasetSource:
        """The hands that have a picture, a side, and keypoints or a box. MANO's parameters count where MANO is in use.

        Raises:
            InputError: no hand has all that.
        """
        keypoints = pictures.keypoints
        box = torch.where(torch.isfinite(pictures.box), pictures.box, keypoints.box())
        usable = pictures.side_known & torch.isfinite(box).all(1) & (box[:, 2:] > box[:, :2]).all(1)
        usable &= torch.tensor([bool(path) for path in keypoints.image], dtype=torch.bool)
        if not bool(usable.any()):
            raise InputError(f"no hand of {pictures.dataset} has a picture, a side, and keypoints or a box.")
        params = no_params(len(pictures))
        if pictures.mano is not None:
            # MANO's parameters mean nothing to another model; the joints stay.
            with suppress(ModelError):
                params = pictures.mano.in_camera(pair, keypoints.is_right)
        hands = LabelledHands(keypoints, pictures.camera(), pictures.joints, params, square_box(box, MARGIN))
        rows = usable.nonzero()[:, 0]
        return cls(hands.select(rows), tuple(pictures.mask[i] for i in rows.tolist()))

    def draw(self, numbers: Sequence[int]) -> DrawnPictures:
        """See `PictureSource`."""
        keypoints = self.hands.keypoints
        pictures = [load_picture(keypoints.image[row], keypoints.ids[row]) for row in numbers]
        masks = _LazyMasks(len(pictures), lambda place: _mask(self.masks[numbers[place]]))
        return DrawnPictures(sized(self.hands, numbers, pictures), pictures, masks)


def open_source(
    name: str | os.PathLike[str],
    pair: HandPair,
    mano: str | None,
    rendered: PictureOptions,
    split: str | None = None,
) -> PictureSource:
    """Pictures by what names them.

    Args:
        name: "synth" for pictures rendered on the fly; a folder of `handloop synth`, or of a known data set.
        pair: the models in training.
        mano: what `load_hand` takes to make them again in another process.
        rendered: what to render on the fly.
        split: only this part of a data set.

    Raises:
        InputError: neither, or no such part.
    """
    if split is not None and (os.fspath(name) == "synth" or is_sharded(name)):
        raise InputError(f"the part {split!r} was asked for, but rendered pictures have no parts.")
    if os.fspath(name) == "synth":
        return RenderedSource(rendered, mano)
    if is_sharded(name):
        return ShardSource(index_pictures(name), (pair.right.digest, pair.left.digest))
    return DatasetSource.of(open_pictures(Path(name), split), pair)


def _hands(
    points: Tensor,
    is_right: Tensor,
    size: np.ndarray,
    camera: Camera,
    joints: Tensor,
    params: HandParams,
    ids: list[str],
) -> LabelledHands:
    keypoints = Keypoints.from_arrays(points, is_right, size, ids)
    return LabelledHands(keypoints, camera, joints, params, square_box(keypoints.box(), MARGIN))


def sized(hands: LabelledHands, numbers: Sequence[int], pictures: Sequence[np.ndarray]) -> LabelledHands:
    """Some of the hands, with the sizes of their pictures: what the labels say of these may be an assumption."""
    some = hands.select(torch.tensor(numbers, dtype=torch.int64))
    sizes = torch.tensor([picture.shape[1::-1] for picture in pictures], dtype=torch.float64).reshape(-1, 2)
    return replace(some, keypoints=replace(some.keypoints, image_size=sizes))


def _mask(path: str) -> np.ndarray | None:
    return None if not path else load_picture(path, path)[..., 0] > 127


def _where(usable: Tensor, params: HandParams) -> HandParams:
    nan = no_params(len(params))
    pairs = zip(params.tensors(), nan.tensors(), strict=True)
    return HandParams(*(torch.where(usable[:, None], a, b) for a, b in pairs))


def no_params(n: int) -> HandParams:
    """Of n hands of which none are known."""
    return HandParams(*(torch.full((n, k), float("nan"), dtype=torch.float64) for k in (3, 45, 10, 3)))
