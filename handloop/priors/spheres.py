"""`HandSpheres`: a hand as spheres inside its flesh, each rigid with one joint, linear in the shape (SMPLify's proxy).

Bogo et al. (ECCV 2016) fill capsules along the limbs with spheres whose axis and radius are regressed from the betas.
Here both are read off the mesh: from stations along a bone, rays square to it meet the skin in opposite pairs. A sphere
lies in the middle of its pairs, with half their mean distance as radius. Which triangles the rays meet is settled on
the mean shape; as the points on them are linear in the betas, so are the centres, and the radii to first order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import ModelError
from handloop.core.joints import MANO_PARENTS
from handloop.core.products import bmm
from handloop.core.tables import index
from handloop.hand.kinematics import CHAINS
from handloop.hand.model import Hand

_STATIONS: dict[str, tuple[float, ...]] = {
    "palm": (0.25, 0.45, 0.65, 0.85),
    "thumb1": (0.2, 0.4, 0.6, 0.8),
    "thumb2": (0.0, 0.25, 0.5, 0.75),
    "thumb3": (0.0, 0.3, 0.6),
    "finger1": (0.0, 0.2, 0.4, 0.6, 0.8),
    "finger2": (0.0, 0.25, 0.5, 0.75),
    "finger3": (0.0, 0.3, 0.6),
}
"""Where spheres lie along a bone, as shares of it: about half a finger's thickness apart. One more lies its own radius
from each fingertip."""

_RAY_PAIRS = 8
"""Opposite rays at each station, over half a turn."""

_WIDEST = 1.1
"""Pairs wider than this times the narrowest are not the sphere's business: across the palm, or through a web."""

_SHAPES_SD = 2.0
"""Shapes for which spheres are looked at to tell who touches at rest: the mean hand and +- this many sds per beta."""


@dataclass(frozen=True, eq=False)
class HandSpheres:
    """The spheres of one hand model and the pairs that may not overlap. Build with `hand_spheres`."""

    part: Tensor
    """(S,) int64, the joint in whose frame a sphere is fixed, MANO order; 0 is the palm."""
    offset: Tensor
    """(S, 3) m, centre minus that joint at rest, mean shape."""
    offset_dirs: Tensor
    """(S, 3, 10) m per beta."""
    radius: Tensor
    """(S,) m, mean shape."""
    radius_dirs: Tensor
    """(S, 10) m per beta."""
    joints: Tensor
    """(16, 3) m, rest joints of the mean shape."""
    joints_dirs: Tensor
    """(16, 3, 10) m per beta."""
    pairs: Tensor
    """(P, 2) int64 incompatible spheres, see `incompatible_pairs`."""

    def to(self, like: Tensor) -> HandSpheres:
        """With the dtype and on the device of `like`."""
        return HandSpheres(
            part=self.part.to(like.device),
            offset=self.offset.to(like),
            offset_dirs=self.offset_dirs.to(like),
            radius=self.radius.to(like),
            radius_dirs=self.radius_dirs.to(like),
            joints=self.joints.to(like),
            joints_dirs=self.joints_dirs.to(like),
            pairs=self.pairs.to(like.device),
        )

    def radii(self, betas: Tensor) -> Tensor:
        """(B, S) m of betas (B, 10); at least a tenth of the mean shape's, whatever the betas."""
        grown = bmm(self.radius_dirs.expand(len(betas), -1, 10), betas[..., None])[..., 0]
        return torch.maximum(self.radius + grown, 0.1 * self.radius)

    def posed(self, rotations: Tensor, betas: Tensor) -> PosedSpheres:
        """The spheres of posed hands, wrist joint at the origin.

        Args:
            rotations: (B, 16, 3, 3) wrist rotation and relative joint rotations, MANO order.
            betas: (B, 10).
        """
        n = len(betas)
        rest = self.joints + _shaped(self.joints_dirs, betas)
        turns, places = [rotations[:, :1].expand(n, 5, 3, 3)], [betas.new_zeros(n, 5, 3)]
        before = rest[:, :1]
        for level in range(3):
            ids = index([chain[level] for chain in CHAINS], betas.device)
            places.append(places[-1] + (turns[-1] @ (rest[:, ids] - before)[..., None])[..., 0])
            turns.append(turns[-1] @ rotations[:, ids])
            before = rest[:, ids]
        # From (level, finger) to MANO's order.
        by_level = [0, *(chain[level] for level in range(3) for chain in CHAINS)]
        order = index([by_level.index(joint) for joint in range(16)], betas.device)
        world = torch.cat([turns[0][:, :1], *turns[1:]], 1)[:, order]
        joints = torch.cat([places[0][:, :1], *places[1:]], 1)[:, order]
        arm = self.offset + _shaped(self.offset_dirs, betas)
        centres = (world[:, self.part] @ arm[..., None])[..., 0] + joints[:, self.part]
        return PosedSpheres(centres, self.radii(betas), world, joints)


