"""The lifter's network: a residual multilayer perceptron from keypoints in the hand's own camera to MANO parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from handloop.core.rotations import matrix_from_6d
from handloop.regressors.view import HandView

N_INPUT = 42 + 21 + 1 + 63 + 10
"""Points, confidences, log angular size, the source's offsets and mean betas."""
N_MEAN = 96 + 10 + 2 + 1
"""Rotations in 6D, betas, bearing, log depth."""
N_SD = 16 + 10 + 1 + 1
"""A standard deviation per rotation, per beta, for the bearing and for the log depth."""

OFFSET_UNIT = 0.02
"""Offsets of this many metres are of order one for the network."""
USUAL_LOG_SCALE = -2.3
"""Angular size of a hand at 0.6 m, logarithm."""
USUAL_SIZE = 0.06
"""Root mean square extent of a hand in m: angular size times depth."""


@dataclass(frozen=True)
class NetworkSize:
    """Width and depth; the default has 1.4 million weights."""

    width: int = 448
    blocks: int = 3


@dataclass(frozen=True, eq=False)
class Lifted:
    """B hands in the frame of the camera whose rays were given, right-hand canonical."""

    rotations: Tensor
    """(B, 16, 3, 3)."""
    betas: Tensor
    """(B, 10)."""
    root: Tensor
    """(B, 3) wrist, m."""
    log_sd: Tensor
    """(B, 28) logs of the standard deviations: 16 rotations (rad), 10 betas, bearing (rad), log depth."""


class Block(nn.Module):
    """x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to the same."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x)), approximate="tanh"))


class LifterNetwork(nn.Module):
    """Rays, confidences and what the source means by its points, to hands with standard deviations."""

    usual: Tensor
    """(96,) 6D rotations the network starts from: the prior's mean pose, the back of the hand to the camera."""
    log_sd_scale: Tensor
    """(28,) what the calibration adds to the logs of the standard deviations."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = size
        self.enter = nn.Linear(N_INPUT, size.width)
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.mean = nn.Linear(size.width, N_MEAN)
        self.spread = nn.Sequential(nn.Linear(size.width, 128), nn.GELU(approximate="tanh"), nn.Linear(128, N_SD))
        self.register_buffer("usual", torch.tensor([1.0, 0, 0, 0, 1.0, 0]).repeat(16))
        self.register_buffer("log_sd_scale", torch.zeros(N_SD))

    def forward(
        self, rays: Tensor, conf: Tensor, offsets: Tensor, mean_betas: Tensor, hint: Tensor | None = None
    ) -> Lifted:
        """Lift.

        Args:
            rays: (B, 21, 2) x/z, y/z of right hands.
            conf: (B, 21), 0 for missing points.
            offsets: (B, 21, 3) m, the source's.
            mean_betas: (B, 10), the source's.
            hint: (B, width), added to what the first block takes: what is known besides the points.
        """
        # Mixed precision is for the layers: in 16 bits a view would be off by a twentieth of the hand.
        with torch.autocast(rays.device.type, enabled=False):
            view = HandView.of(rays, conf)
            log_scale = view.scale.log()
            size = (log_scale - USUAL_LOG_SCALE)[:, None]
            parts = [view.points.flatten(1), view.seen, size, offsets.flatten(1) / OFFSET_UNIT, mean_betas]
        x = self.enter(torch.cat(parts, 1))
        if hint is not None:
            x = x + hint
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        mean = self.mean(x).to(rays)
        # The deviations describe the error; what they learn must not pull on what makes it.
        log_sd = self.spread(x.detach()).to(rays) + self.log_sd_scale
        with torch.autocast(rays.device.type, enabled=False):
            local = matrix_from_6d((self.usual + mean[:, :96]).reshape(-1, 16, 6))
            rotations = torch.cat([view.turn[:, None] @ local[:, :1], local[:, 1:]], 1)
            bearing = mean[:, 106:108] * view.scale[:, None]
            depth = USUAL_SIZE * (mean[:, 108] - log_scale).exp()
            ray = torch.cat([bearing, torch.ones_like(bearing[:, :1])], 1)
            root = (view.turn @ (ray * depth[:, None])[..., None])[..., 0]
        return Lifted(rotations, mean_betas + mean[:, 96:106], root, log_sd)
