"""How good is an image regressor on pictures it has not seen? Synthetic ones, and real ones with 3D truth.

    handloop synth --out train --count 40960 --size 128 --seed 1
    handloop synth --out unseen --count 2048 --size 128 --seed 777
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m handloop train image train --out w.safetensors --workers 0
    python -m benchmarks.image --weights w.safetensors --unseen unseen

The mean pose is what the network answers before it has learned anything: the mean of the model's own poses and shapes.
Real pictures are used where HANDLOOP_REAL_DATA (default ../shared/data) holds keypoints_3d/ge2019.npz and hpx.npz.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.api import fit, prediction_recipe
from handloop.core.camera import Camera
from handloop.core.crop import square_box
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.evaluation.alignment import similarity
from handloop.fitting.recipes import RECIPES
from handloop.formats.picture_set import load_picture
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.loop.picture_source import open_source
from handloop.losses.parameters import rotation_error
from handloop.picture_start import crop, joined
from handloop.priors.gaussian import GaussianPosePrior
from handloop.regressors.image import ImageRegressor, Looked
from handloop.synth.picture import PictureOptions

_CHUNK = 256


def points_of(params: HandParams, is_right: Tensor, pair: HandPair) -> Tensor:
    """(N, 21, 3) m, camera frame."""
    out = torch.zeros(len(params), 21, 3, dtype=torch.float64)
    for side in (True, False):
        rows = (is_right == side).nonzero()[:, 0]
        some = params.select(rows)
        kinematics = Kinematics.from_hand(pair.side(side))
        root = some.transl + kinematics.root_offset(some.betas)
        out[rows] = kinematics.points(some.rotation_matrices(), some.betas, root)
    return out


def mean_pose(is_right: Tensor, pair: HandPair) -> Tensor:
    """(N, 21, 3) m, the mean of the model's own poses."""
    n = len(is_right)
    mean = GaussianPosePrior.from_hand(pair.right).mean.expand(n, 45)
    zeros = HandParams.zeros(n)
    right = HandParams(zeros.global_orient, mean, zeros.betas, zeros.transl)
    pairs = zip(right.tensors(), right.mirrored().tensors(), strict=True)
    return points_of(HandParams(*(torch.where(is_right[:, None], a, b) for a, b in pairs)), is_right, pair)


