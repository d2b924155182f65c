"""What a step of the loop minimises: the mean over all its hands, which may be spread over passes and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.hand.kinematics import Kinematics
from handloop.hand.model import HandPair
from handloop.loop.config import LoopConfig
from handloop.loop.supervise import Supervision, deviations_loss, losses
from handloop.losses.biomechanical import biomechanical_loss
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.regressors.network import Lifted
from handloop.synth.keypoints import SyntheticKeypoints


@dataclass(frozen=True)
class Counts:
    """Hands of a step, of all passes and processes."""

    hands: float
    exact: float
    """Of these, hands with labels without error."""


class LoopLoss:
    """The loss of one hand model, on one device."""

    def __init__(
        self, pair: HandPair, config: LoopConfig, limits: BiomechanicalLimits | None, device: torch.device
    ) -> None:
        """For a configuration.

        Args:
            pair: the hand model.
            config: what an error costs.
            limits: for the biomechanical losses, if they are wanted; None takes the hand model's own.
            device: of the network.
        """
        self._config, self._device = config, device
        self._kinematics = Kinematics.from_hand(pair.right, torch.float32, device)
        if config.biomechanics is not None:
            own = BiomechanicalLimits.from_hand(pair.right) if limits is None else limits
            self._limits = own.to(torch.zeros(0, dtype=torch.float64, device=device))

    def of_part(self, out: Lifted, true: Supervision, counts: Counts) -> tuple[Tensor, dict[str, float]]:
        """What some of a step's hands add to its loss, and the parts' means over these hands, for the log.

        Args:
            out: the network's hands.
            true: what is known of them.
            counts: of the whole step.
        """
        w = self._config.weights
        true = true.mapped(lambda value: value.to(self._device))
        share = len(true) / counts.hands
        points = self._kinematics.with_offsets(true.hands.offsets).points(out.rotations, out.betas, out.root)
        parts = losses(out, points, true, w)
        loss = parts.total().mean() * share
        at = true.exact.nonzero()[:, 0]
        if len(at):
            exact = SyntheticKeypoints(*(value[at] for value in vars(true.hands).values()))
            seen = Lifted(*(value[at] for value in vars(out).values()))
            loss = loss + w.deviations * deviations_loss(seen, exact).mean() * (len(at) / counts.exact)
        if self._config.biomechanics is not None:
            plain = self._kinematics.points(out.rotations, out.betas, out.root)
            weights = self._config.biomechanics
            loss = loss + biomechanical_loss(plain, self._limits, weights=weights).mean() * share
        return loss, {f"loss_{name}": value for name, value in parts.means().items()}
