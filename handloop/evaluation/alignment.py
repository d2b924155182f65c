"""Moving one set of points onto another, hand by hand: what each way of reporting an error takes out of it.

Points that are not finite in either set are left out, so that unknown joints are written as NaN. Everything is computed
in float64, and one hand's result does not depend on the others in its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from handloop.core.errors import InputError
from handloop.core.products import bmm

WRIST, MIDDLE_MCP = 0, 9
"""Canonical points: the root of root-relative errors, and the far end of the bone that HO-3D scales by."""


@dataclass(frozen=True)
class Alignment:
    """One similarity x -> scale * R x + shift per hand."""

    scale: Tensor
    """(B,) float64."""
    rotation: Tensor
    """(B, 3, 3) float64; orthogonal, with determinant -1 only where mirroring was allowed."""
    shift: Tensor
    """(B, 3) float64, m."""

    def apply(self, points: Tensor) -> Tensor:
        """(B, P, 3) m to (B, P, 3) m, float64."""
        turned = bmm(points.double(), self.rotation.transpose(1, 2).contiguous())
        return self.scale[:, None, None] * turned + self.shift[:, None]


def similarity(source: Tensor, target: Tensor) -> Alignment:
    """Procrustes alignment with scale: the rotation, scale and shift that bring `source` closest to `target`.

    Least squares in closed form (Umeyama 1991). Never mirrors. Where all points of either set coincide the scale is 0
    and everything lands in the target's centroid, and where they lie on a line the turn about it is arbitrary; neither
    changes the distances.

    Args:
        source: (B, P, 3) m, what is moved.
        target: (B, P, 3) m.

    Returns:
        NaN for hands without one known point.
    """
    return _procrustes(source, target, with_scale=True, mirrored=False)


def similarity_or_mirror(source: Tensor, target: Tensor) -> Alignment:
    """`similarity` that may also mirror: what the servers of FreiHAND and HO-3D compute.

    Their `align_w_scale` calls scipy's `orthogonal_procrustes`, which does not exclude reflections: a hand that is the
    mirror image of the truth, as after a depth flip, has no error there.
    """
    return _procrustes(source, target, with_scale=True, mirrored=True)


def rigid(source: Tensor, target: Tensor) -> Alignment:
    """The rotation and shift alone that bring `source` (B, P, 3) m closest to `target`; see `similarity`."""
    return _procrustes(source, target, with_scale=False, mirrored=False)


def unchanged(source: Tensor, target: Tensor) -> Alignment:
    """No alignment: errors in camera space."""
    points = _checked(source, target)[0]
    return _move(torch.ones_like(points[:, 0, 0]), torch.zeros_like(points[:, 0]))


def root_relative(source: Tensor, target: Tensor) -> Alignment:
    """The shift that puts the wrist of `source` (B, 21, 3) m onto that of `target`; NaN where either is unknown."""
    a, b, _ = _checked(source, target)
    return _move(torch.ones_like(a[:, 0, 0]), b[:, WRIST] - a[:, WRIST])


def scale_translation(source: Tensor, target: Tensor) -> Alignment:
    """HO-3D's alignment: wrist onto wrist, after scaling to the target's distance from wrist to middle knuckle.

    As `align_sc_tr` of HO-3D's eval.py. Where wrist and knuckle of `source` coincide there is nothing to scale by, and
    the scale stays 1. NaN where one of the four points is unknown.
    """
    a, b, _ = _checked(source, target)
    length = (a[:, MIDDLE_MCP] - a[:, WRIST]).norm(dim=1)
    wanted = (b[:, MIDDLE_MCP] - b[:, WRIST]).norm(dim=1)
    scale = torch.where(length == 0, torch.ones_like(length), wanted / length)
    return _move(scale, b[:, WRIST] - scale[:, None] * a[:, WRIST])


ALIGNMENTS: dict[str, Callable[[Tensor, Tensor], Alignment]] = {
    "raw": unchanged,
    "root": root_relative,
    "scale_translation": scale_translation,
    "rigid": rigid,
    "pa": similarity,
    "pa_mirror": similarity_or_mirror,
}
"""The alignments that errors are reported after, by the name they carry in reports."""


def _checked(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both sets as float64, and (B, P) bool: known in both."""
    if source.shape != target.shape or source.ndim != 3 or source.shape[2] != 3:
        raise InputError(
            f"points of shape {tuple(source.shape)} and {tuple(target.shape)} cannot be aligned, "
            "expected (B, P, 3) twice."
        )
    a, b = source.double(), target.double()
    return a, b, (torch.isfinite(a) & torch.isfinite(b)).all(-1)


def _move(scale: Tensor, shift: Tensor) -> Alignment:
    eye = torch.eye(3, dtype=scale.dtype, device=scale.device)
    return Alignment(scale, eye.expand(len(scale), 3, 3), shift)


def _procrustes(source: Tensor, target: Tensor, with_scale: bool, mirrored: bool) -> Alignment:
    a, b, known = _checked(source, target)
    weight = known.to(a.dtype)[:, None]
    count = weight.sum(2)
    # Zeros in place of unknown points: NaN times a weight of zero would stay NaN.
    a, b = (torch.where(known[..., None], x, torch.zeros_like(x)) for x in (a, b))
    mean_a, mean_b = (bmm(weight, x)[:, 0] / count for x in (a, b))
    a, b = (torch.where(known[..., None], x - m[:, None], torch.zeros_like(x)) for x, m in ((a, mean_a), (b, mean_b)))
    covariance = bmm(b.transpose(1, 2).contiguous(), a)
    u, size, vt = torch.linalg.svd(covariance)
    sign = torch.ones_like(size)
    if not mirrored:
        # The direction that matters least is turned round where the best orthogonal matrix is a reflection.
        sign[:, 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = (u * sign[:, None]) @ vt
    scale = torch.ones_like(count[:, 0])
    if with_scale:
        spread = (a * a).flatten(1).sum(1)
        scale = torch.where(spread > 0, (size * sign).sum(1) / spread, torch.zeros_like(spread))
    turned = (rotation @ mean_a[..., None])[..., 0]
    return Alignment(scale, rotation, mean_b - scale[:, None] * turned)