@dataclass(frozen=True, eq=False)
class PosedSpheres:
    """Spheres of B hands, wrist joint at the origin, axes of the camera frame."""

    centres: Tensor
    """(B, S, 3) m."""
    radii: Tensor
    """(B, S) m."""
    world: Tensor
    """(B, 16, 3, 3) rotations of the joints' frames, MANO order."""
    joints: Tensor
    """(B, 16, 3) m."""


@lru_cache(maxsize=8)
def hand_spheres(hand: Hand) -> HandSpheres:
    """Fit spheres to a hand model of either side; the last eight are kept.

    Fingers carry 13 spheres each, the thumb 12, the four metacarpals 16 between them.

    Raises:
        ModelError: a bone lies outside the mesh.
    """
    joints, tips = hand.joints_rest, hand.v_template[hand.tip_ids]
    found: list[_Sphere] = []
    for finger, chain in enumerate(CHAINS):
        kind = "thumb" if finger == 0 else "finger"
        ends = [*joints[list(chain)], tips[finger]]
        if finger:
            found += _along(hand, 0, joints[0], ends[0], _STATIONS["palm"])
        for depth, joint in enumerate(chain):
            found += _along(hand, joint, ends[depth], ends[depth + 1], _STATIONS[f"{kind}{depth + 1}"])
        inset = found[-1].radius / np.linalg.norm(ends[3] - ends[2])
        found += _along(hand, chain[2], ends[2], ends[3], (float(1 - inset),))
    part = np.array([sphere.part for sphere in found])
    centre, centre_dirs = np.stack([s.centre for s in found]), np.stack([s.centre_dirs for s in found])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float64)

    spheres = HandSpheres(
        torch.tensor(part),
        tensor(centre - joints[part]),
        tensor(centre_dirs - hand.joints_shapedirs[part]),
        tensor(np.array([s.radius for s in found])),
        tensor(np.stack([s.radius_dirs for s in found])),
        tensor(joints),
        tensor(hand.joints_shapedirs),
        torch.zeros(0, 2, dtype=torch.int64),
    )
    return replace(spheres, pairs=incompatible_pairs(spheres))


def incompatible_pairs(spheres: HandSpheres) -> Tensor:
    """(P, 2) spheres i < j that no hand can bring together without pushing flesh into flesh.

    Left out are spheres of one part; of a joint's part and its parent's (a bent joint folds its skin: so the palm and
    the finger bases, the thumb's metacarpal among them); and any two that touch at rest in the mean hand or at two
    standard deviations of a beta, as the flesh of neighbouring finger bases does.
    """
    first, second = torch.triu_indices(len(spheres.part), len(spheres.part), 1)
    parents = torch.tensor(MANO_PARENTS)
    a, b = spheres.part[first], spheres.part[second]
    related = (a == b) | (parents[a] == b) | (parents[b] == a)
    shapes = _SHAPES_SD * torch.cat([torch.zeros(1, 10), torch.eye(10), -torch.eye(10)]).to(spheres.offset)
    rest = spheres.posed(torch.eye(3).to(shapes).expand(len(shapes), 16, 3, 3), shapes)
    apart = (rest.centres[:, first] - rest.centres[:, second]).norm(dim=-1)
    touching = (apart < rest.radii[:, first] + rest.radii[:, second]).any(0)
    return torch.stack([first, second], 1)[~(related | touching)]


