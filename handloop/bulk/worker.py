"""One worker of a bulk run: a process that keeps the hand model and fits one shard after the other."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from handloop._version import __version__
from handloop.api import check_camera, hand_lengths, hand_models, lifter_proposal
from handloop.bulk.plan import Shard, ShardFile
from handloop.bulk.shard_summary import ShardSummary
from handloop.core.camera import Camera
from handloop.core.errors import HandloopError, InputError
from handloop.core.results import FitResult, merge_arrays
from handloop.fitting.fit import fit_keypoints
from handloop.fitting.problem import HandModels
from handloop.fitting.recipes import Recipe
from handloop.formats import ReadResult
from handloop.formats.read import read_files
from handloop.formats.result_shards import ShardIndex, ShardKind, write_shard
from handloop.job import PART, choose_camera, read_options

if TYPE_CHECKING:
    from handloop.commands import KeypointCommand

TRIES = 3
"""Times that a shard is begun before it is given up: a machine may fail twice under it, but hardly a third time."""

_ATTEMPTS = "attempts"


class NodeError(HandloopError):
    """A machine cannot take part: it lacks files, or has another installation."""


@dataclass(frozen=True)
class WorkOrder:
    """What the workers of a run have in common."""

    command: KeypointCommand
    recipe: Recipe
    mano: str | None
    """MANO file or folder, also where the environment of the driver named it."""
    digest: str
    """Digests of the hand models that the driver loaded."""
    version: str
    """The driver's handloop."""
    shards: str
    """Folder of the shards, absolute."""
    folder: str
    """Folder that the paths of the inputs are relative to."""
    run: str
    """The run's hash, which the index in `shards` must show."""
    kind: ShardKind
    probe: ShardFile
    """One of the inputs, which every machine must see as it is."""


@dataclass(frozen=True)
class Outcome:
    """What became of a shard that a worker was given."""

    key: str
    error: str
    """"" where its results are written; else why not."""
    final: bool
    """No further try makes sense."""
    stop: bool
    """The machine or the installation is at fault, and would fail any shard."""


def attempts_folder(shards: Path) -> Path:
    """Where it is counted how often each shard was begun, which outlives the workers."""
    return shards / _ATTEMPTS


