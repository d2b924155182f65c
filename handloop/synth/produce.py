"""Pictures onto disk, in parts that several processes render and that a later run keeps."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from handloop._version import __version__
from handloop.core.errors import HandloopError, InputError
from handloop.core.results import write_text
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.synth.backgrounds import find_backgrounds
from handloop.synth.freihand import FreihandLayout
from handloop.synth.picture import PictureOptions
from handloop.synth.render import Renderer
from handloop.synth.shards import ShardedLayout

PART = 256
"""Pictures between two writes: seconds of work at most are lost by an interruption, and a part's file has 8 MB."""

LayoutName = Literal["sharded", "freihand"]
LAYOUTS = ("sharded", "freihand")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Order:
    """What to produce."""

    folder: Path
    """For the pictures; made if missing."""
    count: int
    """How many."""
    options: PictureOptions
    """Of which kind."""
    mano: str | None = None
    """MANO file or folder; None for what HANDLOOP_MANO names, or the embedded hand."""
    layout: LayoutName = "sharded"
    """How the files are arranged."""
    workers: int = 2
    """Processes; 1 renders in this one."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 99_999_999:
            raise InputError(f"{self.count} pictures were asked for, expected 1 to 99,999,999.")
        if self.layout not in LAYOUTS:
            raise InputError(f"the layout {self.layout!r} is unknown, expected one of {', '.join(LAYOUTS)}.")
        if not 1 <= self.workers <= 1024:
            raise InputError(f"{self.workers} workers were asked for, expected 1 to 1024.")
        if self.layout == "freihand" and self.options.hand != "right":
            raise InputError("FreiHAND has right hands only; ask for right hands with its layout.")


@dataclass(frozen=True)
class Produced:
    """What a run did."""

    rendered: int
    """Pictures rendered now."""
    kept: int
    """Pictures of an earlier run."""
    seconds: float
    """Duration."""


def produce(order: Order) -> Produced:
    """Write the pictures that the folder lacks. A run that was killed is completed by the same call.

    With `workers` above 1, call it from a script guarded by `if __name__ == "__main__":` (processes are spawned).

    Raises:
        InputError: the folder holds other pictures, or more than asked for.
        HandloopError: a process died.
    """
    started = time.monotonic()
    pair = load_hand(order.mano)
    try:
        order.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {order.folder} cannot be made ({error.strerror}); name another.") from error
    _check_settings(order, pair)
    layout = _layout(order, pair)
    parts = [range(first, min(first + PART, order.count)) for first in range(0, order.count, PART)]
    names = {layout.path(part).name for part in parts}
    existing = layout.parts()
    if existing and existing[-1][1] >= order.count:
        raise InputError(
            f"{order.folder} holds {existing[-1][1] + 1:,} pictures already, more than the {order.count:,} asked for; "
            "ask for as many or name another folder."
        )
    for path, _ in existing:
        # The last part of an earlier, shorter run: its pictures come again in a longer part.
        if path.name not in names:
            path.unlink()
    missing = [part for part in parts if not layout.path(part).is_file()]
    if order.workers == 1 or len(missing) < 2:
        renderer = Renderer(pair, order.options) if missing else None
        for part in missing:
            assert renderer is not None
            layout.write(map(renderer.render, part), part)
    else:
        _in_processes(order, missing)
    layout.finish()
    rendered = sum(map(len, missing))
    return Produced(rendered, order.count - rendered, time.monotonic() - started)


def _layout(order: Order, pair: HandPair) -> ShardedLayout | FreihandLayout:
    if order.layout == "freihand":
        return FreihandLayout(order.folder, pair.right)
    return ShardedLayout(order.folder, pair)


def _check_settings(order: Order, pair: HandPair) -> None:
    """Write what decides the pictures into synth.json, or compare with what an earlier run wrote."""
    options = order.options
    backgrounds = ""
    if options.backgrounds is not None:
        names = [str(path.relative_to(options.backgrounds)) for path in find_backgrounds(options.backgrounds)]
        backgrounds = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    settings = {
        "format": "handloop synth",
        "version": __version__,
        "layout": order.layout,
        "part": PART,
        "seed": options.seed,
        "size": options.size,
        "hand": options.hand,
        "occluders": options.occluders,
        "forearm_in_mask": options.forearm_in_mask,
        "backgrounds": backgrounds,
        "hand_models": [pair.right.digest, pair.left.digest],
        "tip_set": pair.right.tip_set,
    }
    path = order.folder / "synth.json"
    if not path.exists():
        write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged; remove the folder or name another.") from error
    differing = [key for key, value in settings.items() if not isinstance(earlier, dict) or earlier.get(key) != value]
    if differing:
        raise InputError(
            f"{order.folder} holds pictures made with other settings ({', '.join(differing)}); name another folder."
        )


def _in_processes(order: Order, missing: list[range]) -> None:
    # Spawned, not forked: a fork takes over threads and locks that libraries hold.
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(min(order.workers, len(missing)), context) as pool:
        tasks = [pool.submit(_write_part, order, part) for part in missing]
        try:
            for task in as_completed(tasks):
                task.result()
        except BrokenProcessPool as error:
            raise HandloopError(
                "a process died while it rendered, perhaps for lack of memory; what is finished is kept: "
                "give the same command again, with fewer workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside use one thread each; a matter of speed only."""
    earlier = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write_part(order: Order, part: range) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    layout, renderer = _tools(order)
    layout.write(map(renderer.render, part), part)


@lru_cache(maxsize=1)
def _tools(order: Order) -> tuple[ShardedLayout | FreihandLayout, Renderer]:
    """Made by each process once."""
    pair = load_hand(order.mano)
    return _layout(order, pair), Renderer(pair, order.options)
