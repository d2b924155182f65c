"""Random changes of view and appearance for training, drawn with a passed generator and invertible.

A drawn `Augmentation` keeps the geometry as one `ViewChange`, so that whatever a network or a fit says about the
augmented crop can be carried back into the original picture and camera frame with `view.inverse()`, to rounding. Colour
and occlusion change the picture only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from handloop.core.camera import Camera
from handloop.core.crop import affine_crop, look_at_crop
from handloop.core.errors import InputError
from handloop.core.view_change import ViewChange

Crop = Literal["look-at", "affine"]
Flip = Literal["never", "random", "to-right"]

_CROPS = {"look-at": look_at_crop, "affine": affine_crop}


@dataclass(frozen=True)
class AugmentOptions:
    """How far the draws reach; the defaults of the ranges are HaMeR's, and SPIN's for the colour. Zero switches off."""

    crop: Crop = "look-at"
    """The camera of the crop: one that looks at the hand, or the picture's own axes (`core.crop`)."""
    rotation_deg: float = 30.0
    """In-plane rotation, uniform in plus and minus this."""
    scale: float = 0.3
    """The box is 1 / (1 + scale) to 1 + scale times as wide, uniform in the logarithm."""
    shift: float = 0.02
    """The box moves by up to this part of its side, in x and y each."""
    flip: Flip = "never"
    """Mirror never, every second hand at random, or exactly the left hands, so that all become right."""
    colour: float = 0.2
    """Each colour channel is multiplied by 1 - colour to 1 + colour."""
    occlusion: float = 0.0
    """Probability that patches of one colour each hide parts of the crop."""
    patches: int = 3
    """How many patches then."""
    patch_size: tuple[float, float] = (0.1, 0.4)
    """Least and largest side of a patch, as parts of the crop's."""

    def __post_init__(self) -> None:
        if self.crop not in _CROPS or self.flip not in ("never", "random", "to-right"):
            raise InputError(f"crop {self.crop!r} and flip {self.flip!r} were given, expected {Crop} and {Flip}.")
        if not (self.scale >= 0 and 0 <= self.colour <= 1 and 0 <= self.occlusion <= 1 and self.patches >= 0):
            raise InputError("scale and patches must not be negative, colour and occlusion must lie in 0 to 1.")
        low, high = self.patch_size
        if not 0 < low <= high <= 1:
            raise InputError(
                f"patch_size {self.patch_size} was given, expected two parts of the crop, 0 < low <= high."
            )


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for N hands."""

    view: ViewChange
    """From the original pictures to the augmented crops; `view.inverse()` is the way back."""
    gain: Tensor
    """(N, 3) factor of each colour channel."""
    patch_box: Tensor
    """(N, P, 4) x0, y0, x1, y1 of the hiding patches in px of the crop; NaN for none."""
    patch_colour: Tensor
    """(N, P, 3) their colours, 0..1."""

    def __len__(self) -> int:
        return len(self.view)

    def inverse(self) -> ViewChange:
        """From the augmented crops back to the original pictures and frames."""
        return self.view.inverse()


def draw_augmentation(
    camera: Camera,
    box: Tensor,
    size: int,
    image_size: Tensor,
    is_right: Tensor,
    options: AugmentOptions,
    generator: torch.Generator,
) -> Augmentation:
    """One random augmentation per hand.

    Each hand uses the same number of draws whatever is switched on, so that one option changes nothing about another.

    Args:
        camera: N cameras of the original pictures.
        box: (N, 4) px squares around the hands (`square_box`).
        size: side of the crop, px.
        image_size: (N, 2) width and height of the original pictures, NaN where unknown.
        is_right: (N,) bool.
        options: the ranges.
        generator: source of all randomness, on the CPU.
    """
    n, p = len(camera), options.patches
    u = torch.rand(n, 9 + 7 * p, generator=generator, dtype=torch.float64)
    centred = 2 * u - 1
    side = (box[:, 2:] - box[:, :2]).double()
    wider = torch.exp(centred[:, 1:2] * math.log1p(options.scale))
    middle = (box[:, :2] + box[:, 2:]).double() / 2 + options.shift * side * centred[:, 2:4]
    jittered = torch.cat([middle - side * wider / 2, middle + side * wider / 2], 1)
    angle = centred[:, 0] * math.radians(options.rotation_deg)
    flip = {"never": torch.zeros(n, dtype=torch.bool), "random": u[:, 4] < 0.5, "to-right": ~is_right}[options.flip]
    view = _CROPS[options.crop](camera, jittered, size, image_size, angle, flip)
    hidden = (u[:, 8] < options.occlusion)[:, None, None]
    boxes = _patches(u[:, 9 : 9 + 4 * p].reshape(n, p, 4), size, options)
    return Augmentation(
        view,
        1 + options.colour * centred[:, 5:8],
        torch.where(hidden, boxes, torch.full_like(boxes, float("nan"))),
        u[:, 9 + 4 * p :].reshape(n, p, 3),
    )


def _patches(u: Tensor, size: int, options: AugmentOptions) -> Tensor:
    """(N, P, 4) boxes in px of the crop from as many uniform numbers, their middles inside it."""
    low, high = options.patch_size
    half = (low + (high - low) * u[..., 2:]) * size / 2
    middle = u[..., :2] * size - 0.5
    return torch.cat([middle - half, middle + half], -1)
