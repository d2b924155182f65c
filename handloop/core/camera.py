"""`Camera`: pinhole cameras with optional OpenCV distortion, one per hand, and the conversions other tools need.

Frames: OpenCV camera axes (x right, y down, z forward), metres; pixels with (0, 0) at the centre of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from handloop.core.distortion import DISTORTION_LENGTHS, distort, undistort
from handloop.core.errors import InputError, check_shape


@dataclass(frozen=True)
class Camera:
    """One pinhole camera per hand."""

    focal: Tensor
    """(N, 2) float64 fx, fy in px."""
    princpt: Tensor
    """(N, 2) float64 cx, cy in px."""
    dist: Tensor | None = None
    """(N, 4|5|8|12) OpenCV coefficients k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4]]]; None without distortion."""
    known: Tensor | None = None
    """(N,) bool, False where the focal length is an assumption and depth is not metric; None means known."""

    def __post_init__(self) -> None:
        n = self.focal.shape[0]
        check_shape("camera focal", tuple(self.focal.shape), (n, 2))
        check_shape("camera princpt", tuple(self.princpt.shape), (n, 2))
        # In numpy, which takes a third of torch's time for a few numbers: a fit of one hand makes several cameras.
        focal, princpt = self.focal.numpy(force=True), self.princpt.numpy(force=True)
        if not ((focal > 0) & (focal < np.inf)).all() or not np.isfinite(princpt).all():
            raise InputError("the camera holds a focal length that is not positive or a value that is not finite.")
        if self.dist is not None and tuple(self.dist.shape) not in [(n, k) for k in DISTORTION_LENGTHS]:
            raise InputError(
                f"distortion coefficients have shape {tuple(self.dist.shape)}, expected ({n}, k) with k one of "
                f"{DISTORTION_LENGTHS} in OpenCV's order k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4."
            )
        if self.dist is not None and not bool(torch.isfinite(self.dist).all()):
            raise InputError("the camera holds a distortion coefficient that is not finite.")
        if self.known is not None:
            check_shape("camera known", tuple(self.known.shape), (n,))

    def __len__(self) -> int:
        return self.focal.shape[0]

    @classmethod
    def from_matrix(cls, k: np.ndarray | Tensor | Sequence[Sequence[float]], n: int | None = None) -> Camera:
        """From K of shape (3, 3), the same for n hands (1 when absent), or (N, 3, 3), where N must be n if given.

        Raises:
            InputError: another shape, skew, or a last row other than 0 0 1.
        """
        matrix = np.asarray(k.numpy(force=True) if torch.is_tensor(k) else k, dtype=np.float64)
        if matrix.shape == (3, 3):
            matrix = matrix[None].repeat(1 if n is None else n, 0)
        check_shape("K", matrix.shape, (n, 3, 3))
        if not (np.abs(matrix[:, 2] - (0.0, 0.0, 1.0)) <= (1e-8, 1e-8, 1e-5)).all():
            raise InputError(
                "K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]; its last row is not 0 0 1 (transposed?)."
            )
        if not ((np.abs(matrix[:, 0, 1]) <= 1e-6 * np.abs(matrix[:, 0, 0])) & (matrix[:, 1, 0] == 0)).all():
            raise InputError("K has a skew entry, which this camera model lacks; rectify the picture or set it to 0.")
        return cls(torch.from_numpy(matrix[:, (0, 1), (0, 1)]), torch.from_numpy(matrix[:, :2, 2].copy()))

    @classmethod
    def assumed(cls, image_size: Tensor, box: Tensor) -> Camera:
        """A guess where K is unknown, marked `known=False`.

        With the image size: focal length = image diagonal, 53 degrees across it (CLIFF, Li et al. 2022), principal
        point in the middle. Without: four times the hand's box, that is a hand about 0.7 m away, centred on the box, so
        that a hand's result depends on nothing but the hand.

        Args:
            image_size: (N, 2) px, NaN where unknown.
            box: (N, 4) x0, y0, x1, y1 px of the hands.
        """
        size_known = torch.isfinite(image_size).all(1)
        span = (box[:, 2:] - box[:, :2]).amax(1).clamp(min=1.0)
        focal = torch.where(size_known, image_size.nan_to_num(1.0).norm(dim=1), 4.0 * span)
        middle = torch.where(size_known[:, None], (image_size - 1) / 2, (box[:, :2] + box[:, 2:]) / 2)
        return cls(focal[:, None].repeat(1, 2), middle, known=torch.zeros(len(focal), dtype=torch.bool))

    @classmethod
    def from_fov(cls, degrees: float, image_size: Tensor) -> Camera:
        """From the horizontal field of view and the image size (N, 2) px; the principal point is the middle."""
        if not 1.0 < degrees < 179.0:
            raise InputError(f"a field of view of {degrees} degrees was given, expected 1 to 179.")
        if not bool(torch.isfinite(image_size).all()):
            raise InputError("a field of view needs the image size, which is unknown here: give --image-size W H.")
        focal = 0.5 * image_size[:, 0] / torch.tan(torch.deg2rad(torch.tensor(degrees / 2, dtype=torch.float64)))
        return cls(focal[:, None].repeat(1, 2), (image_size - 1) / 2)

    def is_known(self) -> Tensor:
        """(N,) bool, `known` with None resolved."""
        return torch.ones(len(self), dtype=torch.bool) if self.known is None else self.known

    def matrix(self) -> Tensor:
        """(N, 3, 3) K."""
        k = torch.zeros(len(self), 3, 3, dtype=self.focal.dtype, device=self.focal.device)
        k[:, 0, 0], k[:, 1, 1], k[:, 2, 2] = self.focal[:, 0], self.focal[:, 1], 1.0
        k[:, :2, 2] = self.princpt
        return k

    def select(self, index: Tensor) -> Camera:
        """The cameras named by an integer or boolean index."""
        return Camera(
            self.focal[index],
            self.princpt[index],
            None if self.dist is None else self.dist[index],
            None if self.known is None else self.known[index],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Camera]) -> Camera:
        """Cameras of at least one set behind each other; those without distortion get coefficients of zero if others
        have some."""
        focal, princpt = (torch.cat([getattr(part, name) for part in parts]) for name in ("focal", "princpt"))
        dist, width = None, max(0 if part.dist is None else part.dist.shape[1] for part in parts)
        if width:
            dist = torch.zeros(len(focal), width).to(focal)
            for rows, part in zip(torch.arange(len(focal)).split([len(part) for part in parts]), parts, strict=True):
                if part.dist is not None:
                    dist[rows, : part.dist.shape[1]] = part.dist
        return cls(focal, princpt, dist, torch.cat([part.is_known() for part in parts]))

    def project(self, points_cam: Tensor) -> Tensor:
        """(N, P, 3) m, camera frame, to (N, P, 2) px, distortion included. Points behind the camera give NaN."""
        z = points_cam[..., 2:]
        xy = points_cam[..., :2] / torch.where(z > 0, z, torch.full_like(z, float("nan")))
        if self.dist is not None:
            xy = distort(xy, self.dist.to(xy)[:, None])
        return xy * self.focal.to(xy)[:, None] + self.princpt.to(xy)[:, None]

    def normalise(self, uv_px: Tensor) -> Tensor:
        """(N, P, 2) px to undistorted x/z, y/z."""
        xy = (uv_px - self.princpt.to(uv_px)[:, None]) / self.focal.to(uv_px)[:, None]
        return xy if self.dist is None else undistort(xy, self.dist.to(xy)[:, None])

    def undistort(self, uv_px: Tensor) -> Tensor:
        """(N, P, 2) px as found in the picture to the px a lens without distortion would have given."""
        return self.normalise(uv_px) * self.focal.to(uv_px)[:, None] + self.princpt.to(uv_px)[:, None]

    def without_distortion(self) -> Camera:
        """The same pinhole with a perfect lens."""
        return replace(self, dist=None)

    def crop(self, x0: Tensor | float, y0: Tensor | float) -> Camera:
        """The camera of the picture that starts at pixel (x0, y0) of this one's."""
        x, y = torch.as_tensor(x0, dtype=torch.float64), torch.as_tensor(y0, dtype=torch.float64)
        shift = torch.stack([x.expand_as(x + y), y.expand_as(x + y)], -1)
        return replace(self, princpt=self.princpt - shift.to(self.princpt))

    def resize(self, factor: Tensor | float) -> Camera:
        """The camera of the picture resized by `factor` (scalar or (N,)); pixel centres move by (factor - 1) / 2."""
        s = torch.as_tensor(factor, dtype=torch.float64).to(self.focal).reshape(-1, 1)
        return replace(self, focal=self.focal * s, princpt=(self.princpt + 0.5) * s - 0.5)

    def mirror(self, width: Tensor) -> Camera:
        """The camera of the picture mirrored left to right, (N,) widths in px. Distortion must have been removed."""
        if self.dist is not None:
            raise InputError("remove the lens distortion before mirroring a camera.")
        cx = width.to(self.princpt) - 1 - self.princpt[:, 0]
        return replace(self, princpt=torch.stack([cx, self.princpt[:, 1]], 1))


