"""Synthetic keypoints: exact labels, poses inside the limits, the noise it promises, the same hands for a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from handloop.core.params import HandParams
from handloop.hand.kinematics import Kinematics
from handloop.hand.load import embedded_hand
from handloop.hand.mesh import skin
from handloop.priors.anatomy import anatomical_angles
from handloop.synth.keypoints import KeypointNoise, KeypointSynth, SynthOptions, disturbed, random_rotations

EXACT = KeypointNoise(jitter=(1e-9, 1e-9), dropout=0, hidden_finger=0, swap=0, outlier=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def synth() -> KeypointSynth:
    return KeypointSynth.of(embedded_hand().right, dtype=torch.float64)


def test_labels_project_onto_the_keypoints(synth: KeypointSynth) -> None:
    """The mesh's own way to the points, with the source's offsets turned by each joint's frame."""
    hand = embedded_hand().right
    exact = replace(synth, options=SynthOptions(noise=EXACT))
    drawn = exact.draw(50, generator())
    plain = Kinematics.from_hand(hand)
    params = HandParams.from_rotation_matrices(
        drawn.rotations, drawn.betas, drawn.root - plain.root_offset(drawn.betas)
    )
    vertices, joints = skin(hand, *params.tensors())
    world = plain.frames(drawn.rotations)
    starting = [0, 13, 14, 15, 15, 1, 2, 3, 3, 4, 5, 6, 6, 10, 11, 12, 12, 7, 8, 9, 9]
    order = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    points = torch.cat([joints, vertices[:, hand.tip_ids]], 1)[:, order]
    size = 1 + (drawn.betas * plain.scale_dirs()).sum(1)
    points = points + size[:, None, None] * (world[:, starting] @ drawn.offsets[..., None])[..., 0]
    torch.testing.assert_close(points, drawn.points, rtol=0, atol=1e-6)
    seen = drawn.conf > 0
    assert bool(seen.all())
    torch.testing.assert_close(drawn.rays, points[..., :2] / points[..., 2:], rtol=0, atol=1e-6)


def test_every_hand_is_in_front_and_inside_its_ranges(synth: KeypointSynth) -> None:
    drawn = synth.draw(500, generator(1))
    assert bool((drawn.points[..., 2] > 0.049).all())
    angles = anatomical_angles(drawn.rotations[:, 1:], synth.limits.axes)
    assert float(synth.limits.excess(angles).abs().max()) < 1e-6
    eye = torch.eye(3, dtype=torch.float64).expand_as(drawn.rotations)
    torch.testing.assert_close(drawn.rotations @ drawn.rotations.mT, eye, rtol=0, atol=1e-6)
    assert bool(((drawn.conf > 0).sum(1) >= 4).all())


def test_sources_vary_and_some_mean_the_models_points(synth: KeypointSynth) -> None:
    offsets, betas = synth.sources(4000, generator(2))
    plain = (offsets == 0).all(2).all(1)
    assert abs(float(plain.double().mean()) - 0.3) < 0.03 and bool((betas[plain] == 0).all())
    away = offsets[~plain].norm(dim=2)
    assert 0.03 < float(away[:, 0].max()) < 0.15 and float(away[:, 1].median()) > 2 * float(away[:, 8].median()) * 0.5
    assert float(away[:, [2, 3, 4, 6, 7, 8]].max()) < 0.05


def test_rotations_are_uniform() -> None:
    """Cosine of the third axis' tilt is uniform in -1 .. 1, and so is that of every axis."""
    turns = random_rotations(4000, generator(3)).numpy()
    assert np.allclose(np.linalg.det(turns), 1, atol=1e-5)
    for axis in range(3):
        assert kstest(turns[:, axis, 2], "uniform", args=(-1, 2)).pvalue > 0.001


def test_noise_has_the_size_and_the_rates_it_names(synth: KeypointSynth) -> None:
    rays = synth.draw(4000, generator(4)).points
    rays = rays[..., :2] / rays[..., 2:]
    box = (rays.amax(1) - rays.amin(1)).amax(1)
    level = KeypointNoise(jitter=(0.01, 0.01), dropout=0, hidden_finger=0, swap=0, outlier=0)
    seen, conf = disturbed(rays, level, generator(5))
    error = (seen - rays) / box[:, None, None] * conf[..., None]
    assert float(error.mean(0).abs().max()) < 0.002
    assert 0.008 < float(error.std()) < 0.012
    gone = KeypointNoise(jitter=(1e-9, 1e-9), dropout=0, hidden_finger=0.5, swap=0, outlier=0)
    _, conf = disturbed(rays, gone, generator(6))
    assert abs(float((conf == 0).any(1).double().mean()) - 0.5) < 0.03
    assert bool((conf[:, 0] > 0).all())
    wild = KeypointNoise(jitter=(1e-9, 1e-9), dropout=0, hidden_finger=0, swap=0, outlier=1, outlier_point=0.1)
    seen, _ = disturbed(rays, wild, generator(7))
    moved = (seen - rays).norm(dim=2) > 0.01 * box[:, None]
    assert abs(float(moved.double().mean()) - 0.1) < 0.01
    swapped = KeypointNoise(jitter=(1e-9, 1e-9), dropout=0, hidden_finger=0, swap=1, outlier=0)
    seen, _ = disturbed(rays, swapped, generator(8))
    moved = (seen - rays).norm(dim=2) > 1e-6
    assert bool((moved.sum(1) == 8).all()) and not bool(moved[:, :5].any())
    torch.testing.assert_close(seen.sum(1), rays.sum(1), rtol=0, atol=1e-5)


def test_a_seed_names_its_hands(synth: KeypointSynth) -> None:
    a, b, c = (synth.draw(20, generator(seed)) for seed in (1, 1, 2))
    for name in ("rays", "conf", "rotations", "betas", "root", "points", "offsets", "mean_betas"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert name == "conf" or not torch.equal(getattr(a, name), getattr(c, name)), name
