"""Train an image regressor on pictures with labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from handloop.core.augmentation import AugmentOptions
from handloop.core.errors import FileFormatError, InputError
from handloop.core.rotations import matrix_to_6d, so3_exp
from handloop.hand.model import HandPair
from handloop.loop.image_losses import ImageLoss, ImageLossWeights
from handloop.loop.image_measure import Measured, calibrate, measure, regress
from handloop.loop.image_rates import groups_of
from handloop.loop.muon import Muon
from handloop.loop.picture_batches import BatchOptions, PictureBatches, TrainingBatch, looked_at_again
from handloop.loop.picture_source import PictureSource
from handloop.loop.ranks import Ranks
from handloop.priors.gaussian import GaussianPosePrior
from handloop.regressors.backbones import load_pretrained
from handloop.regressors.image import ImageRegressor
from handloop.regressors.image_network import ImageNetwork, ImageNetworkOptions
from handloop.regressors.lifter import Lifter
from handloop.regressors.lifting_head import LiftingHead

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_CHECKPOINT = "handloop image training 1"
_AUGMENT = AugmentOptions(scale=0.2, shift=0.05, flip="to-right", occlusion=0.2)


@dataclass(frozen=True)
class ImageTrainOptions:
    """How long and how fast."""

    steps: int = 10000
    batch: int = 32
    learning_rate: float = 1e-3
    """The highest of the cycle, in which it rises and then falls as a cosine."""
    rising: float = 0.1
    """Share of the steps in which it rises."""
    heading_first: float = 0.2
    """Share of the steps, cheap ones, in which a head that turns crops learns nothing but where the fingers point;
    it then knows."""
    kernel_rate: float = 0.0
    """The highest learning rate of the kernels of convolutions, whose steps are then orthogonalised (`loop.muon`);
    0 for AdamW."""
    looks: int = 1
    """Steps that see a crop, some steps apart and in other company: crops cost time to prepare."""
    weight_decay: float = 0.01
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones that are kept."""
    deviations_from: float = 0.3
    """Share of the steps after which the standard deviations are trained."""
    seed: int = 20261121
    held_out: int = 256
    """Hands that are not trained on: they measure the progress and calibrate the deviations."""
    measure_every: int = 500
    """Steps between two measurements on them, and between two checkpoints."""
    precision: Precision = "auto"
    """Of the network's products; auto is bf16 where a GPU or a CPU has it, else fp16 on a GPU and 32 bits on a CPU."""
    network: ImageNetworkOptions = field(default_factory=ImageNetworkOptions)
    weights: ImageLossWeights = field(default_factory=ImageLossWeights)
    augment: AugmentOptions = _AUGMENT

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or self.measure_every < 1 or self.held_out < 0:
            raise InputError(
                f"{self.steps} steps of {self.batch} hands, {self.held_out} of them held out and measured every "
                f"{self.measure_every} steps, were asked for; expected at least 1 step of 2 hands."
            )
        if self.kernel_rate < 0 or self.looks < 1:
            raise InputError(
                f"kernels were given the learning rate {self.kernel_rate} and crops {self.looks} looks, expected at "
                "least 0 and 1."
            )
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise InputError(f"the precision {self.precision!r} is unknown, expected auto, fp32, bf16 or fp16.")


@dataclass(frozen=True, eq=False)
class ImageProgress:
    """Where a training stands."""

    step: int
    steps: int
    parts: Mapping[str, float]
    """The weighted losses."""
    measured: Measured | None
    """At the steps where it was measured."""

    @property
    def loss(self) -> float:
        """Their sum."""
        return sum(self.parts.values())


