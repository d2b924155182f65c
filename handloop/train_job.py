"""The jobs behind `handloop train`: train with progress, in a way that survives an interruption."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handloop.api import pick_device, pick_lifter
from handloop.compiler import ensure_compiled
from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.layout import KeypointLayout
from handloop.fitting.learn_layout_2d import learn_from_keypoints
from handloop.formats import Problem, ReadOptions, ReadResult, read_camera, read_keypoints
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.image_loop_job import open_inputs
from handloop.loop import train_lifter
from handloop.loop.config import LoopConfig, read_config
from handloop.loop.hand_data import HandData
from handloop.loop.image_loop import ImageLoop, data_of
from handloop.loop.ranks import Ranks, refuse_several
from handloop.loop.run import Progress as LoopProgress
from handloop.loop.run_report import write_run_report
from handloop.loop.train import LoopTraining
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.mixture import PosePriorModel
from handloop.priors.prior_file import load_prior
from handloop.regressors.image import ImageRegressor
from handloop.regressors.network import NetworkSize
from handloop.train_commands import checkpoint_of

if TYPE_CHECKING:
    from handloop.train_commands import TrainLifter, TrainLoop

_LAYOUT_HANDS = 1000
"""A layout is learned from, at most, as `handloop layout` does."""


def run_train_lifter(command: TrainLifter) -> int:
    """Train, calibrate, write; returns the exit status."""
    refuse_several("handloop train lifter")
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
    checkpoint = checkpoint_of(command)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    if command.resume and checkpoint.is_file():
        training.resume(checkpoint)
        console.print(f"going on from step {training.step} of {command.steps}.")
    started, first = time.monotonic(), training.step
    with _bar(console) as bar:
        task = bar.add_task("training", total=command.steps, completed=first, rate=0.0, figure="")

        def show(at: train_lifter.Progress) -> None:
            rate = (at.step - first) * command.batch / (time.monotonic() - started)
            bar.update(task, completed=at.step, rate=rate, figure=f"{at.error_mm:.1f} mm")

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


def run_train_loop(command: TrainLoop) -> int:
    """Read, train, write the run's files and its page; returns the exit status. One process of those of torchrun."""
    config = _config_of(command)
    if checkpoint_of(command).is_file() and not command.resume:
        raise InputError(f"{command.out} holds a run already; go on with --resume, or name another folder.")
    if not command.inputs:
        raise InputError("no input was given; name keypoint files or folders: handloop train loop hands/ --out run")
    device = pick_device(command.device)
    ranks = Ranks.from_environment()
    if device.type == "cuda" and ranks.n > 1:
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
    # One of the processes speaks for all.
    console = Console(stderr=True, highlight=False, quiet=not ranks.first)
    pair = load_hand(command.mano)
    training: LoopTraining | ImageLoop
    if config.image is None:
        training, problems = _on_keypoints(command, config, pair, console, ranks, device)
    else:
        training, problems = _on_pictures(command, config, pair, console, ranks, device)
    data = training.data
    together = "" if ranks.n == 1 else f" on {ranks.n} processes"
    console.print(
        f"{len(data.train)} hands to learn from, {len(data.held_out)} held out; step {training.step} of {config.steps}"
        f"{together}."
    )
    try:
        minutes = _train_loop(training, console)
        if ranks.first:
            with console.status("writing the run's page"):
                write_run_report(training)
    finally:
        training.close()
    ranks.close()
    out = command.out
    lifter = f"KEYPOINTS --weights {out}/lifter.safetensors --layout {out}/layout.json"
    use = lifter if config.image is None else f"PICTURES --weights {out}/weights.safetensors"
    console.print(
        f"done in {minutes:.1f} min; {out / 'report.html'} shows how it went. Use what was learned with:\n"
        f"  handloop predict {use} --out OUT\n"
        f"  handloop fit KEYPOINTS --prior {out}/prior.npz --layout {out}/layout.json --out OUT",
        markup=False,
        soft_wrap=True,
    )
    return 1 if problems else 0


def _on_keypoints(
    command: TrainLoop, config: LoopConfig, pair: HandPair, console: Console, ranks: Ranks, device: torch.device
) -> tuple[LoopTraining, int]:
    """The run, and how many files could not be used."""
    if command.images is not None or command.split is not None:
        raise InputError("--images and --split are for pictures; give a configuration for them: --config image-loop")
    weights = _start_of(command)
    lifter = None if command.fresh else pick_lifter(weights)
    with console.status("reading keypoints"):
        read = read_keypoints(command.inputs, ReadOptions(side=command.hand))
    _say(read.problems, console)
    data = HandData.of(read.keypoints, _camera_of(command, read, console), read.truth_joints, config.held_out)
    learned = _learned(command, data, pair, console, ranks)
    training = LoopTraining(command.out, data, pair, config, lifter, *learned, ranks=ranks, device=device)
    return training, len(read.problems)


