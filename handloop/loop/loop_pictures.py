"""What a step of the loop on pictures sees: augmented crops, and the way between a crop and its picture.

Fits belong to the picture: its pixels, its camera's frame, right-hand canonical as everywhere in the loop (left hands
mirrored). A network sees crops, from cameras of their own, which show right hands only. Between the two lies one
rotation per hand, the `turn`: F of `core.view_change` for right hands; F after the canonical mirror for left ones,
which their crops mirror again. It is orthogonal, so that the way back is its transpose, exact to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handloop.core.augmentation import AugmentOptions
from handloop.core.view_change import ViewChange
from handloop.hand.kinematics import Kinematics
from handloop.loop.hand_data import HandData
from handloop.loop.picture_batches import STILL, PictureBatches, TrainingBatch
from handloop.loop.picture_source import MARGIN
from handloop.loop.supervise import Supervision
from handloop.regressors.network import Lifted


@dataclass(frozen=True, eq=False)
class SeenHands:
    """B hands in augmented crops."""

    rows: Tensor
    """(B,) of the data."""
    batch: TrainingBatch
    """The crops, with what the source knows of their hands, in the crops' frames."""
    turn: Tensor
    """(B, 3, 3) float64 rotations from the canonical frames of the pictures' cameras to those of the crops."""


@dataclass(frozen=True, eq=False)
class LoopPictures:
    """Batches by the number of the step, counted from 1. May be sent to other processes."""

    data: HandData
    """Rows are those of the source."""
    batches: PictureBatches

    def __getitem__(self, step: int) -> SeenHands:
        """Batch of a step: the same whichever process makes it and whenever."""
        o = self.batches.options
        generator = torch.Generator().manual_seed((o.seed * 1_000_003 + step) % 2**63)
        return self._seen(self.data.rows(step, o.batch, o.seed), o.augment, generator)

    def plain(self, rows: Tensor) -> SeenHands:
        """Hands of the data without random changes."""
        return self._seen(rows, STILL, torch.Generator().manual_seed(0), self.batches.options.margin)

    def _seen(
        self, rows: Tensor, augment: AugmentOptions, generator: torch.Generator, margin: float = MARGIN
    ) -> SeenHands:
        batch, view = self.batches.augmented(rows.tolist(), augment, generator, margin)
        return SeenHands(rows, batch, turn_into(view, self.data.keypoints.is_right[rows]))


def turn_into(view: ViewChange, is_right: Tensor) -> Tensor:
    """(N, 3, 3) proper rotations from the canonical frames of the old cameras to those of new pictures of right hands.

    Args:
        view: mirrors exactly the left hands.
        is_right: (N,) bool, sides in the old pictures.
    """
    mirror = torch.ones(len(view), 1, 3, dtype=torch.float64)
    mirror[~is_right, :, 0] = -1.0
    return view.frame() * mirror


def turned(hands: Lifted, turn: Tensor) -> Lifted:
    """Hands (B) in the frames that rotations (B, 3, 3) lead to."""
    turn = turn.to(hands.root)
    return replace(
        hands, rotations=_turned_rotations(hands.rotations, turn), root=_turned(hands.root[:, None], turn)[:, 0]
    )


def turned_labels(true: Supervision, turn: Tensor) -> Supervision:
    """Labels in the frames that rotations (B, 3, 3) lead to; what was seen is seen by the new camera."""
    hands, turn = true.hands, turn.to(true.hands.root)
    hands = replace(
        hands,
        rays=_turned_rays(hands.rays, turn),
        rotations=_turned_rotations(hands.rotations, turn),
        root=_turned(hands.root[:, None], turn)[:, 0],
        points=_turned(hands.points, turn),
    )
    return replace(true, hands=hands, seen=_turned_rays(true.seen, turn))


def with_parameters(true: Supervision, batch: TrainingBatch, kinematics: Kinematics) -> Supervision:
    """Labels in the crops' frames, where the source knows a hand's parameters these in place of its fit's.

    Args:
        true: labels of the same hands.
        batch: what the source knows.
        kinematics: of the right hand, as the source of the keypoints means its points.
    """
    known, hands = batch.has_params, true.hands
    points = kinematics.points(batch.rotations, batch.betas, batch.root)
    # Joints that the source gives are in the labels already.
    modelled = known[:, None, None] & (batch.joints_weight == 0)[..., None]
    hands = replace(
        hands,
        rotations=torch.where(known[:, None, None, None], batch.rotations, hands.rotations),
        betas=torch.where(known[:, None], batch.betas, hands.betas),
        root=torch.where(known[:, None], batch.root, hands.root),
        points=torch.where(modelled, points, hands.points),
    )
    return replace(
        true,
        hands=hands,
        points_weight=true.points_weight.masked_fill(known[:, None], 1.0),
        params_weight=true.params_weight.masked_fill(known, 1.0),
        depth_weight=torch.where(known, batch.has_root.to(true.depth_weight), true.depth_weight),
        exact=true.exact | (known & batch.has_root),
    )


def _turned(points: Tensor, turn: Tensor) -> Tensor:
    return points @ turn.mT


def _turned_rays(rays: Tensor, turn: Tensor) -> Tensor:
    """Rays x/z, y/z; those that the new camera cannot see are nowhere, but finite."""
    ahead = _turned(torch.nn.functional.pad(rays, (0, 1), value=1.0), turn)
    return ahead[..., :2] / ahead[..., 2:].clamp(min=1e-3)


def _turned_rotations(rotations: Tensor, turn: Tensor) -> Tensor:
    return torch.cat([(turn @ rotations[:, 0])[:, None], rotations[:, 1:]], 1)
