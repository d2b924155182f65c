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
from handloop.loop.lifter_learner import LifterLearner
from handloop.loop.memory import FitMemory
from handloop.loop.ranks import Ranks
from handloop.loop.run import LoopRun, Progress
from handloop.loop.schedule import Clock
from handloop.loop.supervise import Supervision
from handloop.loop.train_lifter import calibrate_on
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import Lifted
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints

_CALIBRATION_HANDS = 4096
_SEEN_HANDS = 1024
"""Fitted hands whose views the deviations are calibrated on, at most."""


class LoopTraining(LoopRun):
    """The run that trains a lifter."""

    learner: LifterLearner

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
        ranks: Ranks | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Start, or go on where the folder holds a checkpoint. Other arguments are those of `LoopRun`.

        Args:
            lifter: the network to start with; None starts from nothing.
            limits: for the biomechanical losses, if they are wanted; None takes the hand model's own.
            ranks: the processes of the run; None for this one alone.
            device: where the network is; None for the CPU. The fits are made on the CPU.

        Raises:
            InputError: the network belongs to another hand model, the folder to another run, or the ranks have been
                given different things.
        """
        self.synth = KeypointSynth.of(pair.right, config.synth)
        there = torch.device("cpu") if device is None else device
        alone = Ranks.alone() if ranks is None else ranks
        learner = LifterLearner(pair, config, self.synth, lifter, limits, alone, there)
        super().__init__(folder, data, pair, config, learner, layout, prior, memory)

    def run(self, progress: Callable[[Progress], None] | None = None) -> Lifter:
        """Train to the end and calibrate; lifter.safetensors joins what `train` leaves in the folder."""
        self.train(progress)
        network = self.learner.result()
        if self.ranks.first:
            calibrate_on(network, self._for_calibration())
        network.load_state_dict(self.ranks.from_first(network.state_dict()))
        lifter = Lifter.of(network, self.pair.right)
        if self.ranks.first:
            lifter.save(self.folder / "lifter.safetensors")
        return lifter

    def _teach(self, step: int, clock: Clock) -> float:
        config = self.config
        outs: list[Lifted] = []
        parts: list[Supervision] = []
        rows = (
            self.data.rows(step, config.batch, config.seed) if config.batch > 0 else torch.empty(0, dtype=torch.int64)
        )
        rows = rows[self._own[rows]]
        if len(rows):
            bare = without_labels(self.data, rows, self.layout)
            outs.append(self.learner.look(bare.hands))
            clock.stop("network")
            parts.append(self._labelled(rows, bare, outs[0], step))
            clock.stop("fit")
        parts += self._drawn(parts)
        clock.stop("draw")
        return self.learner.step(step, parts, outs, self.log.add)

    def _drawn(self, parts: list[Supervision]) -> list[Supervision]:
        """Views of the labelled hands, and synthetic ones."""
        config, out = self.config, []
        if parts and config.mode != "off":
            out += self._seen_from_elsewhere(parts[0], self.ranks.share(config.views), self.generator)
        synthetic = self.ranks.share(config.synthetic)
        if synthetic > 0:
            out.append(Supervision.of_exact(self.synth.draw(synthetic, self.generator)))
        return out

    def _seen_from_elsewhere(self, labelled: Supervision, n: int, g: torch.Generator) -> list[Supervision]:
        views = seen_from_elsewhere(labelled, self.synth, self.memory.prior, n, self.config.view, g)
        return [] if views is None else [views]

    def _propose(self, rows: Tensor) -> Proposal:
        out = self.learner.averaged(without_labels(self.data, rows, self.layout).hands)
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
