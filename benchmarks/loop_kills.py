"""Is a training loop that is killed at any moment, or out of disk, resumed to the same bits?

    python -m benchmarks.loop_kills [--kills 30] [--aimed 6] [--full 6]

A tiny run (synthetic hands, small network, a checkpoint every second step, priors learned in between) is done once
undisturbed. Then it is begun again and again in processes of their own: each is killed (SIGKILL) at a random moment,
the moments spread evenly over the whole run, and resumed until it is finished; of every third, the resumed process is
killed at a random moment, too. Some more are killed inside the writing of a checkpoint or a transaction of the cache.
Weights, their mean, the optimiser's moments, random state, priors, cached fits with their origin, exported fits and the
log's metrics must be those of the undisturbed run, to the bit, and the cache must be sound after each kill.

A full disk is simulated by forbidding the process, at a random moment, to write to any file; it must stop by itself,
and go on where it was once there is space.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handloop.compiler import ensure_compiled
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.rotations import so3_exp
from handloop.hand.load import embedded_hand
from handloop.loop import cache as cache_module
from handloop.loop import run as run_module
from handloop.loop import train as train_module
from handloop.loop.cache import FitCache
from handloop.loop.config import FitOptions, LoopConfig, PriorOptions
from handloop.loop.hand_data import HandData
from handloop.loop.log import read_log
from handloop.loop.run import CHECKPOINT
from handloop.loop.train import LoopTraining
from handloop.loop.verify import verify
from handloop.regressors.network import NetworkSize
from handloop.synth.keypoints import KeypointSynth, SynthOptions

CONFIG = LoopConfig(
    steps=12,
    batch=16,
    views=8,
    synthetic=8,
    log_every=2,
    save_every=2,
    size=NetworkSize(24, 1),
    fit=FitOptions(refine_steps=2),
    prior=PriorOptions(every=2, rounds=1, hands=200, uncertain=40),
)
PLACES = ("elsewhere", "in a checkpoint", "in a cache transaction", "in the writing of a prior")
_HANDS = 72
FORK = multiprocessing.get_context("fork")
"""The kernels are compiled once; a process of the run begins within milliseconds."""


def hands() -> HandData:
    """About one pose, which the prior does not know: there is something to learn."""
    g = torch.Generator().manual_seed(0)
    synth = KeypointSynth.of(embedded_hand().right, SynthOptions(identity=1.0, distance_m=(0.4, 0.8), off_axis=0.1))
    drawn = synth.draw(_HANDS, g)
    scatter = so3_exp(torch.deg2rad(torch.tensor(4.0)) * torch.randn(_HANDS, 15, 3, generator=g))
    rotations = torch.cat([drawn.rotations[:, :1], drawn.rotations[:1, 1:] @ scatter], 1)
    points = synth.kinematics.points(rotations, drawn.betas, drawn.root).double()
    camera = Camera.from_matrix([[600.0, 0, 320], [0, 600.0, 240], [0, 0, 1]], _HANDS)
    uv = camera.project(points) + torch.randn(_HANDS, 21, 2, generator=g).double()
    names = [f"hand-{i:03d}" for i in range(_HANDS)]
    return HandData.of(Keypoints.from_arrays(uv, torch.ones(_HANDS, dtype=torch.bool), (640, 480), names), camera)


class Place:
    """Where a run is: one byte that outlives the process that writes it."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def __str__(self) -> str:
        return PLACES[self.index()]

    def index(self) -> int:
        """In `PLACES`."""
        return self._byte[0]

    def watch(self) -> None:
        """In the process of the run: keep it up to date."""
        self._byte[0] = 0
        transaction = cache_module.transaction

        @contextmanager
        def watched(*arguments: Any) -> Iterator[None]:
            self._byte[0] = 2
            with transaction(*arguments):
                yield
            self._byte[0] = 0

        def marked(inner: Callable[..., Any], index: int) -> Callable[..., Any]:
            def outer(*arguments: Any) -> Any:
                self._byte[0] = index
                result = inner(*arguments)
                self._byte[0] = 0
                return result

            return outer

        vars(cache_module)["transaction"] = watched
        vars(run_module)["save_checkpoint"] = marked(run_module.save_checkpoint, 1)
        vars(run_module)["save_prior"] = marked(run_module.save_prior, 3)


class Run:
    """The run in a folder, in a process of its own: begun, or what is left of it."""

    def __init__(self, folder: Path, data: HandData) -> None:
        self.place = Place()
        self._hears, says = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._work, args=(folder, data, says))
        self.process.start()
        says.close()

    def _work(self, folder: Path, data: HandData, says: Connection) -> None:
        try:
            self.place.watch()
            training = LoopTraining(folder, data, embedded_hand(), CONFIG)
            training.run()
            training.close()
        except BaseException as error:
            says.send(f"{type(error).__name__}: {error}".replace(str(folder), "RUN"))
            raise SystemExit(1) from None

    def ended(self) -> tuple[bool, str]:
        """Wait for the end; whether all was done, and what was said otherwise."""
        try:
            said = str(self._hears.recv())
        except EOFError:
            said = ""
        self.process.join()
        return self.process.exitcode == 0, said


