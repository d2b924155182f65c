"""The job behind `handloop train lifter`: train with progress, in a way that survives an interruption."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handloop.cli import checkpoint_of
from handloop.core.errors import InputError
from handloop.hand.load import load_hand
from handloop.loop import train_lifter
from handloop.regressors.network import NetworkSize

if TYPE_CHECKING:
    from handloop.cli import TrainLifter


def run_train(command: TrainLifter) -> int:
    """Train, calibrate, write; returns the exit status."""
    if command.out.suffix != ".safetensors":
        raise InputError(f"--out is {command.out}, expected a name that ends in .safetensors.")
    if command.width < 8 or command.blocks < 1:
        raise InputError(
            f"a network {command.width} wide with {command.blocks} blocks was asked for, expected 8 and 1."
        )
    console = Console(stderr=True, highlight=False)
    hand = load_hand(command.mano).right
    size = NetworkSize(command.width, command.blocks)
    options = train_lifter.TrainOptions(steps=command.steps, batch=command.batch, seed=command.seed, size=size)
    training = train_lifter.LifterTraining(hand, options)
    checkpoint = checkpoint_of(command.out)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    if command.resume and checkpoint.is_file():
        training.resume(checkpoint)
        console.print(f"going on from step {training.step} of {command.steps}.")
    started, first = time.monotonic(), training.step
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} hands/s"),
        TextColumn("{task.fields[error]:.1f} mm"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not sys.stderr.isatty()) as bar:
        task = bar.add_task("training", total=command.steps, completed=first, rate=0.0, error=float("nan"))

        def show(at: train_lifter.Progress) -> None:
            rate = (at.step - first) * command.batch / (time.monotonic() - started)
            bar.update(task, completed=at.step, rate=rate, error=at.error_mm)

        lifter = training.run(checkpoint, show)
    lifter.save(command.out, half=command.half)
    checkpoint.unlink(missing_ok=True)
    minutes = (time.monotonic() - started) / 60
    console.print(
        f"trained for {hand.name} in {minutes:.1f} min; written to {command.out}. "
        f"Use it with: handloop predict KEYPOINTS --weights {command.out} --out OUT",
        markup=False,
    )
    return 0
