"""Starts that one wrong palm point cannot wreck.

The closed form lays the palm on the wrist and the four knuckles by least squares: one gross outlier among these five
turns every start of the hand, and no kernel of the solver brings it back. So the palm is also laid on each four of the
five, and the hand starts from the set whose pose explains all 21 points best, outliers bounded by the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handloop.core.joints import PALM_POINTS
from handloop.core.terms import HandState
from handloop.fitting.starts import Views, closed_form_starts
from handloop.hand.kinematics import Kinematics

if TYPE_CHECKING:
    from handloop.fitting.engines import Engine


def robust_starts(engine: Engine, kinematics: Kinematics, seeds: Tensor, views: Views) -> HandState:
    """As `closed_form_starts`, from the palm points that agree: (B * 2 S) states, hands outermost.

    The first seed in its better flip decides which points agree: what the fingers do hardly matters, their residuals
    are beyond the kernel's scale in nearly every start.
    """
    b = len(views.weight)
    weights = [views.weight]
    for point in PALM_POINTS:
        without = views.weight.clone()
        without[:, point] = 0
        weights.append(without)
    tried = torch.stack(weights, 1)
    sets = tried.shape[1]
    rays = views.rays[:, None].expand(b, sets, 21, 2).flatten(0, 1)
    poses = closed_form_starts(kinematics, seeds[:1], Views(rays, tried.flatten(0, 1)))
    hands = torch.arange(b, device=tried.device)
    energy = [
        torch.stack(list(engine.finish(poses.select(hands * 2 * sets + k), posterior=False).terms.values())).sum(0)
        for k in range(2 * sets)
    ]
    best = torch.stack(energy, 1).reshape(b, sets, 2).amin(2).argmin(1)
    return closed_form_starts(kinematics, seeds, Views(views.rays, tried[hands, best]))
