"""Objects before the hand: boxes, discs and sticks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handloop.synth.picture import Truth

_GAP = 0.005
"""m between an object and the nearest point of the hand."""
_NEAREST = 0.06
"""m from the camera; an object that would come nearer is left out."""
_CORNERS = 24

_BOX = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_BOX_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
_BOX_FACES = np.array([t for a, b, c, d in _BOX_QUADS for t in ((a, b, c), (a, c, d))])


@dataclass(frozen=True, eq=False)
class Occluder:
    """One object."""

    vertices: np.ndarray
    """(V, 3) m, camera frame."""
    faces: np.ndarray
    """(F, 3) vertex ids."""
    colour: np.ndarray
    """(3,) linear reflectance."""


def draw_occluders(generator: np.random.Generator, truth: Truth, share: float) -> list[Occluder]:
    """One to three objects between the camera and the hand in `share` of the cases, else none."""
    if generator.random() >= share:
        return []
    found = []
    for _ in range(int(generator.integers(1, 4))):
        shape, faces = _shape(generator)
        target = truth.keypoints_3d[generator.integers(21)] + generator.normal(0, 0.012, 3)
        axis_angle = generator.standard_normal((3, 3))
        turn, _ = np.linalg.qr(axis_angle)
        turn *= np.sign(np.linalg.det(turn))
        size = np.exp(generator.uniform(np.log(0.012), np.log(0.04)))
        depth_share = generator.uniform(0.6, 1.0)
        colour = generator.uniform(0.02, 0.9, 3) ** generator.uniform(1, 2)
        body = size * shape @ turn.T
        front = float(truth.vertices[:, 2].min()) - _GAP
        depth = depth_share * front - float(body[:, 2].max())
        if depth + float(body[:, 2].min()) < _NEAREST or target[2] <= 0:
            continue
        # The nearer the object, the smaller it has to be to hide as much.
        scale = min(1.0, depth / front)
        found.append(Occluder(scale * body + target * (depth / target[2]), faces, colour))
    return found


def _shape(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(V, 3) of unit size and (F, 3)."""
    kind = generator.integers(3)
    proportions = generator.uniform(0.35, 1.0, 3)
    length = generator.uniform(2.0, 5.0)
    if kind == 0:
        return _BOX * proportions, _BOX_FACES
    angle = np.arange(_CORNERS) * 2 * np.pi / _CORNERS
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(_CORNERS)], 1)
    # A disc is a flat stick.
    half = np.array([0.0, 0.0, 0.08 if kind == 1 else length])
    radius = 1.0 if kind == 1 else 0.35
    vertices = np.concatenate([radius * circle - half, radius * circle + half, [-half, half]])
    here = np.arange(_CORNERS)
    there = np.roll(here, -1)
    low, high = np.full(_CORNERS, 2 * _CORNERS), np.full(_CORNERS, 2 * _CORNERS + 1)
    faces = np.concatenate(
        [
            np.stack([here, there, there + _CORNERS], 1),
            np.stack([here, there + _CORNERS, here + _CORNERS], 1),
            np.stack([there, here, low], 1),
            np.stack([here + _CORNERS, there + _CORNERS, high], 1),
        ]
    )
    return vertices, faces
