"""The jobs behind `handloop train`: train with progress, in a way that survives an interruption."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
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
from handloop.formats import ReadOptions, ReadResult, read_camera, read_keypoints
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.loop import train_lifter
from handloop.loop.config import LoopConfig, read_config
from handloop.loop.hand_data import HandData
from handloop.loop.ranks import Ranks, refuse_several
from handloop.loop.run_report import write_run_report
from handloop.loop.train import LoopTraining
from handloop.loop.train import Progress as LoopProgress
from handloop.priors.biomechanical_limits import BiomechanicalLimits
from handloop.priors.prior_file import load_prior
from handloop.regressors.lifter import Lifter
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
    pair, lifter = load_hand(command.mano), _lifter_of(command)
    with console.status("reading keypoints"):
        read = read_keypoints(command.inputs, ReadOptions(side=command.hand))
    for problem in read.problems:
        console.print(f"problem: {problem.path}: {problem.message}", style="red", markup=False)
    camera = _camera_of(command, read, console)
    data = HandData.of(read.keypoints, camera, read.truth_joints, config.held_out)
    prior = None if command.prior is None else load_prior(command.prior)
    limits = None if command.limits is None else BiomechanicalLimits.load(command.limits)
    if ranks.local_rank == 0:
        ensure_compiled()
    ranks.wait()
    layout = _shared_layout(command, data, pair, console, ranks)
    training = LoopTraining(command.out, data, pair, config, lifter, layout, prior, limits, ranks=ranks, device=device)
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
    console.print(
        f"done in {minutes:.1f} min; {out / 'report.html'} shows how it went. Use what was learned with:\n"
        f"  handloop predict KEYPOINTS --weights {out}/lifter.safetensors --layout {out}/layout.json --out OUT\n"
        f"  handloop fit KEYPOINTS --prior {out}/prior.npz --layout {out}/layout.json --out OUT",
        markup=False,
        soft_wrap=True,
    )
    return 1 if read.problems else 0


def _train_loop(training: LoopTraining, console: Console) -> float:
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


def _lifter_of(command: TrainLoop) -> Lifter | None:
    if command.fresh:
        if command.weights is not None:
            raise InputError("--fresh and --weights both say what network to start with; give one of them.")
        return None
    return pick_lifter(command.weights)


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
