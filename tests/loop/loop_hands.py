"""Tens of synthetic hands as a source of keypoints would give them, with a tiny network to learn from them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.rotations import so3_exp
from handloop.hand.load import embedded_hand
from handloop.loop.config import FitOptions, LoopConfig, PriorOptions
from handloop.regressors.network import NetworkSize
from handloop.synth.keypoints import KeypointSynth, SyntheticKeypoints, SynthOptions

TINY = LoopConfig(
    steps=6,
    batch=16,
    views=8,
    synthetic=8,
    log_every=2,
    save_every=2,
    size=NetworkSize(24, 1),
    fit=FitOptions(refine_steps=3),
    prior=PriorOptions(every=1, rounds=1, hands=200, uncertain=40),
)
FOCAL = 600.0


def drawn(n: int, seed: int = 0, alike_deg: float | None = None) -> SyntheticKeypoints:
    """Right hands whose source means the model's own points; all about one pose, with this scatter, if it is given."""
    options = SynthOptions(identity=1.0, distance_m=(0.4, 0.8), off_axis=0.1)
    g = torch.Generator().manual_seed(seed)
    synth = KeypointSynth.of(embedded_hand().right, options)
    hands = synth.draw(n, g)
    if alike_deg is None:
        return hands
    scatter = so3_exp(torch.deg2rad(torch.tensor(alike_deg)) * torch.randn(n, 15, 3, generator=g))
    rotations = torch.cat([hands.rotations[:, :1], hands.rotations[:1, 1:] @ scatter], 1)
    return replace(hands, rotations=rotations, points=synth.kinematics.points(rotations, hands.betas, hands.root))


def seen(hands: SyntheticKeypoints, noise_px: float = 1.0, left: bool = True) -> tuple[Keypoints, Camera, Tensor]:
    """Keypoints, cameras and true joints; every third hand is seen in a mirror, as a left one."""
    n = len(hands)
    is_right = torch.arange(n) % 3 > 0 if left else torch.ones(n, dtype=torch.bool)
    sign = torch.where(is_right, 1.0, -1.0).double()[:, None, None]
    points = hands.points.double()
    points = torch.cat([points[..., :1] * sign, points[..., 1:]], -1)
    camera = Camera.from_matrix([[FOCAL, 0, 320], [0, FOCAL, 240], [0, 0, 1]], n)
    noise = noise_px * torch.randn(n, 21, 2, generator=torch.Generator().manual_seed(9)).double()
    names = [f"hand-{i:03d}" for i in range(n)]
    return Keypoints.from_arrays(camera.project(points) + noise, is_right, (640, 480), names), camera, points
