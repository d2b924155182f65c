"""Resampling pictures through a `ViewChange`: bilinear, the source shrunk first where it is finer than the crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from handloop.core.augmentation import Augmentation
from handloop.core.errors import InputError
from handloop.core.view_change import ViewChange


def warp_picture(picture: np.ndarray, view: ViewChange, row: int = 0) -> np.ndarray:
    """One picture as the new camera of `view` sees it; black where the old picture does not reach.

    A pixel of the result is the old picture at `view.inverse().pixels` of its centre, so keypoints mapped with
    `view.pixels` stay on what they marked. Where several old pixels fall on one new pixel, the old picture is first
    shrunk by their number along each axis (Pillow's antialiased triangle filter).

    Args:
        picture: (H, W, 3) uint8, the whole original picture.
        view: N changes of view.
        row: which of them.

    Returns:
        (h, w, 3) uint8 of the view's new size.

    Raises:
        InputError: not an RGB picture, or of another size than the view was made for.
    """
    return warp_pictures([picture], view.select(torch.tensor([row])))[0]


def warp_pictures(pictures: Sequence[np.ndarray], view: ViewChange) -> list[np.ndarray]:
    """`warp_picture` for N pictures and as many changes of view, in a quarter of the time."""
    for picture, expected in zip(pictures, view.size_in, strict=True):
        _check(picture, expected)
    back = view.inverse()
    width, height = back.size_in.unbind(1)
    # The crops' corners, outer edges of their corner pixels.
    x, y = torch.stack([width, height], 1)[:, None].double().unbind(2)
    low = torch.full_like(x, -1.0)
    edges = torch.stack([torch.cat([low, x, x, low], 1), torch.cat([low, low, y, y], 1)], 2)
    corners, density = back.pixels(edges).numpy(), _density(back)
    # A lens bends the crop's edges outwards, by less than this part of its width; a homography keeps them straight.
    straight = back.camera_out.dist is None
    ahead = (_rays(back, edges)[..., 2] > 0).all(1).tolist()
    maps = _homographies(back).numpy()
    crops = []
    for row, picture in enumerate(pictures):
        part, scale, start = _shrunk(picture, corners[row], density[row], 0.0 if straight else 0.25)
        size = (int(width[row]), int(height[row]))
        if straight and ahead[row]:
            crops.append(_by_homography(part, maps[row], scale, start, size))
        else:
            source = (back.select(torch.tensor([row])).pixels(_grid(*size))[0].numpy() - start + 0.5) * scale - 0.5
            crops.append(_bilinear(part, source).reshape(size[1], size[0], 3))
    return crops


def augment_picture(picture: np.ndarray, augmentation: Augmentation, row: int = 0) -> np.ndarray:
    """The crop of `warp_picture` with the drawn colours and patches."""
    return _coloured(warp_picture(picture, augmentation.view, row), augmentation, row)


def augment_pictures(pictures: Sequence[np.ndarray], augmentation: Augmentation) -> list[np.ndarray]:
    """`augment_picture` for N pictures."""
    crops = warp_pictures(pictures, augmentation.view)
    return [_coloured(crop, augmentation, row) for row, crop in enumerate(crops)]


def _coloured(crop: np.ndarray, augmentation: Augmentation, row: int) -> np.ndarray:
    gain = augmentation.gain[row].numpy()
    table = np.clip(np.round(np.arange(256)[:, None] * gain), 0, 255).astype(np.uint8)
    out = np.stack([table[:, k][crop[..., k]] for k in range(3)], 2)
    height, width = out.shape[:2]
    for box, colour in zip(augmentation.patch_box[row].numpy(), augmentation.patch_colour[row].numpy(), strict=True):
        if np.isfinite(box).all():
            x0, x1 = np.clip(np.round(box[[0, 2]] + 0.5), 0, width).astype(int)
            y0, y1 = np.clip(np.round(box[[1, 3]] + 0.5), 0, height).astype(int)
            out[y0:y1, x0:x1] = np.round(255 * colour)
    return out


def _check(picture: np.ndarray, expected: torch.Tensor) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise InputError(f"the picture has shape {picture.shape} and {picture.dtype}, expected (H, W, 3) uint8 (RGB).")
    if bool(torch.isfinite(expected).all()) and picture.shape[1::-1] != tuple(int(v) for v in expected.tolist()):
        raise InputError(
            f"the picture has {picture.shape[1]} x {picture.shape[0]} px, but the view was made for one of "
            f"{expected[0]:.0f} x {expected[1]:.0f} px."
        )


def _grid(width: int, height: int) -> torch.Tensor:
    """(1, height width, 2) px of all pixels."""
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    return torch.stack([x, y], -1).reshape(1, -1, 2).double()


def _density(back: ViewChange) -> list[float]:
    """How many old pixels, along an axis, fall on a new one in the middles of N crops."""
    middle = (back.size_in.double() - 1)[:, None] / 2
    steps = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]], dtype=torch.float64)
    a, b, c, d = back.pixels(middle + steps).unbind(1)
    jacobian = torch.stack([b - a, d - c], 2)
    density: list[float] = torch.linalg.det(jacobian).abs().sqrt().tolist()
    return density


def _shrunk(
    picture: np.ndarray, edges: np.ndarray, density: float, bulge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of the picture that is needed, shrunk by `density` where that is above 1.

    Args:
        picture: (H, W, 3).
        edges: (4, 2) px of the crop's corners in it; NaN for those that no ray of the old camera meets.
        density: old pixels per new one.
        bulge: how far beyond the corners the crop may reach, as a part of their extent.

    Returns:
        The part, and (2,) scale and (2,) start with px in the part = (px - start + 0.5) scale - 0.5.
    """
    size = np.array(picture.shape[1::-1])
    low, high = np.zeros(2, dtype=np.int64), size
    if np.isfinite(edges).all():
        margin = bulge * np.ptp(edges, axis=0) + 2 * max(density, 1.0)
        low = np.clip(np.floor(edges.min(0) - margin), 0, size - 1).astype(np.int64)
        high = np.clip(np.ceil(edges.max(0) + margin), low + 1, size).astype(np.int64)
    part = picture[low[1] : high[1], low[0] : high[0]]
    if density <= 1:
        return part, np.ones(2), low.astype(np.float64)
    from PIL import Image

    # A whole number of pixels, so the factor is not exactly `density`, but exactly known.
    count = np.maximum(np.round((high - low) / density), 1).astype(int)
    whole = Image.fromarray(np.ascontiguousarray(part))
    small = whole.resize((int(count[0]), int(count[1])), Image.Resampling.BILINEAR)
    return np.asarray(small), count / (high - low), low.astype(np.float64)


def _rays(back: ViewChange, px: torch.Tensor) -> torch.Tensor:
    """(N, M, 3) rays in the old cameras' frames of (N, M, 2) px of the crops."""
    return back.points(torch.nn.functional.pad(back.camera_in.normalise(px), (0, 1), value=1.0))


def _homographies(back: ViewChange) -> torch.Tensor:
    """(N, 3, 3) K_old F' K_new^-1, px of the crops to px of the old pictures where no lens bends rays."""
    k_new, k_old = back.camera_in.matrix(), back.camera_out.matrix()
    return k_old @ back.frame() @ torch.linalg.inv(k_new)


def _by_homography(
    part: np.ndarray, whole: np.ndarray, scale: np.ndarray, start: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Without distortion Pillow resamples some twenty times faster than numpy."""
    from PIL import Image

    # Pillow counts from the outer edge of the first pixel.
    to_part = np.array(
        [[scale[0], 0, (0.5 - start[0]) * scale[0]], [0, scale[1], (0.5 - start[1]) * scale[1]], [0, 0, 1]]
    )
    from_edge = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    h = to_part @ whole @ from_edge
    image = Image.fromarray(np.ascontiguousarray(part))
    data = tuple((h / h[2, 2]).ravel()[:8].tolist())
    return np.asarray(image.transform(size, Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR))


def _bilinear(picture: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(M, 3) uint8 at (M, 2) px; black farther than half a pixel outside, and for NaN."""
    height, width = picture.shape[:2]
    limit = np.array([width, height])
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((source >= -0.5) & (source <= limit - 0.5)).all(1))
    at = np.clip(np.where(inside[:, None], source, 0.0), 0, limit - 1)
    low = np.minimum(at.astype(np.int64), np.maximum(limit - 2, 0))
    part = (at - low).astype(np.float32)
    right, below = np.minimum(low + 1, limit - 1).T
    fx, fy = part[:, :1], part[:, 1:]
    top = picture[low[:, 1], low[:, 0]] * (1 - fx) + picture[low[:, 1], right] * fx
    bottom = picture[below, low[:, 0]] * (1 - fx) + picture[below, right] * fx
    mixed = np.round(top * (1 - fy) + bottom * fy)
    return np.where(inside[:, None], mixed, 0).astype(np.uint8)