class ShardWorker:
    """Fits shards; built once in each worker process."""

    def __init__(self, order: WorkOrder) -> None:
        """Only keeps the order: what goes wrong in setting up is told as the outcome of the first shard."""
        self._order = order
        self._models: HandModels | None = None
        self._last: tuple[tuple[ShardFile, ...], ReadResult] | None = None

    def __call__(self, row: dict[str, str]) -> dict[str, str | bool]:
        """Fit one shard; `row` is how Ray hands it over, and its outcome goes back in the same way."""
        outcome = self.fit(Shard.from_json(row["shard"]))
        return {"key": outcome.key, "error": outcome.error, "final": outcome.final, "stop": outcome.stop}

    def fit(self, shard: Shard) -> Outcome:
        """Fit a shard and write its results and summary; never raises."""
        try:
            if self._models is None:
                self._models = _set_up(self._order)
        except Exception as error:  # Whatever it is, it is the driver's to tell.
            return Outcome(shard.key, _sentence(error), True, True)
        count = attempts_folder(Path(self._order.shards)) / shard.key
        begun = _count_up(count)
        if begun > TRIES:
            return Outcome(
                shard.key,
                f"its worker died or failed {TRIES} times, perhaps for want of memory: a worker reads whole files.",
                True,
                False,
            )
        try:
            self._fit(shard, self._models)
        except Exception as error:  # A shard that fails must not end the others.
            # What is wrong with the inputs or options stays wrong.
            return Outcome(shard.key, _sentence(error), begun >= TRIES or isinstance(error, InputError), False)
        count.unlink(missing_ok=True)
        return Outcome(shard.key, "", True, False)

    def _fit(self, shard: Shard, models: HandModels) -> None:
        order, started, used = self._order, time.monotonic(), time.process_time()
        changed = [file.path for file in shard.files if not file.is_there()]
        if changed:
            raise NodeError(
                f"{changed[0]} is not as it was when the run began, or out of reach ({len(changed)} of "
                f"{len(shard.files)} files); run the same command again."
            )
        read = self._read(shard)
        camera, notes = choose_camera(order.command, read)
        check_camera(camera)
        n = len(read.keypoints)
        rows = torch.arange(shard.part * n // shard.parts, (shard.part + 1) * n // shard.parts)
        if shard.part:
            # What concerns the whole file is told by its first part.
            read = replace(read, problems=(), files_read=0, files_without_hands=0, hands_empty=0)
        result = _fit_rows(order, models, read, camera, rows)
        file = Path(order.shards) / f"{shard.key}.{order.kind}"
        write_shard(file, result.arrays(), order.kind)
        told = [] if shard.part else [*read.notes, *notes]
        summary = ShardSummary.of(shard.key, file, shard.label(), result, read, told)
        summary = replace(
            summary,
            seconds=round(time.monotonic() - started, 3),
            cpu_seconds=round(time.process_time() - used, 3),
            node=platform.node(),
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        )
        summary.save(Path(order.shards))

    def _read(self, shard: Shard) -> ReadResult:
        """The hands of all files of the shard; a file that is cut into parts is kept for the next one."""
        if self._last is not None and self._last[0] == shard.files:
            return self._last[1]
        self._last = None  # Two large files at a time would be one too many.
        read = read_files([file.found() for file in shard.files], read_options(self._order.command))
        if shard.parts > 1:
            self._last = (shard.files, read)
        return read


def _fit_rows(order: WorkOrder, models: HandModels, read: ReadResult, camera: Camera, rows: torch.Tensor) -> FitResult:
    arrays = []
    for start in range(0, max(len(rows), 1), PART):
        at = rows[start : start + PART]
        points, view = read.keypoints.select(at), camera.select(at)
        length = None if order.command.hand_length is None else hand_lengths(order.command.hand_length, len(at))
        proposal = lifter_proposal(models, order.recipe, points, view)
        arrays.append(fit_keypoints(models, points, view, order.recipe, length, proposal=proposal).arrays())
    return FitResult.from_arrays(merge_arrays(arrays), models)


def _set_up(order: WorkOrder) -> HandModels:
    """Compile once per machine, load the models, and check that this machine sees what the driver sees.

    Raises:
        NodeError: it does not.
    """
    node = platform.node()
    torch.set_num_threads(1)
    if __version__ != order.version:
        raise NodeError(f"{node} has handloop {__version__}, the driver {order.version}; install the same on both.")
    try:
        os.chdir(order.folder)
        seen = ShardIndex.load(Path(order.shards)).run
    except (OSError, HandloopError) as error:
        raise NodeError(
            f"{node} does not see {order.shards} (started in {order.folder}); results and inputs must lie in a file "
            "system that all machines share."
        ) from error
    if seen != order.run:
        raise NodeError(f"{node} sees another run in {order.shards}; let only one run at a time write there.")
    if not order.probe.is_there():
        raise NodeError(
            f"{node} does not see {order.probe.path} as the driver does, with its size and time of change; share the "
            "inputs' file system, or copy them with their times (rsync -a)."
        )
    from handloop.compiler import ensure_compiled

    with open(Path(tempfile.gettempdir()) / f"handloop-compiling-{os.getuid()}", "w", encoding="utf-8") as lock:
        # All workers of a machine start at once; one compiles, the others wait and load what it made.
        fcntl.flock(lock, fcntl.LOCK_EX)
        ensure_compiled()
    models = hand_models(order.mano, torch.device("cpu"), torch.float64, order.command.layout, order.command.prior)
    digest = models.provenance()["hand_model_digest"]
    if digest != order.digest:
        raise NodeError(f"{node} reads another hand model from {order.mano} ({digest}) than the driver.")
    return models


def _count_up(path: Path) -> int:
    """How often a shard was begun, this time included: a line each with machine and process."""
    with open(path, "a+", encoding="utf-8") as file:
        file.write(f"{platform.node()} {os.getpid()}\n")
        file.seek(0)
        return len(file.read().splitlines())


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, HandloopError) else f"{type(error).__name__}: {error}"
