"""Keypoints and cameras as the solvers want them: right-hand canonical, lens distortion removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.fitting.recipes import Recipe
from handloop.fitting.starts import Views

_KNOWN_FOCAL = 1e5
"""Inverse relative deviation of a focal length that is known, where others of the batch are free."""


def before_the_camera(joints: Tensor) -> tuple[Tensor, Tensor]:
    """Hands in 3D moved before a camera: solvers keep wrists there, and without 2D any place will do.

    Args:
        joints: (N, 21, 4) x, y, z in m, any frame, and weight; points that are not finite count as unknown.

    Returns:
        (N, 21, 4) with the known points' middle at 1 m and weight 0 for unknown ones; (N, 1, 3) m that was added.
    """
    known = torch.isfinite(joints).all(-1) & (joints[..., 3] > 0)
    xyz = torch.where(known[..., None], joints[..., :3], torch.full_like(joints[..., :3], float("nan")))
    shift = torch.tensor([0.0, 0.0, 1.0]).to(joints) - xyz.nanmean(1, keepdim=True).nan_to_num(0.0)
    weight = torch.where(known, joints[..., 3], torch.zeros_like(joints[..., 3]))
    return torch.cat([xyz.nan_to_num(0.0) + shift, weight[..., None]], 2), shift


@dataclass(frozen=True, eq=False)
class Observations:
    """B hands of one model."""

    uv: Tensor
    """(B, 21, 2) px, undistorted; left hands mirrored about the principal point."""
    conf: Tensor
    """(B, 21)."""
    focal: Tensor
    """(B, 2) px."""
    princpt: Tensor
    """(B, 2) px."""
    sigma: Tensor
    """(B,) px, noise of a point of confidence 1."""
    length: Tensor
    """(B,) m, known hand length or NaN."""
    xyz: Tensor
    """(B, 21, 3) m, known 3D points in the camera frame, left hands mirrored; anything finite where unknown."""
    inverse_sigma_3d: Tensor
    """(B, 21) 1/m; 0 where no 3D point is known."""
    inverse_focal_sigma: Tensor
    """(B,) how firmly the log of the focal length factor is held at zero."""

    @classmethod
    def of(
        cls,
        keypoints: Keypoints,
        camera: Camera,
        recipe: Recipe,
        hand_length: Tensor | None,
        like: Tensor,
        points_3d: Tensor | None = None,
    ) -> Observations:
        """Bring hands into the canonical frame.

        Args:
            keypoints: B hands.
            camera: B cameras.
            recipe: its noise level.
            hand_length: (B,) m, NaN where unknown; None for none known.
            like: gives dtype and device.
            points_3d: (B, 21, 4) x, y, z in m, camera frame, and weight 0..1; None for none known.
        """
        # In numpy, which takes a third of torch's time for a few numbers: a single hand is mostly such.
        n, middle = len(keypoints), camera.princpt.numpy()[:, None]
        uv = camera.undistort(keypoints.xy).numpy()
        conf = np.where(np.isfinite(uv).all(-1), keypoints.conf.numpy(), 0.0)
        uv = np.where((conf > 0)[..., None], uv, middle)
        mirror = np.where(keypoints.is_right.numpy(), 1.0, -1.0)[:, None]
        uv[..., 0] = middle[..., 0] + (uv[..., 0] - middle[..., 0]) * mirror
        # A box that collapses to nothing (coincident points) still needs a noise level.
        sigma = np.maximum(recipe.noise_px * keypoints.box_size().numpy() / 224, 0.05)
        length = np.full(n, np.nan) if hand_length is None else hand_length.numpy()
        xyz, inverse_3d = np.zeros((n, 21, 3)), np.zeros((n, 21))
        if points_3d is not None:
            given = points_3d.double().numpy()
            usable = np.isfinite(given).all(-1) & (given[..., 3] > 0)
            xyz = np.where(usable[..., None], given[..., :3], 0.0)
            xyz[..., 0] *= mirror
            sigma_3d = np.array(recipe.noise_ratios()) * recipe.noise_mm / 1000
            inverse_3d = np.where(usable, given[..., 3] / sigma_3d, 0.0)
        loose = 1.0 if recipe.focal_sigma is None else 1.0 / recipe.focal_sigma
        firm = np.where(camera.is_known().numpy(), _KNOWN_FOCAL, loose)
        parts = (uv, conf, camera.focal, camera.princpt, sigma, length, xyz, inverse_3d, firm)
        return cls(*(torch.as_tensor(part).to(like) for part in parts))

    def select(self, index: Tensor) -> Observations:
        """The hands named by an integer index."""
        return Observations(
            *(self.uv[index], self.conf[index], self.focal[index], self.princpt[index], self.sigma[index]),
            *(self.length[index], self.xyz[index], self.inverse_sigma_3d[index], self.inverse_focal_sigma[index]),
        )

    def inverse_sigma(self, recipe: Recipe) -> Tensor:
        """(B, 21) conf / sigma, 1/px; 0 for missing points."""
        ratios = torch.from_numpy(np.array(recipe.noise_ratios())).to(self.uv)
        return self.conf / (self.sigma[:, None] * ratios)

    def views(self) -> Views:
        """Rays for the closed-form starts."""
        return Views((self.uv - self.princpt[:, None]) / self.focal[:, None], self.conf)
