"""Convex polygons of admissible (flexion, abduction) pairs, one per joint, and distances to them.

Flexion and abduction of a joint go together (a bent finger cannot be spread), which is why Spurr et al. (ECCV 2020)
limit the pair by a convex hull and not by a box. Sides are told apart with outward normals, so that neither the order
of a polygon's corners nor very short edges matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor

from handloop.core.errors import InputError

N_DIRECTIONS = 24
"""Directions in which `support_polygon` measures, and so the most corners it can return."""

# No polygon is narrower than this, rad (one degree): nothing is measured more sharply, and a line has no inside.
_NARROWEST = np.deg2rad(1.0)
# Corners closer than this, in shares of the polygon's extent, are one.
_SAME = 1e-6


@dataclass(frozen=True, eq=False)
class AngleHulls:
    """One polygon per joint. Build with `AngleHulls.of`."""

    vertices: Tensor
    """(J, V, 2) rad, counter-clockwise; a polygon with fewer corners repeats its last."""
    edges: Tensor
    """(J, V, 2) from each corner to the next."""
    normals: Tensor
    """(J, V, 2) outward unit normals of the edges; zero for edges without length."""

    @classmethod
    def of(cls, polygons: Sequence[np.ndarray]) -> AngleHulls:
        """From convex polygons, each (n, 2) rad, whichever way round.

        Raises:
            InputError: a polygon with fewer than three corners, without area, or not convex.
        """
        most = max(len(p) for p in polygons)
        padded = []
        for joint, polygon in enumerate(polygons):
            corners = np.asarray(polygon, dtype=np.float64)
            if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
                raise InputError(
                    f"hull {joint} has shape {corners.shape}, expected at least 3 finite (flexion, abduction) corners."
                )
            area = _turn(corners, np.roll(corners, -1, 0)).sum() / 2
            corners = corners if area > 0 else corners[::-1]
            steps = np.roll(corners, -1, 0) - corners
            bends = _turn(steps, np.roll(steps, -1, 0))
            # A star goes round more than once while turning only left.
            turns = np.arctan2(bends, (steps * np.roll(steps, -1, 0)).sum(1)).sum() / (2 * np.pi)
            if area == 0 or bends.min() < -1e-9 or round(turns) != 1:
                raise InputError(f"hull {joint} is not a convex polygon with an area.")
            padded.append(np.concatenate([corners, np.repeat(corners[-1:], most - len(corners), 0)]))
        vertices = np.stack(padded)
        edges = np.roll(vertices, -1, 1) - vertices
        length = np.linalg.norm(edges, axis=2, keepdims=True)
        outward = np.stack([edges[..., 1], -edges[..., 0]], -1)
        normals = np.divide(outward, length, out=np.zeros_like(edges), where=length > 0)
        return cls(torch.tensor(vertices), torch.tensor(edges), torch.tensor(normals))

    def __len__(self) -> int:
        return self.vertices.shape[0]

    def to(self, like: Tensor) -> AngleHulls:
        """With the dtype and device of `like`."""
        return AngleHulls(self.vertices.to(like), self.edges.to(like), self.normals.to(like))

    def polygons(self) -> list[np.ndarray]:
        """The corners without padding, (n, 2) each."""
        out = []
        for corners in self.vertices.cpu().numpy():
            n = len(corners)
            while n > 1 and (corners[n - 1] == corners[n - 2]).all():
                n -= 1
            out.append(corners[:n])
        return out

    def unwrapped(self, angles: Tensor) -> Tensor:
        """Angles (..., J, 2) with flexion within half a turn of the polygon's middle, so that past 180 degrees counts
        as bent too far and not as bent backwards."""
        flexion, abduction = angles.unbind(-1)
        corners = self.vertices[..., 0]
        off = flexion - (corners.amin(1) + corners.amax(1)) / 2
        return torch.stack([flexion - 2 * torch.pi * (off / (2 * torch.pi)).round().detach(), abduction], -1)

    def excess(self, angles: Tensor) -> Tensor:
        """(..., J, 2) from the nearest allowed pair to the given one, rad; zero inside. Differentiable."""
        p = self.unwrapped(angles)
        nearest, _, _ = self._nearest(p)
        return torch.where(self._outside(p)[..., None], p - nearest, torch.zeros_like(p))

    def excess_and_jacobian(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """`excess` and its derivative by the angles (..., J, 2, 2): the identity beyond a corner, n n^T beyond an
        edge."""
        p = self.unwrapped(angles)
        nearest, edge, on_edge = self._nearest(p)
        outside = self._outside(p)[..., None]
        normal = self.normals[torch.arange(len(self), device=p.device), edge]
        across = normal[..., :, None] * normal[..., None, :]
        eye = torch.eye(2, dtype=p.dtype, device=p.device).expand_as(across)
        jac = torch.where(on_edge[..., None, None], across, eye)
        zero = torch.zeros_like(p)
        return torch.where(outside, p - nearest, zero), torch.where(outside[..., None], jac, torch.zeros_like(jac))

    def distance(self, angles: Tensor) -> Tensor:
        """(..., J) Euclidean distance in rad; 0 inside, gradient 0 there and 1 outside."""
        sq = self.excess(angles).square().sum(-1)
        out = sq > 0
        return torch.where(out, torch.where(out, sq, torch.ones_like(sq)).sqrt(), torch.zeros_like(sq))

    def paper_distance(self, angles: Tensor) -> Tensor:
        """(..., J) the distance of Spurr et al. 2020: the L1 distance between cosines and sines of the two pairs of
        angles, least over the edges' nearest points; 0 inside."""
        p = self.unwrapped(angles)
        q = self._on_edges(p)[0]
        p_ = p[..., None, :]
        apart = ((p_.cos() - q.cos()).abs() + (p_.sin() - q.sin()).abs()).sum(-1).amin(-1)
        return torch.where(self._outside(p), apart, torch.zeros_like(apart))

    def _outside(self, p: Tensor) -> Tensor:
        return ((p[..., None, :] - self.vertices) * self.normals).sum(-1).amax(-1) > 0

    def _on_edges(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest point of each edge (..., J, V, 2) and how far along it lies (..., J, V), 0 to 1."""
        sq = self.edges.square().sum(-1)
        real = self.normals.square().sum(-1) > 0
        along = ((p[..., None, :] - self.vertices) * self.edges).sum(-1) / torch.where(real, sq, torch.ones_like(sq))
        share = torch.where(real, along, torch.zeros_like(along)).clamp(0, 1)
        return self.vertices + share[..., None] * self.edges, share

    def _nearest(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest point of the boundary (..., J, 2), its edge (..., J), and whether it lies between two corners."""
        q, share = self._on_edges(p)
        edge = (p[..., None, :] - q).square().sum(-1).argmin(-1)
        nearest = torch.take_along_dim(q, edge[..., None, None], -2)[..., 0, :]
        share = torch.take_along_dim(share, edge[..., None], -1)[..., 0]
        return nearest, edge, (share > 0) & (share < 1)


def support_polygon(pairs: np.ndarray, trim: float, always: np.ndarray | None = None) -> np.ndarray:
    """The convex polygon (n, 2), counter-clockwise, that leaves out the share `trim` of `pairs` in each direction.

    In each of `N_DIRECTIONS` directions, scaled to the pairs' extent, a line cuts off the farthest `trim` of them; the
    polygon is what is left. With trim 0 it holds all pairs and is their hull, a little rounded out. (Cutting whole
    layers off the hull, or quantiles of each angle alone, would keep outliers at the corners.)

    Args:
        pairs: (n, 2) rad; may be empty where `always` is given.
        trim: 0 to 0.2.
        always: (m, 2) pairs that it holds in any case.
    """
    always = np.zeros((0, 2)) if always is None else always
    low = np.quantile(pairs, trim, axis=0) if len(pairs) else np.full(2, np.inf)
    high = np.quantile(pairs, 1 - trim, axis=0) if len(pairs) else np.full(2, -np.inf)
    low, high = np.vstack([low, always]).min(0), np.vstack([high, always]).max(0)
    middle, extent = (low + high) / 2, np.maximum((high - low) / 2, _NARROWEST / 2)
    turn = 2 * np.pi / N_DIRECTIONS * np.arange(N_DIRECTIONS)
    directions = np.stack([np.cos(turn), np.sin(turn)], 1)
    reach = np.full(N_DIRECTIONS, -np.inf)
    if len(pairs):
        reach = np.quantile((pairs - middle) / extent @ directions.T, 1 - trim, axis=0)
    if len(always):
        reach = np.maximum(reach, ((always - middle) / extent @ directions.T).max(0))
    # Opposite lines at least the narrowest width apart.
    least = _NARROWEST * np.linalg.norm(directions / extent, axis=1)
    reach = reach + np.maximum(least - reach - np.roll(reach, N_DIRECTIONS // 2), 0) / 2
    corners = []
    for i, j in combinations(range(N_DIRECTIONS), 2):
        lines = directions[[i, j]]
        if abs(_turn(lines[0], lines[1])) > 1e-9:
            corner = np.linalg.solve(lines, reach[[i, j]])
            if (directions @ corner <= reach + 1e-9).all():
                corners.append(corner)
    distinct = np.unique(np.round(np.array(corners) / _SAME) * _SAME, axis=0)
    return np.asarray(distinct[ConvexHull(distinct).vertices] * extent + middle)


def _turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product of vectors in the plane."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
