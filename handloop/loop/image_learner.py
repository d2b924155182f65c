"""The image regressor of a run and how it learns from crops."""

from __future__ import annotations

import torch

from handloop.core.errors import InputError
from handloop.hand.model import HandPair
from handloop.loop.config import ImageOptions, LoopConfig
from handloop.loop.image_losses import depths_loss, heading_loss, heat_loss, located_loss
from handloop.loop.image_measure import regress
from handloop.loop.learner import Learner
from handloop.loop.loop_loss import Counts
from handloop.loop.picture_batches import TrainingBatch
from handloop.loop.ranks import Ranks
from handloop.loop.supervise import Supervision
from handloop.loop.train_image import new_network
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.regressors.image import ImageRegressor
from handloop.regressors.image_network import ImageNetwork, Regressed
from handloop.regressors.network import Lifted


class ImageLearner(Learner):
    """An image regressor in training."""

    network: ImageNetwork

    def __init__(
        self,
        pair: HandPair,
        config: LoopConfig,
        image: ImageOptions,
        start: ImageRegressor | None,
        limits: BiomechanicalLimits | None,
        device: torch.device,
    ) -> None:
        """Start. Other arguments are those of `Learner`.

        Args:
            image: of the configuration.
            start: the network to start with; None starts from nothing.

        Raises:
            InputError: the network belongs to another hand model.
        """
        network = new_network(image.network, pair, config.seed) if start is None else _copy_of(start, pair)
        super().__init__(network, pair, config, limits, Ranks.alone(), device, average_buffers=True)
        self.image, self.size, self._pair = image, network.options.size, pair

    def look(self, batch: TrainingBatch, step: int) -> Regressed:
        """The network's answer to a step's crops, which are on its device."""
        self.network.train()
        devices = [self.device] if self.device.type == "cuda" else []
        # Whatever a backbone draws is decided by the step, so that a resumed training draws the same.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self.config.seed + 7919 * step) % 2**63)
            return self._regress(self.network, batch)

    def averaged(self, batch: TrainingBatch) -> Lifted:
        """The averaged network's hands."""
        network = self.mean.module.eval()
        assert isinstance(network, ImageNetwork)
        there = batch.to(self.device)
        with torch.no_grad():
            return self.hands(self._regress(network, there), there)

    def hands(self, out: Regressed, batch: TrainingBatch) -> Lifted:
        """Answers as hands in the frames of their crops."""
        return Lifted(out.rotations, out.betas, out.root(batch.camera(), self.size), out.log_sd)

    def step(
        self, step: int, out: Regressed, batch: TrainingBatch, true: Supervision
    ) -> tuple[float, dict[str, float]]:
        """Take a step; returns the loss, and its parts for the log.

        Args:
            step: counted from 1.
            out: what `look` gave.
            batch: the crops that it was given.
            true: what is known of the hands, in the crops' frames.
        """
        hands = self.hands(out, batch)
        loss, parts = self.loss.of_part(hands, true, Counts(len(true), int(true.exact.sum())))
        nothing = (true.params_weight == 0).to(self.device)
        more = {
            "loss_located": self.image.located * located_loss(out, batch, self.size).mean(),
            **self._of_the_head(out, batch, true),
            "loss_usual_betas": self.image.usual_betas * (nothing * hands.betas.square().mean(1)).mean(),
        }
        loss = loss + torch.stack(list(more.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        total = self.descend(step, loss.detach())
        return total, parts | {name: float(value.detach()) for name, value in more.items()}

    def _of_the_head(self, out: Regressed, batch: TrainingBatch, true: Supervision) -> dict[str, torch.Tensor]:
        """Losses of what only some heads have: maps and directions, which need the points alone, and depths."""
        more = {}
        if out.heat.shape[2]:
            more["loss_heat"] = self.image.heat * heat_loss(out, batch, self.size).mean()
        if out.heading.shape[1]:
            more["loss_heading"] = self.image.heading * heading_loss(out.heading, batch, self.size).mean()
        if out.depths.shape[1]:
            joints, weight = true.hands.points.to(self.device), true.points_weight.to(self.device)
            more["loss_depths"] = self.image.depths * depths_loss(out, joints, weight, batch, self.size).mean()
        return more

    def result(self) -> ImageNetwork:
        """The averaged network alone, without an opinion on its errors: what an earlier training claimed is over."""
        network = ImageNetwork(self.network.options, self._pair.right)
        network.load_state_dict(self.mean.module.state_dict())
        network.log_sd_scale.fill_(float("nan"))
        return network.to(self.device).eval()

    def _regress(self, network: ImageNetwork, batch: TrainingBatch) -> Regressed:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return regress(network, batch)


def _copy_of(regressor: ImageRegressor, pair: HandPair) -> ImageNetwork:
    """A network to train on."""
    if regressor.hand.digest != pair.right.digest:
        raise InputError(
            f"the image regressor was trained with the hand model {regressor.hand.name!r}, not with "
            f"{pair.right.name!r}; start with another, or from nothing."
        )
    network = ImageNetwork(regressor.network.options, pair.right)
    network.load_state_dict(regressor.network.state_dict())
    return network