def errors(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) mm: after similarity alignment, and relative to the wrist."""
    pa = (similarity(found, truth).apply(found) - truth).norm(dim=2).mean(1)
    root = ((found - found[:, :1]) - (truth - truth[:, :1])).norm(dim=2).mean(1)
    return 1000 * pa, 1000 * root


def report(
    name: str, found: Tensor, is_right: Tensor, truth: Tensor, points: Tensor, camera: Camera, pair: HandPair
) -> None:
    """One row of the table."""
    pa, root = errors(found, truth)
    usual = float(errors(mean_pose(is_right, pair), truth)[0].mean())
    box = (points.amax(1) - points.amin(1)).amax(1)
    away = 100 * float(((camera.project(found) - points).norm(dim=2).mean(1) / box).median())
    better = 100 * (1 - float(pa.mean()) / usual)
    print(
        f"| {name} | {len(truth)} | {usual:.2f} | {float(pa.mean()):.2f} | {better:.0f} % | {float(root.mean()):.1f} | "
        f"{float(root.median()):.1f} | {away:.1f} |",
        flush=True,
    )


def report_all(
    name: str, looked: Looked, given: Keypoints, truth: Tensor, camera: Camera, pair: HandPair, refined: int
) -> None:
    """The network alone; fitted from there to the given keypoints; fitted to the points that it sees itself."""
    proposal = looked.proposal
    found = points_of(proposal.params, proposal.is_right, pair)
    report(name, found, proposal.is_right, truth, given.xy, camera, pair)
    some = torch.arange(min(refined, len(given)))
    how = prediction_recipe(RECIPES["default"], True)
    start, cameras, true = proposal.select(some), camera.select(some), truth[some]
    for what, keypoints in (("given", given), ("seen", looked.keypoints)):
        result = fit(keypoints.select(some), cameras, hand=pair, recipe=how, start=start)
        row = f"{name}, --refine to the {what} points"
        report(row, result.joints, proposal.is_right[some], true, given.xy[some], cameras, pair)
    box = (given.xy.amax(1) - given.xy.amin(1)).amax(1)
    away = (looked.keypoints.xy - given.xy).norm(dim=2) / box[:, None]
    print(f"| {name}, points seen | | | | | | | {100 * float(away.mean(1).median()):.1f} |", flush=True)


def on_synthetic(regressor: ImageRegressor, folder: Path, pair: HandPair, refined: int) -> None:
    """Unseen rendered pictures, and how often the truth lies within the claimed deviations."""
    source = open_source(folder, pair, None, PictureOptions())
    looked, hands, inside, seconds = [], [], [], 0.0
    for start in range(0, source.count or 0, _CHUNK):
        drawn = source.draw(range(start, min(start + _CHUNK, source.count or 0)))
        some = drawn.hands
        box = square_box(some.keypoints.box(), regressor.network.options.margin)
        batch = crop(drawn.pictures, some.keypoints, box, some.camera, regressor)
        begun = time.perf_counter()
        looked.append(regressor.look(batch))
        seconds += time.perf_counter() - begun
        hands.append(some)
        proposal = looked[-1].proposal
        ours, theirs = proposal.params.rotation_matrices(), some.params.rotation_matrices()
        inside.append(rotation_error(ours, theirs).abs() < proposal.rotations_sd[..., None])
    proposal = joined([part.proposal for part in looked])
    given = Keypoints.from_arrays(
        torch.cat([part.keypoints.xy for part in hands]),
        proposal.is_right,
        torch.cat([part.keypoints.image_size for part in hands]),
        proposal.ids,
    )
    seen = torch.cat([torch.cat([part.keypoints.xy, part.keypoints.conf[..., None]], 2) for part in looked])
    whole = Looked(proposal, Keypoints.from_arrays(seen, proposal.is_right, given.image_size, proposal.ids))
    camera = Camera(
        torch.cat([part.camera.focal for part in hands]), torch.cat([part.camera.princpt for part in hands])
    )
    truth = torch.cat([part.joints for part in hands])
    report_all("unseen synthetic", whole, given, truth, camera, pair, refined)
    share = 100 * torch.cat(inside).double().mean((0, 2))
    print(
        f"\n{len(truth) / seconds:.0f} crops/s on {torch.get_num_threads()} threads; rotation errors within one "
        f"deviation (68.3 % when right): wrist {float(share[0]):.1f} %, fingers {float(share[1:].mean()):.1f} %."
    )


def on_real(regressor: ImageRegressor, folder: Path, pair: HandPair, refined: int) -> None:
    """Ge et al. 2019 and two pictures of FreiHAND, boxes from their true keypoints."""
    for name, uv, matrix in (("ge2019", "uv_crop256", "K_crop256"), ("hpx", "uv_px", "K")):
        path = folder / "keypoints_3d" / f"{name}.npz"
        if not path.is_file():
            continue
        with np.load(path, allow_pickle=False) as data:
            pictures = [load_picture(str(folder / str(image)), name) for image in data["image"]]
            sizes = np.array([picture.shape[1::-1] for picture in pictures])
            keypoints = Keypoints.from_arrays(data[uv].astype(np.float64), data["is_right"].astype(bool), sizes)
            truth = torch.from_numpy(data["joints_cam_mm"].astype(np.float64)) / 1000
            camera = Camera.from_matrix(data[matrix].astype(np.float64))
        box = square_box(keypoints.box(), regressor.network.options.margin)
        looked = regressor.look(crop(pictures, keypoints, box, camera, regressor))
        report_all(name, looked, keypoints, truth, camera, pair, refined)


def learning_curve(log: Path) -> None:
    """What the training measured on hands held out."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    print("\n| step | s | PA mm | root-relative mm |\n|---|---|---|---|")
    for line in lines:
        if "pa_mm" in line:
            print(f"| {line['step']} | {line['seconds']:.0f} | {line['pa_mm']:.2f} | {line['root_mm']:.1f} |")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--mano", default=None)
    parser.add_argument("--refined", type=int, default=512, help="hands of each set that are also fitted")
    options = parser.parse_args()
    pair = load_hand(options.mano)
    regressor = ImageRegressor.load(options.weights, pair)
    print("| pictures | hands | mean pose PA mm | PA mm | better | root-relative mm | median | 2D, % of box |")
    print("|---|---|---|---|---|---|---|---|")
    on_real(regressor, Path(os.environ.get("HANDLOOP_REAL_DATA", "../shared/data")), pair, options.refined)
    on_synthetic(regressor, options.unseen, pair, options.refined)
    log = options.weights.with_suffix(".jsonl")
    if log.is_file():
        learning_curve(log)


if __name__ == "__main__":
    main()
