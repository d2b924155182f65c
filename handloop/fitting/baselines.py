"""The classic fits, so that anyone can compare with them within one program, on one hand model.

`SmplifyOptions` is SMPLify (Bogo et al., ECCV 2016), `SpinOptions` the variant inside SPIN's training loop (Kolotouros
et al., ICCV 2019), both with their published objective, weights and schedule. Both are for bodies;
`baseline_terms` says what each piece became on a hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from handloop.core.errors import InputError
from handloop.core.terms import HandState
from handloop.fitting.baseline_smplify import SmplifyOptions, fit_smplify
from handloop.fitting.baseline_spin import SpinOptions, fit_spin
from handloop.fitting.baseline_terms import Crop
from handloop.fitting.problem import FitModel
from handloop.fitting.solver import Solution
from handloop.hand.model import Hand

if TYPE_CHECKING:
    from handloop.fitting.observe import Observations

__all__ = ["BASELINE_SEEDS", "SmplifyOptions", "SpinOptions", "fit_baseline"]

BASELINE_SEEDS = 1
"""Poses to start from: the prior's mean alone, as published. Times two flips, that makes two starts per hand."""


def fit_baseline(
    model: FitModel,
    seen: Observations,
    options: SpinOptions | SmplifyOptions,
    starts: HandState,
    per_hand: int,
    hand: Hand | None = None,
) -> Solution:
    """Fit B hands with a classic method.

    Args:
        model: the hand's side, in the right-hand canonical frame.
        seen: B hands.
        options: which method, with its settings.
        starts: (B * per_hand) states, hands outermost; `closed_form_starts` of `model.seeds[:BASELINE_SEEDS]`.
        per_hand: starts of each hand. SPIN takes the one whose points lie nearest the keypoints, SMPLify tries all.
        hand: the model's mesh, right-hand canonical; only for `SpinOptions.full_mesh`.

    Returns:
        One row per hand, in the frame of `starts`. `energy` is the method's own objective in crop px squared, inf for
        hands without a finite solution. `converged` is False for SPIN, which stops after so many steps, come what may.

    Raises:
        InputError: the numbers of hands and starts do not fit, or `full_mesh` lacks its mesh.
    """
    if per_hand < 1 or len(starts) != per_hand * len(seen.uv):
        raise InputError(f"{len(starts)} starts were given for {len(seen.uv)} hands, expected {per_hand} for each.")
    crop = Crop.of(seen, options.crop)
    rows = torch.arange(len(seen.uv), device=crop.uv.device).repeat_interleave(per_hand)
    entered = replace(starts, root=crop.select(rows).enter(starts.root))
    if isinstance(options, SmplifyOptions):
        out = fit_smplify(model, crop, options, entered, per_hand)
    else:
        out = fit_spin(model, crop, options, entered, per_hand, hand)
    return replace(out, state=replace(out.state, root=crop.leave(out.state.root)))
