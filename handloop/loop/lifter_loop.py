"""The loop on keypoints alone: the network takes the keypoints themselves.

Fitted hands are seen from elsewhere as well, and synthetic hands join them: both are keypoints, which cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from handloop.core.layout import KeypointLayout
from handloop.core.proposal import Proposal
from handloop.hand.model import HandPair
from handloop.loop.batches import joined, proposal_of, seen_from_elsewhere, with_fits, without_labels
from handloop.loop.config import LoopConfig
from handloop.loop.hand_data import HandData
from handloop.loop.memory import FitMemory
from handloop.loop.schedule import Clock
from handloop.loop.supervise import Supervision
from handloop.loop.train import LoopTraining, Progress
from handloop.loop.train_lifter import calibrate_on, start_at_the_usual_hand
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import Lifted, LifterNetwork
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints

_CALIBRATION_HANDS = 4096
_SEEN_HANDS = 1024
"""Fitted hands whose views the deviations are calibrated on, at most."""


class LifterLoop(LoopTraining):
    """The loop that trains a lifter."""

    network: LifterNetwork

    def __init__(
        self,
        folder: Path,
        data: HandData,
        pair: HandPair,
        config: LoopConfig,
        lifter: Lifter | None = None,
        layout: KeypointLayout | None = None,
        prior: PosePriorModel | None = None,
        limits: BiomechanicalLimits | None = None,
        memory: type[FitMemory] = FitMemory,
    ) -> None:
        """Start, or go on where the folder holds a checkpoint. Other arguments are those of `LoopTraining`.

        Args:
            lifter: the network to start with; None starts from nothing.

        Raises:
            InputError: the network belongs to another hand model, or the folder to another run.
        """
        self.synth = KeypointSynth.of(pair.right, config.synth)
        network = _network(lifter, pair, config, self.synth)
        super().__init__(folder, data, pair, config, network, layout, prior, limits, memory)

    def run(self, progress: Callable[[Progress], None] | None = None) -> Lifter:
        """Train to the end and calibrate; lifter.safetensors joins what `train` leaves in the folder."""
        self.train(progress)
        network = LifterNetwork(self.network.size)
        network.load_state_dict(self.mean.module.state_dict())
        calibrate_on(network, self._for_calibration())
        lifter = Lifter.of(network, self.pair.right)
        lifter.save(self.folder / "lifter.safetensors")
        return lifter

    def _step_loss(self, step: int, clock: Clock) -> Tensor:
        config = self.config
        outs: list[Lifted] = []
        parts: list[Supervision] = []
        if config.batch > 0:
            rows = self.data.rows(step, config.batch, config.seed)
            bare = without_labels(self.data, rows, self.layout)
            outs.append(self._forward(bare.hands))
            clock.stop("network")
            parts.append(self._labelled(rows, bare, outs[0], step))
            clock.stop("fit")
        parts += self._drawn(parts)
        clock.stop("draw")
        if len(parts) > len(outs):
            outs.append(self._forward(joined(parts[len(outs) :]).hands))
        whole = Lifted(*(torch.cat([getattr(out, name) for out in outs]) for name in Lifted.__dataclass_fields__))
        return self._compared(whole, joined(parts))

    def _forward(self, hands: SyntheticKeypoints) -> Lifted:
        out: Lifted = self.network(hands.rays, hands.conf, hands.offsets, hands.mean_betas)
        return out

    def _drawn(self, parts: list[Supervision]) -> list[Supervision]:
        """Views of the labelled hands, and synthetic ones."""
        config, out = self.config, []
        if parts and config.mode != "off":
            out += self._seen_from_elsewhere(parts[0], config.views, self.generator)
        if config.synthetic > 0:
            out.append(Supervision.of_exact(self.synth.draw(config.synthetic, self.generator)))
        return out

    def _seen_from_elsewhere(self, labelled: Supervision, n: int, g: torch.Generator) -> list[Supervision]:
        views = seen_from_elsewhere(labelled, self.synth, self.memory.prior, n, self.config.view, g)
        return [] if views is None else [views]

    def _propose(self, rows: Tensor) -> Proposal:
        bare = without_labels(self.data, rows, self.layout).hands
        with torch.no_grad():
            out = self.mean.module(bare.rays, bare.conf, bare.offsets, bare.mean_betas)
        return proposal_of(out, self.kinematics, self.data.keypoints.is_right[rows], self.data.camera.select(rows))

    def _for_calibration(self) -> SyntheticKeypoints:
        """Synthetic hands, and as many views of fitted ones where there are any."""
        g = torch.Generator().manual_seed(self.config.seed)
        parts = [Supervision.of_exact(self.synth.draw(_CALIBRATION_HANDS, g))]
        if self.config.mode != "off":
            n = len(self.data.train)
            rows = self.data.train[torch.linspace(0, n - 1, min(_SEEN_HANDS, n)).round().long()]
            fits = self.memory.cache.get([self.data.keypoints.ids[i] for i in rows.tolist()])
            labelled = with_fits(self.data, rows, fits, self.kinematics, self.layout, self.config.trust)
            parts += self._seen_from_elsewhere(labelled, _CALIBRATION_HANDS, g)
        return joined(parts).hands


def _network(lifter: Lifter | None, pair: HandPair, config: LoopConfig, synth: KeypointSynth) -> LifterNetwork:
    """A network to train: a copy of the given one, or a new one that answers with the usual hand."""
    if lifter is not None:
        lifter.check_model(pair.right)
        network = LifterNetwork(lifter.network.size)
        network.load_state_dict(lifter.network.state_dict())
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LifterNetwork(config.size)
    start_at_the_usual_hand(network, synth)
    return network
