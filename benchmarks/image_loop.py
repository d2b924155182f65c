"""Does the loop improve an image network from 2D keypoints alone? Rendered pictures whose 3D is withheld.

    handloop synth --out train --count 4096 --size 96 --seed 11
    handloop synth --out unseen --count 768 --size 96 --seed 777
    python -m benchmarks.image_loop --pictures train --unseen unseen --start weights.safetensors [--steps 600]

Every way starts from the same weights (of `handloop train image`, on other pictures; random ones without `--start`) and
gets the same pictures, their keypoints with 2 px of noise at a 224-px box, and as many steps:

    off          the keypoints alone: reprojection, and the points that the network locates
    off+limits   the same with the biomechanical losses of Spurr et al., which need no labels either
    static       every picture is fitted once before, from four closed-form starts
    in_loop      the loop with its defaults

The networks are measured on the pictures of `--unseen`, whose hands nobody has seen; the fits against the 3D that was
withheld. Times are processor times, because others may use the machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.accuracy_cases import SEED, disturb
from handloop.core.crop import square_box
from handloop.evaluation.alignment import similarity
from handloop.hand.load import embedded_hand
from handloop.loop.cached_fits import CachedFits
from handloop.loop.config import PRESETS, LoopConfig, PriorOptions
from handloop.loop.image_loop import ImageLoop
from handloop.loop.image_measure import measure
from handloop.loop.joined_pictures import RelabelledPictures
from handloop.loop.picture_batches import STILL, BatchOptions, PictureBatches
from handloop.loop.picture_source import MARGIN, KnownPictures, LabelledHands, ShardSource
from handloop.loop.train_image import new_network
from handloop.losses.biomechanical import BiomechanicalWeights
from handloop.regressors.backbones import BackboneOptions
from handloop.regressors.image import ImageRegressor
from handloop.regressors.image_network import ImageNetworkOptions
from handloop.synth.shard_index import index_pictures

WAYS = ("off", "off+limits", "static", "in_loop")


def opened(folder: Path) -> ShardSource:
    """Pictures of `handloop synth` with all their labels."""
    pair = embedded_hand()
    return ShardSource(index_pictures(folder), (pair.right.digest, pair.left.digest))


def without_3d(pictures: KnownPictures, noise_px: float) -> RelabelledPictures:
    """Keypoints with noise, and nothing else."""
    hands = pictures.hands
    uv = disturb(hands.keypoints.xy, noise_px, 0.0, torch.Generator().manual_seed(1))
    keypoints = replace(hands.keypoints, xy=uv)
    params = replace(hands.params, betas=torch.full_like(hands.params.betas, float("nan")))
    unknown = torch.full_like(hands.joints, float("nan"))
    box = square_box(keypoints.box(), MARGIN)
    return RelabelledPictures(pictures, replace(hands, keypoints=keypoints, joints=unknown, params=params, box=box))


def aligned_mm(found: Tensor, truth: Tensor) -> float:
    """Mean error of points (N, 21, 3) m after similarity alignment, mm."""
    return 1000 * float((similarity(found, truth).apply(found) - truth).norm(dim=2).mean())


def fits_mm(training: ImageLoop, truth: LabelledHands) -> float:
    """Mean error of the fits in the memory; NaN without."""
    rows = training.data.train
    fits: CachedFits = training.memory.cache.get([truth.keypoints.ids[row] for row in rows.tolist()])
    return aligned_mm(fits.keypoints_3d[fits.found], truth.joints[rows][fits.found])


def report(name: str, regressor: ImageRegressor, unseen: ShardSource, fits: float, seconds: float, steps: int) -> None:
    """One row of the table."""
    options = BatchOptions(
        regressor.network.options.size, 64, 0, STILL, held_out=unseen.count, margin=regressor.network.options.margin
    )
    found = measure(regressor.network, PictureBatches.of(unseen, embedded_hand(), options))
    each = f"{1000 * seconds / steps:.0f}" if steps else ""
    print(
        f"| {name} | {found.pa_mm:.2f} | {found.root_mm:.1f} | {fits:.2f} | {seconds / 60:.1f} | {each} |", flush=True
    )


def config_of(way: str, options: argparse.Namespace) -> LoopConfig:
    """The preset, with what the command line says."""
    config = replace(
        PRESETS["image-loop"],
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.learning_rate,
        save_every=options.steps,
        ema=0.99,
        precision="bf16" if options.bf16 else "fp32",
        prior=PriorOptions(every=0) if options.fixed_prior else PriorOptions(),
    )
    if way == "off+limits":
        return replace(config, mode="off", biomechanics=BiomechanicalWeights())
    return replace(config, mode=way)  # type: ignore[arg-type]


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights; without them, a network that knows nothing")
    parser.add_argument("--crop", type=int, default=96, help="px, of a network that knows nothing")
    parser.add_argument("--width", type=int, default=32, help="of its backbone")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--noise", type=float, default=2.0, help="px at a 224-px box")
    parser.add_argument("--fixed-prior", action="store_true", help="learn no prior in between")
    parser.add_argument("--bf16", action="store_true", help="16-bit products, for processors that have them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair, pictures, unseen = embedded_hand(), opened(options.pictures), opened(options.unseen)
    source = without_3d(pictures, options.noise)
    network = ImageNetworkOptions(BackboneOptions("small", options.width), size=options.crop)
    start = ImageRegressor.of(new_network(network, pair, SEED), pair.right)
    if options.start is not None:
        start = ImageRegressor.load(options.start, pair)
    nan = float("nan")
    print("| way | network: PA mm | wrist-relative mm | fits: PA mm | processor min | ms a step |")
    print("|---|---|---|---|---|---|")
    report("before", start, unseen, nan, 0.0, 0)
    for way in options.ways:
        folder = Path(tempfile.mkdtemp())
        begun = time.process_time()
        training = ImageLoop(folder, source, pair, config_of(way, options), start)
        found = training.run()
        spent = time.process_time() - begun
        report(way, found, unseen, fits_mm(training, pictures.hands), spent, options.steps)
        training.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