def content(folder: Path) -> dict[str, str]:
    """A digest of each thing that must be the same."""
    found = {"weights": _digest((folder / "lifter.safetensors").read_bytes())}
    for path in (folder / "prior.npz", folder / "results.npz", *sorted((folder / "priors").iterdir())):
        if path.suffix == ".npz":
            found[path.name] = _digest(*_flat(dict(np.load(path, allow_pickle=False).items())))
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    for name in ("network", "mean", "optimiser", "generator", "prior_version", "held_out_params", "step"):
        found[f"checkpoint's {name}"] = _digest(*_flat(state[name]))
    with FitCache.open(folder / "fits", write=False) as cache:
        for part in cache.batches():
            values = {field.name: getattr(part, field.name) for field in fields(part)}
            found["fits"] = _digest(found.get("fits", "").encode(), *_flat(values))
    lines = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in read_log(folder)]
    found["metrics"] = _digest(json.dumps(lines).encode())
    return found


def _flat(value: Any) -> Iterator[bytes]:
    """What a nest of dictionaries, sequences, tensors and plain values holds, in order."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _flat(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        yield array.dtype.str.encode()
        yield array.astype("S").tobytes() if array.dtype.kind == "U" else np.ascontiguousarray(array).tobytes()
    elif hasattr(value, "tensors"):
        yield from _flat(value.tensors())
    else:
        yield repr(value).encode()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]


def finish(folder: Path, data: HandData) -> float:
    """Run to the end; returns its time in s.

    Raises:
        SystemExit: it could not be resumed.
    """
    begun = time.monotonic()
    done, said = Run(folder, data).ended()
    if not done:
        raise SystemExit(f"{folder} could not be resumed: {said}")
    return time.monotonic() - begun


def killed(folder: Path, data: HandData, after: float, aim: int = 0) -> str:
    """Start or resume and kill; where it was, or "" if it had finished.

    Args:
        folder, data: of the run.
        after: s.
        aim: a place to wait for from then on, an index in `PLACES`; 0 for none.
    """
    run = Run(folder, data)
    time.sleep(after)
    while aim and run.place.index() != aim and run.process.is_alive():
        time.sleep(1e-4)
    run.process.kill()
    return "" if run.ended()[0] else str(run.place)


def out_of_disk(folder: Path, data: HandData, after: float) -> str:
    """Start and let every write fail from a moment on; what the run said at last, or "" if it had finished."""
    run = Run(folder, data)
    time.sleep(after)
    with suppress(ProcessLookupError):
        resource.prlimit(run.process.pid or 0, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    done, said = run.ended()
    return "" if done else f"{run.place}: {said}"


def sound(folder: Path) -> None:
    """The cache, if there is one, holds together.

    Raises:
        SystemExit: it does not.
    """
    path = folder / "fits" / "fits-r00of01.sqlite"
    if path.is_file() and path.stat().st_size > 0:
        problems = verify(path).problems
        if problems:
            raise SystemExit(f"{path}: {problems}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what happened; the status is 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--aimed", type=int, default=6, help="kills inside a checkpoint, and inside a transaction")
    parser.add_argument("--full", type=int, default=6, help="times that the disk is full")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ensure_compiled()
    # The end of the run, which is deterministic and writes little, is not to take most of its time.
    vars(train_module)["_CALIBRATION_HANDS"] = 64
    draw, data = random.Random(options.seed), hands()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        whole = finish(base / "whole" / "run", data)
        expected = content(base / "whole" / "run")
        print(f"{CONFIG.steps} steps in {whole:.1f} s; compared: {', '.join(expected)}", flush=True)
        differ = 0
        for name, stop, n in (
            ("killed", killed, options.kills),
            ("killed in a checkpoint", partial(killed, aim=1), options.aimed),
            ("killed in a transaction", partial(killed, aim=2), options.aimed),
            ("out of disk", out_of_disk, options.full),
        ):
            where: Counter[str] = Counter()
            same = 0
            for i in range(n):
                moments = [(i + draw.random()) / n * whole, *([draw.random() * whole] if i % 3 == 2 else [])]
                found, places = stopped_and_resumed(base / name / str(i) / "run", data, stop, moments)
                where.update(places)
                wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
                same += not wrong
                if wrong:
                    print(f"  {name} after {moments} s: different {', '.join(wrong)}", flush=True)
            print(f"{name}: {same} of {n} runs the same to the bit; {where.total()} times {name}:", flush=True)
            for place, many in where.most_common():
                print(f"  {many:3d} {place}", flush=True)
            differ += n - same
        return 1 if differ else 0


def stopped_and_resumed(
    folder: Path, data: HandData, stop: Callable[[Path, HandData, float], str], moments: Sequence[float]
) -> tuple[dict[str, str], list[str]]:
    """Begin, stop this long after each start, resume to the end; what is there then, and where it was stopped."""
    places: list[str] = []
    for moment in moments:
        place = stop(folder, data, moment)
        while place == "" and not places:
            # The machine is less busy than it was in the undisturbed run, and all was done: again, and earlier.
            shutil.rmtree(folder)
            moment *= 0.7
            place = stop(folder, data, moment)
        places += [place] if place else []
        sound(folder)
    finish(folder, data)
    found = content(folder)
    shutil.rmtree(folder)
    return found, places


if __name__ == "__main__":
    raise SystemExit(main())
