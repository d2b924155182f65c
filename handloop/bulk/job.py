"""The job behind `handloop fit --engine ray`: plan shards, fit those that are missing, add up what they say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handloop._version import __version__
from handloop.api import hand_lengths, hand_models
from handloop.bulk.plan import Plan, Shard, make_plan
from handloop.bulk.pool import require_ray, run_shards
from handloop.bulk.shard_summary import RunSummary, ShardSummary, summarise
from handloop.bulk.worker import Outcome, WorkOrder, attempts_folder
from handloop.core.errors import InputError
from handloop.core.results import save_npz, write_text
from handloop.core.words import counted
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import RECIPES, Recipe
from handloop.formats.options import ReadOptions
from handloop.formats.read import read_files
from handloop.formats.result_shards import UNFINISHED, ShardIndex, read_shards
from handloop.job import choose_camera, clear_earlier, read_options, with_options
from handloop.job_messages import model_notes

if TYPE_CHECKING:
    from handloop.commands import FitCommand

MERGED_HANDS = 200_000
"""Hands up to which the shards are also joined into one results.npz: that takes a gigabyte of memory and of disk."""

_SHOWN = 20
"""Problems shown on the screen."""

_WRITTEN = (".npz", ".parquet", ".json")
"""Kinds of files that a run writes beside each other."""

_KEY = re.compile("[0-9a-f]{20}")
"""How shards are named."""

_SECONDS_BETWEEN_LINES = 30.0
"""How often a log file, which is no terminal, is told how far the run is."""


def run_bulk(command: FitCommand) -> int:
    """Fit in shards; returns the exit status."""
    console = Console(stderr=True, highlight=False)
    _check(command)
    recipe = with_options(RECIPES[command.recipe], command)
    mano = command.mano or os.environ.get("HANDLOOP_MANO") or None
    models = hand_models(mano, torch.device("cpu"), torch.float64, command.layout, command.prior)
    options = read_options(command)
    # Options that no hand could be fitted with are refused here, not by every worker.
    choose_camera(command, read_files((), options))
    if command.hand_length is not None:
        hand_lengths(command.hand_length, 1)
    with console.status("looking at the files"):
        settings = _settings(command, recipe, models, options)
        plan = make_plan(command.inputs, options, settings, command.shard_hands)
    if not plan.shards:
        raise InputError("no keypoint file was found: " + "; ".join(f"{p.path}: {p.message}" for p in plan.problems))
    shards = command.out / "shards"
    try:
        attempts_folder(shards).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {shards} cannot be made ({error.strerror}); name another.") from error
    clear_earlier(command.out)
    index = ShardIndex(plan.run(), command.shards, tuple(shard.key for shard in plan.shards))
    index.save(shards)
    _clear_traces(shards)
    missing = [shard for shard in plan.shards if ShardSummary.load(shards, shard.key) is None]
    console.print(
        f"{counted(plan.files, 'file')} in {counted(len(plan.shards), 'shard')}, "
        f"{len(plan.shards) - len(missing)} done before; {counted(plan.skipped, 'file')} of other kinds skipped."
    )
    for note in (*plan.notes, *model_notes(models)):
        console.print(f"note: {note}", style="yellow", markup=False)
    failed: dict[str, str] = {}
    started = time.monotonic()
    if missing:
        from handloop.compiler import ensure_compiled

        ensure_compiled()
        order = WorkOrder(
            command=command,
            recipe=recipe,
            mano=mano,
            digest=models.provenance()["hand_model_digest"],
            version=__version__,
            shards=str(shards.resolve()),
            folder=os.getcwd(),
            run=index.run,
            kind=command.shards,
            probe=missing[0].files[0],
        )
        try:
            for outcome in _with_progress(missing, order, command, console):
                if outcome.error:
                    failed[outcome.key] = outcome.error
        except KeyboardInterrupt:
            left = sum(ShardSummary.load(shards, shard.key) is None for shard in plan.shards)
            console.print(
                f"interrupted; {len(plan.shards) - left} of {len(plan.shards)} shards are done and kept, the same "
                "command goes on."
            )
            return 130
    return _finish(command, plan, index, failed, time.monotonic() - started, console)


def _check(command: FitCommand) -> None:
    """Refuse what a bulk run has no place for.

    Raises:
        InputError: no inputs, such an option, or no Ray.
    """
    require_ray()
    if not command.inputs:
        raise InputError("no input was given; name keypoint files, folders, or a text file with one path per line.")
    if command.start is not None or command.save:
        raise InputError(
            f"--engine ray takes no --{'save' if command.save else 'start'}; fit the hands that need it without."
        )
    if command.device not in ("auto", "cpu"):
        raise InputError(f"--engine ray fits on CPUs, --device says {command.device}; leave it out.")
    if command.shard_hands < 1 or (command.workers is not None and command.workers < 1):
        raise InputError("--shard-hands and --workers are numbers from 1 on.")


def _settings(command: FitCommand, recipe: Recipe, models: HandModels, options: ReadOptions) -> str:
    """Hash of all that results depend on besides the inputs."""
    try:
        camera = b"" if command.camera is None else command.camera.read_bytes()
    except OSError as error:
        raise InputError(f"the camera file {command.camera} cannot be read ({error.strerror}).") from error
    said = {
        "version": __version__,
        "recipe": asdict(recipe),
        "read": asdict(options),
        "camera": [command.focal, command.fov, command.hand_length],
        "kind": command.shards,
        **models.provenance(),
    }
    digest = hashlib.sha256(json.dumps(said, default=str, sort_keys=True).encode() + camera)
    prior = models.right.pose_prior
    layout = models.layout
    for tensor in (layout.offsets, layout.mean_betas, prior.means, prior.precision_factors, prior.offsets):
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


def _clear_traces(shards: Path) -> None:
    """Remove half-written files and counted tries of a run that ended early."""
    for path in shards.glob(UNFINISHED):
        path.unlink(missing_ok=True)
    for path in attempts_folder(shards).iterdir():
        path.unlink(missing_ok=True)


def _with_progress(missing: list[Shard], order: WorkOrder, command: FitCommand, console: Console) -> Iterator[Outcome]:
    """Fit shards under a progress bar, or with a line in a log now and then."""
    terminal = sys.stderr.isatty()
    total = sum(shard.hands for shard in missing)
    hands = {shard.key: shard.hands for shard in missing}
    started = said = time.monotonic()
    fitted = passed = count = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards, {task.fields[rate]:.0f} hands/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not terminal) as progress:
        task = progress.add_task("fitting", total=len(missing), rate=0.0)
        for outcome in run_shards(missing, order, command.workers, command.address):
            summary = None if outcome.error else ShardSummary.load(Path(order.shards), outcome.key)
            fitted += 0 if summary is None else summary.hands
            passed += hands[outcome.key]
            count += 1
            seconds = max(time.monotonic() - started, 1e-9)
            progress.update(task, advance=1, rate=fitted / seconds)
            if not terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                left = seconds * (total - passed) / max(passed, 1)
                console.print(
                    f"{count} of {len(missing)} shards, {fitted / seconds:.0f} hands/s, about {left / 60:.0f} minutes "
                    "left"
                )
            yield outcome


def _finish(
    command: FitCommand, plan: Plan, index: ShardIndex, failed: Mapping[str, str], seconds: float, console: Console
) -> int:
    """Write summary.json and perhaps results.npz, and say what came out; returns the exit status."""
    shards = command.out / "shards"
    loaded = (ShardSummary.load(shards, key) for key in index.keys)
    run = summarise(summary for summary in loaded if summary is not None)
    lacking = [
        {"shard": shard.label(), "key": shard.key, "error": failed.get(shard.key, "it was not written.")}
        for shard in plan.shards
        if ShardSummary.load(shards, shard.key) is None
    ]
    missing = [{"path": problem.path, "message": problem.message} for problem in plan.problems]
    summary = {
        **run.entries,
        "seconds": round(seconds, 3),
        "shards": len(plan.shards),
        "shards_failed": lacking,
        "skipped_count": plan.skipped,
        "inputs_missing": missing,
    }
    write_text(command.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    if not lacking:
        _remove_others(shards, index, console)
        if command.merge == "yes" or (command.merge == "auto" and index.kind == "npz" and run.hands <= MERGED_HANDS):
            with console.status("joining the shards"):
                save_npz(command.out / "results.npz", read_shards(shards))
    _say_what_came_out(run, [*missing, *lacking], command.out, seconds, console)
    return 1 if lacking or missing or run.problems_count or run.fitted < run.hands else 0


def _remove_others(shards: Path, index: ShardIndex, console: Console) -> None:
    """Remove shards of other inputs or settings, so that all files of the folder are the results of one run."""
    shutil.rmtree(attempts_folder(shards), ignore_errors=True)
    ours = {*index.keys, "run"}
    # What bears no key of a shard is somebody else's.
    others = [
        path
        for path in shards.iterdir()
        if path.suffix in _WRITTEN and path.stem not in ours and _KEY.fullmatch(path.stem) is not None
    ]
    for path in others:
        path.unlink(missing_ok=True)
    count = sum(path.suffix != ".json" for path in others)
    if count:
        console.print(f"removed: {counted(count, 'shard')} of earlier inputs or settings.")


def _say_what_came_out(
    run: RunSummary, named: Sequence[Mapping[str, str]], out: Path, seconds: float, console: Console
) -> None:
    for note in run.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    wrong = [f"{item.get('path') or item['shard']}: {item.get('message') or item['error']}" for item in named]
    wrong += [f"{path}: {message}" for path, message in run.problems]
    for line in wrong[:_SHOWN]:
        console.print(f"problem: {line}", style="red", markup=False)
    if len(wrong) > _SHOWN:
        more = len(named) + run.problems_count - _SHOWN
        console.print(
            f"{more} more problems are in {out / 'summary.json'} and in shards/*.json.", style="red", markup=False
        )
    console.print(f"{run.fitted:,} of {counted(run.hands, 'hand')} fitted; this run took {seconds:.1f} s.")
    if run.doubtful:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in list(run.doubts.items())[:3])
        style = "red" if run.doubtful > run.fitted / 2 else "yellow"
        verb = "is" if run.doubtful == 1 else "are"
        console.print(f"{run.doubtful:,} of them {verb} doubtful: {reasons}.", style=style, markup=False)
    console.print(f"results in {out}", markup=False)
