"""A loss that keeps a predicted hand inside its mask, and the mask covered.

Boukhayma et al. (CVPR 2019) count projected vertices outside the mask, which has a gradient at the mask's edge only.
Here each vertex outside pays its distance to the mask, read with a gradient from a distance field, and sampled pixels
of the mask pay their distance to the nearest projected vertex.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def distance_field(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32 px from each pixel to the nearest of a mask (H, W): 0 inside, and everywhere if it is empty."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    field: np.ndarray = distance_transform_edt(~mask)
    return field.astype(np.float32)


def mask_pixels(mask: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) x, y of pixels spread evenly over the list of a mask's (H, W); NaN for an empty one."""
    y, x = np.nonzero(mask)
    if not len(x):
        return np.full((count, 2), np.nan, np.float32)
    at = np.linspace(0, len(x) - 1, count).round().astype(np.int64)
    return np.stack([x[at], y[at]], 1).astype(np.float32)


def mask_loss(points: Tensor, field: Tensor, pixels: Tensor, valid: Tensor, cap: float = 0.25) -> Tensor:
    """(B,) mean distance of projected vertices from the mask plus that of the mask from them, in sides of the picture.

    Args:
        points: (B, V, 2) px, projected vertices; those behind the camera may be NaN and do not count.
        field: (B, H, W) px, see `distance_field`.
        pixels: (B, P, 2) px, see `mask_pixels`.
        valid: (B,) bool, hands with a mask; others give 0.
        cap: distances beyond count as this much: what an object hides lies outside the visible mask.
    """
    height, width = field.shape[1:]
    side = float(max(height, width))
    there = torch.isfinite(points).all(2)
    points = torch.where(there[..., None], points, torch.zeros_like(points))
    extent = torch.tensor([width, height], dtype=points.dtype, device=points.device)
    grid = (2 * points + 1) / extent - 1
    inside = torch.nn.functional.grid_sample(
        field[:, None].to(points), grid[:, None], mode="bilinear", padding_mode="border", align_corners=False
    )[:, 0, 0]
    # Beyond the picture's edge the field knows no more; how far beyond is added.
    beyond = (points - torch.minimum(points.clamp(min=0), extent - 1)).abs().sum(2)
    out = ((inside + beyond) / side).clamp(max=cap)
    out = torch.where(there, out, torch.zeros_like(out)).sum(1) / there.sum(1).clamp(min=1)
    marked = torch.isfinite(pixels).all(2) & valid[:, None] & there.any(1, keepdim=True)
    apart = (pixels.nan_to_num(0.0)[:, :, None] - points[:, None]).square().sum(3)
    apart = apart.masked_fill(~there[:, None], float("inf")).amin(2)
    apart = torch.where(marked, apart, torch.ones_like(apart))
    bare = ((apart + 1e-6).sqrt() / side).clamp(max=cap)
    bare = torch.where(marked, bare, torch.zeros_like(bare)).sum(1) / marked.sum(1).clamp(min=1)
    return torch.where(valid, out + bare, torch.zeros_like(out))