@dataclass(frozen=True, eq=False)
class _Sphere:
    part: int
    centre: np.ndarray
    centre_dirs: np.ndarray
    radius: float
    radius_dirs: np.ndarray


def _along(hand: Hand, part: int, start: np.ndarray, end: np.ndarray, stations: tuple[float, ...]) -> list[_Sphere]:
    """Spheres at shares of the bone from `start` to `end`."""
    along = (end - start) / np.linalg.norm(end - start)
    aside = np.eye(3)[np.abs(along).argmin()]
    aside = aside - along * (along @ aside)
    aside /= np.linalg.norm(aside)
    turn = np.pi * np.arange(_RAY_PAIRS) / _RAY_PAIRS
    half = np.cos(turn)[:, None] * aside + np.sin(turn)[:, None] * np.cross(along, aside)
    found = []
    for share in stations:
        origin = start + share * (end - start)
        # Twice: from the middle of the flesh the pairs are true diameters.
        for _ in range(2):
            skin, skin_dirs = _exits(hand, origin, np.concatenate([half, -half]))
            across = (skin[:_RAY_PAIRS] - skin[_RAY_PAIRS:]) / 2
            width = np.linalg.norm(across, axis=1)
            kept = width <= _WIDEST * np.nanmin(width, initial=np.inf)
            if not kept.any():
                raise ModelError(f"{hand.name}: the mesh does not close around joint {part}, so it has no spheres.")
            both = np.concatenate([kept, kept])
            origin = skin[both].mean(0)
        towards = across[kept] / width[kept, None]
        across_dirs = (skin_dirs[:_RAY_PAIRS] - skin_dirs[_RAY_PAIRS:])[kept] / 2
        radius_dirs = np.einsum("kc,kcb->kb", towards, across_dirs).mean(0)
        found.append(_Sphere(part, origin, skin_dirs[both].mean(0), float(width[kept].mean()), radius_dirs))
    return found


def _exits(hand: Hand, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays first leave the rest mesh: (n, 3) and (n, 3, 10) by the betas, on a fixed triangle; NaN if never.

    Moeller and Trumbore's test of every ray with every triangle.
    """
    a, b, c = (hand.v_template[hand.faces[:, k]] for k in range(3))
    e1, e2, t = b - a, c - a, origin - a
    det = directions @ np.cross(e2, e1).T
    q = np.cross(t, e1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = directions @ np.cross(e2, t).T / det
        v = directions @ q.T / det
        distance = (q * e2).sum(1) / det
        # The determinant is negative where a ray meets the back of a triangle, on its way out.
        hit = (det < 0) & (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)
    distance = np.where(hit, distance, np.inf)
    face, row = distance.argmin(1), np.arange(len(directions))
    weights = np.stack([1 - u[row, face] - v[row, face], u[row, face], v[row, face]], 1)
    weights[~np.isfinite(distance[row, face])] = np.nan
    corners = hand.faces[face]
    points = np.einsum("nk,nkc->nc", weights, hand.v_template[corners])
    return points, np.einsum("nk,nkcb->ncb", weights, hand.shapedirs[corners])


def _shaped(dirs: Tensor, betas: Tensor) -> Tensor:
    """(n, 3, 10) directions and (B, 10) betas to (B, n, 3), each hand's rounding its own (see `core.products`)."""
    return bmm(dirs.reshape(-1, 10).expand(len(betas), -1, 10), betas[..., None]).reshape(len(betas), -1, 3)
