"""The hands a loop learns from: their keypoints, which of them are held out, and the order they come in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError
from handloop.core.keypoints import Keypoints

_BLOCKS = 20
"""Runs of neighbouring hands: those of one run, which look alike in a video, are held out together."""


@dataclass(frozen=True, eq=False)
class HandData:
    """N hands, right and left."""

    keypoints: Keypoints
    camera: Camera
    points_3d: Tensor | None
    """(N, 21, 4) x, y, z in m, camera frame, and weight 1 or 0, where 3D points are known; None where none are."""
    rays: Tensor
    """(N, 21, 2) float32 x/z, y/z, left hands mirrored; 0 where missing."""
    conf: Tensor
    """(N, 21) float32."""
    train: Tensor
    """Rows to learn from."""
    held_out: Tensor
    """Rows that nothing learns from."""

    def __len__(self) -> int:
        return len(self.keypoints)

    @classmethod
    def of(
        cls, keypoints: Keypoints, camera: Camera, joints_3d: Tensor | None = None, held_out: float = 0.1
    ) -> HandData:
        """From keypoints as `read_keypoints` gives them.

        Args:
            keypoints: N hands with ids of their own.
            camera: N cameras.
            joints_3d: (N, 21, 3) m, camera frame, NaN where unknown; as the source of the keypoints means them.
            held_out: share of the hands that is held out.

        Raises:
            InputError: no hands, or another number of cameras.
        """
        n = len(keypoints)
        if n == 0 or len(camera) != n:
            raise InputError(f"{n} hands with {len(camera)} cameras were given, expected at least one, a camera each.")
        rays = camera.normalise(keypoints.xy)
        conf = torch.where(torch.isfinite(rays).all(-1), keypoints.conf, torch.zeros_like(keypoints.conf))
        sign = torch.where(keypoints.is_right, 1.0, -1.0).to(rays)[:, None]
        rays = torch.stack([rays[..., 0] * sign, rays[..., 1]], -1)
        rays = torch.where((conf > 0)[..., None], rays, torch.zeros_like(rays))
        points_3d = None
        if joints_3d is not None:
            known = torch.isfinite(joints_3d).all(-1)
            xyz = torch.where(known[..., None], joints_3d.double(), torch.zeros(1, dtype=torch.float64))
            points_3d = torch.cat([xyz, known.double()[..., None]], -1)
        out = _held_out(n, held_out)
        rows = torch.arange(n)
        return cls(keypoints, camera, points_3d, rays.float(), conf.float(), rows[~out], rows[out])

    def rows(self, step: int, batch: int, seed: int) -> Tensor:
        """Rows of the step's batch (steps count from 1): one random order of all training hands behind the other.

        A batch may end one order and begin the next, so that every hand comes equally often.
        """
        n = len(self.train)
        first = (step - 1) * batch
        parts, epoch = [], first // n
        while epoch * n < first + batch:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1_000_003 * epoch))
            parts.append(order[max(first - epoch * n, 0) : first + batch - epoch * n])
            epoch += 1
        return self.train[torch.cat(parts)]

    def epoch(self, step: int, batch: int) -> int:
        """How often each training hand has come at the end of a step."""
        return step * batch // len(self.train)

    def digest(self) -> str:
        """Names the data, to refuse to go on with other ones."""
        known = () if self.points_3d is None else (self.points_3d,)
        tensors = (self.keypoints.xy, self.keypoints.conf, self.keypoints.is_right, self.camera.focal, *known)
        digest = hashlib.sha256("\n".join(self.keypoints.ids).encode())
        for tensor in (*tensors, self.camera.princpt, self.train):
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        return digest.hexdigest()[:16]


def _held_out(n: int, share: float) -> Tensor:
    """(N,) bool, evenly spread runs of neighbours; of few hands, single ones."""
    blocks = min(_BLOCKS, n)
    block = torch.arange(n) * blocks // n
    # Block k is held out where the share passes a whole number.
    return ((block + 1) * share).floor() > (block * share).floor()