class ImageTraining:
    """A training that can be stopped and resumed, with the same weights in the end."""

    def __init__(
        self,
        pair: HandPair,
        source: PictureSource,
        options: ImageTrainOptions,
        device: torch.device | None = None,
        pretrained: Mapping[str, Tensor] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Start.

        Args:
            pair: the hand models; the right one is trained for.
            source: pictures with labels.
            options: how.
            device: where the network runs; None for the CPU.
            pretrained: the backbone's weights (`backbones.pretrained_backbone`); None for random ones.
            ranks: the processes that share each batch; None for this one alone.

        Raises:
            InputError: the source holds too few hands, or a batch cannot be shared evenly.
        """
        self.pair, self.options, self.step = pair, options, 0
        self.ranks = Ranks.alone() if ranks is None else ranks
        share, left = divmod(options.batch, self.ranks.n)
        if left or share < 2:
            raise InputError(
                f"a batch of {options.batch} hands cannot be shared among {self.ranks.n} processes; give a multiple of "
                f"{self.ranks.n}, at least {2 * self.ranks.n}."
            )
        self.device = torch.device("cpu") if device is None else device
        net = options.network
        self.batches = PictureBatches.of(
            source,
            pair,
            BatchOptions(
                net.size, share, options.seed, options.augment, options.weights.mask > 0,
                held_out=options.held_out, margin=net.margin, rank=self.ranks.rank, ranks=self.ranks.n,
            ),
        )  # fmt: skip
        n = self.batches.trained_on()
        if n is not None and n < options.batch:
            raise InputError(
                f"{source.count} hands, {options.held_out} of them held out, leave {n} to train on, fewer than the "
                f"batch of {options.batch}; give more pictures, a smaller batch, or hold fewer out."
            )
        self.network = new_network(net, pair, options.seed)
        if pretrained is not None:
            load_pretrained(self.network.backbone, pretrained)
        self.network.to(self.device)
        self.loss = ImageLoss.of(pair.right, options.weights, self.device)
        self.mean = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(options.ema), use_buffers=True
        )
        turns = isinstance(self.network.head, LiftingHead)
        self.alone = int(options.heading_first * options.steps) if turns else 0
        groups, rates = groups_of(
            self.network, options.weight_decay, self.alone, options.steps, options.rising, options.kernel_rate
        )
        self.optimiser = Muon(groups, options.learning_rate, ranks=self.ranks)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, rates)
        self.dtype = _dtype(options.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def run(
        self,
        checkpoint: Path | None = None,
        progress: Callable[[ImageProgress], None] | None = None,
        workers: int = 0,
    ) -> ImageRegressor:
        """Train to the end and calibrate. Of several processes, the first alone writes, measures and calibrates.

        Args:
            checkpoint: a file to write every `measure_every` steps.
            progress: called after each step.
            workers: processes that prepare pictures; 0 for this one. The result does not depend on it.
        """
        o = self.options
        for batch in self._coming(workers):
            parts = self._one_step(batch.to(self.device))
            due = self.step % o.measure_every == 0 or self.step == o.steps
            if due:
                self._settle()
            if due and checkpoint is not None and self.ranks.first:
                self.save(checkpoint)
            measured = self.measure() if due and o.held_out and self.ranks.first else None
            if progress is not None:
                progress(ImageProgress(self.step, o.steps, parts, measured))
        network = self.averaged()
        if o.held_out and o.weights.deviations and self.ranks.first:
            calibrate(network, self.batches.held_out())
        return ImageRegressor.of(network, self.pair.right)

    def averaged(self) -> ImageNetwork:
        """The averaged network, ready to use."""
        network = ImageNetwork(self.options.network, self.pair.right)
        network.load_state_dict(self.mean.module.state_dict())
        return network.to(self.device).eval()

    def measure(self) -> Measured:
        """The averaged network on the hands that are held out."""
        return measure(self.averaged(), self.batches, self.step)

    def _coming(self, workers: int) -> Iterator[TrainingBatch]:
        return looked_at_again(self.batches, range(self.step, self.options.steps), self.options.looks, workers)

    def _one_step(self, batch: TrainingBatch) -> dict[str, float]:
        o = self.options
        devices = [self.device] if self.device.type == "cuda" else []
        self.network.train()
        if 0 < self.alone <= self.step:
            self.network.upright.requires_grad_(False).eval()
        # Whatever a backbone draws is decided by the step, so that a resumed training draws the same.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((o.seed + 7919 * self.step + 104_729 * self.ranks.rank) % 2**63)
            parts = self._parts(batch)
            total = torch.stack(list(parts.values())).sum()
            self.optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(total / self.ranks.n).backward()
        self.ranks.add_gradients([p for p in self.network.parameters() if p.grad is not None], total)
        self.scaler.unscale_(self.optimiser)
        # Parts of the network with losses of their own scale do not slow each other down.
        for group in self.optimiser.param_groups:
            if not group["orthogonal"]:
                torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.step + 1 < o.steps:
            self.schedule.step()
        self.mean.update_parameters(self.network)
        self.step += 1
        return {name: float(value.detach()) for name, value in parts.items()}

    def _settle(self) -> None:
        """Norms count what their own process sees; from here on, all have the mean of it."""
        if self.ranks.n == 1:
            return
        norms = [
            running
            for network in (self.network, self.mean.module)
            for module in network.modules()
            if isinstance(module, nn.BatchNorm2d)
            for running in (module.running_mean, module.running_var)
            if running is not None
        ]
        self.ranks.add_up(norms)
        for running in norms:
            running /= self.ranks.n

    def _parts(self, batch: TrainingBatch) -> dict[str, Tensor]:
        o = self.options
        if self.step < self.alone:
            with self._autocast():
                heading = self.network.turned(batch.crops).heading
            return self.loss.heading_alone(heading, batch, o.network.size)
        with self._autocast():
            out = regress(self.network, batch)
        return self.loss.parts(out, batch, o.network.size, self.step >= o.deviations_from * o.steps)

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        temporary = path.with_name(path.name + ".partial")
        torch.save(
            {
                "format": _CHECKPOINT,
                "options": repr(asdict(self.options)),
                "model_digest": self.pair.right.digest,
                "hands": self.batches.source.count,
                "step": self.step,
                "network": self.network.state_dict(),
                "mean": self.mean.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
            temporary,
        )
        os.replace(temporary, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            FileFormatError: not a checkpoint.
            InputError: one of a training with another model, other pictures or other options.
        """
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # Many kinds for damaged files.
            raise FileFormatError(f"{path}: not a readable checkpoint.") from error
        if not isinstance(data, dict) or data.get("format") != _CHECKPOINT:
            raise FileFormatError(f"{path}: not a checkpoint of an image regressor's training.")
        ours = (repr(asdict(self.options)), self.pair.right.digest, self.batches.source.count)
        if (data["options"], data["model_digest"], data["hands"]) != ours:
            raise InputError(
                f"{path} is the checkpoint of a training with another model, other pictures or other options; "
                "name another file, or train without resuming."
            )
        self.network.load_state_dict(data["network"])
        self.mean.load_state_dict(data["mean"])
        self.optimiser.load_state_dict(data["optimiser"])
        self.schedule.load_state_dict(data["schedule"])
        self.scaler.load_state_dict(data["scaler"])
        self.step = int(data["step"])


def new_network(options: ImageNetworkOptions, pair: HandPair, seed: int) -> ImageNetwork:
    """With random weights, answering with the mean of the hand model's own poses, or with what the keypoint lifter that
    comes with the package says of the points, where it knows the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ImageNetwork(options, pair.right)
    mean = matrix_to_6d(so3_exp(GaussianPosePrior.from_hand(pair.right).mean.reshape(15, 3)))
    with torch.no_grad():
        network.usual[1:] = mean.to(network.usual)
        if isinstance(network.head, LiftingHead):
            network.head.lifter.usual[6:] = mean.flatten().to(network.usual)
            shipped = Lifter.shipped()
            if shipped.knows(pair.right):
                network.head.lifter.load_state_dict(shipped.network.state_dict())
    return network


def _dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Of the network's products; None for 32 bits."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.bfloat16 if _cpu_has_bf16() else None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cpu_has_bf16() -> bool:
    """Whether it has instructions for 16-bit products; without them, bf16 is slower than 32 bits."""
    # Not part of torch's public interface, so perhaps gone one day.
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(bool(ask()) for ask in known if ask is not None)
