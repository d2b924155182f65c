"""The loop on pictures: SPIN (Kolotouros et al. 2019) for hands.

The network proposes hands for augmented crops. The proposals are carried back into the pictures' cameras, fitted there
to the pictures' keypoints, and the best fits are carried into the crops as labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.layout import KeypointLayout
from handloop.core.proposal import Proposal
from handloop.hand.model import HandPair
from handloop.loop.batches import proposal_of, without_labels
from handloop.loop.config import LoopConfig
from handloop.loop.hand_data import HandData
from handloop.loop.image_learner import ImageLearner
from handloop.loop.image_measure import calibrate
from handloop.loop.loop_pictures import LoopPictures, SeenHands, turned, turned_labels, with_parameters
from handloop.loop.memory import FitMemory
from handloop.loop.picture_batches import BatchOptions, PictureBatches, in_processes
from handloop.loop.picture_source import KnownPictures
from handloop.loop.run import LoopRun, Progress
from handloop.loop.schedule import Clock
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.image import ImageRegressor
from handloop.regressors.network import Lifted

_CHUNK = 64
"""Pictures looked at together where all are."""


class ImageLoop(LoopRun):
    """The run that trains an image regressor, in one process."""

    learner: ImageLearner

    def __init__(
        self,
        folder: Path,
        source: KnownPictures,
        pair: HandPair,
        config: LoopConfig,
        start: ImageRegressor | None = None,
        layout: KeypointLayout | None = None,
        prior: PosePriorModel | None = None,
        limits: BiomechanicalLimits | None = None,
        memory: type[FitMemory] = FitMemory,
        device: torch.device | None = None,
        workers: int = 0,
    ) -> None:
        """Start, or go on where the folder holds a checkpoint. Other arguments are those of `LoopRun`.

        Args:
            source: pictures with keypoints. Joints and parameters that it knows are labels.
            start: the network to start with; None starts from nothing.
            limits: for the biomechanical losses, if they are wanted; None takes the hand model's own.
            device: where the network is; None for the CPU. The fits are made on the CPU.
            workers: processes that prepare pictures; 0 for this one. The result does not depend on it.

        Raises:
            InputError: the configuration is one for keypoints, the network belongs to another hand model, or the folder
                to another run.
        """
        if config.image is None:
            raise InputError(
                "the configuration is for keypoints alone; for pictures, begin with the preset image-loop."
            )
        self.source, self.workers = source, workers
        there = torch.device("cpu") if device is None else device
        learner = ImageLearner(pair, config, config.image, start, limits, there)
        data = data_of(source, config.held_out)
        options = BatchOptions(
            learner.size, config.batch, config.seed, config.image.augment, margin=learner.network.options.margin
        )
        self.pictures = LoopPictures(data, PictureBatches.of(source, pair, options))
        self._coming: Iterator[SeenHands] = iter(())
        super().__init__(folder, data, pair, config, learner, layout, prior, memory)

    def run(self, progress: Callable[[Progress], None] | None = None) -> ImageRegressor:
        """Train to the end; weights.safetensors joins what `train` leaves in the folder."""
        self._coming = in_processes(self.pictures, range(self.step + 1, self.config.steps + 1), self.workers)
        self.train(progress)
        network, rows = self.learner.result(), self.data.held_out
        if bool(torch.isfinite(self.source.hands.params.betas[rows]).any()):
            calibrate(network, (self.pictures.plain(some).batch for some in rows.split(_CHUNK)))
        regressor = ImageRegressor.of(network, self.pair.right)
        regressor.save(self.folder / "weights.safetensors")
        return regressor

    def _teach(self, step: int, clock: Clock) -> float:
        seen = next(self._coming)
        clock.stop("draw")
        batch = seen.batch.to(self.learner.device)
        out = self.learner.look(batch, step)
        proposed = turned(self.learner.hands(out, batch), seen.turn.mT)
        clock.stop("network")
        bare = without_labels(self.data, seen.rows, self.layout)
        labelled = self._labelled(seen.rows, bare, proposed, step)
        true = with_parameters(turned_labels(labelled, seen.turn), seen.batch, self.kinematics)
        clock.stop("fit")
        loss, parts = self.learner.step(step, out, batch, true)
        self.log.add(parts)
        return loss

    def _propose(self, rows: Tensor) -> Proposal:
        parts = [Lifted(torch.zeros(0, 16, 3, 3), torch.zeros(0, 10), torch.zeros(0, 3), torch.zeros(0, 28))]
        for some in rows.split(_CHUNK) if len(rows) else ():
            seen = self.pictures.plain(some)
            parts.append(turned(self.learner.averaged(seen.batch), seen.turn.mT))
        whole = Lifted(*(torch.cat([vars(part)[name].cpu() for part in parts]) for name in vars(parts[0])))
        return proposal_of(whole, self.kinematics, self.data.keypoints.is_right[rows], self.data.camera.select(rows))


def data_of(source: KnownPictures, held_out: float) -> HandData:
    """The keypoints of pictures, and their joints where any are known, with this share held out."""
    hands = source.hands
    joints = hands.joints if bool(torch.isfinite(hands.joints).any()) else None
    return HandData.of(hands.keypoints, hands.camera, joints, held_out)
