"""A network in training: how it takes a step from gradients of all processes, and what is kept of it."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.hand.model import HandPair
from handloop.loop.config import LoopConfig
from handloop.loop.loop_loss import LoopLoss
from handloop.loop.ranks import Ranks
from handloop.loop.schedule import learning_rate
from handloop.priors.biomechanical_limits import BiomechanicalLimits


class Learner:
    """A network, the average of its weights, and its optimiser; the same on every rank."""

    def __init__(
        self,
        network: torch.nn.Module,
        pair: HandPair,
        config: LoopConfig,
        limits: BiomechanicalLimits | None,
        ranks: Ranks,
        device: torch.device,
        average_buffers: bool = False,
    ) -> None:
        """Start.

        Args:
            network: to train.
            pair: the hand model.
            config: how.
            limits: for the biomechanical losses, if they are wanted; None takes the hand model's own.
            ranks: the processes of the run.
            device: where the network is put.
            average_buffers: whether it has running statistics, which are averaged as its weights are.
        """
        self.config, self.ranks, self.device = config, ranks, device
        self.network = network.to(device)
        self.mean = torch.optim.swa_utils.AveragedModel(
            self.network,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema),
            use_buffers=average_buffers,
        )
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=0.01)
        self.loss = LoopLoss(pair, config, limits, device)

    def descend(self, step: int, value: Tensor) -> float:
        """Take a step with the gradients that this rank has; returns the loss, which is the sum over the ranks.

        Args:
            step: counted from 1.
            value: () this rank's part of the loss.

        Raises:
            InputError: the loss is not finite; nothing has changed.
        """
        total = float(self.ranks.add_gradients(self.network.parameters(), value))
        if not math.isfinite(total):
            rate = self.config.learning_rate
            raise InputError(f"the loss of step {step} is not finite; lower learning_rate ({rate:g}) and start anew.")
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, self.config)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.network)
        return total

    def check_same(self, step: int) -> None:
        """Compare the weights of all ranks.

        Raises:
            InputError: they differ.
        """
        if self.ranks.n == 1:
            return
        digest = hashlib.sha256()
        for state in (self.network.state_dict(), self.mean.state_dict()):
            for value in state.values():
                digest.update(value.detach().cpu().numpy().tobytes())
        why = "give all processes the same weights to start with"
        if step > 0:
            why = f"they were the same and differ after step {step}; use one kind of processor and one version of torch"
        self.ranks.agree("network", digest.hexdigest(), why)

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
