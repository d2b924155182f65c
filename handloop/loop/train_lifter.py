"""Train a keypoint lifter on synthetic keypoints alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from handloop.core.errors import FileFormatError, InputError
from handloop.core.rotations import matrix_to_6d, so3_exp
from handloop.hand.model import Hand
from handloop.loop.supervise import LossWeights, Supervision, deviations_loss, losses, standardised
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import Lifted, LifterNetwork, NetworkSize
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints, SynthOptions

_CHECKPOINT = "handloop lifter training 1"
_SAVE_EVERY = 100
"""Steps between two checkpoints: well under a minute of work."""
_CALIBRATION_HANDS = 8192


@dataclass(frozen=True)
class TrainOptions:
    """How long and how fast. The defaults made the weights that come with the package."""

    steps: int = 2400
    batch: int = 2048
    learning_rate: float = 2e-3
    """The highest of the cycle."""
    rising: float = 0.1
    """Share of the steps in which the learning rate rises."""
    ema: float = 0.995
    """Decay of the averaged weights, which are the ones that are kept."""
    deviations_from: float = 0.3
    """Share of the steps after which the standard deviations are trained."""
    seed: int = 20261121
    size: NetworkSize = field(default_factory=NetworkSize)
    synth: SynthOptions = field(default_factory=SynthOptions)
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(f"training takes at least 1 step of 1 hand, got {self.steps} steps of {self.batch}.")


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    steps: int
    loss: float
    error_mm: float
    """Mean error of the points of the last batch, relative to the wrist."""


class LifterTraining:
    """A training that can be stopped and resumed."""

    def __init__(self, hand: Hand, options: TrainOptions) -> None:
        """From a right hand and a seed."""
        self.hand, self.options, self.step = hand, options, 0
        self.synth = KeypointSynth.of(hand, options.synth)
        self.generator = torch.Generator().manual_seed(options.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.network = LifterNetwork(options.size)
        start_at_the_usual_hand(self.network, self.synth)
        self.mean = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema)
        )
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=options.learning_rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, options.learning_rate, options.steps, pct_start=options.rising
        )

    def run(self, checkpoint: Path | None = None, progress: Callable[[Progress], None] | None = None) -> Lifter:
        """Train to the end and calibrate.

        Args:
            checkpoint: a file to write every hundred steps.
            progress: called after each step.
        """
        while self.step < self.options.steps:
            done = self._one_step()
            if progress is not None:
                progress(done)
            if checkpoint is not None and (self.step % _SAVE_EVERY == 0 or self.step == self.options.steps):
                self.save(checkpoint)
        network = LifterNetwork(self.options.size)
        network.load_state_dict(self.mean.module.state_dict())
        calibrate(network, self.synth, self.generator)
        return Lifter.of(network, self.hand)

    def _one_step(self) -> Progress:
        batch = self.synth.draw(self.options.batch, self.generator)
        out = self.network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
        loss, error = self._loss(out, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        if self.step + 1 < self.options.steps:
            self.schedule.step()
        self.mean.update_parameters(self.network)
        self.step += 1
        return Progress(self.step, self.options.steps, float(loss.detach()), 1000 * float(error))

    def _loss(self, out: Lifted, batch: SyntheticKeypoints) -> tuple[Tensor, Tensor]:
        points = self.synth.kinematics.with_offsets(batch.offsets).points(out.rotations, out.betas, out.root)
        loss = losses(out, points, Supervision.of_exact(batch), self.options.weights).total().mean()
        if self.step >= self.options.deviations_from * self.options.steps:
            loss = loss + self.options.weights.deviations * deviations_loss(out, batch).mean()
        with torch.no_grad():
            local = (points - points[:, :1]) - (batch.points - batch.points[:, :1])
        return loss, local.norm(dim=-1).mean()

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        temporary = path.with_name(path.name + ".partial")
        torch.save(
            {
                "format": _CHECKPOINT,
                "options": repr(asdict(self.options)),
                "model_digest": self.hand.digest,
                "step": self.step,
                "network": self.network.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "generator": self.generator.get_state(),
            },
            temporary,
        )
        os.replace(temporary, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            FileFormatError: not a checkpoint.
            InputError: one of a training with another model or other options.
        """
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # Many kinds for damaged files.
            raise FileFormatError(f"{path}: not a readable checkpoint.") from error
        if not isinstance(data, dict) or data.get("format") != _CHECKPOINT:
            raise FileFormatError(f"{path}: not a checkpoint of a lifter's training.")
        if data["options"] != repr(asdict(self.options)) or data["model_digest"] != self.hand.digest:
            raise InputError(
                f"{path} is the checkpoint of a training with another model or other options; "
                "name another file, or train without resuming."
            )
        self.network.load_state_dict(data["network"])
        self.mean.load_state_dict(data["mean"])
        self.optimiser.load_state_dict(data["optimiser"])
        self.schedule.load_state_dict(data["schedule"])
        self.generator.set_state(data["generator"])
        self.step = int(data["step"])


def start_at_the_usual_hand(network: LifterNetwork, synth: KeypointSynth) -> None:
    """Let the untrained network answer with the prior's mean pose."""
    with torch.no_grad():
        mean = so3_exp(synth.prior.mean.reshape(15, 3))
        network.usual[6:] = matrix_to_6d(mean).flatten()
        network.mean.weight.mul_(0.1)
        network.mean.bias.zero_()


def calibrate(network: LifterNetwork, synth: KeypointSynth, generator: torch.Generator) -> None:
    """Scale each standard deviation so that 68.3 % of fresh synthetic hands' errors lie within it."""
    calibrate_on(network, synth.draw(_CALIBRATION_HANDS, generator))


def calibrate_on(network: LifterNetwork, batch: SyntheticKeypoints) -> None:
    """Scale each standard deviation so that 68.3 % of these hands' errors lie within it.

    A network's Gaussian deviations are too wide for errors with heavy tails.
    """
    with torch.no_grad():
        out = network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
        z = standardised(out, batch)
        one_sigma = math.erf(math.sqrt(0.5))
        scale = torch.stack([each.abs().flatten().quantile(one_sigma) for each in z])
        network.log_sd_scale += scale.clamp(min=1e-3).log()
