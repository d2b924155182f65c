"""Synthetic hands for the bundled examples: who is in front of the camera, what a detector finds, and the picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
import trimesh
from PIL import Image, ImageFilter

from handloop.core.camera import Camera
from handloop.core.joints import CANONICAL_FROM_MANO
from handloop.core.params import HandParams
from handloop.core.rotations import so3_exp, so3_log
from handloop.hand.mesh import skin
from handloop.hand.model import HandPair
from handloop.view.raycast import shade_mesh

WIDTH, HEIGHT = 640, 480
FOCAL = 600.0
"""px: 56 degrees across the picture, as many webcams have."""

_SPREAD_DEG = (25.0, 35.0, 30.0)
"""Standard deviations of a hand's turn out of the upright: tilt to the viewer, about its own length, in the picture."""
_JITTER_RAD = 0.05
"""Standard deviation of every joint angle about the posture."""
_MARGIN = 12.0
"""px that all points keep from the picture's edge."""
_NOISE_PX = 2.2
"""Standard deviation of a well visible point, px at a hand box of 224 px; hidden ones have twice as much."""
_BEHIND_M = 0.018
"""A joint this far behind the first skin on its ray is hidden: half a finger's thickness and a little."""

SKINS = ((224, 172, 138), (198, 134, 98), (141, 92, 66), (236, 194, 166), (104, 68, 50))
"""RGB of skin in full light."""
WALLS = ((176, 186, 196), (196, 188, 172), (120, 132, 140), (160, 176, 160), (206, 204, 200))
"""RGB of the background's middle."""


@dataclass(frozen=True)
class SceneHand:
    """A hand before the camera, and what a detector says about it."""

    name: str
    """Its posture."""
    is_right: bool
    vertices: np.ndarray
    """(778, 3) m, camera frame."""
    joints: np.ndarray
    """(21, 3) m, camera frame, canonical order."""
    keypoints: np.ndarray
    """(21, 3) x, y in px as found, confidence; zeros for points that were not found."""


def camera() -> Camera:
    """The camera of all examples."""
    middle = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    return Camera.from_matrix([[FOCAL, 0, middle[0]], [0, FOCAL, middle[1]], [0, 0, 1]])


def postures() -> dict[str, np.ndarray]:
    """(45,) flat-mean axis-angle by name."""
    text = resources.files("handloop.hand").joinpath("data/postures.json").read_text(encoding="utf-8")
    return {name: np.array(pose) for name, pose in json.loads(text).items()}


def make_hand(
    pair: HandPair, posture: str, is_right: bool, strip: tuple[float, float], rng: np.random.Generator
) -> SceneHand:
    """A hand of random size and view whose points lie between the columns `strip` (px).

    Raises:
        RuntimeError: no view of a hundred fits between the columns.
    """
    for _ in range(100):
        params = _params(posture, is_right, strip, rng)
        vertices, skeleton = (t[0].numpy() for t in skin(pair.side(is_right), *params.tensors()))
        tips = vertices[pair.side(is_right).tip_ids]
        joints = np.concatenate([skeleton, tips])[list(CANONICAL_FROM_MANO)]
        uv = camera().project(torch.from_numpy(joints)[None])[0].numpy()
        inside = (uv > (strip[0] + _MARGIN, _MARGIN)).all() and (uv < (strip[1] - _MARGIN, HEIGHT - _MARGIN)).all()
        if inside and np.ptp(uv, axis=0).min() > 40:
            hidden = _hidden(vertices, pair.side(is_right).faces, joints)
            return SceneHand(posture, is_right, vertices, joints, _detect(uv, hidden, rng))
    raise RuntimeError(f"no view of {posture} fits between the columns {strip}.")


def _params(posture: str, is_right: bool, strip: tuple[float, float], rng: np.random.Generator) -> HandParams:
    pose = postures()[posture] + rng.normal(0, _JITTER_RAD, 45)
    betas = rng.normal(0, 1, 10).clip(-2, 2)
    depth = rng.uniform(0.35, 0.7)
    column = strip[0] + rng.uniform(0.3, 0.7) * (strip[1] - strip[0])
    row = rng.uniform(0.35, 0.75) * HEIGHT
    # The model's origin lies in the middle of the hand, so this is where the hand ends up.
    place = np.array([(column - WIDTH / 2) / FOCAL, (row - HEIGHT / 2) / FOCAL, 1.0]) * depth
    orient, hand_pose, shape, nowhere = (torch.from_numpy(v)[None] for v in (_orient(rng), pose, betas, np.zeros(3)))
    right = HandParams(orient, hand_pose, shape, nowhere)
    params = right if is_right else right.mirrored()
    return HandParams(params.global_orient, params.hand_pose, params.betas, torch.from_numpy(place)[None])


