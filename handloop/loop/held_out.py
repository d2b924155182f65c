"""Hands that nothing learns from: they judge priors, and show how the network does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.loop.hand_data import HandData
from handloop.loop.learn_prior import FittedHands
from handloop.loop.memory import FitMemory
from handloop.loop.ranks import Ranks

_SEEDS, _STEPS = 4, 10
"""Of the search they are fitted with once: judges must not hang on the network's start."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out hands that could be fitted."""

    rows: Tensor
    """Their rows."""
    params: HandParams
    """Their fits under the present prior."""

    @classmethod
    def fitted(
        cls, memory: FitMemory, data: HandData, propose: Callable[[Tensor], Proposal], max_energy: float, ranks: Ranks
    ) -> HeldOut:
        """Search for fits of all of them, shared out; those of more energy than `max_energy` are left out."""
        rows = data.held_out[ranks.rank :: ranks.n]
        result = memory.fit(data.keypoints.select(rows), data.camera.select(rows), propose(rows), _STEPS, _SEEDS)
        good = result.fitted() & (result.energy <= max_energy)
        return cls(*gathered(rows[good], result.params.select(good), ranks))

    def hands(self, data: HandData) -> FittedHands:
        """With what they were fitted to."""
        return fitted_hands(data, self.rows, self.params)

    def scores(
        self, memory: FitMemory, data: HandData, propose: Callable[[Tensor], Proposal], ranks: Ranks
    ) -> dict[str, float]:
        """How well the network's hands meet the keypoints, and how cheap the fits from them are (medians)."""
        if len(self.rows) == 0:
            return {}
        rows = self.rows[ranks.rank :: ranks.n]
        keypoints, camera, start = data.keypoints.select(rows), data.camera.select(rows), propose(rows)
        alone = memory.fit(keypoints, camera, start, 0)
        fitted = memory.fit(keypoints, camera, start, memory.options.steps)
        box = keypoints.box_size()
        each = {
            "held_out_network_rms_percent": 100 * (alone.rms_px / box),
            "held_out_fit_rms_percent": 100 * (fitted.rms_px / box),
            "held_out_fit_energy": fitted.energy,
        }
        return {name: round(float(value.nanmedian()), 4) for name, value in ranks.joined(each).items()}


def gathered(rows: Tensor, params: HandParams, ranks: Ranks) -> tuple[Tensor, HandParams]:
    """The rows of all ranks in order, and their fits."""
    found = ranks.joined({"rows": rows, **{str(i): value for i, value in enumerate(params.tensors())}})
    whose = found.pop("rows")
    order = whose.argsort(stable=True)
    return whose[order], HandParams(*(value[order] for value in found.values()))


def fitted_hands(data: HandData, rows: Tensor, params: HandParams) -> FittedHands:
    """Fits of some rows."""
    known = None if data.points_3d is None else data.points_3d[rows]
    return FittedHands(data.keypoints.select(rows), data.camera.select(rows), params, known)