def _on_pictures(
    command: TrainLoop, config: LoopConfig, pair: HandPair, console: Console, ranks: Ranks, device: torch.device
) -> tuple[ImageLoop, int]:
    """The run, and how many files could not be used."""
    if ranks.n > 1:
        raise InputError(f"{ranks.n} processes were started; a run on pictures is one, start it without torchrun.")
    if not 0 <= command.workers <= 256:
        raise InputError(f"{command.workers} workers were asked for, expected 0 to 256.")
    weights = _start_of(command)
    start = None if weights is None else ImageRegressor.load(weights, pair)
    with console.status("reading labels"):
        source, problems = open_inputs(command, pair, lambda read: _camera_of(command, read, console))
    _say(problems, console)
    learned = _learned(command, data_of(source, config.held_out), pair, console, ranks)
    training = ImageLoop(command.out, source, pair, config, start, *learned, device=device, workers=command.workers)
    return training, len(problems)


def _say(problems: Sequence[Problem], console: Console) -> None:
    for problem in problems:
        console.print(f"problem: {problem.path}: {problem.message}", style="red", markup=False)


def _learned(
    command: TrainLoop, data: HandData, pair: HandPair, console: Console, ranks: Ranks
) -> tuple[KeypointLayout | None, PosePriorModel | None, BiomechanicalLimits | None]:
    """What was learned before: layout, prior, limits."""
    prior = None if command.prior is None else load_prior(command.prior)
    limits = None if command.limits is None else BiomechanicalLimits.load(command.limits)
    if ranks.local_rank == 0:
        ensure_compiled()
    ranks.wait()
    return _shared_layout(command, data, pair, console, ranks), prior, limits


def _train_loop(training: LoopTraining | ImageLoop, console: Console) -> float:
    """To the end, with a bar; returns the minutes it took."""
    config, started, first = training.config, time.monotonic(), training.step
    per_step = config.batch + config.views + config.synthetic
    with _bar(console) as bar:
        task = bar.add_task("training", total=config.steps, completed=first, rate=0.0, figure="")

        def show(at: LoopProgress) -> None:
            rate = (at.step - first) * per_step / (time.monotonic() - started)
            bar.update(task, completed=at.step, rate=rate, figure=f"loss {at.loss:.2f}")

        training.run(show)
    return (time.monotonic() - started) / 60


def _config_of(command: TrainLoop) -> LoopConfig:
    config = read_config(command.config)
    given = {name: getattr(command, name) for name in ("mode", "steps", "batch", "seed")}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _camera_of(command: TrainLoop, read: ReadResult, console: Console) -> Camera:
    n = len(read.keypoints)
    if n == 0:
        raise InputError(f"{command.inputs[0]} holds no hand that can be read.")
    if command.camera is not None:
        return read_camera(command.camera).select(torch.zeros(n, dtype=torch.int64))
    camera = read.camera
    if camera is None:
        camera = Camera.assumed(read.keypoints.image_size, read.keypoints.box())
    unknown = int((~camera.is_known()).sum())
    if unknown:
        console.print(
            f"note: {unknown} of {n} hands have no camera; a focal length is assumed, and depths are not metric.",
            style="yellow",
        )
    return camera


def _shared_layout(
    command: TrainLoop, data: HandData, pair: HandPair, console: Console, ranks: Ranks
) -> KeypointLayout | None:
    """Rank 0's, which alone learns one and has the run's files."""
    found = _layout_of(command, data, pair, console) if ranks.first else None
    state = ranks.from_first({} if found is None else vars(found))
    return KeypointLayout(**state) if state else None


def _layout_of(command: TrainLoop, data: HandData, pair: HandPair, console: Console) -> KeypointLayout | None:
    if command.layout is not None:
        return KeypointLayout.load(command.layout)
    saved = command.out / "layout.json"
    if not command.learn_layout:
        return None
    if checkpoint_of(command).is_file():
        return KeypointLayout.load(saved)
    with console.status("learning the layout"):
        few = torch.linspace(0, len(data.train) - 1, min(len(data.train), _LAYOUT_HANDS)).round().long()
        rows = data.train[few]
        found = learn_from_keypoints(
            pair.right, data.keypoints.select(rows), data.camera.select(rows), command.out.name
        )
    if found.refused:
        raise InputError(f"no layout can be learned from these keypoints: {found.refused}")
    return found.layout


def _start_of(command: TrainLoop) -> Path | None:
    """The weights to start with; None where none are named."""
    if command.fresh and command.weights is not None:
        raise InputError("--fresh and --weights both say what network to start with; give one of them.")
    return command.weights


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} hands/s"),
        TextColumn("{task.fields[figure]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=not sys.stderr.isatty())
