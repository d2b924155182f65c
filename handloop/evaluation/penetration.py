"""How deep a hand's mesh cuts into itself: for a reader of results, never part of a fit.

The mesh is cut into 16 parts by its largest skinning weight, each closed at its cuts; a point on the skin of one part
that lies inside another one is as deep as its distance to that part's skin. Neighbouring parts are left out, because
skinning folds the skin at every bent joint, and so is skin that is as good as touching at rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import check_shape
from handloop.core.joints import MANO_PARENTS
from handloop.hand.model import N_JOINTS, N_VERTICES, Hand

_APART_M = 0.004
"""Skin nearer than this to another part at rest belongs to the same web or fold: what it does there is no collision."""


def self_penetration(hand: Hand, vertices: Tensor) -> Tensor:
    """(B,) m, the largest depth at which skin of one part of the hand lies inside another; 0 where none does.

    Args:
        hand: the model the meshes come from.
        vertices: (B, 778, 3) posed meshes, m. A mesh with a vertex that is not finite gets NaN.
    """
    check_shape("vertices", tuple(vertices.shape), (None, N_VERTICES, 3))
    parts = _parts(hand)
    depths = [_depth(parts, mesh) for mesh in vertices.detach().cpu().double().numpy()]
    return torch.tensor(depths, dtype=vertices.dtype)


@dataclass(frozen=True, eq=False)
class _Parts:
    edges: np.ndarray
    """(e, 2) whose middles are points on the skin as well as the vertices and the middles of faces."""
    faces: np.ndarray
    """(1538, 3)."""
    skin: tuple[np.ndarray, ...]
    """Faces (f, 3) of each part."""
    rims: tuple[tuple[np.ndarray, ...], ...]
    """The cuts of each part: directed edges (e, 2) of each, to be closed by a fan."""
    counts: np.ndarray
    """(n, 16) bool, whether a point (vertices, edges, faces) is looked for inside a part."""


@lru_cache(maxsize=8)
def _parts(hand: Hand) -> _Parts:
    of_vertex, faces = hand.weights.argmax(1), hand.faces
    # A face belongs to the part that most of its corners belong to, the first corner's where all differ.
    labels = of_vertex[faces]
    of_face = np.where(labels[:, 1] == labels[:, 2], labels[:, 1], labels[:, 0])
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1), axis=0)
    of_point = np.concatenate([of_vertex, of_vertex[edges[:, 0]], of_face])
    skin = tuple(faces[of_face == part] for part in range(N_JOINTS))
    counts = np.zeros((len(of_point), N_JOINTS), dtype=bool)
    points = _points(edges, faces, hand.v_template)
    for part in range(N_JOINTS):
        related = [part, MANO_PARENTS[part], *(j for j in range(N_JOINTS) if MANO_PARENTS[j] == part)]
        surface = hand.v_template[skin[part]]
        low, high = surface.min((0, 1)) - _APART_M, surface.max((0, 1)) + _APART_M
        counts[:, part] = ~np.isin(of_point, related)
        near = np.flatnonzero(counts[:, part] & (points > low).all(1) & (points < high).all(1))
        counts[near, part] = _distance(points[near], surface) > _APART_M
    return _Parts(edges, faces, skin, tuple(_rims(part) for part in skin), counts)


def _rims(faces: np.ndarray) -> tuple[np.ndarray, ...]:
    """Directed edges without a partner, by connected piece."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = {(int(a), int(b)) for a, b in edges}
    left = [edge for edge in sorted(pairs) if edge[::-1] not in pairs]
    pieces: list[tuple[set[int], list[tuple[int, int]]]] = []
    for edge in left:
        met = [piece for piece in pieces if piece[0] & set(edge)]
        pieces = [piece for piece in pieces if not piece[0] & set(edge)]
        joined = set(edge).union(*(piece[0] for piece in met))
        pieces.append((joined, [edge, *(e for piece in met for e in piece[1])]))
    return tuple(np.array(piece[1]) for piece in pieces)


def _depth(parts: _Parts, mesh: np.ndarray) -> float:
    if not np.isfinite(mesh).all():
        return float("nan")
    points = _points(parts.edges, parts.faces, mesh)
    deepest = 0.0
    for part in range(N_JOINTS):
        skin = mesh[parts.skin[part]]
        low, high = skin.min((0, 1)), skin.max((0, 1))
        near = np.flatnonzero(parts.counts[:, part] & (points > low).all(1) & (points < high).all(1))
        if len(near) == 0:
            continue
        lids = []
        for rim in parts.rims[part]:
            ends = mesh[rim]
            # Against the rim's own sense, so that the lid faces outwards like the skin.
            lids.append(np.stack([ends[:, 1], ends[:, 0], np.broadcast_to(ends.mean((0, 1)), (len(rim), 3))], 1))
        inside = near[_winding(points[near], np.concatenate([skin, *lids])) > 0.5]
        if len(inside):
            deepest = max(deepest, float(_distance(points[inside], skin).max()))
    return deepest


def _points(edges: np.ndarray, faces: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """(n, 3) points on the skin: vertices, middles of edges, middles of faces."""
    return np.concatenate([mesh, mesh[edges].mean(1), mesh[faces].mean(1)])


def _winding(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(n,) winding numbers of closed triangles (m, 3, 3) about points: 1 inside, 0 outside (van Oosterom, Strackee)."""
    a, b, c = (triangles[None, :, k] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    volume = (a * np.cross(b, c)).sum(2)
    flat = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    total: np.ndarray = np.arctan2(volume, flat).sum(1) / (2 * np.pi)
    return total


def _distance(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(n,) distances of points to the nearest of triangles (m, 3, 3)."""
    a, edges = triangles[:, 0], triangles - np.roll(triangles, -1, 1)
    normal = np.cross(triangles[:, 1] - a, triangles[:, 2] - a)
    normal = normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-30)
    best = np.full(len(points), np.inf)
    over = np.ones((len(points), len(triangles)), dtype=bool)
    for k in range(3):
        start, along = triangles[:, k], -edges[:, k]
        away = points[:, None] - start
        share = ((away * along).sum(2) / (along**2).sum(1).clip(1e-30)).clip(0, 1)
        best = np.minimum(best, np.linalg.norm(away - share[..., None] * along, axis=2).min(1))
        over &= (np.cross(along, away) * normal).sum(2) >= 0
    height = np.abs(((points[:, None] - a) * normal).sum(2))
    nearest: np.ndarray = np.minimum(best, np.where(over, height, np.inf).min(1))
    return nearest
