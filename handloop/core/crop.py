"""Square crops around hands, seen by a virtual pinhole camera: an exact `ViewChange` for each.

Two cameras, and what they are for:

* `affine_crop` keeps the camera's axes and cuts and scales the picture. Only K changes, the frame of the joints stays
  (but for an in-plane rotation or a mirror). A hand at the picture's edge is still seen from the side.
* `look_at_crop` turns a virtual camera about its centre until it looks at the middle of the box. The hand then looks as
  it would in the middle of the picture, whatever its place; the joints' frame turns with it.

A box is x0, y0, x1, y1 in px with pixel centres at integers, its edges being edges of the crop: the crop's own outer
edges lie at -0.5 and size - 0.5. Distortion is undone: the crop is what a lens without it shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.errors import InputError, check_shape
from handloop.core.keypoints import Keypoints
from handloop.core.rotations import skew, so3_exp
from handloop.core.view_change import ViewChange


def square_box(box: Tensor, margin: float = 1.25) -> Tensor:
    """(N, 4) px boxes to squares about the same middle, their side `margin` times the longer one.

    1.25 is what InterHand2.6M's loader leaves around a hand. Boxes without extent become 1 px wide.
    """
    check_shape("box", tuple(box.shape), (None, 4))
    if not margin > 0:
        raise InputError(f"a margin of {margin} was given, expected a factor above 0; 1 is the tight box.")
    middle = (box[:, :2] + box[:, 2:]) / 2
    half = (box[:, 2:] - box[:, :2]).amax(1, keepdim=True).clamp(min=1.0) * (margin / 2)
    return torch.cat([middle - half, middle + half], 1)


def keypoint_box(keypoints: Keypoints, margin: float = 1.25) -> Tensor:
    """(N, 4) px square around the visible points of each hand, wider by `margin`."""
    return square_box(keypoints.box(), margin)


def affine_crop(
    camera: Camera, box: Tensor, size: int, image_size: Tensor, angle: Tensor | None = None, flip: Tensor | None = None
) -> ViewChange:
    """The square boxes as pictures of `size` px, the camera's axes kept.

    Args:
        camera: N cameras of the pictures.
        box: (N, 4) px squares (`square_box`).
        size: side of the crop, px.
        image_size: (N, 2) width and height of the pictures, NaN where unknown.
        angle: (N,) rad, turns the crop in its plane, clockwise as seen; None for none.
        flip: (N,) bool, mirrors the crop; None for never.
    """
    middle, side = _checked(camera, box, size)
    roll, flip = _about_axis(angle, len(camera)), _never(flip, len(camera))
    focal = camera.focal * (size / side)[:, None]
    bare = Camera(focal, torch.zeros_like(focal), known=camera.known)
    view = ViewChange(camera, bare, roll, flip, image_size.double(), _sizes(size, len(camera)))
    # The box's middle comes to lie in the middle of the crop.
    princpt = (size - 1) / 2 - view.pixels(middle[:, None])[:, 0]
    return ViewChange(camera, Camera(focal, princpt, known=camera.known), roll, flip, view.size_in, view.size_out)


def look_at_crop(
    camera: Camera, box: Tensor, size: int, image_size: Tensor, angle: Tensor | None = None, flip: Tensor | None = None
) -> ViewChange:
    """The square boxes as a virtual camera sees them that looks at their middle.

    The camera is turned by the smallest rotation, then rolled by `angle`. Its focal length is the largest with which
    the whole box is inside the crop; its principal point is the crop's middle. Arguments as in `affine_crop`.

    Raises:
        InputError: a box reaches a right angle or more from its own middle.
    """
    middle, side = _checked(camera, box, size)
    roll, flip = _about_axis(angle, len(camera)), _never(flip, len(camera))
    ray = torch.nn.functional.pad(camera.normalise(middle[:, None])[:, 0], (0, 1), value=1.0)
    rotation = roll @ _turn_to_axis(ray / ray.norm(dim=1, keepdim=True))
    ones = torch.ones(len(camera), 2, dtype=torch.float64)
    bare = Camera(ones, torch.zeros_like(ones), known=camera.known)
    sizes = _sizes(size, len(camera))
    view = ViewChange(camera, bare, rotation, flip, image_size.double(), sizes)
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], dtype=torch.float64)
    reach = view.pixels(middle[:, None] + side[:, None, None] * corners).abs().amax((1, 2))
    if not bool(torch.isfinite(reach).all()):
        raise InputError("a box is too wide for a camera that looks at its middle; use affine_crop.")
    focal = (size / 2 / reach)[:, None] * ones
    new = Camera(focal, (size - 1) / 2 * ones, known=camera.known)
    return ViewChange(camera, new, rotation, flip, view.size_in, sizes)


def _checked(camera: Camera, box: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, 2) middles and (N,) sides of square boxes, px."""
    check_shape("box", tuple(box.shape), (len(camera), 4))
    if size < 1:
        raise InputError(f"a crop of {size} px was asked for, expected at least 1.")
    extent = box[:, 2:] - box[:, :2]
    if not bool(((extent > 0) & torch.isfinite(extent)).all()):
        raise InputError("a box has no extent or is not finite, expected x0, y0, x1, y1 in px with x0 < x1, y0 < y1.")
    if not torch.allclose(extent[:, 0], extent[:, 1], rtol=1e-6):
        raise InputError("a box is not square; make it so with square_box.")
    return ((box[:, :2] + box[:, 2:]) / 2).double(), extent[:, 0].double()


def _sizes(size: int, n: int) -> Tensor:
    return torch.full((n, 2), float(size), dtype=torch.float64)


def _never(flip: Tensor | None, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool) if flip is None else flip


def _about_axis(angle: Tensor | None, n: int) -> Tensor:
    """(N, 3, 3) rotations about z; a positive angle turns x (right) towards y (down), clockwise as seen."""
    turn = torch.zeros(n, 3, dtype=torch.float64)
    if angle is not None:
        check_shape("angle", tuple(angle.shape), (n,))
        turn[:, 2] = angle
    return so3_exp(turn)


def _turn_to_axis(ray: Tensor) -> Tensor:
    """(N, 3, 3) smallest rotations that bring unit vectors (N, 3) with z > 0 onto the z axis."""
    z = torch.tensor([0.0, 0.0, 1.0], dtype=ray.dtype).expand_as(ray)
    k = skew(torch.linalg.cross(ray, z))
    # R = I + K + K^2 / (1 + cos).
    return torch.eye(3, dtype=ray.dtype) + k + k @ k / (1 + ray[:, 2])[:, None, None]
