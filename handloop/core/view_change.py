"""`ViewChange`: from one pinhole view of a hand to another that shares its optical centre, exactly and both ways.

Crops, in-plane rotations, virtual cameras and mirror images are all of this one kind. A camera that turns about its own
centre sees the same rays, so a pixel is mapped without knowing its depth:

    ray in = (normalised pixel, 1)      ray out = F ray in      F = D R  (mirrored)  or  R

with R the rotation from the old camera's axes to the new one's, and D = diag(-1, 1, 1) the mirror of the new picture.
The same F moves points in m. A rotation of the picture in its plane is a rotation of the camera about its z axis, that
is about the principal point; that the picture seems to turn about the hand instead is only a shift of the new principal
point. All of it is therefore exact for joints and parameters, with no weak-perspective shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError, check_shape
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.rotations import so3_exp, so3_log


@dataclass(frozen=True)
class ViewChange:
    """N changes of view, one per hand."""

    camera_in: Camera
    """N cameras of the pictures to start from; distortion is undone (and put back by the inverse)."""
    camera_out: Camera
    """N cameras of the new pictures."""
    rotation: Tensor
    """(N, 3, 3) float64 R, old camera axes to new ones before the mirror."""
    flip: Tensor
    """(N,) bool, the new picture is mirrored: right hands become left ones."""
    size_in: Tensor
    """(N, 2) float64 width and height of the old pictures, px; NaN where unknown."""
    size_out: Tensor
    """(N, 2) float64 width and height of the new pictures, px."""

    def __post_init__(self) -> None:
        n = len(self.camera_in)
        if len(self.camera_out) != n:
            raise InputError(f"a change of view has {n} old cameras and {len(self.camera_out)} new ones.")
        check_shape("rotation", tuple(self.rotation.shape), (n, 3, 3))
        check_shape("flip", tuple(self.flip.shape), (n,))
        check_shape("size_in", tuple(self.size_in.shape), (n, 2))
        check_shape("size_out", tuple(self.size_out.shape), (n, 2))

    def __len__(self) -> int:
        return len(self.camera_in)

    def frame(self) -> Tensor:
        """(N, 3, 3) F = D R: points of the old camera's frame to the new one's; orthogonal, its own transpose back."""
        return torch.where(self.flip[:, None, None], _mirror(self.rotation) @ self.rotation, self.rotation)

    def points(self, points_cam: Tensor) -> Tensor:
        """(N, P, 3) m in the old camera's frame to the new one's."""
        return points_cam @ self.frame().to(points_cam).transpose(1, 2)

    def pixels(self, uv_px: Tensor) -> Tensor:
        """(N, P, 2) px of the old pictures to px of the new ones; NaN for rays behind the new camera."""
        at_one = torch.nn.functional.pad(self.camera_in.normalise(uv_px), (0, 1), value=1.0)
        return self.camera_out.project(self.points(at_one))

    def sides(self, is_right: Tensor) -> Tensor:
        """(N,) bool sides of the hands in the new pictures."""
        return is_right ^ self.flip.to(is_right.device)

    def wrist_rest(self, wrist_rest: Tensor) -> Tensor:
        """(N, 3) m rest wrists J_0(betas) of the hands in the new pictures: mirrored where the picture is."""
        return torch.where(self.flip[:, None].to(wrist_rest.device), mirror_points(wrist_rest), wrist_rest)

    def params(self, params: HandParams, wrist_rest: Tensor) -> HandParams:
        """Parameters of the same hands in the new cameras' frames; mirrored ones in the other side's convention.

        Args:
            params: N hands in the old cameras' frames.
            wrist_rest: (N, 3) m, J_0(betas) of each hand's own side (`Kinematics.root_offset`): smplx turns a hand
                about its wrist, not about the origin, so that `transl` cannot be turned without it.
        """
        check_shape("wrist_rest", tuple(wrist_rest.shape), (len(self), 3))
        turned = move_params(params, self.rotation, torch.zeros_like(wrist_rest), wrist_rest)
        pairs = zip(turned.mirrored().tensors(), turned.tensors(), strict=True)
        flip = self.flip[:, None].to(params.transl.device)
        return HandParams(*(torch.where(flip, mirrored, straight) for mirrored, straight in pairs))

    def keypoints(self, keypoints: Keypoints) -> Keypoints:
        """The same hands as found in the new pictures; points behind the new camera go missing."""
        xy = self.pixels(keypoints.xy)
        finite = torch.isfinite(xy).all(-1)
        return replace(
            keypoints,
            xy=torch.where(finite[..., None], xy, torch.zeros_like(xy)),
            conf=torch.where(finite, keypoints.conf, torch.zeros_like(keypoints.conf)),
            is_right=self.sides(keypoints.is_right),
            image_size=self.size_out.clone(),
            image=("",) * len(keypoints),
        )

    def inverse(self) -> ViewChange:
        """The way back: from the new pictures, frames and sides to the old ones."""
        back = self.rotation.transpose(1, 2)
        # F^-1 = R' D = D (D R' D).
        mirrored = _mirror(back) @ back @ _mirror(back)
        return ViewChange(
            self.camera_out,
            self.camera_in,
            torch.where(self.flip[:, None, None], mirrored, back),
            self.flip,
            self.size_out,
            self.size_in,
        )

    def then(self, other: ViewChange) -> ViewChange:
        """This change followed by another, as one.

        Raises:
            InputError: the other does not start from this one's cameras.
        """
        first, second = self.camera_out, other.camera_in
        if len(self) != len(other) or not (
            torch.equal(first.focal, second.focal) and torch.equal(first.princpt, second.princpt)
        ):
            raise InputError("the second change of view starts from other cameras than the first one ends with.")
        flip = self.flip ^ other.flip
        frame = other.frame() @ self.frame()
        rotation = torch.where(flip[:, None, None], _mirror(frame) @ frame, frame)
        return ViewChange(self.camera_in, other.camera_out, rotation, flip, self.size_in, other.size_out)

    def select(self, index: Tensor) -> ViewChange:
        """The changes named by an integer or boolean index."""
        return ViewChange(
            self.camera_in.select(index),
            self.camera_out.select(index),
            self.rotation[index],
            self.flip[index],
            self.size_in[index],
            self.size_out[index],
        )


def move_params(params: HandParams, rotation: Tensor, offset: Tensor, wrist_rest: Tensor) -> HandParams:
    """Parameters of hands moved as rigid bodies, x -> rotation x + offset; pose and shape stay.

    Args:
        params: N hands.
        rotation: (N, 3, 3) proper rotations.
        offset: (N, 3) m.
        wrist_rest: (N, 3) m, J_0(betas): with w = J_0 + transl the wrist, transl becomes rotation w + offset - J_0.
    """
    rotation, offset, rest = (t.to(params.transl) for t in (rotation, offset, wrist_rest))
    orient = so3_log(rotation @ so3_exp(params.global_orient))
    wrist = (rotation @ (rest + params.transl)[..., None])[..., 0] + offset
    return replace(params, global_orient=orient, transl=wrist - rest)


def mirror_points(points: Tensor) -> Tensor:
    """(..., 3) with x negated."""
    return points * torch.tensor([-1.0, 1.0, 1.0], dtype=points.dtype, device=points.device)


def _mirror(like: Tensor) -> Tensor:
    return torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=like.dtype, device=like.device))
