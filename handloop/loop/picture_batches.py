"""Pictures with labels to what a step of training takes: augmented crops of right hands, in the crops' own frames.

Batch number i of a seed is always the same, whichever process makes it and whenever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handloop.core.augmentation import AugmentOptions, draw_augmentation
from handloop.core.camera import Camera
from handloop.core.crop import square_box
from handloop.core.errors import HandloopError
from handloop.core.params import HandParams
from handloop.core.view_change import ViewChange
from handloop.formats.crops import augment_pictures, warp_pictures
from handloop.hand.kinematics import Kinematics
from handloop.hand.model import HandPair
from handloop.loop.picture_source import MARGIN, DrawnPictures, PictureSource
from handloop.losses.mask import distance_field, mask_pixels

Made = TypeVar("Made", covariant=True)

MASK_PIXELS = 128
"""Sampled pixels of a mask."""
STILL = AugmentOptions(rotation_deg=0, scale=0, shift=0, flip="to-right", colour=0)
"""No random changes; left hands are mirrored."""
_APART = 8
"""Batches that pass before their crops come again."""
HELD_OUT_FROM = 90_000_000
"""A source without end holds out the pictures from this number on."""


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """B right hands (left ones mirrored) in the frames of their crops' cameras."""

    crops: Tensor
    """(B, 3, S, S) uint8."""
    focal: Tensor
    """(B, 2) px of the crops' cameras."""
    princpt: Tensor
    """(B, 2) px."""
    points: Tensor
    """(B, 21, 2) px of the crops; 0 where missing."""
    conf: Tensor
    """(B, 21), 0 for missing points."""
    shown: Tensor
    """(B, 21, 2) px, points as a detector might find them, for heat-maps."""
    shown_conf: Tensor
    """(B, 21)."""
    joints: Tensor
    """(B, 21, 3) m; 0 where unknown."""
    joints_weight: Tensor
    """(B, 21), 1 where known."""
    rotations: Tensor
    """(B, 16, 3, 3); identity where unknown."""
    betas: Tensor
    """(B, 10)."""
    root: Tensor
    """(B, 3) m, the wrist."""
    has_params: Tensor
    """(B,) bool, `rotations` and `betas` are known."""
    has_root: Tensor
    """(B,) bool, `root` is known and metric."""
    field: Tensor
    """(B, S, S) px, distance from the mask (`losses.mask`); (B, 0, 0) when no mask is wanted."""
    pixels: Tensor
    """(B, P, 2) px, sampled pixels of the mask; NaN without."""
    has_mask: Tensor
    """(B,) bool."""

    def __len__(self) -> int:
        return len(self.crops)

    def camera(self) -> Camera:
        """Of the crops."""
        return Camera(self.focal, self.princpt)

    def rows(self, index: Tensor) -> TrainingBatch:
        """Some of the hands."""
        return TrainingBatch(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device) -> TrainingBatch:
        """On another device."""
        return TrainingBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@dataclass(frozen=True)
class BatchOptions:
    """What batches are made of."""

    size: int
    """Side of the crops, px."""
    batch: int
    """Hands in a batch."""
    seed: int
    """With a batch's number it decides everything."""
    augment: AugmentOptions
    """How far the random changes reach."""
    masks: bool = False
    """Whether masks are wanted."""
    shown_noise: float = 0.015
    """Deviation of the points of heat-maps, in sides of the crop."""
    shown_dropout: float = 0.1
    """Share of those points that go missing."""
    held_out: int = 0
    """Hands at the end of the source that are never trained on."""
    margin: float = MARGIN
    """Of crops without random changes (`ImageNetworkOptions.margin`)."""
    rank: int = 0
    """Of the process that the batches are for, among `ranks`, each of which has batches of its own."""
    ranks: int = 1