def translation_from_weak_perspective(
    weak: Tensor, focal: Tensor, box_center: Tensor, box_size: Tensor, princpt: Tensor
) -> Tensor:
    """Camera translation of a weak-perspective prediction in a square crop (HMR, SPIN, HaMeR).

    Args:
        weak: (B, 3) s, tx, ty with u = s (x + tx) in units of half the crop.
        focal: (B,) px of the full picture.
        box_center: (B, 2) px.
        box_size: (B,) side of the crop, px.
        princpt: (B, 2) px.

    Returns:
        (B, 3) m with z = 2 f / (box_size s).
    """
    s = weak[:, 0]
    z = 2 * focal / (box_size * s)
    xy = weak[:, 1:] + (box_center - princpt) * (z / focal)[:, None]
    return torch.cat([xy, z[:, None]], 1)


def weak_perspective_from_translation(
    transl: Tensor, focal: Tensor, box_center: Tensor, box_size: Tensor, princpt: Tensor
) -> Tensor:
    """Inverse of `translation_from_weak_perspective`: (B, 3) s, tx, ty."""
    z = transl[:, 2]
    s = 2 * focal / (box_size * z)
    return torch.cat([s[:, None], transl[:, :2] - (box_center - princpt) * (z / focal)[:, None]], 1)