def _orient(rng: np.random.Generator) -> np.ndarray:
    """(3,) axis-angle: fingers upward, palm or back to the viewer, then turned at random."""
    # The model's fingers point along -x, its back along y, its right thumb along z; the camera's y points down.
    upright = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    tilt, about, within = np.deg2rad(rng.normal(0, _SPREAD_DEG))
    about += np.pi * rng.integers(2)
    turns = so3_exp(torch.tensor([[0.0, 0, within], [tilt, 0, 0], [0, about, 0]], dtype=torch.float64))
    return so3_log(turns[0] @ turns[1] @ turns[2] @ upright).numpy()


def _hidden(vertices: np.ndarray, faces: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """(21,) bool, joints behind another part of the hand."""
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    directions = joints / np.linalg.norm(joints, axis=1, keepdims=True)
    hits, rays, _ = mesh.ray.intersects_location(np.zeros_like(joints), directions, multiple_hits=False)
    first = np.full(21, np.inf)
    first[rays] = np.linalg.norm(hits, axis=1)
    hidden: np.ndarray = np.linalg.norm(joints, axis=1) - first > _BEHIND_M
    return hidden


def _detect(uv: np.ndarray, hidden: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(21, 3) what a detector finds: hidden points and unlucky ones are off by more, with less confidence."""
    conf = np.where(hidden, rng.uniform(0.35, 0.65, 21), rng.uniform(0.65, 0.95, 21))
    sigma = _NOISE_PX * np.ptp(uv, axis=0).max() / 224 * (0.8 / conf)
    found = np.column_stack([uv + sigma[:, None] * rng.normal(0, 1, (21, 2)), conf])
    found[rng.random(21) < np.where(hidden, 0.1, 0.01)] = 0.0
    return found


def picture(hands: Sequence[SceneHand], pair: HandPair, rng: np.random.Generator) -> bytes:
    """The JPEG of a scene: arms before a plain wall, with a sensor's noise."""
    canvas = _wall(rng)
    colour = SKINS[rng.integers(len(SKINS))]
    for hand in sorted(hands, key=lambda h: -float(h.joints[0, 2])):
        vertices, faces = _with_forearm(hand.vertices, pair.side(hand.is_right).faces)
        shaded = shade_mesh(vertices, faces, camera(), (WIDTH, HEIGHT), colour)
        if shaded is None:
            continue
        rows, columns = shaded.cover.shape
        part = canvas[shaded.y0 : shaded.y0 + rows, shaded.x0 : shaded.x0 + columns]
        part[:] = part * (1 - shaded.cover[..., None]) + shaded.colour
    soft = np.asarray(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7)))
    noisy = soft + rng.normal(0, 2.5, (HEIGHT, WIDTH, 1)) + rng.normal(0, 1.0, (HEIGHT, WIDTH, 3))
    out = io.BytesIO()
    Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def _wall(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) a wall lit from one side, darker towards the corners."""
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + 0.12 * (np.cos(angle) * x + np.sin(angle) * y) - 0.1 * (x**2 + y**2)
    wall: np.ndarray = np.array(WALLS[rng.integers(len(WALLS))]) * light[..., None]
    return wall


def _with_forearm(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with its open wrist drawn out by 60 cm, so that no picture shows its end."""
    loop = _boundary(faces)
    rim = vertices[loop]
    middle = rim.mean(0)
    # The rim's normal, away from the hand.
    axis = np.linalg.svd(rim - middle)[2][2]
    axis *= np.sign(axis @ (middle - vertices.mean(0)))
    points, triangles = [vertices], [faces]
    before, count = loop, len(vertices)
    for length in (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.6):
        ring = middle + (rim - middle) * (1 + 0.35 * min(length / 0.2, 1)) + length * axis
        ids = np.arange(count, count + len(loop))
        a, b, c, d = before, np.roll(before, -1), ids, np.roll(ids, -1)
        triangles += [np.column_stack([a, c, b]), np.column_stack([b, c, d])]
        points.append(ring)
        before, count = ids, count + len(loop)
    return np.concatenate(points), np.concatenate(triangles)


def _boundary(faces: np.ndarray) -> np.ndarray:
    """The vertex ids around the mesh's opening, in the direction in which its faces run along it."""
    edges = {(a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True)}
    follows = {a: b for a, b in edges if (b, a) not in edges}
    loop = [min(follows)]
    while follows[loop[-1]] != loop[0]:
        loop.append(follows[loop[-1]])
    return np.array(loop)
