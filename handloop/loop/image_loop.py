"""The loop on pictures: SPIN (Kolotouros et al. 2019) for hands.

The network proposes hands for augmented crops. The proposals are carried back into the pictures' cameras, fitted there
to the pictures' keypoints, and the best fits are carried into the crops as labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
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
from handloop.loop.image_losses import located_loss
from handloop.loop.loop_pictures import LoopPictures, SeenHands, turned, turned_labels, with_parameters
from handloop.loop.memory import FitMemory
from handloop.loop.picture_batches import BatchOptions, PictureBatches, in_processes
from handloop.loop.picture_source import KnownPictures
from handloop.loop.schedule import Clock
from handloop.loop.train import LoopTraining, Progress
from handloop.loop.train_image import calibrate, new_network, regress
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.mixture import PosePriorModel
from handloop.regressors.image import ImageRegressor
from handloop.regressors.image_network import ImageNetwork, Regressed
from handloop.regressors.network import Lifted

_CHUNK = 64
"""Pictures looked at together where all are."""


class ImageLoop(LoopTraining):
    """The loop that trains an image regressor."""

    network: ImageNetwork
    average_buffers = True

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
        """Start, or go on where the folder holds a checkpoint. Other arguments are those of `LoopTraining`.

        Args:
            source: pictures with keypoints. Joints and parameters that it knows are labels.
            start: the network to start with; None starts from nothing.
            device: where the network runs; None for the CPU, where everything else does.
            workers: processes that prepare pictures; 0 for this one. The result does not depend on it.

        Raises:
            InputError: the configuration is one for keypoints, the network belongs to another hand model, or the folder
                to another run.
        """
        if config.image is None:
            raise InputError(
                "the configuration is for keypoints alone; for pictures, begin with the preset image-loop."
            )
        self.image, self.source, self.workers = config.image, source, workers
        self.device = torch.device("cpu") if device is None else device
        network = new_network(config.image.network, pair, config.seed) if start is None else _copy_of(start, pair)
        self.size = network.options.size
        data = data_of(source, config.held_out)
        options = BatchOptions(self.size, config.batch, config.seed, config.image.augment)
        self.pictures = LoopPictures(data, PictureBatches.of(source, pair, options))
        self._coming: Iterator[SeenHands] = iter(())
        super().__init__(folder, data, pair, config, network.to(self.device), layout, prior, limits, memory)

    def run(self, progress: Callable[[Progress], None] | None = None) -> ImageRegressor:
        """Train to the end; weights.safetensors joins what `train` leaves in the folder."""
        self._coming = in_processes(self.pictures, range(self.step + 1, self.config.steps + 1), self.workers)
        self.train(progress)
        network = ImageNetwork(self.network.options, self.pair.right)
        network.load_state_dict(self.mean.module.state_dict())
        network.to(self.device).eval()
        # What an earlier training claimed of the errors holds no longer.
        network.log_sd_scale.fill_(float("nan"))
        rows = self.data.held_out
        if bool(torch.isfinite(self.source.hands.params.betas[rows]).any()):
            calibrate(network, (self.pictures.plain(some).batch for some in rows.split(_CHUNK)))
        regressor = ImageRegressor.of(network, self.pair.right)
        regressor.save(self.folder / "weights.safetensors")
        return regressor

    def _step_loss(self, step: int, clock: Clock) -> Tensor:
        seen = next(self._coming)
        clock.stop("draw")
        batch = seen.batch.to(self.device)
        self.network.train()
        devices = [self.device] if self.device.type == "cuda" else []
        # Whatever a backbone draws is decided by the step, so that a resumed training draws the same.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((self.config.seed + 7919 * step) % 2**63)
            with self._autocast():
                regressed = regress(self.network, batch)
        out = self._lifted(regressed, seen)
        clock.stop("network")
        bare = without_labels(self.data, seen.rows, self.layout)
        labelled = self._labelled(seen.rows, bare, turned(out, seen.turn.mT), step)
        true = with_parameters(turned_labels(labelled, seen.turn), seen.batch, self.kinematics)
        clock.stop("fit")
        nothing = true.params_weight == 0
        located = self.image.located * located_loss(regressed, batch, self.size).mean().cpu()
        betas = self.image.usual_betas * torch.where(nothing, out.betas.square().mean(1), 0.0).mean()
        self.log.add({"loss_located": float(located.detach()), "loss_usual_betas": float(betas.detach())})
        return self._compared(out, true) + located + betas

    def _lifted(self, out: Regressed, seen: SeenHands) -> Lifted:
        """Answers to crops as hands in the crops' frames, on the CPU."""
        root = out.root(seen.batch.camera(), self.size)
        return Lifted(*(part.cpu() for part in (out.rotations, out.betas, root, out.log_sd)))

    def _propose(self, rows: Tensor) -> Proposal:
        network = self.mean.module.eval()
        assert isinstance(network, ImageNetwork)
        parts = [Lifted(torch.zeros(0, 16, 3, 3), torch.zeros(0, 10), torch.zeros(0, 3), torch.zeros(0, 28))]
        for some in rows.split(_CHUNK) if len(rows) else ():
            seen = self.pictures.plain(some)
            with torch.no_grad(), self._autocast():
                out = self._lifted(regress(network, seen.batch.to(self.device)), seen)
            parts.append(turned(out, seen.turn.mT))
        whole = Lifted(*(torch.cat([getattr(part, name) for part in parts]) for name in Lifted.__dataclass_fields__))
        return proposal_of(whole, self.kinematics, self.data.keypoints.is_right[rows], self.data.camera.select(rows))

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.image.precision == "bf16" else nullcontext()


def data_of(source: KnownPictures, held_out: float) -> HandData:
    """The keypoints of pictures, and their joints where any are known, with this share held out."""
    hands = source.hands
    joints = hands.joints if bool(torch.isfinite(hands.joints).any()) else None
    return HandData.of(hands.keypoints, hands.camera, joints, held_out)


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