def points_to_opengl(points_cam: Tensor) -> Tensor:
    """OpenCV camera points to OpenGL's axes (y up, z backward); its own inverse."""
    return points_cam * torch.tensor([1.0, -1.0, -1.0], dtype=points_cam.dtype, device=points_cam.device)


def opengl_projection(camera: Camera, image_size: Tensor, near: float, far: float) -> Tensor:
    """(N, 4, 4) OpenGL projection matrices for points in OpenGL's axes; row 0 of the picture is at y = +1.

    Args:
        camera: without distortion.
        image_size: (N, 2) width, height, px.
        near, far: clipping distances, m.
    """
    if camera.dist is not None:
        raise InputError("remove the lens distortion before converting a camera to OpenGL.")
    w, h = image_size.to(camera.focal).unbind(1)
    out = torch.zeros(len(camera), 4, 4, dtype=camera.focal.dtype)
    # Pixel centres are integers here and half-integers in OpenGL's window coordinates.
    out[:, 0, 0], out[:, 0, 2] = 2 * camera.focal[:, 0] / w, 1 - 2 * (camera.princpt[:, 0] + 0.5) / w
    out[:, 1, 1], out[:, 1, 2] = 2 * camera.focal[:, 1] / h, 2 * (camera.princpt[:, 1] + 0.5) / h - 1
    out[:, 2, 2], out[:, 2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    out[:, 3, 2] = -1
    return out


@dataclass(frozen=True)
class Pytorch3dCamera:
    """Arguments of pytorch3d's `PerspectiveCameras(in_ndc=True)` for points in OpenCV camera axes."""

    R: Tensor
    """(N, 3, 3): x left, y up, z forward (row vectors: X_view = X @ R + T)."""
    T: Tensor
    """(N, 3) zeros."""
    focal_length: Tensor
    """(N, 2) in units of half the shorter side."""
    principal_point: Tensor
    """(N, 2) likewise, x left and y up from the middle."""


def to_pytorch3d(camera: Camera, image_size: Tensor) -> Pytorch3dCamera:
    """A camera without distortion and its (N, 2) image size in pytorch3d's NDC convention."""
    if camera.dist is not None:
        raise InputError("remove the lens distortion before converting a camera to pytorch3d.")
    size = image_size.to(camera.focal)
    half = size.amin(1, keepdim=True) / 2
    axes = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=camera.focal.dtype)).expand(len(camera), 3, 3)
    point = -(camera.princpt + 0.5 - size / 2) / half
    return Pytorch3dCamera(axes, torch.zeros(len(camera), 3, dtype=camera.focal.dtype), camera.focal / half, point)


def from_pytorch3d(camera: Pytorch3dCamera, image_size: Tensor) -> Camera:
    """Inverse of `to_pytorch3d`; the extrinsics must be those of `to_pytorch3d`.

    Raises:
        InputError: the camera is turned or moved, so that the hands would have to be moved too.
    """
    axes = torch.tensor([-1.0, -1.0, 1.0], dtype=camera.R.dtype)
    if not torch.allclose(camera.R, torch.diag(axes).expand_as(camera.R)) or bool((camera.T != 0).any()):
        raise InputError("the pytorch3d camera has extrinsics; express the points in its view frame first.")
    size = image_size.to(camera.focal_length)
    half = size.amin(1, keepdim=True) / 2
    return Camera(camera.focal_length * half, size / 2 - camera.principal_point * half - 0.5)
