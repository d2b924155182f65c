"""What a fit is made of on the model's side: kinematics, priors, limits and start poses, per side and device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.fitting.starts import seed_poses
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import mirror_hand
from handloop.hand.mesh import skin
from handloop.hand.model import Hand, HandPair
from handloop.priors.anatomy import JointLimits
from handloop.priors.couplings import JointCouplings
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import PosePriorModel, check_model
from handloop.priors.shape import HandLength


@dataclass(frozen=True, eq=False)
class FitModel:
    """One side's model in the right-hand canonical frame, ready to fit."""

    hand: Hand
    """The model, right-hand canonical."""
    kinematics: Kinematics
    """With the source's offsets, if any: its points are what the keypoints mean."""
    plain: Kinematics
    """The model's own points, on the CPU, for results."""
    shape_mean: Tensor
    """(10,) centre of the shape prior."""
    pose_prior: PosePriorModel
    limits: JointLimits
    couplings: JointCouplings
    hand_length: HandLength
    seeds: Tensor
    """(S, 15, 3, 3) joint rotations to start from."""
    like: Tensor
    """An empty tensor of the dtype and on the device to fit with."""

    @classmethod
    def of(
        cls,
        hand: Hand,
        dtype: torch.dtype,
        device: torch.device | str,
        layout: KeypointLayout | None = None,
        pose_prior: PosePriorModel | None = None,
    ) -> FitModel:
        """From a right hand, or a left one mirrored; without a prior, with the Gaussian of its own poses."""
        layout = KeypointLayout.identity() if layout is None else layout
        offsets = None if layout.is_identity() else layout.offsets
        kinematics = Kinematics.from_hand(hand, dtype, device).with_offsets(offsets)
        like = torch.zeros(0, dtype=dtype, device=device)
        prior = GaussianPosePrior.from_hand(hand) if pose_prior is None else pose_prior
        limits = JointLimits.from_hand(hand)
        seeds = seed_poses(limits, prior.mean).to(like)
        plain, mean = Kinematics.from_hand(hand, dtype), layout.mean_betas.to(like)
        couplings = JointCouplings.from_hand(hand, limits).to(like)
        size = HandLength.of(kinematics)
        return cls(hand, kinematics, plain, mean, prior.to(like), limits.to(like), couplings, size, seeds, like)


@dataclass(frozen=True, eq=False)
class HandModels:
    """Both sides. Where left is the mirrored right, one `FitModel` serves both and they are fitted in one batch."""

    pair: HandPair
    right: FitModel
    left: FitModel
    layout: KeypointLayout

    @classmethod
    def of(
        cls,
        pair: HandPair,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        layout: KeypointLayout | None = None,
        pose_prior: PosePriorModel | None = None,
    ) -> HandModels:
        """Prepare a pair of models for fitting keypoints of a source.

        Raises:
            InputError: the layout or the prior was made for another model or tip set.
        """
        if pose_prior is not None:
            check_model(pose_prior, pair.right.digest)
        if layout is not None:
            layout.check_model(pair.right.digest, pair.right.tip_set)
        right = FitModel.of(pair.right, dtype, device, layout, pose_prior)
        left = right
        if not pair.left_is_mirror:
            left = FitModel.of(mirror_hand(pair.left), dtype, device, layout, pose_prior)
        return cls(pair, right, left, KeypointLayout.identity() if layout is None else layout)

    def split(self, is_right: Tensor) -> Iterator[tuple[FitModel, Tensor]]:
        """Each model with the rows (integer index) of the hands it fits."""
        if self.left is self.right:
            yield self.right, torch.arange(len(is_right))
            return
        for model, mask in ((self.right, is_right), (self.left, ~is_right)):
            yield model, mask.nonzero()[:, 0]

    def vertices(self, params: HandParams, is_right: Tensor) -> Tensor:
        """(B, 778, 3) m of parameters in each side's own convention."""
        out = params.betas.new_zeros(len(params), 778, 3)
        for side in (True, False):
            rows = (is_right == side).nonzero()[:, 0].to(out.device)
            if len(rows):
                part = params.select(rows)
                out[rows] = skin(self.pair.side(side), *part.tensors())[0]
        return out

    def provenance(self) -> Mapping[str, str]:
        """Names of the models and their conventions."""
        right, left = self.pair.right, self.pair.left
        return {
            "hand_model": right.name,
            "hand_model_left": left.name,
            "hand_model_digest": f"{right.digest} {left.digest}",
            "tip_set": right.tip_set,
            "left_shapedirs": left.left_shapedirs,
            "layout": self.layout.name,
            "pose_prior": self.right.pose_prior.name,
        }
