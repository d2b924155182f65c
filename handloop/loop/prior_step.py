"""A better prior from the fits of all ranks: rank 0 learns it, the others take what it found."""

from __future__ import annotations

import math
from typing import Any

import torch

from handloop.core.params import HandParams
from handloop.loop.config import LoopConfig
from handloop.loop.hand_data import HandData
from handloop.loop.held_out import HeldOut, fitted_hands, gathered
from handloop.loop.learn_prior import FittedHands, learn_prior
from handloop.loop.memory import FitMemory
from handloop.loop.ranks import Ranks
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import PosePriorModel


def learn_together(
    memory: FitMemory, data: HandData, held_out: HeldOut, config: LoopConfig, ranks: Ranks, name: str
) -> tuple[PosePriorModel | None, HeldOut, dict[str, Any]]:
    """Try to learn a better prior.

    Args:
        memory: this rank's fits, under the present prior.
        data: the hands.
        held_out: fits that judge.
        config, ranks: of the run.
        name: of the new prior.

    Returns:
        The prior to take, None where it is not better; the held-out hands as fitted under the prior that is to be used;
        what the log says of it. The same on all ranks.
    """
    hands = _fitted_train(memory, data, config, ranks)
    found: dict[str, Any] = {}
    if ranks.first:
        recipe = memory.recipe(config.fit.refine_steps)
        update = learn_prior(memory.models, recipe, hands, held_out.hands(data), config.prior, name)
        found = {
            "prior": prior_state(update.prior) if update.accepted else None,
            "held_out": list(update.held_out.params.tensors()),
            "line": {
                "accepted": update.accepted,
                "gain_nats": round(update.gain, 4),
                "gain_error": round(update.gain_error, 4) if math.isfinite(update.gain_error) else None,
                "moved_deg": round(update.moved_deg, 4),
                "reason": update.reason,
            },
        }
    found = ranks.from_first(found)
    prior = None if found["prior"] is None else prior_of(found["prior"])
    return prior, HeldOut(held_out.rows, HandParams(*found["held_out"])), found["line"]


def prior_state(prior: PosePriorModel) -> dict[str, Any]:
    """What a learned prior, a Gaussian, is sent as."""
    mean, factor = prior.means[0].double().cpu(), prior.precision_factors[0].double().cpu()
    return {"mean": mean, "factor": factor, "name": prior.name, "digest": prior.model_digest}


def prior_of(state: dict[str, Any]) -> PosePriorModel:
    """The prior of `prior_state`."""
    return GaussianPosePrior(state["mean"], state["factor"], state["name"], state["digest"])


def _fitted_train(memory: FitMemory, data: HandData, config: LoopConfig, ranks: Ranks) -> FittedHands:
    """Training hands with a usable fit, of all ranks, evenly drawn, as many as a prior is learned from."""
    train = data.train
    few = torch.linspace(0, len(train) - 1, min(len(train), config.prior.hands)).round().long()
    rows = train[few]
    rows = rows[ranks.own([data.keypoints.ids[i] for i in rows.tolist()])]
    fits = memory.cache.get([data.keypoints.ids[i] for i in rows.tolist()])
    good = fits.found & (fits.energy <= config.trust.max_energy)
    return fitted_hands(data, *gathered(rows[good], fits.params.select(good), ranks))