@dataclass(frozen=True, eq=False)
class PictureBatches:
    """Batches by number; a data set in torch's sense. May be sent to other processes."""

    source: PictureSource
    options: BatchOptions
    right: Kinematics
    """Of the right hand, float64."""
    left: Kinematics

    @classmethod
    def of(cls, source: PictureSource, pair: HandPair, options: BatchOptions) -> PictureBatches:
        """For hands of both sides."""
        return cls(source, options, Kinematics.from_hand(pair.right), Kinematics.from_hand(pair.left))

    def trained_on(self) -> int | None:
        """How many hands are trained on; None for a source without end."""
        return None if self.source.count is None else self.source.count - self.options.held_out

    def __getitem__(self, step: int) -> TrainingBatch:
        """Batch number `step` of this process."""
        o = self.options
        number = step * o.ranks + o.rank
        places = range(number * o.batch, (number + 1) * o.batch)
        n = self.trained_on()
        numbers = list(places) if n is None else [int(_order(n, o.seed, p // n)[p % n]) for p in places]
        generator = torch.Generator().manual_seed((o.seed * 1_000_003 + number) % 2**63)
        return self.augmented(numbers, o.augment, generator)[0]

    def held_out(self) -> Iterator[TrainingBatch]:
        """The hands kept apart, without random changes."""
        o, count = self.options, self.source.count
        first = HELD_OUT_FROM if count is None else count - o.held_out
        for start in range(first, first + o.held_out, o.batch):
            numbers = list(range(start, min(start + o.batch, first + o.held_out)))
            yield self.augmented(numbers, STILL, torch.Generator().manual_seed(o.seed), o.margin)[0]

    def augmented(
        self, numbers: Sequence[int], augment: AugmentOptions, generator: torch.Generator, margin: float = MARGIN
    ) -> tuple[TrainingBatch, ViewChange]:
        """These hands of the source in augmented crops, and the way from their pictures into them."""
        drawn, o = self.source.draw(numbers), self.options
        hands = drawn.hands
        keypoints = hands.keypoints
        box = hands.box if margin == MARGIN else square_box(hands.box, margin / MARGIN)
        drawing = draw_augmentation(
            *(
                hands.camera,
                box,
                o.size,
                keypoints.image_size,
                keypoints.is_right,
                augment,
                generator,
            )
        )
        view = drawing.view
        crops = augment_pictures(drawn.pictures, drawing)
        seen = view.keypoints(keypoints)
        shown, shown_conf = disturbed(seen.xy, seen.conf, o, generator)
        known = torch.isfinite(hands.joints).all(2)
        joints = view.points(hands.joints.nan_to_num(0.0))
        rotations, betas, root, has_params = self._params(hands.params, keypoints.is_right, view)
        root = torch.where(has_params[:, None], root, joints[:, 0])
        field, pixels, has_mask = _masks(drawn, view, o)
        batch = TrainingBatch(
            torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(),
            view.camera_out.focal.float(),
            view.camera_out.princpt.float(),
            seen.xy.float(),
            seen.conf.float(),
            shown,
            shown_conf,
            (joints * known[..., None]).float(),
            known.float(),
            rotations.float(),
            betas.float(),
            root.float(),
            has_params,
            (has_params | known[:, 0]) & hands.camera.is_known() & (root[:, 2] > 0),
            field,
            pixels,
            has_mask,
        )
        return batch, view

    def _params(self, params: HandParams, is_right: Tensor, view: ViewChange) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotations, betas, wrist in the crops' frames, and whether they are known."""
        known = torch.stack([torch.isfinite(t).all(1) for t in params.tensors()]).all(0)
        safe = HandParams(*(torch.where(known[:, None], t, torch.zeros_like(t)) for t in params.tensors()))
        rest = torch.where(is_right[:, None], self.right.root_offset(safe.betas), self.left.root_offset(safe.betas))
        here = view.params(safe, rest)
        root = here.transl + view.wrist_rest(rest)
        return here.rotation_matrices(), here.betas, root, known


def disturbed(points: Tensor, conf: Tensor, options: BatchOptions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (B, 21, 2) px and confidences as a detector might give them."""
    noise = options.shown_noise * options.size * torch.randn(points.shape, generator=generator)
    kept = torch.rand(conf.shape, generator=generator) >= options.shown_dropout
    return points.float() + noise, (conf * kept).float()


def _masks(drawn: DrawnPictures, view: ViewChange, options: BatchOptions) -> tuple[Tensor, Tensor, Tensor]:
    n = len(drawn.pictures)
    if not options.masks:
        return torch.zeros(n, 0, 0), torch.zeros(n, 0, 2), torch.zeros(n, dtype=torch.bool)
    masks = [drawn.masks[row] for row in range(n)]
    greys = []
    for picture, mask in zip(drawn.pictures, masks, strict=True):
        grey = np.zeros_like(picture)
        if mask is not None:
            grey[mask] = 255
        greys.append(grey)
    fields, pixels, has = [], [], []
    for warped in warp_pictures(greys, view):
        crop = warped[..., 0] > 127
        fields.append(distance_field(crop))
        pixels.append(mask_pixels(crop, MASK_PIXELS))
        has.append(bool(crop.any()))
    return torch.from_numpy(np.stack(fields)), torch.from_numpy(np.stack(pixels)), torch.tensor(has)


class Numbered(Protocol[Made]):
    """Makes something for a number, in whatever process."""

    def __getitem__(self, step: int, /) -> Made:
        """Number `step`."""
        ...


def in_processes(batches: Numbered[Made], steps: range, workers: int) -> Iterator[Made]:
    """Batches of these numbers, in order, made by processes besides this one; by this one for 0 of them.

    Call it from a script guarded by `if __name__ == "__main__":` (processes are spawned).

    Raises:
        HandloopError: what went wrong in a process, or that one died.
    """
    if workers == 0:
        yield from (batches[step] for step in steps)
        return
    # Spawned, not forked: a fork takes over threads and locks that libraries hold.
    loader = DataLoader(
        _Guarded(batches),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        multiprocessing_context="spawn",
        prefetch_factor=4,
    )
    try:
        for batch in loader:
            if isinstance(batch, HandloopError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise HandloopError(
            "a process died while it prepared pictures, perhaps for lack of memory; go on with fewer workers."
        ) from error


def looked_at_again(batches: PictureBatches, steps: range, looks: int, workers: int) -> Iterator[TrainingBatch]:
    """As `in_processes`, but every crop is in the batches of `looks` steps.

    The crops of `_APART` batches pass before they come again, in another order. What a step sees depends on its
    number alone.

    Raises:
        HandloopError: as `in_processes`.
    """
    if looks == 1:
        yield from in_processes(batches, steps, workers)
        return
    block = _APART * looks
    first, size = steps.start - steps.start % block, batches.options.batch
    made = in_processes(batches, range(first // looks, -(-steps.stop // block) * _APART), workers)
    known: list[TrainingBatch] = []
    for step in range(first, steps.stop):
        turn, place = divmod(step % block, _APART)
        if turn == 0:
            known = [*known[:place], next(made)]
            batch = known[place]
        else:
            if turn == 1 and place == 0:
                pool = _joined(known)
            order = _order(_APART * size, batches.options.seed, step // _APART)
            batch = pool.rows(torch.from_numpy(order[place * size : (place + 1) * size]))
        if step in steps:
            yield batch


def _joined(batches: Sequence[TrainingBatch]) -> TrainingBatch:
    return TrainingBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(TrainingBatch)))


@dataclass(frozen=True, eq=False)
class _Guarded(Dataset[object]):
    """Batches, or errors as values: torch would put a process's whole traceback into the message."""

    batches: Numbered[object]

    def __getitem__(self, step: int) -> object:
        try:
            return self.batches[step]
        except HandloopError as error:
            return error


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n)
