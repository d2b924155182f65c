"""What a network's hands are compared with, and what a difference costs.

All hands are right-hand canonical, in the frame of the camera whose rays the network saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.losses.deviations import Groups, deviations_nll, hand_errors, in_deviations
from handloop.losses.keypoints import points_loss, reprojection_loss
from handloop.losses.parameters import betas_loss, log_depth_loss, rotation_loss
from handloop.regressors.network import Lifted
from handloop.synth.keypoints import SyntheticKeypoints

_NEAREST_M = 0.02
"""Predicted points nearer than this are projected as if they were there."""
_CAP = 2.0
"""Distances in the picture beyond this many half boxes pull no more."""


@dataclass(frozen=True)
class LossWeights:
    """What an error costs. Chosen on FPHA subjects 1 and 2 (benchmarks/lifter.py)."""

    points: float = 1.0
    """Per cm of the 21 points relative to the wrist, which is what matters."""
    fingers: float = 1.0
    """Per cm of the points in the wrist's own frame, where a wrong view of the whole hand does not count."""
    rotations: float = 1.0
    """Per squared rad."""
    betas: float = 0.05
    """Per squared population deviation."""
    log_depth: float = 1.0
    reprojection: float = 3.0
    """Per angular size of the hand."""
    deviations: float = 0.1
    """Of the negative log likelihood; it trains the deviations only."""


@dataclass(frozen=True, eq=False)
class Supervision:
    """What is known of B hands."""

    hands: SyntheticKeypoints
    """Labels; anything finite where they do not count."""
    points_weight: Tensor
    """(B, 21) how much each 3D point counts, 0 to 1."""
    params_weight: Tensor
    """(B,) how much rotations and betas count."""
    depth_weight: Tensor
    """(B,) how much the depth counts."""
    seen: Tensor
    """(B, 21, 2) rays that the projected points are compared with."""
    seen_weight: Tensor
    """(B, 21) how much each does."""
    exact: Tensor
    """(B,) bool, labels without error: what deviations are learned from."""

    def __len__(self) -> int:
        return len(self.hands)

    def select(self, rows: Tensor) -> Supervision:
        """Rows by an integer or boolean index."""
        return self.mapped(lambda value: value[rows])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Supervision:
        """The same of every tensor: other rows, another device."""
        rest = {name: change(value) for name, value in vars(self).items() if name != "hands"}
        return Supervision(SyntheticKeypoints(*(change(value) for value in vars(self.hands).values())), **rest)

    @classmethod
    def of_exact(cls, hands: SyntheticKeypoints) -> Supervision:
        """Synthetic hands: everything is known, and the projection is that of the labels, not the disturbed one."""
        one = torch.ones_like(hands.conf)
        seen = hands.points[..., :2] / hands.points[..., 2:]
        return cls(hands, one, one[:, 0], one[:, 0], seen, one, one[:, 0] > 0)


@dataclass(frozen=True, eq=False)
class Losses:
    """(B,) each, weighted; the sum is what is minimised."""

    points: Tensor
    fingers: Tensor
    rotations: Tensor
    betas: Tensor
    log_depth: Tensor
    reprojection: Tensor

    def total(self) -> Tensor:
        """(B,)."""
        return self.points + self.fingers + self.rotations + self.betas + self.log_depth + self.reprojection

    def means(self) -> dict[str, float]:
        """Over the hands, by name."""
        return {name: float(value.detach().mean()) for name, value in vars(self).items()}


def losses(out: Lifted, points: Tensor, true: Supervision, w: LossWeights) -> Losses:
    """Compare.

    Args:
        out: the network's hands.
        points: (B, 21, 3) m, their points as the source means them.
        true: what is known.
        w: what an error costs.
    """
    hands, params = true.hands, true.params_weight
    projected = points[..., :2] / points[..., 2:].clamp(min=_NEAREST_M)
    there = torch.where(true.seen_weight[..., None] > 0, true.seen, torch.full_like(true.seen, float("nan")))
    high = there.nan_to_num(-1e9).amax(1)
    box = (high - there.nan_to_num(1e9).amin(1)).amax(1).clamp(min=1e-4) / 2
    local, local_true = points @ out.rotations[:, 0], hands.points @ hands.rotations[:, 0]
    return Losses(
        points=100 * w.points * _weighted(points, hands.points, true.points_weight),
        fingers=100 * w.fingers * _weighted(local, local_true, true.points_weight * params[:, None]),
        rotations=w.rotations * params * rotation_loss(out.rotations, hands.rotations),
        betas=w.betas * params * betas_loss(out.betas, hands.betas),
        log_depth=w.log_depth * true.depth_weight * log_depth_loss(_log(out.root), _log(hands.root)),
        reprojection=w.reprojection * reprojection_loss(projected, true.seen, true.seen_weight, box, _CAP),
    )


def _weighted(points: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """`points_loss` times the hand's largest weight: as a mean, it is the same for weights of 1 and of 1/2."""
    return weight.amax(1) * points_loss(points, true, weight)


def _log(root: Tensor) -> Tensor:
    return root[:, 2].clamp(min=_NEAREST_M).log()


def deviations_loss(out: Lifted, hands: SyntheticKeypoints) -> Tensor:
    """(B,) negative log likelihood of the errors under the claimed deviations, which alone it trains."""
    with torch.no_grad():
        errors = _errors(out, hands)
    return deviations_nll(errors, out.log_sd)


def standardised(out: Lifted, hands: SyntheticKeypoints) -> list[Tensor]:
    """28 tensors (B, D): the errors of each group in units of their claimed deviations."""
    return in_deviations(_errors(out, hands), out.log_sd)


def _errors(out: Lifted, hands: SyntheticKeypoints) -> Groups:
    return hand_errors(out.rotations, out.betas, out.root, hands.rotations, hands.betas, hands.root)
