"""The job behind `handloop train image`: train with progress and a log, in a way that survives an interruption."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from handloop.api import pick_device
from handloop.core.errors import InputError
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.loop.image_presets import PRESETS, with_network
from handloop.loop.picture_source import PictureSource, open_source
from handloop.loop.ranks import Ranks
from handloop.loop.train_image import ImageProgress, ImageTraining, ImageTrainOptions
from handloop.regressors.backbones import NAMED, BackboneOptions, pretrained_backbone
from handloop.regressors.image import ImageRegressor
from handloop.synth.picture import PictureOptions
from handloop.train_commands import checkpoint_of

if TYPE_CHECKING:
    from handloop.train_commands import TrainImage

_LOG_EVERY = 50
"""Steps between two lines of the log; the losses in them are of one step."""


def run_train_image(command: TrainImage) -> int:
    """Train, calibrate, write; returns the exit status."""
    if command.out.suffix != ".safetensors":
        raise InputError(f"--out is {command.out}, expected a name that ends in .safetensors.")
    if not 0 <= command.workers <= 256:
        raise InputError(f"{command.workers} workers were asked for, expected 0 to 256.")
    ranks = Ranks.from_environment()
    device = pick_device(command.device)
    if device.type == "cuda" and ranks.n > 1:
        device = torch.device("cuda", ranks.local_rank)
    console = Console(stderr=True, highlight=False, quiet=not ranks.first)
    pair = load_hand(command.mano)
    backbone, pretrained = _backbone(command.backbone)
    options = _options(command, backbone)
    with console.status("reading labels"):
        source = _source(command, pair)
    training = ImageTraining(pair, source, options, device, pretrained, ranks)
    _say_what_is_trained(console, training, source)
    checkpoint = checkpoint_of(command)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    if command.resume and checkpoint.is_file():
        training.resume(checkpoint)
        console.print(f"going on from step {training.step} of {options.steps}.")
    ranks.agree("step to go on from", str(training.step), "put --out on a disk that all machines share")
    started = time.monotonic()
    log = command.out.with_suffix(".jsonl") if ranks.first else Path(os.devnull)
    with open(log, "a" if training.step else "w", encoding="utf-8") as file:
        regressor = _train(training, checkpoint, command.workers, file, console)
    if ranks.first:
        regressor.save(command.out)
        checkpoint.unlink(missing_ok=True)
    ranks.close()
    console.print(
        f"trained for {pair.right.name} in {(time.monotonic() - started) / 60:.1f} min; written to {command.out}, its "
        f"log to {log}. Use it with: handloop predict PICTURES --weights {command.out} --out OUT",
        markup=False,
    )
    return 0


def _source(command: TrainImage, pair: HandPair) -> PictureSource:
    if command.pictures != "synth" and not Path(command.pictures).is_dir():
        raise InputError(
            f"{command.pictures} is no folder; give one that handloop synth wrote or one of a picture data set, or the "
            "word synth to render on the fly."
        )
    rendered = PictureOptions(size=command.rendered_size, seed=command.seed, backgrounds=command.backgrounds)
    return open_source(command.pictures, pair, command.mano, rendered, command.split)


def _backbone(name: str | None) -> tuple[BackboneOptions | None, dict[str, Tensor] | None]:
    if name is None or name in NAMED:
        return (None if name is None else NAMED[name]), None
    return pretrained_backbone(name)


def _options(command: TrainImage, backbone: BackboneOptions | None) -> ImageTrainOptions:
    preset = with_network(PRESETS[command.preset], backbone, command.size)
    return replace(
        preset,
        steps=preset.steps if command.steps is None else command.steps,
        batch=preset.batch if command.batch is None else command.batch,
        learning_rate=preset.learning_rate if command.learning_rate is None else command.learning_rate,
        held_out=command.held_out,
        measure_every=command.measure_every,
        precision=command.precision,
        seed=command.seed,
    )


def _say_what_is_trained(console: Console, training: ImageTraining, source: PictureSource) -> None:
    weights = sum(p.numel() for p in training.network.parameters())
    hands = "pictures rendered on the fly" if source.count is None else f"{source.count:,} hands"
    together = "" if training.ranks.n == 1 else f" and {training.ranks.n} processes"
    console.print(
        f"a network of {weights / 1e6:.1f} million weights on {training.device.type}{together}, {hands}, "
        f"{training.options.held_out} of them held out."
    )


def _train(training: ImageTraining, checkpoint: Path, workers: int, log: TextIO, console: Console) -> ImageRegressor:
    first, started, steps = training.step, time.monotonic(), training.options.steps
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} pictures/s"),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TextColumn("held out {task.fields[pa]:.1f} mm"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not sys.stderr.isatty()) as bar:
        nan = float("nan")
        task = bar.add_task("training", total=steps, completed=first, rate=0.0, loss=nan, pa=nan)

        def show(at: ImageProgress) -> None:
            seconds = time.monotonic() - started
            rate = (at.step - first) * training.options.batch / seconds
            bar.update(task, completed=at.step, rate=rate, loss=at.loss)
            if at.measured is not None:
                bar.update(task, pa=at.measured.pa_mm)
            if at.step % _LOG_EVERY == 0 or at.measured is not None:
                line: dict[str, object] = {"step": at.step, "loss": round(at.loss, 5)}
                line |= {name: round(value, 5) for name, value in at.parts.items()}
                line |= {"pictures_per_s": round(rate, 1), "seconds": round(seconds, 1)}
                if at.measured is not None:
                    line |= {"pa_mm": round(at.measured.pa_mm, 3), "root_mm": round(at.measured.root_mm, 3)}
                print(json.dumps(line), file=log, flush=True)

        return training.run(checkpoint, show, workers)
