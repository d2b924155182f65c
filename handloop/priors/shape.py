"""Sizes of a hand as functions of its shape coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.hand.kinematics import Kinematics


@dataclass(frozen=True, eq=False)
class HandLength:
    """Length of the straightened hand: wrist joint, along the middle finger's bones, to its tip vertex."""

    template: Tensor
    """(4, 3) bone vectors of the mean shape, m."""
    dirs: Tensor
    """(4, 3, 10) their displacement per beta."""

    @classmethod
    def of(cls, kinematics: Kinematics) -> HandLength:
        """Cut the middle finger's bones out of a model."""
        ids = [0, 4, 5, 6]
        points = torch.cat([kinematics.joints[ids], kinematics.tips[2:3]])
        dirs = torch.cat([kinematics.joints_dirs[ids], kinematics.tips_dirs[2:3]])
        return cls(points[1:] - points[:-1], dirs[1:] - dirs[:-1])

    def length_and_gradient(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) m and (B, 10) its derivative by the betas."""
        dirs = self.dirs.reshape(12, 10).expand(len(betas), 12, 10)
        bones = self.template + torch.bmm(dirs, betas[..., None]).reshape(-1, 4, 3)
        lengths = bones.norm(dim=-1, keepdim=True)
        along = (bones / lengths).reshape(-1, 1, 12)
        return lengths.sum((1, 2)), torch.bmm(along, dirs)[:, 0]
