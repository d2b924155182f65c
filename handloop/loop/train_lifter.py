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
from handloop.losses.keypoints import points_loss, reprojection_loss
from handloop.losses.parameters import betas_loss, gaussian_nll, log_depth_loss, rotation_error, rotation_loss
from handloop.regressors.lifter import Lifter
from handloop.regressors.network import Lifted, LifterNetwork, NetworkSize
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints, SynthOptions

_CHECKPOINT = "handloop lifter training 1"
_SAVE_EVERY = 100
"""Steps between two checkpoints: well under a minute of work."""
_CALIBRATION_HANDS = 8192


@dataclass(frozen=True)
class LossWeights:
    """What an error costs. Set by hand so that the first four weigh about the same in the end; not searched for."""

    points: float = 1.0
    """Per cm of the 21 points relative to the wrist, which is what matters."""
    fingers: float = 1.0
    """Per cm of the points in the wrist's own frame, where a wrong view of the whole hand does not count."""
    rotations: float = 1.0
    """Per squared rad."""
    betas: float = 0.05
    """Per squared population deviation."""
    log_depth: float = 1.0
    reprojection: float = 3.0
    """Per angular size of the hand."""
    deviations: float = 0.1
    """Of the negative log likelihood; it trains the deviations only."""


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
        w = self.options.weights
        kinematics = self.synth.kinematics.with_offsets(batch.offsets)
        points = kinematics.points(out.rotations, out.betas, out.root)
        exact = batch.points[..., :2] / batch.points[..., 2:]
        seen = points[..., :2] / points[..., 2:].clamp(min=0.02)
        box = (exact.amax(1) - exact.amin(1)).amax(1) / 2
        loss = (
            100 * w.points * points_loss(points, batch.points)
            + 100 * w.fingers * points_loss(points @ out.rotations[:, 0], batch.points @ batch.rotations[:, 0])
            + w.rotations * rotation_loss(out.rotations, batch.rotations)
            + w.betas * betas_loss(out.betas, batch.betas)
            + w.log_depth * log_depth_loss(out.root[:, 2].log(), batch.root[:, 2].log())
            + w.reprojection * reprojection_loss(seen, exact, torch.ones_like(batch.conf), box, cap=2.0)
        ).mean()
        if self.step >= self.options.deviations_from * self.options.steps:
            with torch.no_grad():
                errors = _errors(out, batch)
            nll = sum((gaussian_nll(e, s) for e, s in zip(errors, _by_group(out.log_sd), strict=True)), torch.zeros(()))
            loss = loss + w.deviations * nll.mean()
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
    """Scale each standard deviation so that 68.3 % of fresh synthetic hands' errors lie within it.

    A network's Gaussian deviations are too wide for errors with heavy tails.
    """
    batch = synth.draw(_CALIBRATION_HANDS, generator)
    with torch.no_grad():
        out = network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
        z = standardised(out, batch)
        one_sigma = math.erf(math.sqrt(0.5))
        scale = torch.stack([each.abs().flatten().quantile(one_sigma) for each in z])
        network.log_sd_scale += scale.clamp(min=1e-3).log()


def standardised(out: Lifted, batch: SyntheticKeypoints) -> list[Tensor]:
    """28 tensors (B, D): the errors of each group in units of their claimed deviations."""
    scaled = []
    for error, log_sd in zip(_errors(out, batch), _by_group(out.log_sd), strict=True):
        scaled += list((error / log_sd.exp()[..., None]).unbind(1))
    return scaled


def _by_group(log_sd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return log_sd[:, :16], log_sd[:, 16:26], log_sd[:, 26:27], log_sd[:, 27:28]


def _errors(out: Lifted, batch: SyntheticKeypoints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Errors (B, groups, components) of rotations, betas, bearing and log depth."""
    ours = torch.nn.functional.normalize(out.root, dim=1)
    theirs = torch.nn.functional.normalize(batch.root, dim=1)
    # The small angle between two directions, as two components across the line of sight.
    across = torch.linalg.cross(ours, theirs)
    first = torch.nn.functional.normalize(torch.linalg.cross(theirs, torch.tensor([0.0, 1.0, 0.0]).expand_as(theirs)))
    second = torch.linalg.cross(theirs, first)
    bearing = torch.stack([(across * first).sum(1), (across * second).sum(1)], 1)[:, None]
    depth = (batch.root[:, 2].log() - out.root[:, 2].log())[:, None, None]
    return (
        rotation_error(out.rotations, batch.rotations),
        (batch.betas - out.betas)[..., None],
        bearing,
        depth,
    )
