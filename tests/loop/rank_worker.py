"""One process of a training on several: does what it is told in a JSON file, and writes what became of it.

RANK=0 WORLD_SIZE=2 ... python -m tests.loop.rank_worker jobs.json
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from handloop.core.errors import HandloopError
from handloop.hand.load import embedded_hand
from handloop.loop import train as train_module
from handloop.loop.config import LoopConfig
from handloop.loop.hand_data import HandData
from handloop.loop.ranks import Ranks
from handloop.loop.run import Progress
from handloop.loop.shards import rank_of
from handloop.loop.train import LoopTraining

from .loop_hands import TINY, drawn, seen


class Stopped(Exception):
    """As if interrupted."""


def hands(job: dict[str, Any]) -> HandData:
    """Eighty in about one pose; all of them rank 0's of two, if that is wanted."""
    keypoints, camera, _ = seen(drawn(80, job.get("seed", 0), alike_deg=4.0))
    if job.get("one_sided"):
        names = [name for name in (f"h{i}" for i in range(1000)) if rank_of(name, 2) == 0]
        keypoints = replace(keypoints, ids=tuple(names[:80]))
    return HandData.of(keypoints, camera)


def config(job: dict[str, Any]) -> LoopConfig:
    """Tiny, with what the job says."""
    return replace(TINY, **job.get("config", {}))


def digest(training: LoopTraining) -> str:
    """Of weights, their average and the optimiser's moments."""
    moments = training.learner.optimiser.state_dict()["state"]
    states = (training.learner.network.state_dict(), training.learner.mean.state_dict(), *moments.values())
    data = b"".join(value.numpy().tobytes() for state in states for value in state.values())
    return hashlib.sha256(data).hexdigest()


def work(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train to the end, or until the step the job names."""
    given = {**job, **job.get(f"rank {ranks.rank}", {})}
    losses: list[float] = []

    def look(at: Progress) -> None:
        losses.append(at.loss)
        if at.step == given.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if at.step == given.get("stop"):
            raise Stopped

    try:
        training = LoopTraining(Path(given["folder"]), hands(given), embedded_hand(), config(given), ranks=ranks)
        first = training.step
        with suppress(Stopped):
            training.run(look)
    except HandloopError as error:
        return {"error": str(error)}
    training.close()
    own = int(ranks.own([training.data.keypoints.ids[i] for i in training.data.train.tolist()]).sum())
    prior = training.memory.prior.means.tolist()
    weights = [value.flatten().tolist() for value in training.learner.network.parameters()]
    return {
        "digest": digest(training),
        "losses": losses,
        "first": first,
        "own": own,
        "prior": prior,
        "weights": weights,
    }


def main(path: Path) -> None:
    """All jobs of a file, one after the other."""
    torch.set_num_threads(1)
    train_module._CALIBRATION_HANDS = 64
    ranks = Ranks.from_environment()
    done = [work(job, ranks) for job in json.loads(path.read_text())]
    path.with_name(f"rank-{ranks.rank}.json").write_text(json.dumps(done))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
