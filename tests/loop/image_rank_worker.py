"""One process of an image regressor's training on several: does what it is told in a JSON file.

RANK=0 WORLD_SIZE=2 ... python -m tests.loop.image_rank_worker jobs.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from handloop.core.augmentation import AugmentOptions
from handloop.core.errors import HandloopError
from handloop.hand.load import embedded_hand
from handloop.loop.picture_source import open_source
from handloop.loop.ranks import Ranks
from handloop.loop.train_image import ImageProgress, ImageTraining, ImageTrainOptions
from handloop.regressors.backbones import BackboneOptions
from handloop.regressors.image_network import ImageNetworkOptions
from handloop.synth.picture import PictureOptions

STILL = AugmentOptions(rotation_deg=0, scale=0, shift=0, flip="to-right", colour=0)
WITHOUT_NORMS = BackboneOptions(
    "vit",
    config={
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    },
)  # fmt: skip
"""Norms over a batch would differ with the hands that a process sees; layers' norms do not."""


class Stopped(Exception):
    """As if interrupted."""


def options(job: dict[str, Any]) -> ImageTrainOptions:
    """Tiny, as the job says."""
    small = BackboneOptions("small", 8)
    network = (
        ImageNetworkOptions(small, "lifting", size=64, width=16)
        if job["norms"]
        else ImageNetworkOptions(WITHOUT_NORMS, size=64, width=16)
    )
    orthogonal = {"kernel_rate": 0.05, "looks": 2} if job["norms"] else {}
    return ImageTrainOptions(
        6, job.get("batch", 8), 1e-3, held_out=4, measure_every=2, precision="fp32", network=network, augment=STILL,
        **orthogonal,  # type: ignore[arg-type]
    )  # fmt: skip


def digest(training: ImageTraining) -> str:
    """Of weights, running figures and their averages."""
    states = (training.network.state_dict(), training.mean.state_dict())
    return hashlib.sha256(b"".join(v.numpy().tobytes() for state in states for v in state.values())).hexdigest()


def work(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train to the end, or until the step the job names."""
    seen: list[int] = []

    def look(at: ImageProgress) -> None:
        if at.measured is not None:
            seen.append(at.step)
        if at.step == job.get("stop"):
            raise Stopped

    pair = embedded_hand()
    try:
        training = ImageTraining(
            pair, open_source(job["pictures"], pair, "embedded", PictureOptions()), options(job), ranks=ranks
        )
        checkpoint = Path(job["checkpoint"])
        if job.get("resume"):
            training.resume(checkpoint)
        with suppress(Stopped):
            training.run(checkpoint, look)
    except HandloopError as error:
        return {"error": str(error)}
    weights = [value.flatten().tolist() for value in training.network.parameters()]
    return {"digest": digest(training), "measured": seen, "weights": weights}


def main(path: Path) -> None:
    """All jobs of a file, one after the other."""
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    done = []
    for job in json.loads(path.read_text()):
        done.append(work(job, ranks))
        ranks.wait()
    path.with_name(f"rank-{ranks.rank}.json").write_text(json.dumps(done))
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
