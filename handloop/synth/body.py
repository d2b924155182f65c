"""The hand's mesh continued by a forearm: constants of one model, and the forearm of one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handloop.core.errors import ModelError
from handloop.hand.load import mirror_hand
from handloop.hand.model import N_FACES, N_VERTICES, Hand

N_BARE, N_RINGS = 5, 10
"""Rings of vertices around the forearm: those before a sleeve may begin, and all."""

_BARE = np.array([0.08, 0.25, 0.45, 0.7, 1.0])
_REST = np.array([0.01, 0.2, 0.45, 0.75, 1.0])
"""Where the rings lie, as shares of the bare part's length and of what follows."""

_BEND = 0.04
"""m behind the wrist over which its bend is spread."""


@dataclass(frozen=True)
class Arm:
    """What the forearm of one picture looks like."""

    length: float
    """m."""
    bare: float
    """m from the wrist to the sleeve's hem, or to where it would be."""
    sleeve: float
    """m, how far the sleeve stands off the skin; 0 for none."""
    girth: float
    """Thickness relative to an average arm."""
    flexion: float
    """rad, the wrist's bend towards the palm."""
    deviation: float
    """rad, towards the little finger."""


@dataclass(frozen=True, eq=False)
class Body:
    """Topology and frame of one side's hand with a forearm: vertices 0..777 the hand's, then the rings', then a cap."""

    faces: np.ndarray
    """(F, 3) vertex ids, the hand's 1538 first, outward."""
    loop: np.ndarray
    """(L,) vertices of the wrist's opening, in order."""
    axes: np.ndarray
    """(3, 3) columns: along the forearm away from the hand, towards the back of the hand, towards the thumb; rest
    frame."""
    is_sleeve: np.ndarray
    """(F,) bool: faces that a sleeve would cover."""

    @classmethod
    def of(cls, hand: Hand) -> Body:
        """Of one side's model.

        Raises:
            ModelError: the mesh does not have one opening.
        """
        loop = _opening(hand)
        n = len(loop)
        rings = np.concatenate([loop, N_VERTICES + np.arange(N_RINGS * n)]).reshape(N_RINGS + 1, n)
        here, there = rings[:-1], rings[1:]
        here_next, there_next = np.roll(here, -1, 1), np.roll(there, -1, 1)
        tube = np.stack([here_next, here, there, here_next, there, there_next], -1).reshape(-1, 3)
        last = rings[-1]
        cap = np.stack([np.roll(last, -1), last, np.full(n, N_VERTICES + N_RINGS * n)], 1)
        faces = np.concatenate([hand.faces, tube, cap])
        is_sleeve = np.zeros(len(faces), bool)
        is_sleeve[N_FACES + 2 * n * N_BARE :] = True
        return cls(faces, loop, _wrist_axes(hand), is_sleeve)

    def vertices(self, hand_vertices: np.ndarray, turn: np.ndarray, arm: Arm) -> np.ndarray:
        """(V, 3) m: a posed hand (778, 3) with its forearm; `turn` (3, 3) is the wrist's rotation."""
        axes = turn @ self.axes
        start = hand_vertices[self.loop]
        middle = start.mean(0)
        local = (start - middle) @ axes
        angle = np.arctan2(local[:, 1], local[:, 2])
        # Half the opening's thickness and width: an ellipse of the same second moments.
        half = np.sqrt(2 * (local[:, 1:] ** 2).mean(0))
        at = np.concatenate([_BARE * arm.bare, arm.bare + _REST * max(arm.length - arm.bare, 0.02)])
        shape = np.clip(at / 0.03, 0, 1)[:, None]
        shape = shape * shape * (3 - 2 * shape)
        # A forearm is narrowest behind the wrist and nearly round and half as wide again below the elbow.
        share = np.clip(at / 0.2, 0, 1)[:, None]
        thick = half[0] * (1 + 0.75 * share) * arm.girth + (np.arange(N_RINGS) >= N_BARE)[:, None] * arm.sleeve
        width = half[1] * (0.97 + 0.4 * share) * arm.girth + (np.arange(N_RINGS) >= N_BARE)[:, None] * arm.sleeve
        dorsal = (1 - shape) * local[:, 1] + shape * thick * np.sin(angle)
        radial = (1 - shape) * local[:, 2] + shape * width * np.cos(angle)
        along = (1 - shape) * local[:, 0]
        bent = np.clip(at / _BEND, 0, 1)
        turns = _bends(bent * arm.flexion, bent * arm.deviation)
        steps = np.diff(np.concatenate([[0.0], at]))
        path = np.cumsum(turns[:, :, 0] * steps[:, None], 0)
        ring = np.einsum("kij,knj->kni", turns, np.stack([along, dorsal, radial], -1)) + path[:, None]
        tube = ring.reshape(-1, 3) @ axes.T + middle
        cap = path[-1] @ axes.T + middle
        return np.concatenate([hand_vertices, tube, cap[None]])

    def direction(self, turn: np.ndarray, arm: Arm) -> np.ndarray:
        """(3,) the way the forearm goes from the wrist, for the wrist's rotation (3, 3)."""
        bend = _bends(np.array([arm.flexion]), np.array([arm.deviation]))[0]
        return np.asarray(turn @ self.axes @ bend[:, 0])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, faces weighted by area."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(across[:, k], 3), minlength=len(vertices)) for k in range(3)], 1
    )
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


def _bends(flexion: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(n, 3, 3) rotations of the forearm's frame (along, dorsal, radial)."""
    sf, cf, sd, cd = np.sin(flexion), np.cos(flexion), np.sin(deviation), np.cos(deviation)
    zero, one = np.zeros_like(sf), np.ones_like(sf)
    # A hand bent to its palm leaves the forearm behind on the palm's side.
    to_palm = np.stack([cf, sf, zero, -sf, cf, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    aside = np.stack([cd, zero, sd, zero, one, zero, -sd, zero, cd], -1).reshape(-1, 3, 3)
    return to_palm @ aside


def _wrist_axes(hand: Hand) -> np.ndarray:
    joints = (hand if hand.is_right else mirror_hand(hand)).joints_rest
    distal = _unit(joints[4] - joints[0])
    # (index - wrist) x (pinky - wrist) points out of the palm of a right hand.
    dorsal = np.cross(joints[7] - joints[0], joints[1] - joints[0])
    dorsal = _unit(dorsal - distal * (dorsal @ distal))
    radial = np.cross(distal, dorsal)
    if radial @ (joints[1] - joints[7]) < 0:
        radial = -radial
    axes = np.stack([-distal, dorsal, radial], 1)
    return axes if hand.is_right else axes * np.array([[-1.0], [1.0], [1.0]])


def _opening(hand: Hand) -> np.ndarray:
    edges = np.concatenate([hand.faces[:, [0, 1]], hand.faces[:, [1, 2]], hand.faces[:, [2, 0]]])
    known = {(int(a), int(b)) for a, b in edges}
    follows = {a: b for a, b in known if (b, a) not in known}
    loop = [min(follows)] if follows else []
    while loop and follows.get(loop[-1], loop[0]) != loop[0] and len(loop) <= len(follows):
        loop.append(follows[loop[-1]])
    if len(loop) < 3 or len(loop) != len(follows):
        raise ModelError(f"{hand.name}: the mesh's boundary is not one loop, so that no forearm can be joined to it.")
    return np.array(loop)


def _unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / np.linalg.norm(v))
