"""The weights that come with the package: for the embedded hand, accurate on synthetic and on real hands."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import handloop
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.evaluation.alignment import similarity
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.recipes import RECIPES
from handloop.fitting.solver import SolverOptions
from handloop.hand.load import embedded_hand
from handloop.loop.train_lifter import standardised
from handloop.regressors.lifter import Lifter
from handloop.synth.keypoints import KeypointNoise, KeypointSynth, SynthOptions


@pytest.fixture(scope="module")
def shipped() -> Lifter:
    return Lifter.shipped()


def test_they_belong_to_the_embedded_hand(shipped: Lifter) -> None:
    shipped.check_model(embedded_hand().right)
    assert sum(p.numel() for p in shipped.network.parameters()) <= 2_000_000


def test_synthetic_hands_are_met_and_the_deviations_hold(shipped: Lifter) -> None:
    synth = KeypointSynth.of(embedded_hand().right)
    batch = synth.draw(3000, torch.Generator().manual_seed(123))
    with torch.inference_mode():
        out = shipped.network(batch.rays, batch.conf, batch.offsets, batch.mean_betas)
        points = synth.kinematics.with_offsets(batch.offsets).points(out.rotations, out.betas, out.root)
        z = standardised(out, batch)
    error = 1000 * (similarity(points, batch.points).apply(points) - batch.points).norm(dim=-1).mean()
    assert float(error) < 9
    inside = torch.stack([(each.abs() < 1).double().mean() for each in z])
    # 3000 hands measure a share to 1 or 2 %.
    assert float((inside - math.erf(math.sqrt(0.5))).abs().max()) < 0.05


def test_a_fit_may_start_from_it() -> None:
    quiet = KeypointNoise(jitter=(1e-3, 1e-3), dropout=0, hidden_finger=0, swap=0, outlier=0)
    synth = KeypointSynth.of(embedded_hand().right, SynthOptions(noise=quiet, identity=1.0))
    batch = synth.draw(40, torch.Generator().manual_seed(5))
    uv = 600 * batch.rays.double() + torch.tensor([320.0, 240.0])
    k = [[600.0, 0, 320], [0, 600.0, 240], [0, 0, 1]]
    alone = replace(RECIPES["default"], seeds=0, lifter=True)
    fitted = handloop.fit(uv, k, recipe=alone, hand="embedded", device="cpu")
    predicted = handloop.predict(uv, k, hand="embedded", device="cpu")
    assert bool(fitted.fitted().all()) and float(fitted.rms_px.median()) < 1.5
    assert float(fitted.rms_px.median()) < 0.5 * float(predicted.rms_px.median())
    searched = handloop.fit(uv, k, hand="embedded", device="cpu")
    assert float((fitted.energy < 1.05 * searched.energy + 0.1).double().mean()) > 0.8


@pytest.mark.real
def test_real_hands_it_has_never_seen(real_data: Path) -> None:
    """FPHA subject 3 with the layout of subjects 1 and 2: 8.0 mm alone, 6.5 mm after four steps (500 hands)."""
    data = np.load(real_data / "keypoints_3d" / "fpha.npz")
    rng = np.random.default_rng(20261120)

    def sample(people: tuple[int, ...], count: int) -> torch.Tensor:
        rows = rng.choice(np.flatnonzero(np.isin(data["subject"], people)), count, replace=False)
        return torch.tensor(data["joints_cam_mm_x100"][rows] / 1e5)

    taught, truth = sample((1, 2), 1000), sample((3,), 500)
    hand = embedded_hand()
    layout = learn_from_joints(hand.right, taught, torch.ones(1000, dtype=torch.bool), "fpha").layout
    camera = Camera.from_matrix(data["K"]).select(torch.zeros(500, dtype=torch.int64))
    keypoints = Keypoints.from_arrays(camera.project(truth))

    def error(found: torch.Tensor) -> float:
        return 1000 * float((similarity(found, truth).apply(found) - truth).norm(dim=-1).mean())

    alone = handloop.predict(keypoints, camera, hand=hand, layout=layout, device="cpu")
    assert error(alone.keypoints_3d) < 8.0
    short = replace(RECIPES["default"], solver=SolverOptions(4, 1e-3))
    refined = handloop.predict(keypoints, camera, hand=hand, layout=layout, recipe=short, refine=True, device="cpu")
    assert error(refined.keypoints_3d) < 6.5
